// Depthwise convolutions between two batch-norms, NHWC: the norm before is applied where values are read, the
// statistics for the one after are taken where they are written, so that neither is a pass of its own (docs/kernels.md,
// F2 and B4).
//
// A channel has one kernel, or 2 or 4 (Split-Attention), the maps that they make being side by side. A block of threads
// has `lanes` maps, one a thread of each warp, and works through a chunk of tiles of pixels. The values of a tile and
// its surroundings are put into shared memory, normalised; a thread then makes strips of 8 pixels of a row. Chunks are
// cut by sizes alone, so that results do not depend on the GPU; their sums are added in order.
#pragma once

#include "expansion.hpp"
#include "norm.hpp"

namespace pynas::kernels::cuda {

namespace depthwise {

struct Shape {
  int n, channels, h, w, out_h, out_w, padding;
  int shift;  // a channel has 2^shift maps

  PYNAS_BOTH int maps() const { return channels << shift; }
};

constexpr int lanes = 32, warps = 8, strip = 8;

// Tiles of side x side pixels over n images of h x w, in chunks.
struct Tiles {
  int high, wide;      // tiles of an image
  int count;           // of all images, of no more than pixels
  int chunks, length;  // pieces, and tiles of one

  PYNAS_BOTH static Tiles of(int n, int h, int w, int side, int maps) {
    Tiles t{};
    t.high = (h + side - 1) / side;
    t.wide = (w + side - 1) / side;
    t.count = n * t.high * t.wide;
    const int groups = (maps + lanes - 1) / lanes, most = most_blocks / groups > 1 ? most_blocks / groups : 1;
    t.length = t.count / most + (t.count % most != 0);
    if (t.length < 1) t.length = 1;
    t.chunks = t.count / t.length + (t.count % t.length != 0);
    return t;
  }
};

// Tile number `i`: its image, and the pixel that it begins with, the first tile's being -before.
struct Tile {
  PYNAS_DEVICE Tile(const Tiles& tiles, int i, int side, int before = 0) {
    const int of_image = tiles.high * tiles.wide, at = i % of_image;
    image = i / of_image;
    row = at / tiles.wide * side - before;
    column = at % tiles.wide * side - before;
  }
  int image, row, column;
};

PYNAS_BOTH Grid grid_of(const Tiles& tiles, int maps) {
  return {(maps + lanes - 1) / lanes, tiles.chunks};
}

PYNAS_DEVICE void load_channels(Channel* to, const Norm& norm, int first, int channels, int t) {
  if (t < lanes) to[t] = first + t < channels ? Channel(norm, first + t) : Channel();
}

// Puts the kernels of maps from `first` on into shared memory, zeros beyond the last. weight: (maps, size).
template <int size>
PYNAS_DEVICE void load_kernels(float (*to)[lanes], const float* weight, int first, int maps, int t, int threads) {
  PYNAS_ROLLED
  for (int i = t; i < size * lanes; i += threads)
    to[i % size][i / size] = first + i / size < maps ? weight[static_cast<int64_t>(first) * size + i] : 0.0f;
}

// y = conv(act(norm(x))), and moments of y; or after of that, act(norm(.)) with known statistics, and sums of each
// tile.
template <class T, int kernel, int stride, int side>
struct Forward {
  static constexpr int threads = lanes * warps, vector = 4;
  // Registers are few: blocks at once, and pixels that a thread reads before it makes them, are as many as they allow.
  static constexpr int blocks = kernel == 7 || sizeof(T) == 4 ? 2 : 3;
  static constexpr int at_once = sizeof(T) == 2 && kernel != 5 ? 2 : 1;
  static constexpr int halo = (side - 1) * stride + kernel;  // pixels of a row that a tile reads

  struct Shared {
    float a[halo * halo][lanes];  // of channels, fewer than lanes where each has several maps
    float weight[kernel * kernel][lanes];
    Moments moments[warps][lanes];
    Channel channel[lanes];
    typename Expander<T, lanes>::Panels panels;  // there only with an expansion
  };

  struct Arguments {
    Shape shape;
    Expansion expansion;
    Norm norm;
    const T* x;           // (n, h, w, channels), or (n, h, w, in) of an expansion
    const float* weight;  // (maps, kernel, kernel)
    T* y;                 // (n, out_h, out_w, maps)
    Norm after;           // without mean: y is what the convolution gives
    float* moments;       // (chunks, 3, maps), or null where nobody asks
    float* pooled;        // (tiles, maps), sums over pixels of y, or null; not beside moments
  };

  static Tiles tiles_of(const Arguments& a) {
    return Tiles::of(a.shape.n, a.shape.out_h, a.shape.out_w, side, a.shape.maps());
  }
  static Grid grid(const Arguments& a) { return grid_of(tiles_of(a), a.shape.maps()); }
  static int bytes(const Arguments& a) { return a.expansion.weight ? sizeof(Shared) : offsetof(Shared, panels); }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const Shape& s = a.shape;
    const Tiles tiles = Tiles::of(s.n, s.out_h, s.out_w, side, s.maps());
    const int first = at.x * lanes, maps = s.maps();
    PerThread<Shifted, threads> made;
    block.each([&](int t) {
      made[t] = Shifted{};
      load_kernels<kernel * kernel>(shared.weight, a.weight, first, maps, t, threads);
      load_channels(shared.channel, a.norm, first >> s.shift, s.channels, t);
    });
    const int begin = at.y * tiles.length;
    const int end = tiles.count - begin < tiles.length ? tiles.count : begin + tiles.length;
    for (int i = begin; i < end; ++i) {
      const Tile tile(tiles, i, side);
      if (a.expansion.weight == nullptr)
        block.each([&](int t) { fill(shared, a, tile, first, t); });
      else
        expand(block, shared, a, tile, first, i > begin);
      block.each([&](int t) { convolve(shared, a, tile, first, t, made[t]); });
      if (a.pooled == nullptr) continue;
      block.each([&](int t) {
        shared.moments[t / lanes][t % lanes] = made[t].moments();
        made[t] = Shifted{};
      });
      block.each([&](int t) {
        if (t >= lanes || first + t >= maps) return;
        float all = 0.0f;
        for (int w = 0; w < warps; ++w) all += shared.moments[w][t].count * shared.moments[w][t].mean;
        a.pooled[static_cast<int64_t>(i) * maps + first + t] = all;
      });
    }
    if (a.moments == nullptr) return;
    block.each([&](int t) { shared.moments[t / lanes][t % lanes] = made[t].moments(); });
    block.each([&](int t) {
      const int c = first + t;
      if (t >= lanes || c >= maps) return;
      Moments all;
      for (int w = 0; w < warps; ++w) all.merge(shared.moments[w][t]);
      float* const to = a.moments + static_cast<int64_t>(at.y) * 3 * maps + c;
      to[0] = all.count;
      to[maps] = all.mean;
      to[2 * maps] = all.squares;
    });
  }

  PYNAS_DEVICE static void expand(const Block<threads>& block, Shared& shared, const Arguments& a, const Tile& tile,
                                  int first, bool loaded) {
    const Shape& s = a.shape;
    const auto at = [&](int p) {
      const int row = tile.row * stride - s.padding + p / halo, column = tile.column * stride - s.padding + p % halo;
      const bool inside = row >= 0 && row < s.h && column >= 0 && column < s.w;
      return inside ? (tile.image * s.h + row) * s.w + column : -1;
    };
    const auto to = [&](const auto& each) {
      with_activation(a.norm.act, [&](auto act) {
        each([&](int p, const auto& values) {
          const bool inside = at(p) >= 0;
          values([&](int lane, float value) {
            shared.a[p][lane] = inside ? activate(act.value, shared.channel[lane](value)) : 0.0f;
          });
        });
      });
    };
    Expander<T, lanes>::run(block, shared.panels, a.expansion, a.x, first >> s.shift, s.channels, halo * halo, loaded,
                            at, to);
    block.each([](int) {});
  }

  // A thread has the same `vector` channels of every pixel that it loads.
  PYNAS_DEVICE static void fill(Shared& shared, const Arguments& a, const Tile& tile, int first, int t) {
    const Shape& s = a.shape;
    const int parts = (lanes >> s.shift) / vector;
    const int lane = t % parts * vector, c = (first >> s.shift) + lane;
    const bool real = c < s.channels;  // then all of the vector is
    const int step = threads / parts;
    for (int begin = t / parts; begin < halo * halo; begin += at_once * step) {
      Vector<T, vector> read[at_once];
      bool inside[at_once];
      PYNAS_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const int p = begin + i * step;
        const int row = tile.row * stride - s.padding + p / halo, column = tile.column * stride - s.padding + p % halo;
        inside[i] = real && p < halo * halo && row >= 0 && row < s.h && column >= 0 && column < s.w;
        if (!inside[i]) continue;
        read[i] = load<vector>(a.x + ((static_cast<int64_t>(tile.image) * s.h + row) * s.w + column) * s.channels + c);
      }
      PYNAS_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const int p = begin + i * step;
        if (p >= halo * halo) break;
        float values[vector] = {};
        if (inside[i]) {
          widen(read[i], values);
          apply(shared.channel + lane, a.norm.act, values);
        }
        PYNAS_UNROLL
        for (int v = 0; v < vector; ++v) shared.a[p][lane + v] = values[v];
      }
    }
  }

  PYNAS_DEVICE static void convolve(const Shared& shared, const Arguments& a, const Tile& tile, int first, int t,
                                    Shifted& made) {
    const Shape& s = a.shape;
    const int lane = t % lanes, map = first + lane, maps = s.maps(), input = lane >> s.shift;
    if (map >= maps) return;
    const Channel after(a.after, map);
    float weight[kernel * kernel];
    PYNAS_UNROLL
    for (int k = 0; k < kernel * kernel; ++k) weight[k] = shared.weight[k][lane];
    for (int unit = t / lanes; unit < side * side / strip; unit += warps) {
      const int r = unit / (side / strip), q = unit % (side / strip) * strip;
      const int row = tile.row + r, column = tile.column + q;
      const int real = row < s.out_h ? (s.out_w - column < strip ? s.out_w - column : strip) : 0;
      if (real <= 0) continue;
      float out[strip] = {};
      PYNAS_UNROLL
      for (int ky = 0; ky < kernel; ++ky) {
        constexpr int read = (strip - 1) * stride + kernel;
        const float (*from)[lanes] = shared.a + (r * stride + ky) * halo + q * stride;
        float values[read];
        PYNAS_UNROLL
        for (int j = 0; j < read; ++j) values[j] = from[j][input];
        PYNAS_UNROLL
        for (int kx = 0; kx < kernel; ++kx) PYNAS_UNROLL
        for (int j = 0; j < strip; ++j) out[j] += values[j * stride + kx] * weight[ky * kernel + kx];
      }
      if (a.after.mean != nullptr) {
        PYNAS_UNROLL
        for (int j = 0; j < strip; ++j) out[j] = after(out[j]);
        activate(a.after.act, out);
      }
      T* const to = a.y + ((static_cast<int64_t>(tile.image) * s.out_h + row) * s.out_w + column) * maps + map;
      PYNAS_UNROLL
      for (int j = 0; j < strip; ++j)
        if (j < real) put(to + static_cast<int64_t>(j) * maps, out[j]);
      made.add(out, real);
    }
  }
};

// With a = act(norm(x)), y = conv(a) and d, the gradient of what is made of the norm after y: dz of `norm` (dx where
// there is none), its sums, and the gradient of the weights. dy is made where d and y are read. Where a channel has
// several maps d is that of their weighted sum (n, out_h, out_w, channels), the weights being `after.gate`.
template <class T, int kernel, int stride, int side>
struct Backward {
  static constexpr int threads = lanes * warps, vector = 4;
  static constexpr int blocks = kernel == 7 ? 1 : 2, at_once = sizeof(T) == 2 && kernel != 5 ? 2 : 1;  // as Forward's
  static constexpr int halo = (side + kernel - 2) / stride + 1;  // of dy, for a tile of x

  struct Shared {
    float dy[halo * halo][lanes];  // and at the end sums, a row for each warp
    float weight[kernel * kernel][lanes];
    Channel channel[lanes];  // of the norm before, fewer than lanes where each has several maps
    ChannelBackward after[lanes];
    float x[side * side][lanes];  // this and what follows: there only with an expansion
    typename Expander<T, lanes>::Panels panels;
  };

  struct Arguments {
    Shape shape;
    Expansion expansion;
    Norm norm;
    NormBackward after;
    const T *x, *y, *d;
    const float* weight;
    T* dz;           // (n, h, w, channels)
    float* partial;  // (chunks, kernel^2 + 2, maps): gradients of the weights, sums of dz and of dz (x - mean), which
                     // a channel's first map has, the others zeros
  };

  // Of stride 2, which pixels a weight meets alternates. That the first of a tile is always met by the same of them,
  // whatever the padding, tiles begin a pixel before the image where its parity is not that of kernel / 2.
  PYNAS_BOTH static int before(const Shape& s) { return stride == 2 ? (kernel / 2 - s.padding) & 1 : 0; }
  PYNAS_BOTH static Tiles tiles_of(const Shape& s) {
    return Tiles::of(s.n, s.h + before(s), s.w + before(s), side, s.maps());
  }

  static Tiles tiles_of(const Arguments& a) { return tiles_of(a.shape); }
  static Grid grid(const Arguments& a) { return grid_of(tiles_of(a), a.shape.maps()); }
  static int bytes(const Arguments& a) { return a.expansion.weight ? sizeof(Shared) : offsetof(Shared, x); }

  struct Sums {
    float weight[kernel * kernel], total, along;
  };
  struct Strip {
    float centred[strip], da[strip];  // x - mean, and the gradient of a
    int at;                           // the first pixel, among x's
    int begin, real;                  // those within the image: none at the edges
  };

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const Shape& s = a.shape;
    const Tiles tiles = tiles_of(s);
    const int first = at.x * lanes, maps = s.maps();
    PerThread<Sums, threads> sums;
    block.each([&](int t) {
      sums[t] = Sums{};
      load_kernels<kernel * kernel>(shared.weight, a.weight, first, maps, t, threads);
      load_channels(shared.channel, a.norm, first >> s.shift, s.channels, t);
      if (t < lanes) shared.after[t] = first + t < maps ? ChannelBackward(a.after, first + t, maps) : ChannelBackward();
    });
    const int begin = at.y * tiles.length;
    const int end = tiles.count - begin < tiles.length ? tiles.count : begin + tiles.length;
    for (int i = begin; i < end; ++i) {
      const Tile tile(tiles, i, side, before(s));
      block.each([&](int t) { fill(shared, a, tile, first, t); });
      if (a.expansion.weight != nullptr) expand(block, shared, a, tile, first, i > begin);
      PYNAS_ROLLED
      for (int unit = 0; unit < side * side / strip; unit += warps) {
        PerThread<Strip, threads> made;
        block.own([&](int t) { convolve(shared, a, tile, first, unit + t / lanes, t, made[t], sums[t]); });
        for (int i = 0; i < s.shift; ++i) add_neighbours(made, 1 << i);
        block.own([&](int t) { finish(shared, a, first, t, made[t], sums[t]); });
      }
      block.each([](int) {});
    }
    float* const to = a.partial + static_cast<int64_t>(at.y) * (kernel * kernel + 2) * maps + first;
    PYNAS_UNROLL
    for (int k = 0; k < kernel * kernel + 2; ++k) {
      block.each([&](int t) {
        const Sums& own = sums[t];
        shared.dy[t / lanes][t % lanes] = k < kernel * kernel ? own.weight[k < kernel * kernel ? k : 0]
                                                              : (k == kernel * kernel ? own.total : own.along);
      });
      block.each([&](int t) {
        if (t >= lanes || first + t >= maps) return;
        float all = 0.0f;
        for (int w = 0; w < warps; ++w) all += shared.dy[w][t];
        to[static_cast<int64_t>(k) * maps + t] = all;
      });
    }
  }

  // The output pixel that the tile's first column or row of dy is: the first whose window reaches the tile.
  PYNAS_DEVICE static int first_of(int pixel, int padding) {
    const int reach = pixel + padding - (kernel - 1);
    return stride == 1 ? reach : (reach + 1) >> 1;  // rounded up, below zero too
  }

  PYNAS_DEVICE static void fill(Shared& shared, const Arguments& a, const Tile& tile, int first, int t) {
    const Shape& s = a.shape;
    constexpr int parts = lanes / vector;
    const int lane = t % parts * vector, map = first + lane, maps = s.maps();
    const bool real = map < maps;
    const NormBackward& after = a.after;
    float pooled[vector] = {}, gate[vector];
    PYNAS_UNROLL
    for (int v = 0; v < vector; ++v) {
      gate[v] = 1.0f;
      if (!real) continue;
      const int64_t of_group = static_cast<int64_t>(tile.image) * maps + map + v;
      if (after.dpool != nullptr) pooled[v] = after.dpool[of_group];
      if (after.gate.values != nullptr) gate[v] = after.gate.values[after.gate.by_channel ? of_group : tile.image];
    }
    const int step = threads / parts, top = first_of(tile.row, s.padding), left = first_of(tile.column, s.padding);
    for (int begin = t / parts; begin < halo * halo; begin += at_once * step) {
      Vector<T, vector> read[at_once], read_y[at_once];
      bool inside[at_once];
      PYNAS_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const int p = begin + i * step, row = top + p / halo, column = left + p % halo;
        inside[i] = real && p < halo * halo && row >= 0 && row < s.out_h && column >= 0 && column < s.out_w;
        if (!inside[i]) continue;
        const int64_t from = ((static_cast<int64_t>(tile.image) * s.out_h + row) * s.out_w + column) * maps + map;
        read[i] = load_repeated(a.d, from, s.shift);
        read_y[i] = load<vector>(a.y + from);
      }
      PYNAS_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const int p = begin + i * step;
        if (p >= halo * halo) break;
        float d[vector] = {}, y[vector];
        if (inside[i]) {
          widen(read[i], d);
          widen(read_y[i], y);
          PYNAS_UNROLL
          for (int v = 0; v < vector; ++v) d[v] = d[v] * gate[v] + pooled[v];
          apply(shared.after + lane, after.norm.act, d, y);
        }
        PYNAS_UNROLL
        for (int v = 0; v < vector; ++v) shared.dy[p][lane + v] = d[v];
      }
    }
  }

  PYNAS_DEVICE static void expand(const Block<threads>& block, Shared& shared, const Arguments& a, const Tile& tile,
                                  int first, bool loaded) {
    const Shape& s = a.shape;
    const auto at = [&](int p) {
      const int row = tile.row + p / side, column = tile.column + p % side;
      const bool inside = row >= 0 && row < s.h && column >= 0 && column < s.w;
      return inside ? (tile.image * s.h + row) * s.w + column : -1;
    };
    const auto to = [&](const auto& each) {
      each([&](int p, const auto& values) { values([&](int lane, float value) { shared.x[p][lane] = value; }); });
    };
    Expander<T, lanes>::run(block, shared.panels, a.expansion, a.x, first >> s.shift, s.channels, side * side, loaded,
                            at, to);
    block.each([](int) {});
  }

  // d's numbers of the maps from `at` on, as many for each channel as it has maps.
  PYNAS_DEVICE static Vector<T, vector> load_repeated(const T* d, int64_t at, int shift) {
    if (shift == 0) return load<vector>(d + at);
    Vector<T, vector> values;
    PYNAS_UNROLL
    for (int v = 0; v < vector; ++v) values.values[v] = d[(at + v) >> shift];
    return values;
  }

  // The strip number `unit` of a tile: the gradient of a by one map, and what the strip adds to that of its kernel.
  PYNAS_DEVICE static void convolve(const Shared& shared, const Arguments& a, const Tile& tile, int first, int unit,
                                    int t, Strip& made, Sums& sums) {
    const Shape& s = a.shape;
    const int lane = t % lanes, c = (first + lane) >> s.shift;
    const int r = unit / (side / strip), q = unit % (side / strip) * strip;
    const int row = tile.row + r, column = tile.column + q;
    const bool inside = row >= 0 && row < s.h && c < s.channels;
    made.begin = column < 0 ? -column : 0;
    made.real = inside ? (s.w - column < strip ? s.w - column : strip) : 0;
    PYNAS_UNROLL
    for (int j = 0; j < strip; ++j) made.da[j] = 0.0f;
    if (made.real <= 0) return;
    made.at = (tile.image * s.h + row) * s.w + column;
    const Channel channel = shared.channel[t % lanes >> s.shift];
    const auto real = [&](int j) { return j >= made.begin && j < made.real; };
    float act[strip] = {};
    if (a.expansion.weight != nullptr) {
      PYNAS_UNROLL
      for (int j = 0; j < strip; ++j) act[j] = shared.x[r * side + q + j][lane >> s.shift];
    } else {
      const T* const x = a.x + static_cast<int64_t>(made.at) * s.channels + c;
      PYNAS_UNROLL
      for (int j = 0; j < strip; ++j)
        if (real(j)) act[j] = value_of(x[static_cast<int64_t>(j) * s.channels]);
    }
    PYNAS_UNROLL
    for (int j = 0; j < strip; ++j) {
      made.centred[j] = act[j] - channel.mean;
      act[j] = channel(act[j]);
    }
    activate(a.norm.act, act);
    PYNAS_UNROLL
    for (int j = 0; j < strip; ++j) act[j] = real(j) ? act[j] : 0.0f;
    PYNAS_UNROLL
    for (int ky = 0; ky < kernel; ++ky) {
      // Row r meets ky at dy's row (row + padding - ky) / stride, if that is whole.
      if (stride == 2 && ((row + s.padding - ky) & 1)) continue;
      const int of_dy = (row + s.padding - ky) / stride - first_of(tile.row, s.padding);
      // q is a multiple of 8, and tiles begin at such: the columns that a strip meets begin with the same of dy.
      constexpr int read = (strip + kernel - 2) / stride + 1;
      const float (*values)[lanes] = shared.dy + of_dy * halo + q / stride;
      float dy[read];
      PYNAS_UNROLL
      for (int j = 0; j < read; ++j) dy[j] = values[j][lane];
      PYNAS_UNROLL
      for (int kx = 0; kx < kernel; ++kx) {
        const float weight = shared.weight[ky * kernel + kx][lane];
        PYNAS_UNROLL
        for (int j = 0; j < strip; ++j) {
          // Column j meets kx at (column + j + padding - kx) / stride, and column + padding is even with half's parity.
          constexpr int half = kernel / 2;
          if (stride == 2 && ((j + half - kx) & 1)) continue;
          const int i = stride == 1 ? j + kernel - 1 - kx : (j + half - kx) / 2 - ((half - kernel + 2) >> 1);
          made.da[j] += weight * dy[i];
          sums.weight[ky * kernel + kx] += act[j] * dy[i];
        }
      }
    }
  }

  // The gradient of norm(x), by the thread of a channel's first map.
  PYNAS_DEVICE static void finish(const Shared& shared, const Arguments& a, int first, int t, const Strip& made,
                                  Sums& sums) {
    const Shape& s = a.shape;
    const int map = first + t % lanes, c = map >> s.shift;
    if (made.real <= 0 || map != c << s.shift) return;
    const Channel channel = shared.channel[t % lanes >> s.shift];
    float dz[strip], z[strip];
    PYNAS_UNROLL
    for (int j = 0; j < strip; ++j) {
      dz[j] = made.da[j];
      z[j] = made.centred[j] * channel.scale + channel.bias;
    }
    chain(a.norm.act, dz, z);
    T* const to = a.dz + static_cast<int64_t>(made.at) * s.channels + c;
    PYNAS_UNROLL
    for (int j = 0; j < strip; ++j)
      if (j >= made.begin && j < made.real) {
        put(to + static_cast<int64_t>(j) * s.channels, dz[j]);
        sums.total += dz[j];
        sums.along += dz[j] * made.centred[j];
      }
  }

  // To each thread's da that of the thread `across` lanes away.
#ifdef __CUDACC__
  PYNAS_DEVICE static void add_neighbours(PerThread<Strip, threads>& made, int across) {
    PYNAS_UNROLL
    for (int j = 0; j < strip; ++j) made[0].da[j] += __shfl_xor_sync(~0u, made[0].da[j], across);
  }
#else
  static void add_neighbours(PerThread<Strip, threads>& made, int across) {
    const PerThread<Strip, threads> before = made;
    for (int t = 0; t < threads; ++t)
      for (int j = 0; j < strip; ++j) made[t].da[j] += before.values[t ^ across].da[j];
  }
#endif
};

}  // namespace depthwise
}  // namespace pynas::kernels::cuda
