// Checks and conversions that batch-norm's operators share.
#pragma once

#include <optional>

#include "../kernels/cpu/batch_norm.hpp"
#include "glue.hpp"

namespace pynas::torch_glue {

using kernels::Normalisation;
using kernels::Shape;
using kernels::Statistic;

// `require` that makes its texts only to throw them: an operator on a small tensor takes a few microseconds in all.
#define PYNAS_REQUIRE(good, ...)              \
  do {                                        \
    if (!(good)) require(false, __VA_ARGS__); \
  } while (false)

constexpr const char* activation_types = "float32, bfloat16, float64";

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
const T* values(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* values(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? values<T>(*tensor) : nullptr;
}

inline ScalarType statistic_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Uninitialised, contiguous, of the statistics' dtype, beside x.
Tensor new_statistics(const Tensor& x, std::initializer_list<int64_t> sizes);

// Uninitialised, laid out like x.
Tensor new_like(const Tensor& x);

// x: activations in channels_last, float. Returns (samples, pixels, channels).
Shape check_activations(const char* op, const Tensor& x);

// Of x's shape, dtype and layout.
void check_like(const char* op, const char* argument, const Tensor& tensor, const Tensor& x);

// Contiguous, of the statistics' dtype, on x's device, of the given sizes.
void check_statistics(const char* op, const char* argument, const Tensor& tensor, const Tensor& x,
                      std::initializer_list<int64_t> sizes);

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

// Calls call(T{}) for x's dtype, which check_activations has seen.
template <class Call>
void with_type(const Tensor& x, const Call& call) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return call(double{});
    case ScalarType::BFloat16:
      return call(kernels::bf16{});
    default:
      return call(float{});
  }
}

}  // namespace pynas::torch_glue
