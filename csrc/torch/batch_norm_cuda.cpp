// What SyncBatchNorm needs on a GPU: float32 and bfloat16.
#ifdef PYNAS_HAS_CUDA
#include "../kernels/cuda/batch_norm.hpp"

#include <algorithm>
#include <tuple>

#include "batch_norm.hpp"

namespace pynas::torch_glue {
namespace batch_norm_cuda {

namespace cuda = kernels::cuda;
typedef std::optional<Tensor> Optional;

void check_gpu_type(const char* op, const Tensor& x) {
  PYNAS_REQUIRE(x.scalar_type() != ScalarType::Double, op, "x", dtype_of(x), "float32, bfloat16 on a GPU");
}

cuda::Rows rows_of(Shape shape) {
  return {shape.groups * shape.rows, shape.channels, std::max<int64_t>(1, shape.rows)};
}

cuda::Norm norm_of(const NormArguments& norm) {
  return {values<float>(norm.mean), values<float>(norm.var),      values<float>(norm.weight),
          values<float>(norm.bias), static_cast<float>(norm.eps), static_cast<kernels::Activation>(norm.act)};
}

cuda::Gate gate_on(const Optional& gate, Shape shape) {
  return {values<float>(gate), gate.has_value() && gate->size(1) == shape.channels};
}

// with_type without float64, which check_gpu_type has refused.
template <class Call>
void with_gpu_type(const Tensor& x, const Call& call) {
  if (x.scalar_type() == ScalarType::BFloat16) return call(kernels::bf16{});
  call(float{});
}

Tensor new_scratch(const Tensor& x, cuda::Rows rows) {
  return new_statistics(x, {cuda::scratch_size(rows.rows, rows.channels)});
}

std::tuple<Tensor, Tensor> channel_statistics(Tensor x) {
  const char* const op = "pynas::channel_statistics";
  const Shape shape = check_rows(op, x);
  check_gpu_type(op, x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const cuda::Rows rows = rows_of(shape);
  Tensor mean = new_statistics(x, {shape.channels});
  Tensor var = new_statistics(x, {shape.channels});
  Tensor scratch = new_scratch(x, rows);
  with_gpu_type(x, [&](auto type) {
    cuda::statistics(values<decltype(type)>(x), rows, data<float>(scratch), data<float>(mean), data<float>(var),
                     stream_of(x));
  });
  check_launch(op);
  return {mean, var};
}

Tensor batch_norm_act(Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias, double eps, int64_t act,
                      Optional gate, Optional residual) {
  const char* const op = "pynas::batch_norm_act";
  const NormArguments norm{op, x, mean, var, weight, bias, eps, act};
  const Shape shape = norm.check();
  check_gpu_type(op, x);
  check_gate(op, gate, x, shape);
  if (residual.has_value()) check_like(op, "residual", *residual, x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = new_like(x);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    cuda::forward(values<T>(x), rows_of(shape), norm_of(norm), gate_on(gate, shape), values<T>(residual), data<T>(y),
                  stream_of(x));
  });
  check_launch(op);
  return y;
}

Tensor batch_norm_act_backward_sums(Tensor dy, Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias,
                                    double eps, int64_t act, Optional gate) {
  const char* const op = "pynas::batch_norm_act_backward_sums";
  const NormArguments norm{op, x, mean, var, weight, bias, eps, act};
  const Shape shape = norm.check();
  check_gpu_type(op, x);
  check_like(op, "dy", dy, x);
  check_gate(op, gate, x, shape);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const cuda::Rows rows = rows_of(shape);
  Tensor sums = new_statistics(x, {2, shape.channels});
  Tensor scratch = new_scratch(x, rows);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    cuda::backward_sums(values<T>(dy), values<T>(x), rows, norm_of(norm), gate_on(gate, shape), data<float>(scratch),
                        data<float>(sums), stream_of(x));
  });
  check_launch(op);
  return sums;
}

Tensor batch_norm_act_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias, double eps,
                               int64_t act, Optional gate, Optional dpool, Optional sums, double count) {
  const char* const op = "pynas::batch_norm_act_backward";
  const NormArguments norm{op, x, mean, var, weight, bias, eps, act};
  const Shape shape = norm.check();
  check_gpu_type(op, x);
  check_like(op, "dy", dy, x);
  check_gate(op, gate, x, shape);
  if (dpool.has_value()) check_statistics(op, "dpool", *dpool, x, {shape.groups, shape.channels});
  if (sums.has_value()) check_statistics(op, "sums", *sums, x, {2, shape.channels});
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dx = new_like(x);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    cuda::backward(values<T>(dy), values<T>(x), rows_of(shape), norm_of(norm), gate_on(gate, shape),
                   values<float>(dpool), values<float>(sums), static_cast<float>(count), data<T>(dx), stream_of(x));
  });
  check_launch(op);
  return dx;
}

}  // namespace batch_norm_cuda
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_IMPL(pynas, CUDA, m) {
  m.impl("channel_statistics", TORCH_BOX(&pynas::torch_glue::batch_norm_cuda::channel_statistics));
  m.impl("batch_norm_act", TORCH_BOX(&pynas::torch_glue::batch_norm_cuda::batch_norm_act));
  m.impl("batch_norm_act_backward_sums", TORCH_BOX(&pynas::torch_glue::batch_norm_cuda::batch_norm_act_backward_sums));
  m.impl("batch_norm_act_backward", TORCH_BOX(&pynas::torch_glue::batch_norm_cuda::batch_norm_act_backward));
}
#endif
