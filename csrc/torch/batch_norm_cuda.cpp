// Batch-norm's operators on a GPU: float32, bfloat16, float16.
#ifdef PYNAS_HAS_CUDA
#include <tuple>

#include "steps_cuda.hpp"

namespace pynas::torch_glue {
namespace batch_norm_cuda {

using namespace steps_cuda;

std::tuple<Tensor, Tensor> channel_statistics(Tensor x) {
  const char* const op = "pynas::channel_statistics";
  check_rows(op, "x", x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Asked asked(x, x.size(1), true);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op, cuda::ChannelStatistics<T>{pixels_of(x), width(x), values<T>(x), asked.pointers(), nullptr}, x);
  });
  return {asked.mean, asked.var};
}

Tensor batch_norm_act(Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias, double eps, int64_t act,
                      Optional gate, Optional residual) {
  const char* const op = "pynas::batch_norm_act";
  check_rows(op, "x", x);
  const cuda::Norm norm = NormGiven{mean, var, weight, bias, eps, act}.of(op, x);
  const cuda::Gate gated = gate_of(op, gate, x);
  if (residual.has_value()) check_like(op, "residual", *residual, x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = new_like(x);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    cuda::launch_step(
        cuda::NormAct<T>{pixels_of(x), width(x), values<T>(x), norm, gated, values<T>(residual), data<T>(y)},
        stream_of(x));
  });
  check_launch(op);
  return y;
}

Tensor batch_norm_act_backward_sums(Tensor dy, Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias,
                                    double eps, int64_t act, Optional gate) {
  const char* const op = "pynas::batch_norm_act_backward_sums";
  check_rows(op, "x", x);
  check_like(op, "dy", dy, x);
  const cuda::Norm norm = NormGiven{mean, var, weight, bias, eps, act}.of(op, x);
  const cuda::Gate gated = gate_of(op, gate, x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor sums = new_float(x, {2, x.size(1)});
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::NormActSums<T>{pixels_of(x), width(x), values<T>(dy), values<T>(x), norm, gated, data<float>(sums),
                             nullptr},
        x);
  });
  return sums;
}

Tensor batch_norm_act_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias, double eps,
                               int64_t act, Optional gate, Optional dpool, Optional sums, double count) {
  const char* const op = "pynas::batch_norm_act_backward";
  check_rows(op, "x", x);
  check_like(op, "dy", dy, x);
  const cuda::NormBackward after =
      BackwardGiven{{mean, var, weight, bias, eps, act}, gate, dpool, sums, count}.of(op, x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dx = new_like(x);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    cuda::launch_step(cuda::NormActBackward<T>{pixels_of(x), width(x), values<T>(dy), values<T>(x), after, data<T>(dx)},
                      stream_of(x));
  });
  check_launch(op);
  return dx;
}

Tensor pool(Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias, double eps, int64_t act) {
  const char* const op = "pynas::batch_norm_act_pool";
  check_rows(op, "x", x);
  const cuda::Norm norm = NormGiven{mean, var, weight, bias, eps, act}.of(op, x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor pooled = new_float(x, {x.size(0), x.size(1)});
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    cuda::launch_step(cuda::Pooled<T>{pixels_of(x), width(x), values<T>(x), norm, data<float>(pooled)}, stream_of(x));
  });
  check_launch(op);
  return pooled;
}

}  // namespace batch_norm_cuda
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_IMPL(pynas, CUDA, m) {
  namespace cuda = pynas::torch_glue::batch_norm_cuda;
  m.impl("channel_statistics", TORCH_BOX(&cuda::channel_statistics));
  m.impl("batch_norm_act", TORCH_BOX(&cuda::batch_norm_act));
  m.impl("batch_norm_act_backward_sums", TORCH_BOX(&cuda::batch_norm_act_backward_sums));
  m.impl("batch_norm_act_backward", TORCH_BOX(&cuda::batch_norm_act_backward));
  m.impl("batch_norm_act_pool", TORCH_BOX(&cuda::pool));
}
#endif
