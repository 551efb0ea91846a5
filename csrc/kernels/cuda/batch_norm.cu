#include "batch_norm.hpp"

#include "norm.hpp"

namespace pynas::kernels::cuda {
namespace {

constexpr int lanes = 32;       // channels of a block: neighbours in memory
constexpr int strips = 8;       // rows that a block reads at once
constexpr int64_t chunk = 512;  // rows of a block; by size alone, so results do not depend on the GPU
constexpr int threads = 256;

__device__ float gate_at(Gate gate, int64_t group, int64_t c, int64_t channels) {
  if (gate.values == nullptr) return 1.0f;
  return gate.values[gate.by_channel ? group * channels + c : group];
}

// The sum over the strips of a block, in their order, for threadIdx.y == 0; every thread calls.
__device__ float over_strips(float value, float (*shared)[lanes]) {
  __syncthreads();
  shared[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < strips; ++i) sum += shared[i][threadIdx.x];
  return sum;
}

// A chunk's mean, then the squares around it: scratch is (chunks, 2, channels).
template <class T>
__global__ void __launch_bounds__(threads) statistics_of_chunks(const T* x, Rows rows, float* scratch) {
  __shared__ float shared[strips][lanes];
  const int64_t c = int64_t{blockIdx.y} * lanes + threadIdx.x;
  const bool real = c < rows.channels;
  const int64_t begin = blockIdx.x * chunk;
  const int64_t end = begin + chunk < rows.rows ? begin + chunk : rows.rows;
  const float count = static_cast<float>(end - begin);
  float sum = 0.0f;
  if (real)
    for (int64_t r = begin + threadIdx.y; r < end; r += strips) sum += value_of(x[r * rows.channels + c]);
  const float centre = over_strips(sum, shared) / count;
  float off = 0.0f, squares = 0.0f;
  if (real)
    for (int64_t r = begin + threadIdx.y; r < end; r += strips) {
      const float d = value_of(x[r * rows.channels + c]) - centre;
      off += d;
      squares += d * d;
    }
  const float all_off = over_strips(off, shared);
  const float all_squares = over_strips(squares, shared);
  if (real && threadIdx.y == 0) {
    float* const to = scratch + int64_t{blockIdx.x} * 2 * rows.channels + c;
    to[0] = isfinite(centre) ? centre + all_off / count : centre;
    to[rows.channels] = all_squares - all_off * (all_off / count);
  }
}

// Chan's formula over the chunks in their order, in float64: one thread a channel.
__global__ void __launch_bounds__(threads) statistics_of_all(Rows rows, const float* scratch, float* mean, float* var) {
  const int64_t c = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (c >= rows.channels) return;
  double centre = 0.0, squares = 0.0, seen = 0.0;
  for (int64_t begin = 0; begin < rows.rows; begin += chunk) {
    const double count = static_cast<double>(begin + chunk < rows.rows ? chunk : rows.rows - begin);
    const float* const from = scratch + begin / chunk * 2 * rows.channels + c;
    const double off = from[0] - centre;
    seen += count;
    centre += off * (count / seen);
    squares += from[rows.channels] + off * off * (count * ((seen - count) / seen));
  }
  mean[c] = static_cast<float>(centre);
  var[c] = seen > 0.0 ? static_cast<float>(squares < 0.0 ? 0.0 : squares / seen) : 0.0f;
}

template <class T>
__global__ void __launch_bounds__(threads)
    forward_kernel(const T* x, Rows rows, Norm norm, Gate gate, const T* residual, T* y) {
  const int64_t c = int64_t{blockIdx.y} * lanes + threadIdx.x;
  if (c >= rows.channels) return;
  const Channel channel(norm, c);
  const int64_t begin = blockIdx.x * chunk;
  const int64_t end = begin + chunk < rows.rows ? begin + chunk : rows.rows;
  for (int64_t r = begin + threadIdx.y; r < end; r += strips) {
    const int64_t at = r * rows.channels + c;
    float value = activate(norm.act, (value_of(x[at]) - channel.mean) * channel.scale + channel.bias);
    if (gate.values != nullptr) value *= gate_at(gate, r / rows.rows_of_group, c, rows.channels);
    if (residual != nullptr) value += value_of(residual[at]);
    put(y + at, value);
  }
}

template <class T>
__global__ void __launch_bounds__(threads)
    sums_of_chunks(const T* dy, const T* x, Rows rows, Norm norm, Gate gate, float* scratch) {
  __shared__ float shared[strips][lanes];
  const int64_t c = int64_t{blockIdx.y} * lanes + threadIdx.x;
  const bool real = c < rows.channels;
  const int64_t begin = blockIdx.x * chunk;
  const int64_t end = begin + chunk < rows.rows ? begin + chunk : rows.rows;
  float total = 0.0f, along = 0.0f;
  if (real) {
    const Channel channel(norm, c);
    for (int64_t r = begin + threadIdx.y; r < end; r += strips) {
      const int64_t at = r * rows.channels + c;
      const float centred = value_of(x[at]) - channel.mean;
      float d = value_of(dy[at]);
      if (gate.values != nullptr) d *= gate_at(gate, r / rows.rows_of_group, c, rows.channels);
      const float dz = chain(norm.act, d, centred * channel.scale + channel.bias);
      total += dz;
      along += dz * centred;
    }
  }
  const float all_total = over_strips(total, shared);
  const float all_along = over_strips(along, shared);
  if (real && threadIdx.y == 0) {
    float* const to = scratch + int64_t{blockIdx.x} * 2 * rows.channels + c;
    to[0] = all_total;
    to[rows.channels] = all_along;
  }
}

__global__ void __launch_bounds__(threads) sums_of_all(Rows rows, Norm norm, const float* scratch, float* sums) {
  const int64_t c = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (c >= rows.channels) return;
  double total = 0.0, along = 0.0;
  for (int64_t begin = 0; begin < rows.rows; begin += chunk) {
    const float* const from = scratch + begin / chunk * 2 * rows.channels + c;
    total += from[0];
    along += from[rows.channels];
  }
  sums[c] = static_cast<float>(total);
  sums[rows.channels + c] = static_cast<float>(along * Channel(norm, c).inverse);
}

template <class T>
__global__ void __launch_bounds__(threads) backward_kernel(const T* dy, const T* x, Rows rows, Norm norm, Gate gate,
                                                           const float* dpool, const float* sums, float share, T* dx) {
  const int64_t c = int64_t{blockIdx.y} * lanes + threadIdx.x;
  if (c >= rows.channels) return;
  const Channel channel(norm, c);
  const float level = sums == nullptr ? 0.0f : channel.scale * sums[c] * share;
  const float slope = sums == nullptr ? 0.0f : channel.scale * sums[rows.channels + c] * share * channel.inverse;
  const int64_t begin = blockIdx.x * chunk;
  const int64_t end = begin + chunk < rows.rows ? begin + chunk : rows.rows;
  for (int64_t r = begin + threadIdx.y; r < end; r += strips) {
    const int64_t at = r * rows.channels + c;
    const int64_t group = r / rows.rows_of_group;
    const float centred = value_of(x[at]) - channel.mean;
    float d = value_of(dy[at]);
    if (gate.values != nullptr) d *= gate_at(gate, group, c, rows.channels);
    if (dpool != nullptr) d += dpool[group * rows.channels + c];
    float out = channel.scale * chain(norm.act, d, centred * channel.scale + channel.bias);
    if (sums != nullptr) out -= centred * slope + level;
    put(dx + at, out);
  }
}

dim3 grid_of(Rows rows) {
  return {static_cast<unsigned>((rows.rows + chunk - 1) / chunk),
          static_cast<unsigned>((rows.channels + lanes - 1) / lanes)};
}

unsigned blocks_of(Rows rows) {
  return static_cast<unsigned>((rows.channels + threads - 1) / threads);
}

const dim3 block{lanes, strips};

}  // namespace

int64_t scratch_size(int64_t rows, int64_t channels) {
  return (rows + chunk - 1) / chunk * 2 * channels;
}

template <class T>
void statistics(const T* x, Rows rows, float* scratch, float* mean, float* var, cudaStream_t stream) {
  if (rows.rows > 0) statistics_of_chunks<<<grid_of(rows), block, 0, stream>>>(x, rows, scratch);
  statistics_of_all<<<blocks_of(rows), threads, 0, stream>>>(rows, scratch, mean, var);
}

template <class T>
void forward(const T* x, Rows rows, Norm norm, Gate gate, const T* residual, T* y, cudaStream_t stream) {
  if (rows.rows > 0) forward_kernel<<<grid_of(rows), block, 0, stream>>>(x, rows, norm, gate, residual, y);
}

template <class T>
void backward_sums(const T* dy, const T* x, Rows rows, Norm norm, Gate gate, float* scratch, float* sums,
                   cudaStream_t stream) {
  if (rows.rows > 0) sums_of_chunks<<<grid_of(rows), block, 0, stream>>>(dy, x, rows, norm, gate, scratch);
  sums_of_all<<<blocks_of(rows), threads, 0, stream>>>(rows, norm, scratch, sums);
}

template <class T>
void backward(const T* dy, const T* x, Rows rows, Norm norm, Gate gate, const float* dpool, const float* sums,
              float count, T* dx, cudaStream_t stream) {
  if (rows.rows > 0)
    backward_kernel<<<grid_of(rows), block, 0, stream>>>(dy, x, rows, norm, gate, dpool, sums, 1.0f / count, dx);
}

#define PYNAS_INSTANTIATE(T)                                                                          \
  template void statistics<T>(const T*, Rows, float*, float*, float*, cudaStream_t);                  \
  template void forward<T>(const T*, Rows, Norm, Gate, const T*, T*, cudaStream_t);                   \
  template void backward_sums<T>(const T*, const T*, Rows, Norm, Gate, float*, float*, cudaStream_t); \
  template void backward<T>(const T*, const T*, Rows, Norm, Gate, const float*, const float*, float, T*, cudaStream_t);
PYNAS_INSTANTIATE(float)
PYNAS_INSTANTIATE(bf16)
#undef PYNAS_INSTANTIATE

}  // namespace pynas::kernels::cuda
