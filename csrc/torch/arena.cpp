#include "../kernels/cpu/arena.hpp"

#include <optional>
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

template <bool cuda>
void ema_update_from(Tensor average, Tensor chunks, Tensor values, double decay) {
  const char* op = "pynas::ema_update_from";
  check_floats(op, "average", average, average);
  check_chunks(op, chunks, average);
  check_table(op, "values", values, average);
  const kernels::ArenaFollow follow{floats(average), static_cast<const kernels::ArenaChunk*>(chunks.const_data_ptr()),
                                    chunks.size(0), static_cast<const int64_t*>(values.const_data_ptr()),
                                    static_cast<float>(1.0 - decay)};
  if (follow.chunk_count == 0) return;
#ifdef PYNAS_HAS_CUDA
  if constexpr (cuda) {
    torch::stable::accelerator::DeviceGuard guard(average.get_device_index());
    kernels::cuda::follow(follow, stream_of(average));
    return check_launch(op);
  }
#endif
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

// Addresses in `chunks` and `gradients` are the caller's affair: pynas/ops/arena.py makes both.
kernels::ArenaStep step_of(const char* op, Tensor& weights, Tensor* squares, Tensor& momentum,
                           std::optional<Tensor>& average, std::optional<Tensor>& low, const Tensor& chunks,
                           const Tensor& gradients, double average_decay) {
  check_floats(op, "weights", weights, weights);
  check_floats(op, "momentum", momentum, weights);
  if (squares != nullptr) check_floats(op, "squares", *squares, weights);
  if (average) check_floats(op, "average", *average, weights);
  if (low) {
    PYNAS_REQUIRE(low->scalar_type() == ScalarType::BFloat16, op, "low", dtype_of(*low), "bfloat16");
    check_beside(op, "low", *low, weights);
  }
  check_chunks(op, chunks, weights);
  check_table(op, "gradients", gradients, weights);
  return {floats(weights),
          squares == nullptr ? nullptr : floats(*squares),
          floats(momentum),
          average ? floats(*average) : nullptr,
          low ? static_cast<kernels::bf16*>(low->mutable_data_ptr()) : nullptr,
          static_cast<const kernels::ArenaChunk*>(chunks.const_data_ptr()),
          chunks.size(0),
          static_cast<const int64_t*>(gradients.const_data_ptr()),
          nullptr,
          static_cast<float>(1.0 - average_decay)};
}

void run_cpu(kernels::ArenaStep step, const std::vector<kernels::ArenaGroup>& groups) {
  if (step.chunk_count == 0) return;
  step.groups = groups.data();
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

void run_cuda(const char* op, const kernels::ArenaStep& step, const std::vector<kernels::ArenaGroup>& groups,
              const Tensor& weights) {
  PYNAS_REQUIRE(groups.size() <= kernels::cuda::most_groups, op, "groups", std::to_string(groups.size()) + " groups",
                "up to 64 groups on a GPU");
  if (step.chunk_count == 0) return;
  torch::stable::accelerator::DeviceGuard guard(weights.get_device_index());
  kernels::cuda::step(step, groups.data(), static_cast<int>(groups.size()), stream_of(weights));
  check_launch(op);
}
#endif

constexpr const char* rmsprop = "pynas::rmsprop_ema_step";
constexpr const char* sgd = "pynas::sgd_ema_step";

template <bool cuda>
void run(const char* op, const kernels::ArenaStep& step, const std::vector<double>& values,
         [[maybe_unused]] const Tensor& weights) {
  const auto groups = groups_of(op, values);
#ifdef PYNAS_HAS_CUDA
  if constexpr (cuda) return run_cuda(op, step, groups, weights);
#endif
  run_cpu(step, groups);
}

template <bool cuda>
void rmsprop_ema_step(Tensor weights, Tensor squares, Tensor momentum, std::optional<Tensor> average,
                      std::optional<Tensor> low, Tensor chunks, Tensor gradients, std::vector<double> groups,
                      double average_decay) {
  run<cuda>(rmsprop, step_of(rmsprop, weights, &squares, momentum, average, low, chunks, gradients, average_decay),
            groups, weights);
}

template <bool cuda>
void sgd_ema_step(Tensor weights, Tensor momentum, std::optional<Tensor> average, std::optional<Tensor> low,
                  Tensor chunks, Tensor gradients, std::vector<double> groups, double average_decay) {
  run<cuda>(sgd, step_of(sgd, weights, nullptr, momentum, average, low, chunks, gradients, average_decay), groups,
            weights);
}

}  // namespace arena
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_FRAGMENT(pynas, m) {
  m.def("ema_update(Tensor(a!) average, Tensor values, float decay) -> ()");
  m.def("ema_update_from(Tensor(a!) average, Tensor chunks, Tensor values, float decay) -> ()");
  m.def(
      "rmsprop_ema_step(Tensor(a!) weights, Tensor(b!) squares, Tensor(c!) momentum, Tensor(d!)? average, "
      "Tensor(e!)? low, Tensor chunks, Tensor gradients, float[] groups, float average_decay) -> ()");
  m.def(
      "sgd_ema_step(Tensor(a!) weights, Tensor(b!) momentum, Tensor(c!)? average, Tensor(d!)? low, Tensor chunks, "
      "Tensor gradients, float[] groups, float average_decay) -> ()");
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
