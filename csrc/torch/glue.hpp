// What the operators' glue shares: checks of tensors, threads, streams, and the choice of an instruction set.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "../kernels/parallel.hpp"
#include "../kernels/types.hpp"

#ifdef PYNAS_HAS_CUDA
#include <cuda_runtime.h>
#endif

namespace pynas::torch_glue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// torch's own threads.
kernels::Parallel parallel();

// 0 baseline, 1 avx2, 2 avx512: the widest that this processor has and PYNAS_INSTRUCTION_SET does not forbid.
int instruction_set();

// The kernels of a family for this processor: choose(baseline::arena, avx2::arena, avx512::arena).
template <class Kernels>
const Kernels& choose(const Kernels& baseline, const Kernels& avx2, const Kernels& avx512) {
  const Kernels* const all[] = {&baseline, &avx2, &avx512};
  return *all[instruction_set()];
}

#if defined(PYNAS_X86) && defined(PYNAS_AVX512)
#define PYNAS_CHOOSE(family) \
  ::pynas::torch_glue::choose(kernels::baseline::family, kernels::avx2::family, kernels::avx512::family)
#elif defined(PYNAS_X86)
#define PYNAS_CHOOSE(family) \
  ::pynas::torch_glue::choose(kernels::baseline::family, kernels::avx2::family, kernels::avx2::family)
#else
#define PYNAS_CHOOSE(family) (kernels::baseline::family)
#endif

// Throws, naming operator, argument, what came and what is allowed.
[[noreturn]] void refuse(const char* op, const char* argument, const std::string& came, const char* allowed);

// Refuses unless `good`. The texts are made only to be thrown: an operator on a small tensor takes microseconds in all.
#define PYNAS_REQUIRE(good, ...)      \
  do {                                \
    if (!(good)) refuse(__VA_ARGS__); \
  } while (false)

std::string shape_of(const Tensor& tensor);
std::string dtype_of(const Tensor& tensor);

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

#ifdef PYNAS_HAS_CUDA
// The current stream of the tensor's device. Throws where this torch has no CUDA.
cudaStream_t stream_of(const Tensor& tensor);

// Throws what CUDA says of the last launch.
void check_launch(const char* op);
#endif

}  // namespace pynas::torch_glue
