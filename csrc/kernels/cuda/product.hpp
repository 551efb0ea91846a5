// 1x1 convolutions between batch-norms, as matrix products over rows of pixels: what comes before is computed where the
// rows are read (Source), what comes after where results are written (Target). docs/kernels.md, F1, F4, B2 and B5.
#pragma once

#include "multiply.hpp"
#include "norm.hpp"

namespace pynas::kernels::cuda::product {

constexpr int threads = 256;
constexpr int product_rows = 128, product_columns = 64, outer_rows = 32, outer_side = 64;  // of a tile

// Rows of a tile are of one group where results are summed by group, else of any.
struct RowTiles {
  int rows, of_group;  // rows of a group, or of all; tiles of these
  int length, pieces;  // tiles of a chunk, chunks of a group, or of all
  int chunks;

  PYNAS_BOTH static RowTiles of_product(Pixels pixels, int columns, bool by_group) {
    return of(pixels, (columns + product_columns - 1) / product_columns, product_rows, by_group);
  }

  PYNAS_BOTH static RowTiles of_outer(Pixels pixels, int left, int right) {
    const int64_t tiles =
        static_cast<int64_t>((left + outer_side - 1) / outer_side) * ((right + outer_side - 1) / outer_side);
    return of(pixels, tiles, outer_rows, false);
  }

  PYNAS_BOTH static RowTiles of(Pixels pixels, int64_t column_tiles, int side, bool by_group) {
    RowTiles t{};
    const int groups = by_group ? pixels.groups : 1;
    t.rows = by_group ? pixels.rows : pixels.groups * pixels.rows;
    t.of_group = (t.rows + side - 1) / side;
    const int64_t most = most_blocks / (column_tiles * (groups > 0 ? groups : 1));
    t.length = static_cast<int>(most < 1 ? t.of_group : (t.of_group + most - 1) / most);
    if (t.length < 1) t.length = 1;
    t.pieces = (t.of_group + t.length - 1) / t.length;
    t.chunks = groups * t.pieces;
    return t;
  }
};

// --- sources: values of row and column as the product takes them ---

// x itself, or less a centre.
template <class T>
struct Plain {
  struct Arguments {
    const T* x;
    const float* centre;  // (columns) or null
  };
  template <int n>
  struct Raw {
    Vector<T, n> x;
  };
  struct Table {  // what a column needs
    float centre;
  };
  PYNAS_DEVICE static Table table(const Arguments& a, int c, int) { return {a.centre == nullptr ? 0.0f : a.centre[c]}; }
  template <int n>
  PYNAS_DEVICE static Raw<n> fetch(const Arguments& a, int64_t row, int c, int columns) {
    return {load<n>(a.x + row * columns + c)};
  }
  template <int n>
  PYNAS_DEVICE static float value(const Arguments&, const Raw<n>& raw, int v, const Table& table, int64_t, int64_t) {
    return raw.x[v] - table.centre;
  }
};

// left, and beside it right less its centre.
template <class T>
struct Beside {
  struct Arguments {
    const T *left, *right;
    const float* centre;
    int left_columns;
  };
  template <int n>
  using Raw = typename Plain<T>::template Raw<n>;
  typedef typename Plain<T>::Table Table;
  PYNAS_DEVICE static Table table(const Arguments& a, int c, int) {
    return {c < a.left_columns ? 0.0f : a.centre[c - a.left_columns]};
  }
  template <int n>
  PYNAS_DEVICE static Raw<n> fetch(const Arguments& a, int64_t row, int c, int columns) {
    const int right = c - a.left_columns;
    return {
        load<n>(right < 0 ? a.left + row * a.left_columns + c : a.right + row * (columns - a.left_columns) + right)};
  }
  template <int n>
  PYNAS_DEVICE static float value(const Arguments&, const Raw<n>& raw, int v, const Table& table, int64_t, int64_t) {
    return raw.x[v] - table.centre;
  }
};

// act(norm(x)) gate.
template <class T>
struct Normalised {
  struct Arguments {
    const T* x;
    Norm norm;
    Gate gate;
  };
  template <int n>
  using Raw = typename Plain<T>::template Raw<n>;
  typedef Channel Table;
  PYNAS_DEVICE static Table table(const Arguments& a, int c, int) { return Channel(a.norm, c); }
  template <int n>
  PYNAS_DEVICE static Raw<n> fetch(const Arguments& a, int64_t row, int c, int columns) {
    return {load<n>(a.x + row * columns + c)};
  }
  template <int n>
  PYNAS_DEVICE static float value(const Arguments& a, const Raw<n>& raw, int v, const Table& channel, int64_t group,
                                  int64_t of_group) {
    const float value = activate(a.norm.act, channel(raw.x[v]));
    return a.gate.values == nullptr ? value : value * a.gate.values[a.gate.by_channel ? of_group : group];
  }
};

// The gradient of a batch-norm's input y, of the gradient d of what follows it.
template <class T>
struct Backward {
  struct Arguments {
    const T *d, *y;
    NormBackward of;
  };
  template <int n>
  struct Raw {
    Vector<T, n> d, y;
  };
  typedef ChannelBackward Table;
  PYNAS_DEVICE static Table table(const Arguments& a, int c, int channels) {
    return ChannelBackward(a.of, c, channels);
  }
  template <int n>
  PYNAS_DEVICE static Raw<n> fetch(const Arguments& a, int64_t row, int c, int columns) {
    return {load<n>(a.d + row * columns + c), load<n>(a.y + row * columns + c)};
  }
  template <int n>
  PYNAS_DEVICE static float value(const Arguments& a, const Raw<n>& raw, int v, const Table& channel, int64_t group,
                                  int64_t of_group) {
    float d = raw.d[v];
    if (a.of.gate.values != nullptr) d *= a.of.gate.values[a.of.gate.by_channel ? of_group : group];
    if (a.of.dpool != nullptr) d += a.of.dpool[of_group];
    return channel(a.of.norm.act, d, raw.y[v]);
  }
};

// --- targets: what becomes of results, of `n` columns of a row at a time ---
//
// A thread sees the same columns of many rows, and keeps `parts` numbers of each; `merge` makes `made` numbers of those
// that all threads of a column have kept, part(i, strip).

// Stored; moments of each column.
template <class T>
struct WithMoments {
  static constexpr bool by_group = false;
  static constexpr int parts = 4, made = 3;  // of Shifted, and of Moments
  struct Arguments {
    T* y;
  };
  struct Table {};  // what a column needs
  PYNAS_DEVICE static Table table(const Arguments&, int) { return {}; }

  template <int n>
  PYNAS_DEVICE static void row(const Arguments& a, float (&kept)[parts][n], const float (&values)[n], int64_t at,
                               const Table*) {
    Vector<T, n> vector;
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) {
      put(&vector.values[v], values[v]);
      Shifted shifted{kept[0][v], kept[1][v], kept[2][v], kept[3][v]};
      shifted.add(values[v]);
      kept[0][v] = shifted.count;
      kept[1][v] = shifted.shift;
      kept[2][v] = shifted.sum;
      kept[3][v] = shifted.squares;
    }
    store<n>(a.y + at, vector);
  }

  template <class Part>
  PYNAS_DEVICE static void merge(int strips, const Part& part, float (&to)[made]) {
    Moments all;
    for (int i = 0; i < strips; ++i) all.merge(Shifted{part(0, i), part(1, i), part(2, i), part(3, i)}.moments());
    to[0] = all.count;
    to[1] = all.mean;
    to[2] = all.squares;
  }
};

// Stored, being the gradient d of a gated activation a = act(norm(x)); sums over pixels of d a, d a', a', d a' xhat and
// a' xhat with a' = act'(norm(x)): in them the gradients of the gate and of batch-norm's weights are linear. Of columns
// with the same d, 2^shift side by side, it is stored once.
template <class T>
struct WithGateSums {
  static constexpr bool by_group = true;
  static constexpr int parts = 5, made = 5;
  struct Arguments {
    T* d;
    const T* x;
    Norm norm;
    int shift;
  };
  typedef Channel Table;
  PYNAS_DEVICE static Table table(const Arguments& a, int c) { return Channel(a.norm, c); }

  template <int n>
  PYNAS_DEVICE static void row(const Arguments& a, float (&kept)[parts][n], const float (&values)[n], int64_t at,
                               const Table* channel) {
    const Vector<T, n> x = load<n>(a.x + at);
    Vector<T, n> vector;
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) {
      put(&vector.values[v], values[v]);
      const float z = channel[v](x[v]), slope = chain(a.norm.act, 1.0f, z);
      const float xhat = (x[v] - channel[v].mean) * channel[v].inverse;
      kept[0][v] += values[v] * activate(a.norm.act, z);
      kept[1][v] += values[v] * slope;
      kept[2][v] += slope;
      kept[3][v] += values[v] * slope * xhat;
      kept[4][v] += slope * xhat;
    }
    static_assert(n == 4);
    if (a.shift == 0) return store<n>(a.d + at, vector);
    a.d[at >> a.shift] = vector.values[0];
    if (a.shift == 1) a.d[(at >> 1) + 1] = vector.values[2];
  }

  template <class Part>
  PYNAS_DEVICE static void merge(int strips, const Part& part, float (&to)[parts]) {
    PYNAS_UNROLL
    for (int p = 0; p < parts; ++p) {
      to[p] = 0.0f;
      for (int i = 0; i < strips; ++i) to[p] += part(p, i);
    }
  }
};

// Stored, normed without an activation, or with a level of each column, and with a residual added, as there are some.
template <class T>
struct Added {
  static constexpr bool by_group = false;
  static constexpr int parts = 0, made = 0;
  struct Arguments {
    T* y;
    const T* residual;   // or null
    const float* level;  // (columns) or null
    Norm norm;
  };
  typedef Channel Table;
  PYNAS_DEVICE static Table table(const Arguments& a, int c) {
    Channel channel(a.norm, c);
    if (a.level != nullptr) channel.bias += a.level[c];
    return channel;
  }

  template <int n>
  PYNAS_DEVICE static void row(const Arguments& a, float (&)[1][n], const float (&values)[n], int64_t at,
                               const Table* table) {
    Vector<T, n> vector, other{};
    if (a.residual != nullptr) other = load<n>(a.residual + at);
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) put(&vector.values[v], table[v](values[v]) + (a.residual == nullptr ? 0.0f : other[v]));
    store<n>(a.y + at, vector);
  }

  template <class Part>
  PYNAS_DEVICE static void merge(int, const Part&, float (&)[1]) {}
};

// --- results = source weight^T ---

template <class T, class Source, class Target>
struct Product {
  static constexpr int threads = product::threads, blocks = 2;
  static constexpr int rows = product_rows, columns = product_columns, depth = 64 / sizeof(T), pad = 16 / sizeof(T);
  static constexpr int parts = Target::parts, kept_parts = parts > 0 ? parts : 1;
  static constexpr int made = parts > 0 ? Target::made : 1;
  typedef Multiply<T, rows, columns> Tile;
  typedef Operand<T, depth + pad, false> Panel;

  struct Arguments {
    Pixels pixels;
    int in, out;  // columns of the source, and of the results
    typename Source::Arguments source;
    const float* weight;  // (out, in), or (in, out) where transposed
    bool transposed;
    typename Target::Arguments target;
    float* partial;  // (chunks, made, out) of the target
  };

  // How threads read the source and write results: n numbers at once, `wide` of them a row. Of 16 bits they write half
  // of what they could, for what they keep of columns takes registers.
  static constexpr int n_in = vector_of<T>, n_out = sizeof(T) == 2 ? 4 : vector_of<T>;
  static constexpr int wide_in = depth / n_in, high_in = threads / wide_in, passes = rows / high_in;
  static constexpr int wide_out = columns / n_out, high_out = threads / wide_out;

  struct Panels {
    T a[rows][depth + pad], b[columns][depth + pad];
    typename Source::Table table[2][depth];
  };
  struct Shared {
    union {
      Panels panels;
      float results[rows][columns + 8];
    };
    float kept[kept_parts][high_out][columns];  // of the thread that has this strip and column: registers are few
    typename Target::Table table[columns];
    Shared() {}
  };

  static RowTiles tiles_of(const Arguments& a) { return RowTiles::of_product(a.pixels, a.out, Target::by_group); }
  static Grid grid(const Arguments& a) { return {(a.out + columns - 1) / columns, tiles_of(a).chunks}; }

  typedef typename Source::template Raw<n_in> Raw;
  struct Read {
    Raw raw[passes];
  };
  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const RowTiles tiles = RowTiles::of_product(a.pixels, a.out, Target::by_group);
    const int first = at.x * columns;
    const int group = at.y / tiles.pieces, begin = at.y % tiles.pieces * tiles.length;
    const int end = begin + tiles.length < tiles.of_group ? begin + tiles.length : tiles.of_group;
    block.each([&](int t) {
      for (int p = 0; p < kept_parts; ++p)
        for (int v = 0; v < n_out; ++v) shared.kept[p][t / wide_out][t % wide_out * n_out + v] = 0.0f;
      if (t < columns && first + t < a.out) shared.table[t] = Target::table(a.target, first + t);
    });
    for (int i = begin; i < end; ++i) {
      const int from = group * tiles.rows + i * rows, to = group * tiles.rows + tiles.rows;  // among all rows
      PerThread<typename Tile::Sums, threads> sums;
      PerThread<Read, threads> read;
      block.each([&](int t) {
        sums[t] = {};
        fetch(a, from, to, 0, t, read[t]);
        tabulate(shared.panels, a, 0, t);
      });
      for (int k = 0; k < a.in; k += depth) {
        block.each([&](int t) {
          fill(shared.panels, a, from, to, first, k, t, read[t]);
          tabulate(shared.panels, a, k + depth, t);
        });
        block.own([&](int t) { fetch(a, from, to, k + depth, t, read[t]); });
        Tile::template multiply<depth>(block, Panel{shared.panels.a[0]}, Panel{shared.panels.b[0]}, sums);
        block.each([](int) {});
      }
      block.each([&](int t) {
        Tile::each(t, sums[t], [&](int row, int column, float value) { shared.results[row][column] = value; });
      });
      block.each([&](int t) {
        const int column = t % wide_out * n_out;
        if (first + column >= a.out) return;
        float kept[kept_parts][n_out];
        PYNAS_UNROLL
        for (int p = 0; p < kept_parts; ++p) PYNAS_UNROLL
        for (int v = 0; v < n_out; ++v) kept[p][v] = shared.kept[p][t / wide_out][column + v];
        PYNAS_ROLLED
        for (int r = t / wide_out; r < rows && from + r < to; r += high_out) {
          float values[n_out];
          PYNAS_UNROLL
          for (int v = 0; v < n_out; ++v) values[v] = shared.results[r][column + v];
          Target::template row<n_out>(a.target, kept, values, static_cast<int64_t>(from + r) * a.out + first + column,
                                      shared.table + column);
        }
        PYNAS_UNROLL
        for (int p = 0; p < kept_parts; ++p) PYNAS_UNROLL
        for (int v = 0; v < n_out; ++v) shared.kept[p][t / wide_out][column + v] = kept[p][v];
      });
    }
    if (parts == 0 || a.partial == nullptr) return;
    block.each([&](int t) {
      if (t >= columns || first + t >= a.out) return;
      float all[made];
      Target::merge(high_out, [&](int part, int strip) { return shared.kept[part][strip][t]; }, all);
      PYNAS_UNROLL
      for (int p = 0; p < made; ++p) a.partial[(static_cast<int64_t>(at.y) * made + p) * a.out + first + t] = all[p];
    });
  }

  PYNAS_DEVICE static void tabulate(Panels& panels, const Arguments& a, int k, int t) {
    if (t < depth && k + t < a.in) panels.table[k / depth % 2][t] = Source::table(a.source, k + t, a.in);
  }

  PYNAS_DEVICE static void fetch(const Arguments& a, int from, int to, int k, int t, Read& read) {
    const int at = k + t % wide_in * n_in;
    PYNAS_UNROLL
    for (int p = 0; p < passes; ++p) {
      const int row = from + p * high_in + t / wide_in;
      if (at < a.in && row < to) read.raw[p] = Source::template fetch<n_in>(a.source, row, at, a.in);
    }
  }

  PYNAS_DEVICE static void fill(Panels& panels, const Arguments& a, int from, int to, int first, int k, int t,
                                const Read& read) {
    const int lane = t % wide_in * n_in;
    PYNAS_UNROLL
    for (int p = 0; p < passes; ++p) {
      const int r = p * high_in + t / wide_in;
      Vector<T, n_in> vector;
      const bool real = k + lane < a.in && from + r < to;
      const int group = (Target::by_group ? from : from + r) / a.pixels.rows;
      PYNAS_UNROLL
      for (int v = 0; v < n_in; ++v) {
        put(&vector.values[v],
            real ? Source::template value<n_in>(a.source, read.raw[p], v, panels.table[k / depth % 2][lane + v], group,
                                                static_cast<int64_t>(group) * a.in + k + lane + v)
                 : 0.0f);
      }
      store<n_in>(&panels.a[r][lane], vector);
    }
    PYNAS_BY_FOUR
    for (int i = t; i < columns * depth; i += threads) {
      const int column = a.transposed ? i % columns : i / depth, d = a.transposed ? i / columns : i % depth;
      const int c = first + column, row = k + d;  // a weight has fewer than 2^31 numbers
      const bool real = c < a.out && row < a.in;
      put(&panels.b[column][d], real ? a.weight[a.transposed ? row * a.out + c : c * a.in + row] : 0.0f);
    }
  }
};

// --- gradient of weights = left^T right, sums over rows ---

template <class T, class Left, class Right>
struct OuterProduct {
  static constexpr int threads = product::threads, blocks = 2;
  static constexpr int side = outer_side, rows = outer_rows, pad = 16 / sizeof(T);
  typedef Multiply<T, side, side> Tile;
  typedef Operand<T, side + pad, true> Panel;

  struct Arguments {
    Pixels pixels;
    int left_columns, right_columns;
    typename Left::Arguments left;
    typename Right::Arguments right;
    float* partial;  // (chunks, left_columns, right_columns)
  };

  template <class Source>
  struct Side {
    static constexpr int n = vector_of<T>, wide = side / n, high = threads / wide,
                         passes = rows / high > 0 ? rows / high : 1;
    T values[rows][side + pad];
    typename Source::Table table[side];

    // Every row once: where threads are more than vectors, the rest are idle.
    PYNAS_DEVICE void fill(const typename Source::Arguments& a, int columns, int first, int from, int to,
                           int rows_of_group, int t) {
      const int lane = t % wide * n, c = first + lane;
      for (int r = t / wide; r < rows; r += high) {
        Vector<T, n> vector;
        const int row = from + r, group = row / rows_of_group;
        const bool real = c < columns && row < to;
        typename Source::template Raw<n> raw{};
        if (real) raw = Source::template fetch<n>(a, row, c, columns);
        PYNAS_UNROLL
        for (int v = 0; v < n; ++v)
          put(&vector.values[v], real ? Source::template value<n>(a, raw, v, table[lane + v], group,
                                                                  static_cast<int64_t>(group) * columns + c + v)
                                      : 0.0f);
        store<n>(&values[r][lane], vector);
      }
    }
  };

  struct Shared {
    Side<Left> left;
    Side<Right> right;
  };

  static RowTiles tiles_of(const Arguments& a) { return RowTiles::of_outer(a.pixels, a.left_columns, a.right_columns); }
  PYNAS_BOTH static int right_tiles(const Arguments& a) { return (a.right_columns + side - 1) / side; }
  static Grid grid(const Arguments& a) {
    return {(a.left_columns + side - 1) / side * right_tiles(a), tiles_of(a).chunks};
  }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const RowTiles tiles = RowTiles::of_outer(a.pixels, a.left_columns, a.right_columns);
    const int left = at.x / right_tiles(a) * side, right = at.x % right_tiles(a) * side;
    PerThread<typename Tile::Sums, threads> sums;
    block.each([&](int t) {
      sums[t] = {};
      if (t < side && left + t < a.left_columns) shared.left.table[t] = Left::table(a.left, left + t, a.left_columns);
      if (t < side && right + t < a.right_columns)
        shared.right.table[t] = Right::table(a.right, right + t, a.right_columns);
    });
    const int begin = at.y * tiles.length;
    const int end = begin + tiles.length < tiles.of_group ? begin + tiles.length : tiles.of_group;
    for (int i = begin; i < end; ++i) {
      block.each([&](int t) {
        shared.left.fill(a.left, a.left_columns, left, i * rows, tiles.rows, a.pixels.rows, t);
        shared.right.fill(a.right, a.right_columns, right, i * rows, tiles.rows, a.pixels.rows, t);
      });
      Tile::template multiply<rows>(block, Panel{shared.left.values[0]}, Panel{shared.right.values[0]}, sums);
      block.each([](int) {});
    }
    float* const to = a.partial + static_cast<int64_t>(at.y) * a.left_columns * a.right_columns;
    block.own([&](int t) {
      Tile::each(t, sums[t], [&](int row, int column, float value) {
        if (left + row < a.left_columns && right + column < a.right_columns)
          to[static_cast<int64_t>(left + row) * a.right_columns + right + column] = value;
      });
    });
  }
};

}  // namespace pynas::kernels::cuda::product
