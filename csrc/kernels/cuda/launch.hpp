// Steps in a stream, for whoever is no CUDA. T of the steps: float, bf16, fp16.
#pragma once

#include <cuda_runtime.h>

#include "arguments.hpp"

namespace pynas::kernels::cuda {

// Errors are those of cudaGetLastError.
template <class Step>
void launch_step(const Step&, cudaStream_t);

// Floats of scratch that the step needs: by its shape alone, no pointer is looked at.
template <class Step>
int64_t scratch_size(const Step&);

}  // namespace pynas::kernels::cuda
