#include "batch_norm.hpp"

#include <tuple>

namespace pynas::torch_glue {

void check_statistics(const char* op, const char* argument, const Tensor& tensor, const Tensor& x,
                      std::initializer_list<int64_t> sizes) {
  check_dense(op, argument, tensor, x, statistic_type(x), "float32, or float64 where x is float64", sizes);
}

Shape check_rows(const char* op, const Tensor& x) {
  check_activations(op, "x", x);
  PYNAS_REQUIRE(x.size(1) > 0, op, "x", "of shape " + shape_of(x), "(N, C, H, W) with C > 0");
  return {x.size(0), x.size(2) * x.size(3), x.size(1)};
}

Shape NormArguments::check() const {
  const Shape shape = check_rows(op, x);
  check_statistics(op, "mean", mean, x, {shape.channels});
  check_statistics(op, "var", var, x, {shape.channels});
  if (weight.has_value()) check_statistics(op, "weight", *weight, x, {shape.channels});
  if (bias.has_value()) check_statistics(op, "bias", *bias, x, {shape.channels});
  PYNAS_REQUIRE(act >= 0 && act <= 4, op, "act", std::to_string(act), "0 identity, 1 relu, 2 hswish, 3 swish, 4 relu6");
  return shape;
}

void check_gate(const char* op, const std::optional<Tensor>& gate, const Tensor& x, Shape shape) {
  if (!gate.has_value()) return;
  const bool by_channel = gate->dim() == 2 && gate->size(1) == shape.channels;
  PYNAS_REQUIRE(by_channel || (gate->dim() == 2 && gate->size(1) == 1), op, "gate", "of shape " + shape_of(*gate),
                "(N, 1) or (N, C)");
  check_statistics(op, "gate", *gate, x, {shape.groups, by_channel ? shape.channels : 1});
}

namespace batch_norm_cpu {

using kernels::BatchNormKernels;
using kernels::bf16;

const BatchNormKernels<float>& kernels_for(float) {
  return PYNAS_CHOOSE(batch_norm_float);
}
const BatchNormKernels<bf16>& kernels_for(bf16) {
  return PYNAS_CHOOSE(batch_norm_bf16);
}
const BatchNormKernels<double>& kernels_for(double) {
  return PYNAS_CHOOSE(batch_norm_double);
}

typedef std::optional<Tensor> Optional;

std::tuple<Tensor, Tensor> channel_statistics(Tensor x) {
  const Shape shape = check_rows("pynas::channel_statistics", x);
  Tensor mean = new_statistics(x, {shape.channels});
  Tensor var = new_statistics(x, {shape.channels});
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    kernels_for(type).statistics(values<T>(x), shape.groups * shape.rows, shape.channels, data<Statistic<T>>(mean),
                                 data<Statistic<T>>(var), parallel());
  });
  return {mean, var};
}

Tensor batch_norm_act(Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias, double eps, int64_t act,
                      Optional gate, Optional residual) {
  const char* const op = "pynas::batch_norm_act";
  const NormArguments norm{op, x, mean, var, weight, bias, eps, act};
  const Shape shape = norm.check();
  check_gate(op, gate, x, shape);
  if (residual.has_value()) check_like(op, "residual", *residual, x);
  Tensor y = new_like(x);
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    kernels_for(type).forward(values<T>(x), shape, norm.of<T>(), gate_of<T>(gate, shape), values<T>(residual),
                              data<T>(y), parallel());
  });
  return y;
}

Tensor batch_norm_act_backward_sums(Tensor dy, Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias,
                                    double eps, int64_t act, Optional gate) {
  const char* const op = "pynas::batch_norm_act_backward_sums";
  const NormArguments norm{op, x, mean, var, weight, bias, eps, act};
  const Shape shape = norm.check();
  check_like(op, "dy", dy, x);
  check_gate(op, gate, x, shape);
  Tensor sums = new_statistics(x, {2, shape.channels});
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    kernels_for(type).backward_sums(values<T>(dy), values<T>(x), shape, norm.of<T>(), gate_of<T>(gate, shape),
                                    data<Statistic<T>>(sums), parallel());
  });
  return sums;
}

Tensor batch_norm_act_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias, double eps,
                               int64_t act, Optional gate, Optional dpool, Optional sums, double count) {
  const char* const op = "pynas::batch_norm_act_backward";
  const NormArguments norm{op, x, mean, var, weight, bias, eps, act};
  const Shape shape = norm.check();
  check_like(op, "dy", dy, x);
  check_gate(op, gate, x, shape);
  if (dpool.has_value()) check_statistics(op, "dpool", *dpool, x, {shape.groups, shape.channels});
  if (sums.has_value()) check_statistics(op, "sums", *sums, x, {2, shape.channels});
  Tensor dx = new_like(x);
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    typedef Statistic<T> S;
    kernels_for(type).backward(values<T>(dy), values<T>(x), shape, norm.of<T>(), gate_of<T>(gate, shape),
                               values<S>(dpool), values<S>(sums), count, data<T>(dx), parallel());
  });
  return dx;
}

Tensor batch_norm_act_pool(Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias, double eps, int64_t act) {
  const NormArguments norm{"pynas::batch_norm_act_pool", x, mean, var, weight, bias, eps, act};
  const Shape shape = norm.check();
  Tensor pooled = new_statistics(x, {shape.groups, shape.channels});
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    kernels_for(type).pool(values<T>(x), shape, norm.of<T>(), data<Statistic<T>>(pooled), parallel());
  });
  return pooled;
}

Tensor batch_norm_act_gate_sums(Tensor dy, Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias,
                                double eps, int64_t act) {
  const char* const op = "pynas::batch_norm_act_gate_sums";
  const NormArguments norm{op, x, mean, var, weight, bias, eps, act};
  const Shape shape = norm.check();
  check_like(op, "dy", dy, x);
  Tensor sums = new_statistics(x, {5, shape.groups, shape.channels});
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    kernels_for(type).gate_sums(values<T>(dy), values<T>(x), shape, norm.of<T>(), data<Statistic<T>>(sums), parallel());
  });
  return sums;
}

template <class S>
void follow(S* running, const S* batch, int64_t channels, double share, double factor) {
  for (int64_t c = 0; c < channels; ++c)
    running[c] = static_cast<S>((1.0 - share) * running[c] + share * (factor * batch[c]));
}

void running_statistics(Tensor mean, Tensor var, Tensor batches, Tensor batch_mean, Tensor batch_var,
                        std::optional<double> momentum, int64_t count) {
  const char* const op = "pynas::running_statistics_";
  PYNAS_REQUIRE(batch_mean.scalar_type() == ScalarType::Float || batch_mean.scalar_type() == ScalarType::Double, op,
                "batch_mean", dtype_of(batch_mean), "float32, float64");
  PYNAS_REQUIRE(batch_mean.dim() == 1, op, "batch_mean", shape_of(batch_mean), "(C,)");
  PYNAS_REQUIRE(batches.scalar_type() == ScalarType::Long && batches.numel() == 1, op, "batches",
                dtype_of(batches) + " " + shape_of(batches), "one int64");
  PYNAS_REQUIRE(count >= 0, op, "count", std::to_string(count), "0 and more");
  const int64_t channels = batch_mean.size(0);
  check_statistics(op, "mean", mean, batch_mean, {channels});
  check_statistics(op, "var", var, batch_mean, {channels});
  check_statistics(op, "batch_mean", batch_mean, batch_mean, {channels});
  check_statistics(op, "batch_var", batch_var, batch_mean, {channels});
  const int64_t seen = ++*data<int64_t>(batches);
  const double share = momentum.value_or(1.0 / static_cast<double>(seen));
  const double unbiased = static_cast<double>(count) / static_cast<double>(std::max<int64_t>(count - 1, 1));
  with_type(batch_mean, [&](auto type) {
    typedef Statistic<decltype(type)> S;
    follow(data<S>(mean), values<S>(batch_mean), channels, share, 1.0);
    follow(data<S>(var), values<S>(batch_var), channels, share, unbiased);
  });
}

}  // namespace batch_norm_cpu
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_FRAGMENT(pynas, m) {
  m.def("channel_statistics(Tensor x) -> (Tensor mean, Tensor var)");
  m.def(
      "running_statistics_(Tensor(a!) mean, Tensor(b!) var, Tensor(c!) batches, Tensor batch_mean, Tensor batch_var, "
      "float? momentum, int count) -> ()");
  m.def(
      "batch_norm_act(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, int act, "
      "Tensor? gate, Tensor? residual) -> Tensor");
  m.def(
      "batch_norm_act_backward_sums(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
      "float eps, int act, Tensor? gate) -> Tensor");
  m.def(
      "batch_norm_act_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, "
      "int act, Tensor? gate, Tensor? dpool, Tensor? sums, float count) -> Tensor");
  m.def(
      "batch_norm_act_pool(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, int act) -> "
      "Tensor");
  m.def(
      "batch_norm_act_gate_sums(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, "
      "int act) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pynas, CPU, m) {
  m.impl("channel_statistics", TORCH_BOX(&pynas::torch_glue::batch_norm_cpu::channel_statistics));
  m.impl("running_statistics_", TORCH_BOX(&pynas::torch_glue::batch_norm_cpu::running_statistics));
  m.impl("batch_norm_act", TORCH_BOX(&pynas::torch_glue::batch_norm_cpu::batch_norm_act));
  m.impl("batch_norm_act_backward_sums", TORCH_BOX(&pynas::torch_glue::batch_norm_cpu::batch_norm_act_backward_sums));
  m.impl("batch_norm_act_backward", TORCH_BOX(&pynas::torch_glue::batch_norm_cpu::batch_norm_act_backward));
  m.impl("batch_norm_act_pool", TORCH_BOX(&pynas::torch_glue::batch_norm_cpu::batch_norm_act_pool));
  m.impl("batch_norm_act_gate_sums", TORCH_BOX(&pynas::torch_glue::batch_norm_cpu::batch_norm_act_gate_sums));
}
