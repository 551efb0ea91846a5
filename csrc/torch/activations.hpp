// What the glue of kernels over activations shares: dtypes and channels_last.
#pragma once

#include <type_traits>

#include "glue.hpp"

namespace pynas::torch_glue {

// Calls body(T{}) with the kernels' type for the tensor's dtype.
template <class Body>
void by_dtype(const Tensor& tensor, const char* op, const char* name, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::BFloat16:
      return body(kernels::bf16{});
    case ScalarType::Double:
      return body(double{});
    default:
      require(false, op, name, dtype_of(tensor), "float32, bfloat16, float64");
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

inline bool channels_last(const Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) return false;
    expected *= tensor.size(dim);
  }
  return true;
}

inline void check_activations(const Tensor& tensor, const char* op, const char* name) {
  require(tensor.dim() == 4, op, name, "of shape " + shape_of(tensor), "(N, C, H, W)");
  require(channels_last(tensor), op, name, "not in channels_last", "channels_last");
}

inline Tensor activations_like(const Tensor& tensor, int64_t n, int64_t channels, int64_t h, int64_t w) {
  const int64_t size[] = {n, channels, h, w};
  return torch::stable::empty({size, 4}, tensor.scalar_type(), std::nullopt, tensor.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace pynas::torch_glue
