#include "../kernels/cpu/arena.hpp"

#include "glue.hpp"

#ifdef PYNAS_HAS_CUDA
#include "../kernels/cuda/arena.hpp"
#endif

namespace pynas::torch_glue {
namespace {

constexpr int64_t grain = 1 << 14;  // elements a thread takes at least

void check(const Tensor& average, const Tensor& values) {
  for (const auto& [name, tensor] : {std::pair{"average", &average}, std::pair{"values", &values}}) {
    require(tensor->scalar_type() == ScalarType::Float, "pynas::ema_update", name, dtype_of(*tensor), "float32");
    require(tensor->is_contiguous(), "pynas::ema_update", name, "not contiguous", "contiguous tensors");
  }
  require(average.numel() == values.numel(), "pynas::ema_update", "values", shape_of(values),
          "as many values as average");
}

void ema_update_cpu(Tensor average, Tensor values, double decay) {
  check(average, values);
  const auto& kernels = PYNAS_CHOOSE(arena);
  auto* to = static_cast<float*>(average.mutable_data_ptr());
  const auto* from = static_cast<const float*>(values.const_data_ptr());
  parallel()(average.numel(), grain,
             [&](int64_t begin, int64_t end) { kernels.average(to, from, static_cast<float>(decay), begin, end); });
}

#ifdef PYNAS_HAS_CUDA
void ema_update_cuda(Tensor average, Tensor values, double decay) {
  check(average, values);
  if (average.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(average.get_device_index());
  kernels::cuda::average(static_cast<float*>(average.mutable_data_ptr()),
                         static_cast<const float*>(values.const_data_ptr()), static_cast<float>(decay), average.numel(),
                         stream_of(average));
  check_launch("pynas::ema_update");
}
#endif

}  // namespace
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_FRAGMENT(pynas, m) {
  m.def("ema_update(Tensor(a!) average, Tensor values, float decay) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pynas, CPU, m) {
  m.impl("ema_update", TORCH_BOX(&pynas::torch_glue::ema_update_cpu));
}

#ifdef PYNAS_HAS_CUDA
STABLE_TORCH_LIBRARY_IMPL(pynas, CUDA, m) {
  m.impl("ema_update", TORCH_BOX(&pynas::torch_glue::ema_update_cuda));
}
#endif
