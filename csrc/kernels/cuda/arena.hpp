// As csrc/kernels/cpu/arena.hpp, on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../cpu/arena.hpp"

namespace pynas::kernels::cuda {

constexpr int most_groups = 64;  // they travel as an argument of the kernel

void average(float* average, const float* values, float share, int64_t count, cudaStream_t stream);
void average(float* average, const bf16* values, float share, int64_t count, cudaStream_t stream);

// `sources` are the host's and are read before the return; `to` is of the GPU.
void put(ArenaSource* to, const ArenaSource* sources, int64_t count, cudaStream_t stream);

// A chunk that does not fit ends in a CUDA error, here and in `step`.
void follow(const ArenaFollow& follow, cudaStream_t stream);

// All pointers of `step` are of the GPU; `groups` is the host's and is read before the return.
void step(const ArenaStep& step, const ArenaGroup* groups, int group_count, cudaStream_t stream);

}  // namespace pynas::kernels::cuda
