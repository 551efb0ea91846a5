// Rows of C values, one for each pixel, and the ways through them that batch-norm's kernels share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "simd.hpp"

namespace pynas::kernels::PYNAS_ISA {

// Some rows of one group: where they start in the tensor and how many values they have.
struct Chunk {
  int64_t group, offset, values;
};

// How (groups, rows, channels) is cut. Vectors run over `period` values at a time, as many whole rows as fill whole
// vectors, so a C that is no multiple of the lanes costs nothing; what belongs to a channel is repeated to that length.
// Chunks are cut by size alone and combined in order: no result depends on the number of threads.
template <class T>
struct Cut {
  Cut(int64_t groups, int64_t rows, int64_t channels) : rows(rows), channels(channels) {
    constexpr int64_t lanes = Computed<T>::lanes;
    replicas = lanes / std::gcd(lanes, channels);
    while (replicas * channels < 64) replicas *= 2;
    period = replicas * channels;
    constexpr int64_t bytes = 32768;  // what two sweeps find in the nearest cache
    // Many channels take more, so that what is done once a chunk and channel does not count.
    const int64_t wanted = std::max<int64_t>(128, bytes / (channels * static_cast<int64_t>(sizeof(T))));
    chunk_rows = (wanted + replicas - 1) / replicas * replicas;
    chunks = (rows + chunk_rows - 1) / chunk_rows;
    total = groups * chunks;
    constexpr int64_t values = 32768;  // what a thread takes at least
    grain = std::max<int64_t>(1, values / std::max<int64_t>(1, std::min(rows, chunk_rows) * channels));
  }

  Chunk chunk(int64_t index) const {
    const int64_t group = index / chunks;
    const int64_t first = index % chunks * chunk_rows;
    return {group, (group * rows + first) * channels, std::min(chunk_rows, rows - first) * channels};
  }

  int64_t rows, channels;
  int64_t replicas, period;
  int64_t chunk_rows, chunks;  // of a group
  int64_t total, grain;        // chunks in all, and those a thread takes at least
};

// A whole vector, or the first `count` values of one.
struct Whole {
  template <class T>
  typename Computed<T>::Vector load(const T* from) const {
    return kernels::PYNAS_ISA::load(from);
  }
  template <class T>
  void store(T* to, typename Computed<T>::Vector values) const {
    kernels::PYNAS_ISA::store(to, values);
  }
};

struct Part {
  int count;

  template <class T>
  typename Computed<T>::Vector load(const T* from) const {
    return load_part(from, count);
  }
  template <class T>
  void store(T* to, typename Computed<T>::Vector values) const {
    store_part(to, values, count);
  }
};

// body(access, at, column) for every vector of `values` values: at counts them, column is at modulo period.
template <int lanes, class Body>
inline void sweep(int64_t values, int64_t period, const Body& body) {
  for (int64_t start = 0; start < values; start += period) {
    const int64_t length = std::min(period, values - start);
    int64_t column = 0;
    for (; column + lanes <= length; column += lanes) body(Whole{}, start + column, column);
    if (column < length) body(Part{static_cast<int>(length - column)}, start + column, column);
  }
}

// Adds to K sums a column, sums[k * period + column]: body(access, at, column, vectors) adds to K vectors.
template <class T, int K, class Body>
inline void accumulate(int64_t values, int64_t period, typename Computed<T>::Scalar* sums, const Body& body) {
  typedef typename Computed<T>::Vector Vector;
  constexpr int lanes = Computed<T>::lanes;
  constexpr int unrolled = 4;
  int64_t start = 0;
  for (; start + unrolled * period <= values; start += unrolled * period)
    for (int64_t column = 0; column < period; column += lanes) {
      Vector vectors[K] = {};
      for (int i = 0; i < unrolled; ++i) body(Whole{}, start + i * period + column, column, vectors);
      for (int k = 0; k < K; ++k) {
        auto* const to = sums + k * period + column;
        store(to, load(to) + vectors[k]);
      }
    }
  sweep<lanes>(values - start, period, [&](auto access, int64_t at, int64_t column) __attribute__((always_inline)) {
    Vector vectors[K] = {};
    body(access, start + at, column, vectors);
    for (int k = 0; k < K; ++k) {
      auto* const to = sums + k * period + column;
      access.store(to, access.load(to) + vectors[k]);
    }
  });
}

// The sum of each channel's columns, for K sums: totals[k * channels + c].
template <int K, class T, class Scalar>
inline void fold(const Cut<T>& cut, const Scalar* sums, double* totals) {
  for (int k = 0; k < K; ++k) {
    const Scalar* const from = sums + k * cut.period;
    double* const to = totals + k * cut.channels;
    for (int64_t c = 0; c < cut.channels; ++c) to[c] = from[c];
    for (int64_t r = 1; r < cut.replicas; ++r)
      for (int64_t c = 0; c < cut.channels; ++c) to[c] += from[r * cut.channels + c];
  }
}

// A channel's value in each of its columns.
template <class Scalar>
inline void repeat(const Scalar* values, int64_t channels, int64_t period, Scalar* to) {
  for (int64_t start = 0; start < period; start += channels) std::copy(values, values + channels, to + start);
}

}  // namespace pynas::kernels::PYNAS_ISA
