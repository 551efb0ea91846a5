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

  // Calls to(each), each(use) calling use(pixel, values), values(use) calling use(lane, value) for lanes channels from
  // `first` on, zeros beyond the last, of `count` pixels, a part of them at a time. at(pixel) is where it lies among
  // x's, or negative: a pixel outside of the image, whose values say nothing. One weight panel that holds all of `in`
  // stays for the next call, which says so: `loaded`.
  template <class At, class To>
  PYNAS_DEVICE static void run(const Block<threads>& block, Panels& panels, const Expansion& expansion, const T* x,
                               int first, int channels, int count, bool loaded, const At& at, const To& to) {
    for (int begin = 0; begin < count; begin += rows) {
      PerThread<typename Tile::Sums, threads> sums;
      block.own([&](int t) { sums[t] = {}; });
      for (int k = 0; k < expansion.in; k += depth) {
        block.each([&](int t) {
          const int lane = t % wide * vector;
          PYNAS_ROLLED
          for (int r = t / wide; r < rows; r += high) {
            const int pixel = begin + r < count ? at(begin + r) : -1;
            if (pixel >= 0 && k + lane < expansion.in)
              copy_later(&panels.pixels[r][lane], x + static_cast<int64_t>(pixel) * expansion.in + k + lane);
            else
              store<vector>(&panels.pixels[r][lane], Vector<T, vector>{});
          }
          if (!loaded || expansion.in > depth)
            fill_panel<T, lanes, depth, threads, false>(panels.weight, expansion.weight, first, channels, k,
                                                        expansion.in, t);
          await_copies();
        });
        loaded = true;
        Tile::template multiply<depth>(block, Panel{panels.pixels[0]}, Panel{panels.weight[0]}, sums);
        block.each([](int) {});
      }
      block.own([&](int t) {
        to([&](const auto& use) {
          Tile::each_row(t, sums[t], [&](int row, const auto& values) {
            if (begin + row < count) use(begin + row, values);
          });
        });
      });
    }
  }
};

}  // namespace pynas::kernels::cuda
