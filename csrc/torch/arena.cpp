#include "../kernels/cpu/arena.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "glue.hpp"

#ifdef PYNAS_HAS_CUDA
#include "../kernels/cuda/arena.hpp"
#endif

namespace pynas::torch_glue {
namespace arena {

constexpr int64_t grain = 1 << 14;  // elements a thread takes at least
constexpr int64_t columns = sizeof(kernels::ArenaChunk) / sizeof(int64_t);
constexpr int64_t group_values = 5;  // lr, weight decay, momentum, decay of the squares, eps

void check_beside(const char* op, const char* name, const Tensor& tensor, const Tensor& first) {
  PYNAS_REQUIRE(tensor.is_contiguous(), op, name, "not contiguous", "contiguous tensors");
  PYNAS_REQUIRE(tensor.device() == first.device(), op, name, "on another device", "tensors of one device");
}

void check_floats(const char* op, const char* name, const Tensor& tensor, const Tensor& first) {
  PYNAS_REQUIRE(tensor.scalar_type() == ScalarType::Float, op, name, dtype_of(tensor), "float32");
  PYNAS_REQUIRE(tensor.numel() == first.numel(), op, name, shape_of(tensor), "as many values as the first argument");
  check_beside(op, name, tensor, first);
}

bool check_average(const Tensor& average, const Tensor& values) {
  const char* op = "pynas::ema_update";
  check_floats(op, "average", average, average);
  const bool low = values.scalar_type() == ScalarType::BFloat16;
  PYNAS_REQUIRE(low || values.scalar_type() == ScalarType::Float, op, "values", dtype_of(values), "float32, bfloat16");
  PYNAS_REQUIRE(values.numel() == average.numel(), op, "values", shape_of(values), "as many values as average");
  check_beside(op, "values", values, average);
  return low;
}

float* floats(Tensor& tensor) {
  return static_cast<float*>(tensor.mutable_data_ptr());
}

void ema_update_cpu(Tensor average, Tensor values, double decay) {
  const bool low = check_average(average, values);
  const auto& kernels = PYNAS_CHOOSE(arena);
  float* to = floats(average);
  const void* from = values.const_data_ptr();
  const float share = static_cast<float>(1.0 - decay);
  parallel()(average.numel(), grain, [&](int64_t begin, int64_t end) {
    if (low)
      kernels.average_bf16(to, static_cast<const kernels::bf16*>(from), share, begin, end);
    else
      kernels.average(to, static_cast<const float*>(from), share, begin, end);
  });
}

void check_table(const char* op, const char* name, const Tensor& table, const Tensor& first) {
  PYNAS_REQUIRE(table.scalar_type() == ScalarType::Long, op, name, dtype_of(table), "int64");
  check_beside(op, name, table, first);
}

void check_chunks(const char* op, const Tensor& chunks, const Tensor& first) {
  check_table(op, "chunks", chunks, first);
  PYNAS_REQUIRE(chunks.dim() == 2 && chunks.size(1) == columns, op, "chunks", shape_of(chunks), "(chunks, 6)");
}

// Whether the tensor's values fill a run of memory, in whatever order.
bool dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> dimensions;
  for (int64_t i = 0; i < tensor.dim(); ++i)
    if (tensor.size(i) > 1) dimensions.emplace_back(tensor.stride(i), tensor.size(i));
  std::sort(dimensions.begin(), dimensions.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Where the tensors lie; an empty one stands for none.
std::vector<kernels::ArenaSource> sources_of(const char* op, const char* name, const std::vector<Tensor>& tensors,
                                             const Tensor& first) {
  std::vector<kernels::ArenaSource> sources;
  sources.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    const auto require = [&](bool good, const auto& came, const char* allowed) {
      if (!good) refuse(op, (name + ("[" + std::to_string(sources.size()) + "]")).c_str(), came(), allowed);
    };
    const int64_t count = tensor.numel();
    if (count == 0) {
      sources.push_back({0, 0, 0});
      continue;
    }
    const ScalarType type = tensor.scalar_type();
    const bool low = type == ScalarType::BFloat16;
    require(low || type == ScalarType::Float, [&] { return dtype_of(tensor); }, "float32, bfloat16");
    require(tensor.device() == first.device(), [] { return "on another device"; }, "tensors of one device");
    require(dense(tensor), [&] { return "of shape " + shape_of(tensor) + " with gaps"; }, "values without gaps");
    const auto address = reinterpret_cast<int64_t>(tensor.const_data_ptr());
    require(address != 0, [] { return "without memory"; }, "tensors whose storage has memory");
    sources.push_back({address, count, low ? 1 : 0});
  }
  return sources;
}

// On a GPU the kernels ask `fits`, for the rows are there.
void check_rows(const char* op, const kernels::ArenaChunk* chunks, int64_t count, const kernels::ArenaBounds& bounds,
                const kernels::ArenaSource* sources) {
  int64_t end = 0;
  for (int64_t i = 0; i < count; ++i) {
    const kernels::ArenaChunk& chunk = chunks[i];
    if (chunk.offset < end || !fits(chunk, bounds, sources)) {
      const int64_t row[] = {chunk.offset, chunk.low, chunk.start, chunk.count, chunk.gradient, chunk.group};
      std::string text = "row " + std::to_string(i) + " of";
      for (const int64_t value : row) text += ' ' + std::to_string(value);
      refuse(op, "chunks", text,
             "offset, low, start, count, tensor, group: in order of offset, each within its tensors, of their types");
    }
    end = chunk.offset + chunk.count;
  }
}

#ifdef PYNAS_HAS_CUDA
// A copy on the GPU, of which the current stream has the only use.
Tensor on_gpu(const std::vector<kernels::ArenaSource>& sources, const Tensor& beside) {
  constexpr int64_t values = sizeof(kernels::ArenaSource) / sizeof(int64_t);
  Tensor table =
      torch::stable::new_empty(beside, {static_cast<int64_t>(sources.size()) * values + 1}, ScalarType::Long);
  kernels::cuda::put(static_cast<kernels::ArenaSource*>(table.mutable_data_ptr()), sources.data(),
                     static_cast<int64_t>(sources.size()), stream_of(beside));
  return table;
}
#endif

// Tensors that a caller wants watched: handing over a list of them takes longer than all that a step asks of it, so it
// is handed over once. Whoever sets a tensor's data changes what the kept handle shows.
class Watched {
 public:
  explicit Watched(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {
    for (const Tensor& tensor : tensors_) each(tensor, [&](int64_t value) { return places_.push_back(value), true; });
  }

  bool in_place() const {
    auto place = places_.begin();
    for (const Tensor& tensor : tensors_)
      if (!each(tensor, [&](int64_t value) { return value == *place++; })) return false;
    return true;
  }

  const std::vector<Tensor>& tensors() const { return tensors_; }

 private:
  // Address, type, shape and strides, until `body` has had enough.
  template <class Body>
  static bool each(const Tensor& tensor, const Body& body) {
    void* address = nullptr;
    int32_t type = 0;
    int64_t dimensions = 0, *sizes = nullptr, *strides = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor.get(), &address));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor.get(), &dimensions));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
    if (!body(reinterpret_cast<int64_t>(address)) || !body(type) || !body(dimensions)) return false;
    for (int64_t i = 0; i < dimensions; ++i)
      if (!body(sizes[i]) || !body(strides[i])) return false;
    return true;
  }

  std::vector<Tensor> tensors_;
  std::vector<int64_t> places_;
};

struct Watches {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<const Watched>> by_number;
  int64_t next = 1;
};

// Never destroyed: torch may be gone by then.
Watches& watches() {
  static Watches& all = *new Watches;
  return all;
}

int64_t watch(std::vector<Tensor> tensors) {
  auto watched = std::make_shared<const Watched>(std::move(tensors));
  Watches& all = watches();
  const std::lock_guard lock(all.mutex);
  all.by_number.emplace(all.next, std::move(watched));
  return all.next++;
}

std::shared_ptr<const Watched> watched(const char* op, const char* argument, int64_t number) {
  Watches& all = watches();
  const std::lock_guard lock(all.mutex);
  const auto place = all.by_number.find(number);
  PYNAS_REQUIRE(place != all.by_number.end(), op, argument, std::to_string(number), "what pynas::watch returned");
  return place->second;
}

bool watched_in_place(int64_t number) {
  return watched("pynas::watched_in_place", "number", number)->in_place();
}

void unwatch(int64_t number) {
  std::shared_ptr<const Watched> last;  // outlives the lock, without which its tensors are freed
  Watches& all = watches();
  const std::lock_guard lock(all.mutex);
  if (auto node = all.by_number.extract(number)) last = std::move(node.mapped());
}

template <bool cuda>
void ema_update_from(Tensor average, Tensor chunks, int64_t values, double decay) {
  const char* op = "pynas::ema_update_from";
  check_floats(op, "average", average, average);
  check_chunks(op, chunks, average);
  const auto tensors = watched(op, "values", values);
  const auto sources = sources_of(op, "values", tensors->tensors(), average);
  constexpr int64_t any = std::numeric_limits<int64_t>::max();  // `low` tells the type alone, and groups say nothing
  kernels::ArenaFollow follow{floats(average),
                              static_cast<const kernels::ArenaChunk*>(chunks.const_data_ptr()),
                              chunks.size(0),
                              sources.data(),
                              static_cast<float>(1.0 - decay),
                              {average.numel(), any, any, static_cast<int64_t>(sources.size()), true}};
  if (follow.chunk_count == 0) return;
#ifdef PYNAS_HAS_CUDA
  if constexpr (cuda) {
    torch::stable::accelerator::DeviceGuard guard(average.get_device_index());
    const Tensor table = on_gpu(sources, average);
    follow.values = static_cast<const kernels::ArenaSource*>(table.const_data_ptr());
    kernels::cuda::follow(follow, stream_of(average));
    return check_launch(op);
  }
#endif
  check_rows(op, follow.chunks, follow.chunk_count, follow.bounds, follow.values);
  const auto& kernels = PYNAS_CHOOSE(arena);
  parallel()(average.numel(), grain, [&](int64_t begin, int64_t end) { kernels.follow(follow, begin, end); });
}

std::vector<kernels::ArenaGroup> groups_of(const char* op, const std::vector<double>& values) {
  PYNAS_REQUIRE(values.size() % group_values == 0, op, "groups", std::to_string(values.size()) + " numbers",
                "lr, weight_decay, momentum, decay, eps of each group");
  std::vector<kernels::ArenaGroup> groups;
  for (size_t i = 0; i < values.size(); i += group_values) {
    const auto as_float = [&](size_t j) { return static_cast<float>(values[i + j]); };
    groups.push_back(
        {as_float(0), as_float(1), as_float(2), as_float(3), static_cast<float>(1.0 - values[i + 3]), as_float(4)});
  }
  return groups;
}

kernels::ArenaStep step_of(const char* op, Tensor& weights, Tensor* squares, Tensor& momentum,
                           std::optional<Tensor>& average, std::optional<Tensor>& low, const Tensor& chunks,
                           double average_decay) {
  check_floats(op, "weights", weights, weights);
  check_floats(op, "momentum", momentum, weights);
  if (squares != nullptr) check_floats(op, "squares", *squares, weights);
  if (average) check_floats(op, "average", *average, weights);
  if (low) {
    PYNAS_REQUIRE(low->scalar_type() == ScalarType::BFloat16, op, "low", dtype_of(*low), "bfloat16");
    check_beside(op, "low", *low, weights);
  }
  check_chunks(op, chunks, weights);
  return {floats(weights),
          squares == nullptr ? nullptr : floats(*squares),
          floats(momentum),
          average ? floats(*average) : nullptr,
          low ? static_cast<kernels::bf16*>(low->mutable_data_ptr()) : nullptr,
          static_cast<const kernels::ArenaChunk*>(chunks.const_data_ptr()),
          chunks.size(0),
          nullptr,
          nullptr,
          static_cast<float>(1.0 - average_decay),
          {weights.numel(), low ? low->numel() : 0, 0, 0, false}};
}

void run_cpu(const char* op, kernels::ArenaStep step, const std::vector<kernels::ArenaGroup>& groups) {
  if (step.chunk_count == 0) return;
  step.groups = groups.data();
  check_rows(op, step.chunks, step.chunk_count, step.bounds, step.gradients);
  const auto& last = step.chunks[step.chunk_count - 1];
  const auto& kernels = PYNAS_CHOOSE(arena);
  parallel()(last.offset + last.count, grain, [&](int64_t begin, int64_t end) { kernels.step(step, begin, end); });
}

#ifdef PYNAS_HAS_CUDA
void ema_update_cuda(Tensor average, Tensor values, double decay) {
  const bool low = check_average(average, values);
  if (average.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(average.get_device_index());
  const float share = static_cast<float>(1.0 - decay);
  if (low)
    kernels::cuda::average(floats(average), static_cast<const kernels::bf16*>(values.const_data_ptr()), share,
                           average.numel(), stream_of(average));
  else
    kernels::cuda::average(floats(average), static_cast<const float*>(values.const_data_ptr()), share, average.numel(),
                           stream_of(average));
  check_launch("pynas::ema_update");
}

void run_cuda(const char* op, kernels::ArenaStep step, const std::vector<kernels::ArenaGroup>& groups,
              const std::vector<kernels::ArenaSource>& sources, const Tensor& weights) {
  PYNAS_REQUIRE(groups.size() <= kernels::cuda::most_groups, op, "groups", std::to_string(groups.size()) + " groups",
                "up to 64 groups on a GPU");
  if (step.chunk_count == 0) return;
  torch::stable::accelerator::DeviceGuard guard(weights.get_device_index());
  const Tensor table = on_gpu(sources, weights);
  step.gradients = static_cast<const kernels::ArenaSource*>(table.const_data_ptr());
  kernels::cuda::step(step, groups.data(), static_cast<int>(groups.size()), stream_of(weights));
  check_launch(op);
}
#endif

constexpr const char* rmsprop = "pynas::rmsprop_ema_step";
constexpr const char* sgd = "pynas::sgd_ema_step";

template <bool cuda>
void run(const char* op, kernels::ArenaStep step, const std::vector<Tensor>& gradients,
         const std::vector<double>& values, const Tensor& weights) {
  const auto groups = groups_of(op, values);
  const auto sources = sources_of(op, "gradients", gradients, weights);
  step.gradients = sources.data();
  step.bounds.groups = static_cast<int64_t>(groups.size());
  step.bounds.sources = static_cast<int64_t>(sources.size());
#ifdef PYNAS_HAS_CUDA
  if constexpr (cuda) return run_cuda(op, step, groups, sources, weights);
#endif
  run_cpu(op, step, groups);
}

template <bool cuda>
void rmsprop_ema_step(Tensor weights, Tensor squares, Tensor momentum, std::optional<Tensor> average,
                      std::optional<Tensor> low, Tensor chunks, std::vector<Tensor> gradients,
                      std::vector<double> groups, double average_decay) {
  run<cuda>(rmsprop, step_of(rmsprop, weights, &squares, momentum, average, low, chunks, average_decay), gradients,
            groups, weights);
}

template <bool cuda>
void sgd_ema_step(Tensor weights, Tensor momentum, std::optional<Tensor> average, std::optional<Tensor> low,
                  Tensor chunks, std::vector<Tensor> gradients, std::vector<double> groups, double average_decay) {
  run<cuda>(sgd, step_of(sgd, weights, nullptr, momentum, average, low, chunks, average_decay), gradients, groups,
            weights);
}

}  // namespace arena
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_FRAGMENT(pynas, m) {
  m.def("ema_update(Tensor(a!) average, Tensor values, float decay) -> ()");
  m.def("ema_update_from(Tensor(a!) average, Tensor chunks, int values, float decay) -> ()");
  m.def("watch(Tensor[] tensors) -> int");
  m.def("watched_in_place(int number) -> bool");
  m.def("unwatch(int number) -> ()");
  m.def(
      "rmsprop_ema_step(Tensor(a!) weights, Tensor(b!) squares, Tensor(c!) momentum, Tensor(d!)? average, "
      "Tensor(e!)? low, Tensor chunks, Tensor[] gradients, float[] groups, float average_decay) -> ()");
  m.def(
      "sgd_ema_step(Tensor(a!) weights, Tensor(b!) momentum, Tensor(c!)? average, Tensor(d!)? low, Tensor chunks, "
      "Tensor[] gradients, float[] groups, float average_decay) -> ()");
}

// Of any device; no value is read, so that autograd need not be asked.
STABLE_TORCH_LIBRARY_IMPL(pynas, CompositeImplicitAutograd, m) {
  m.impl("watch", TORCH_BOX(&pynas::torch_glue::arena::watch));
  m.impl("watched_in_place", TORCH_BOX(&pynas::torch_glue::arena::watched_in_place));
  m.impl("unwatch", TORCH_BOX(&pynas::torch_glue::arena::unwatch));
}

STABLE_TORCH_LIBRARY_IMPL(pynas, CPU, m) {
  m.impl("ema_update", TORCH_BOX(&pynas::torch_glue::arena::ema_update_cpu));
  m.impl("ema_update_from", TORCH_BOX(&pynas::torch_glue::arena::ema_update_from<false>));
  m.impl("rmsprop_ema_step", TORCH_BOX(&pynas::torch_glue::arena::rmsprop_ema_step<false>));
  m.impl("sgd_ema_step", TORCH_BOX(&pynas::torch_glue::arena::sgd_ema_step<false>));
}

#ifdef PYNAS_HAS_CUDA
STABLE_TORCH_LIBRARY_IMPL(pynas, CUDA, m) {
  m.impl("ema_update", TORCH_BOX(&pynas::torch_glue::arena::ema_update_cuda));
  m.impl("ema_update_from", TORCH_BOX(&pynas::torch_glue::arena::ema_update_from<true>));
  m.impl("rmsprop_ema_step", TORCH_BOX(&pynas::torch_glue::arena::rmsprop_ema_step<true>));
  m.impl("sgd_ema_step", TORCH_BOX(&pynas::torch_glue::arena::sgd_ema_step<true>));
}
#endif
