// What squeeze-and-excite looks at: the mean over a image's pixels of act(norm(x)), which is not written. F3.
#pragma once

#include "norm.hpp"

namespace pynas::kernels::cuda {

template <class T, int n>
struct Pool {
  static constexpr int threads = 256, blocks = 2;
  static constexpr int columns = 64, wide = columns / n, high = threads / wide;
  struct Shared {
    float sums[high][columns];
  };
  struct Arguments {
    int groups, rows, channels;  // rows of a group
    const T* x;
    Norm norm;
    float* pooled;  // (groups, channels)
  };
  static Grid grid(const Arguments& a) { return {(a.channels + columns - 1) / columns, a.groups}; }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const int first = at.x * columns;
    block.each([&](int t) {
      const int lane = t % wide * n, c = first + lane;
      float sums[n] = {};
      if (c < a.channels) {
        Channel channel[n];
        PYNAS_UNROLL
        for (int v = 0; v < n; ++v) channel[v] = Channel(a.norm, c + v);
        const T* const x = a.x + static_cast<int64_t>(at.y) * a.rows * a.channels + c;
        for (int r = t / wide; r < a.rows; r += high) {
          float values[n];
          widen(load<n>(x + static_cast<int64_t>(r) * a.channels), values);
          apply(channel, a.norm.act, values);
          PYNAS_UNROLL
          for (int v = 0; v < n; ++v) sums[v] += values[v];
        }
      }
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) shared.sums[t / wide][lane + v] = sums[v];
    });
    block.each([&](int t) {
      if (t >= columns || first + t >= a.channels) return;
      float all = 0.0f;
      for (int i = 0; i < high; ++i) all += shared.sums[i][t];
      a.pooled[static_cast<int64_t>(at.y) * a.channels + first + t] = divide(all, static_cast<float>(a.rows));
    });
  }
};

}  // namespace pynas::kernels::cuda
