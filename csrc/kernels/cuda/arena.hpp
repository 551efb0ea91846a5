// As csrc/kernels/cpu/arena.hpp, on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pynas::kernels::cuda {

void average(float* average, const float* values, float decay, int64_t count, cudaStream_t stream);

}  // namespace pynas::kernels::cuda
