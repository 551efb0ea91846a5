#include "arena.hpp"

namespace pynas::kernels::cuda {
namespace {

constexpr int threads = 256;
constexpr int width = 4;  // float32 values of one 16-byte access

struct Groups {
  ArenaGroup group[most_groups];
};

// Sources travel as arguments of a kernel: nothing of the host has to outlive the call, as it would for a copy.
constexpr int sources_at_once = 128;

struct Sources {
  ArenaSource source[sources_at_once];
};

__global__ void __launch_bounds__(sources_at_once)
    put_kernel(ArenaSource* to, const __grid_constant__ Sources sources, int count) {
  if (static_cast<int>(threadIdx.x) < count) to[threadIdx.x] = sources.source[threadIdx.x];
}

// Ends the launch with an error, as an index out of bounds does in torch's own kernels.
__device__ __forceinline__ void require(bool good) {
  if (!good) __trap();
}

// Up to `width` values: a whole access where `count` says so and the address is a multiple of the access's size.
struct Values {
  float v[width];
};

template <class T>
__device__ __forceinline__ bool aligned(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % (width * sizeof(T)) == 0;
}

__device__ __forceinline__ float widened(uint32_t bits) {
  return __uint_as_float(bits << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN: the bits of simd.hpp.
__device__ __forceinline__ uint32_t rounded(float value) {
  const uint32_t bits = __float_as_uint(value);
  return value == value ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0u;
}

__device__ __forceinline__ Values load_whole(const float* from) {
  const float4 got = *reinterpret_cast<const float4*>(from);
  return {{got.x, got.y, got.z, got.w}};
}

__device__ __forceinline__ Values load_whole(const bf16* from) {
  const uint2 got = *reinterpret_cast<const uint2*>(from);
  return {{widened(got.x & 0xffffu), widened(got.x >> 16), widened(got.y & 0xffffu), widened(got.y >> 16)}};
}

__device__ __forceinline__ float load_one(const float* from) {
  return *from;
}

__device__ __forceinline__ float load_one(const bf16* from) {
  return widened(from->bits);
}

template <class T>
__device__ __forceinline__ Values load(const T* from, int count, bool whole) {
  if (whole) return load_whole(from);
  Values got{};
#pragma unroll
  for (int j = 0; j < width; ++j)
    if (j < count) got.v[j] = load_one(from + j);
  return got;
}

__device__ __forceinline__ void store_whole(float* to, const Values& values) {
  *reinterpret_cast<float4*>(to) = make_float4(values.v[0], values.v[1], values.v[2], values.v[3]);
}

__device__ __forceinline__ void store_whole(bf16* to, const Values& values) {
  *reinterpret_cast<uint2*>(to) =
      make_uint2(rounded(values.v[0]) | rounded(values.v[1]) << 16, rounded(values.v[2]) | rounded(values.v[3]) << 16);
}

__device__ __forceinline__ void store_one(float* to, float value) {
  *to = value;
}

__device__ __forceinline__ void store_one(bf16* to, float value) {
  to->bits = static_cast<uint16_t>(rounded(value));
}

template <class T>
__device__ __forceinline__ void store(T* to, const Values& values, int count, bool whole) {
  if (whole) return store_whole(to, values);
#pragma unroll
  for (int j = 0; j < width; ++j)
    if (j < count) store_one(to + j, values.v[j]);
}

// torch.lerp: from the nearer end.
__device__ __forceinline__ float lerp(float from, float to, float share) {
  const bool late = share >= 0.5f;
  return __fmaf_rn(late ? share - 1.0f : share, __fsub_rn(to, from), late ? to : from);
}

template <class T>
__global__ void __launch_bounds__(threads)
    average_kernel(float* __restrict__ average, const T* __restrict__ values, float share, int64_t count) {
  constexpr int unroll = 2;  // accesses of each array that a thread has under way
  const bool all_aligned = aligned(average) && aligned(values);
  const int64_t step = int64_t{gridDim.x} * threads * width;
  int64_t i = (int64_t{blockIdx.x} * threads + threadIdx.x) * width;
  for (; i < count; i += unroll * step) {
    Values old[unroll], next[unroll];
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const int64_t at = i + u * step, left = count - at;
      if (left <= 0) continue;
      old[u] = load(average + at, static_cast<int>(left < width ? left : width), all_aligned && left >= width);
      next[u] = load(values + at, static_cast<int>(left < width ? left : width), all_aligned && left >= width);
    }
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const int64_t at = i + u * step, left = count - at;
      if (left <= 0) continue;
#pragma unroll
      for (int j = 0; j < width; ++j) old[u].v[j] = lerp(old[u].v[j], next[u].v[j], share);
      store(average + at, old[u], static_cast<int>(left < width ? left : width), all_aligned && left >= width);
    }
  }
}

// The float32 master of a bf16 parameter, unless the parameter was set to something else since.
__device__ __forceinline__ float master(float kept, float shown) {
  return widened(rounded(kept)) == shown ? kept : shown;
}

// A chunk whose parameter and gradient are of type T. Arrays of the arena are aligned at a chunk's start by layout; a
// gradient may lie anywhere. Without a gradient only the average moves.
template <class T, bool squared, bool averaged>
__device__ __forceinline__ void update(const ArenaStep& step, const ArenaChunk& chunk, const ArenaGroup& group,
                                       const T* gradient) {
  constexpr bool mixed = sizeof(T) == sizeof(bf16);
  const bool moves = gradient != nullptr;
  if (!moves && !averaged) return;
  if (moves) gradient += chunk.start;
  const bool gradient_aligned = aligned(gradient);
  float* const weights = step.weights + chunk.offset;
  float* const squares = squared ? step.squares + chunk.offset : nullptr;
  float* const momentum = step.momentum + chunk.offset;
  float* const average = averaged ? step.average + chunk.offset : nullptr;
  bf16* const low = mixed ? step.low + chunk.low : nullptr;
  const int count = static_cast<int>(chunk.count);
  for (int i = threadIdx.x * width; i < count; i += threads * width) {
    const int left = count - i < width ? count - i : width;
    const bool whole = left == width;
    Values weight = load(weights + i, left, whole), shown{}, slope{}, moved{}, square{}, mean{};
    if (mixed) shown = load(low + i, left, whole);
    if (moves) {
      slope = load(gradient + i, left, whole && gradient_aligned);
      moved = load(momentum + i, left, whole);
      if (squared) square = load(squares + i, left, whole);
    }
    if (averaged) mean = load(average + i, left, whole);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      float w = mixed ? master(weight.v[j], shown.v[j]) : weight.v[j];
      if (moves) {
        float g = slope.v[j];
        if (group.weight_decay != 0.0f) g = __fmaf_rn(group.weight_decay, w, g);
        float b = __fmul_rn(moved.v[j], group.momentum);
        if (squared) {
          const float s = __fmaf_rn(__fmul_rn(group.share, g), g, __fmul_rn(square.v[j], group.decay));
          square.v[j] = s;
          b = __fadd_rn(b, __fdiv_rn(__fmul_rn(group.lr, g), __fsqrt_rn(__fadd_rn(s, group.eps))));
          w = __fsub_rn(w, b);
        } else {
          b = __fadd_rn(b, g);
          w = __fmaf_rn(-group.lr, b, w);
        }
        moved.v[j] = b;
      }
      weight.v[j] = w;
      if (averaged) mean.v[j] = lerp(mean.v[j], w, step.average_share);
    }
    if (moves) {
      store(momentum + i, moved, left, whole);
      if (squared) store(squares + i, square, left, whole);
      if (mixed) store(low + i, weight, left, whole);
    }
    if (moves || mixed) store(weights + i, weight, left, whole);
    if (averaged) store(average + i, mean, left, whole);
  }
}

template <bool squared, bool averaged>
__global__ void __launch_bounds__(threads, 4)
    step_kernel(const __grid_constant__ ArenaStep step, const __grid_constant__ Groups groups) {
  for (int64_t i = blockIdx.x; i < step.chunk_count; i += gridDim.x) {
    const ArenaChunk chunk = step.chunks[i];
    require(fits(chunk, step.bounds, step.gradients));
    const ArenaGroup group = groups.group[chunk.group];
    const int64_t gradient = chunk.gradient < 0 ? 0 : step.gradients[chunk.gradient].address;
    if (chunk.low < 0)
      update<float, squared, averaged>(step, chunk, group, reinterpret_cast<const float*>(gradient));
    else
      update<bf16, squared, averaged>(step, chunk, group, reinterpret_cast<const bf16*>(gradient));
  }
}

template <class T>
__device__ __forceinline__ void follow_chunk(float* average, const T* values, int count, float share) {
  const bool values_aligned = aligned(values);
  for (int i = threadIdx.x * width; i < count; i += threads * width) {
    const int left = count - i < width ? count - i : width;
    const bool whole = left == width;
    Values mean = load(average + i, left, whole);
    const Values next = load(values + i, left, whole && values_aligned);
#pragma unroll
    for (int j = 0; j < width; ++j) mean.v[j] = lerp(mean.v[j], next.v[j], share);
    store(average + i, mean, left, whole);
  }
}

__global__ void __launch_bounds__(threads) follow_kernel(const __grid_constant__ ArenaFollow follow) {
  for (int64_t i = blockIdx.x; i < follow.chunk_count; i += gridDim.x) {
    const ArenaChunk chunk = follow.chunks[i];
    require(fits(chunk, follow.bounds, follow.values));
    const int64_t values = follow.values[chunk.gradient].address;
    const int count = static_cast<int>(chunk.count);
    float* const average = follow.average + chunk.offset;
    if (chunk.low < 0)
      follow_chunk(average, reinterpret_cast<const float*>(values) + chunk.start, count, follow.share);
    else
      follow_chunk(average, reinterpret_cast<const bf16*>(values) + chunk.start, count, follow.share);
  }
}

constexpr int64_t most_blocks = 132 * 16;  // a few waves of an H100; the loops take what is left

template <class T>
void launch_average(float* average, const T* values, float share, int64_t count, cudaStream_t stream) {
  constexpr int64_t per_block = int64_t{threads} * width;
  const int64_t blocks = (count + per_block - 1) / per_block;
  average_kernel<<<static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks), threads, 0, stream>>>(
      average, values, share, count);
}

}  // namespace

void average(float* average, const float* values, float share, int64_t count, cudaStream_t stream) {
  launch_average(average, values, share, count, stream);
}

void average(float* average, const bf16* values, float share, int64_t count, cudaStream_t stream) {
  launch_average(average, values, share, count, stream);
}

void put(ArenaSource* to, const ArenaSource* sources, int64_t count, cudaStream_t stream) {
  for (int64_t first = 0; first < count; first += sources_at_once) {
    const auto some = static_cast<int>(count - first < sources_at_once ? count - first : sources_at_once);
    Sources given{};
    for (int i = 0; i < some; ++i) given.source[i] = sources[first + i];
    put_kernel<<<1, sources_at_once, 0, stream>>>(to + first, given, some);
  }
}

void follow(const ArenaFollow& follow, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(follow.chunk_count < most_blocks ? follow.chunk_count : most_blocks);
  follow_kernel<<<blocks, threads, 0, stream>>>(follow);
}

void step(const ArenaStep& step, const ArenaGroup* groups, int group_count, cudaStream_t stream) {
  Groups given{};
  for (int i = 0; i < group_count; ++i) given.group[i] = groups[i];
  const auto blocks = static_cast<unsigned>(step.chunk_count < most_blocks ? step.chunk_count : most_blocks);
  if (step.squares != nullptr) {
    const auto kernel = step.average != nullptr ? step_kernel<true, true> : step_kernel<true, false>;
    kernel<<<blocks, threads, 0, stream>>>(step, given);
  } else {
    const auto kernel = step.average != nullptr ? step_kernel<false, true> : step_kernel<false, false>;
    kernel<<<blocks, threads, 0, stream>>>(step, given);
  }
}

}  // namespace pynas::kernels::cuda
