// As csrc/kernels/cpu/batch_norm.hpp, on a GPU: what SyncBatchNorm needs. float and bf16; statistics are float32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "arguments.hpp"

namespace pynas::kernels::cuda {

// Rows of `channels` values; groups of `rows_of_group` rows share a gate.
struct Rows {
  int64_t rows, channels, rows_of_group;
};

// Floats of scratch that statistics and backward_sums need.
int64_t scratch_size(int64_t rows, int64_t channels);

template <class T>
void statistics(const T* x, Rows, float* scratch, float* mean, float* var, cudaStream_t);

template <class T>
void forward(const T* x, Rows, Norm, Gate, const T* residual, T* y, cudaStream_t);

// sums: (2, channels).
template <class T>
void backward_sums(const T* dy, const T* x, Rows, Norm, Gate, float* scratch, float* sums, cudaStream_t);

// dpool: (groups, channels) or null; sums: (2, channels) or null.
template <class T>
void backward(const T* dy, const T* x, Rows, Norm, Gate, const float* dpool, const float* sums, float count, T* dx,
              cudaStream_t);

}  // namespace pynas::kernels::cuda
