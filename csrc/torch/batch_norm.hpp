// Checks and conversions that batch-norm's operators for CPUs and GPUs share.
#pragma once

#include "../kernels/cpu/batch_norm.hpp"
#include "activations.hpp"

namespace pynas::torch_glue {

using kernels::Normalisation;
using kernels::Shape;
using kernels::Statistic;

// What statistics, weights and gates of activations x are in.
inline ScalarType statistic_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor new_statistics(const Tensor& x, std::initializer_list<int64_t> sizes) {
  return new_dense(x, statistic_type(x), sizes);
}

void check_statistics(const char* op, const char* argument, const Tensor& tensor, const Tensor& x,
                      std::initializer_list<int64_t> sizes);

// x: activations with channels. Returns (samples, pixels, channels).
Shape check_rows(const char* op, const Tensor& x);

// What describes act(norm(x)) in the operators' arguments.
struct NormArguments {
  const char* op;
  const Tensor &x, &mean, &var;
  const std::optional<Tensor>&weight, &bias;
  double eps;
  int64_t act;

  // Checks all of them.
  Shape check() const;

  template <class T>
  Normalisation<T> of() const {
    typedef Statistic<T> S;
    return {values<S>(mean),
            values<S>(var),
            values<S>(weight),
            values<S>(bias),
            eps,
            static_cast<kernels::Activation>(act)};
  }
};

// gate: (N, 1) or (N, C).
void check_gate(const char* op, const std::optional<Tensor>& gate, const Tensor& x, Shape shape);

template <class T>
kernels::Gate<T> gate_of(const std::optional<Tensor>& gate, Shape shape) {
  return {values<Statistic<T>>(gate), gate.has_value() && gate->size(1) == shape.channels};
}

}  // namespace pynas::torch_glue
