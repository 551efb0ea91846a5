// A 1x1 convolution made anew, tile by tile, by whoever reads its result: nobody has written it (docs/kernels.md, the
// recompute plan).
#pragma once

#include "arguments.hpp"
#include "multiply.hpp"

namespace pynas::kernels::cuda {

template <class T, int lanes>
struct Expander {
  static constexpr int threads = 256, rows = 128, depth = 64 / sizeof(T), pad = 16 / sizeof(T), vector = vector_of<T>;
  static constexpr int wide = depth / vector, high = threads / wide;
  typedef Multiply<T, rows, lanes> Tile;
  typedef Operand<T, depth + pad, false> Panel;

  struct Panels {
    alignas(16) T pixels[rows][depth + pad];
    alignas(16) T weight[lanes][depth + pad];
  };

  // Calls to(pixel, lane, value) for lanes channels from `first` on, zeros beyond the last, of `count` pixels.
  // at(pixel) is where it lies among x's, or negative: a pixel outside of the image, whose values say nothing. One
  // weight panel that holds all of `in` stays for the next call, which says so: `loaded`.
  template <class At, class To>
  PYNAS_DEVICE static void run(const Block<threads>& block, Panels& panels, const Expansion& expansion, const T* x,
                               int first, int channels, int count, bool loaded, const At& at, const To& to) {
    for (int begin = 0; begin < count; begin += rows) {
      PerThread<typename Tile::Sums, threads> sums;
      block.own([&](int t) { sums[t] = {}; });
      for (int k = 0; k < expansion.in; k += depth) {
        block.each([&](int t) {
          const int lane = t % wide * vector;
          for (int r = t / wide; r < rows; r += high) {
            const int64_t pixel = begin + r < count ? at(begin + r) : -1;
            Vector<T, vector> values{};
            if (pixel >= 0 && k + lane < expansion.in) values = load<vector>(x + pixel * expansion.in + k + lane);
            store<vector>(&panels.pixels[r][lane], values);
          }
          if (loaded && expansion.in <= depth) return;
          for (int i = t; i < lanes * depth; i += threads) {
            const int c = first + i / depth, d = k + i % depth;
            const bool real = c < channels && d < expansion.in;
            put(&panels.weight[i / depth][i % depth], real ? expansion.weight[c * expansion.in + d] : 0.0f);
          }
        });
        loaded = true;
        Tile::template multiply<depth>(block, Panel{panels.pixels[0]}, Panel{panels.weight[0]}, sums);
        block.each([](int) {});
      }
      block.own([&](int t) {
        Tile::each(t, sums[t], [&](int row, int lane, float value) {
          if (begin + row < count) to(begin + row, lane, value);
        });
      });
    }
  }
};

}  // namespace pynas::kernels::cuda
