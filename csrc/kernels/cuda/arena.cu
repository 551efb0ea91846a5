#include "arena.hpp"

namespace pynas::kernels::cuda {
namespace {

constexpr int threads = 256;

__global__ void __launch_bounds__(threads)
    average_kernel(float* average, const float* values, float share, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * threads;
  for (int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x; i < count; i += step) {
    const float old = average[i];
    average[i] = fmaf(share, values[i] - old, old);
  }
}

}  // namespace

void average(float* average, const float* values, float decay, int64_t count, cudaStream_t stream) {
  const int64_t blocks = (count + threads - 1) / threads;
  average_kernel<<<static_cast<unsigned>(blocks < 4096 ? blocks : 4096), threads, 0, stream>>>(average, values,
                                                                                               1.0f - decay, count);
}

}  // namespace pynas::kernels::cuda
