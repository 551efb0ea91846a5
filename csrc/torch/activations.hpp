// What the glue of kernels over activations shares: types, layout, new tensors.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "glue.hpp"

namespace pynas::torch_glue {

// Sizes that come as numbers, not as a tensor's: such that products of two do not overflow.
constexpr const char* SIZES = "0 to 2147483647";
inline bool is_size(int64_t value) {
  return value >= 0 && value <= 2147483647;
}

// float32, bfloat16 or float64.
void check_dtype(const char* op, const char* argument, const Tensor& tensor);

// (N, C, H, W) in channels_last.
void check_layout(const char* op, const char* argument, const Tensor& tensor);

// The same, of one of those dtypes.
void check_activations(const char* op, const char* argument, const Tensor& tensor);

// Of x's shape, dtype, device and layout.
void check_like(const char* op, const char* argument, const Tensor& tensor, const Tensor& x);

// Contiguous, on x's device, of the given dtype and sizes.
void check_dense(const char* op, const char* argument, const Tensor& tensor, const Tensor& x, ScalarType dtype,
                 const char* dtypes, std::initializer_list<int64_t> sizes);

// Uninitialised tensors on x's device: contiguous, laid out like x, and activations of x's dtype in channels_last.
Tensor new_dense(const Tensor& x, ScalarType dtype, std::initializer_list<int64_t> sizes);
Tensor new_like(const Tensor& x);
Tensor new_activations(const Tensor& x, int64_t n, int64_t channels, int64_t h, int64_t w);

// Calls call(T{}) with the kernels' type for the tensor's dtype, which has been checked.
template <class Call>
void with_type(const Tensor& tensor, const Call& call) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return call(double{});
    case ScalarType::BFloat16:
      return call(kernels::bf16{});
    default:
      return call(float{});
  }
}

template <class Kernels, class T>
const auto& of_type(const Kernels& kernels, T) {
  if constexpr (std::is_same_v<T, float>)
    return kernels.of_float;
  else if constexpr (std::is_same_v<T, double>)
    return kernels.of_double;
  else
    return kernels.of_bf16;
}

}  // namespace pynas::torch_glue
