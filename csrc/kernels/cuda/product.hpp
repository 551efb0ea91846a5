// 1x1 convolutions between batch-norms, as matrix products over rows of pixels: what comes before is computed where the
// rows are read (Source), what comes after where results are written (Target). docs/kernels.md, F1, F4, B2 and B5.
#pragma once

#include "multiply.hpp"
#include "norm.hpp"

namespace pynas::kernels::cuda::product {

constexpr int threads = 256, some = 4;  // numbers of a source that a thread makes at once: registers are few
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

// --- sources: values of a row and n columns as the product takes them ---
//
// `values` makes them of n numbers of each of `tensors`, which are `at` a place, and of the columns' tables.

// Where in a tensor the first of n values is.
struct Place {
  PYNAS_DEVICE int group() const { return row / rows; }
  PYNAS_DEVICE int64_t index() const { return static_cast<int64_t>(row) * columns + column; }
  PYNAS_DEVICE int64_t of_group() const { return static_cast<int64_t>(group()) * columns + column; }

  int row, rows, column, columns;  // rows of a group
};

template <int n>
PYNAS_DEVICE void multiply_by(Gate gate, const Place& place, float (&values)[n]) {
  if (gate.values == nullptr) return;
  const float* const factors = gate.values + (gate.by_channel ? place.of_group() : place.group());
  PYNAS_UNROLL
  for (int v = 0; v < n; ++v) values[v] *= factors[gate.by_channel ? v : 0];
}

// x itself, or less a centre.
template <class T>
struct Plain {
  struct Arguments {
    const T* x;
    const float* centre;  // (columns) or null
  };
  static constexpr int tensors = 1;
  struct Table {  // what a column needs
    float centre;
  };
  PYNAS_DEVICE static Table table(const Arguments& a, int c, int) { return {a.centre == nullptr ? 0.0f : a.centre[c]}; }
  PYNAS_DEVICE static const T* at(const Arguments& a, int, const Place& place) { return a.x + place.index(); }
  template <int n>
  PYNAS_DEVICE static void values(const Arguments&, const Vector<T, n> (&raw)[tensors], const Table* table,
                                  const Place&, float (&to)[n]) {
    widen(raw[0], to);
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) to[v] -= table[v].centre;
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
  static constexpr int tensors = 1;
  typedef typename Plain<T>::Table Table;
  PYNAS_DEVICE static Table table(const Arguments& a, int c, int) {
    return {c < a.left_columns ? 0.0f : a.centre[c - a.left_columns]};
  }
  PYNAS_DEVICE static const T* at(const Arguments& a, int, const Place& place) {
    const int right = place.column - a.left_columns;
    if (right < 0) return a.left + static_cast<int64_t>(place.row) * a.left_columns + place.column;
    return a.right + static_cast<int64_t>(place.row) * (place.columns - a.left_columns) + right;
  }
  template <int n>
  PYNAS_DEVICE static void values(const Arguments&, const Vector<T, n> (&raw)[tensors], const Table* table,
                                  const Place&, float (&to)[n]) {
    widen(raw[0], to);
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) to[v] -= table[v].centre;
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
  static constexpr int tensors = 1;
  typedef Channel Table;
  PYNAS_DEVICE static Table table(const Arguments& a, int c, int) { return Channel(a.norm, c); }
  PYNAS_DEVICE static const T* at(const Arguments& a, int, const Place& place) { return a.x + place.index(); }
  template <int n>
  PYNAS_DEVICE static void values(const Arguments& a, const Vector<T, n> (&raw)[tensors], const Table* channel,
                                  const Place& place, float (&to)[n]) {
    widen(raw[0], to);
    apply(channel, a.norm.act, to);
    multiply_by(a.gate, place, to);
  }
};

// The gradient of a batch-norm's input y, of the gradient d of what follows it.
template <class T>
struct Backward {
  struct Arguments {
    const T *d, *y;
    NormBackward of;
  };
  static constexpr int tensors = 2;
  typedef ChannelBackward Table;
  PYNAS_DEVICE static Table table(const Arguments& a, int c, int channels) {
    return ChannelBackward(a.of, c, channels);
  }
  PYNAS_DEVICE static const T* at(const Arguments& a, int tensor, const Place& place) {
    return (tensor == 0 ? a.d : a.y) + place.index();
  }
  template <int n>
  PYNAS_DEVICE static void values(const Arguments& a, const Vector<T, n> (&raw)[tensors], const Table* channel,
                                  const Place& place, float (&to)[n]) {
    float y[n];
    widen(raw[0], to);
    widen(raw[1], y);
    multiply_by(a.of.gate, place, to);
    if (a.of.dpool != nullptr) {
      const float* const dpool = a.of.dpool + place.of_group();
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) to[v] += dpool[v];
    }
    apply(channel, a.of.norm.act, to, y);
  }
};

// --- targets: what becomes of results, of `n` columns of a row at a time ---
//
// A thread sees the same columns of many rows, and keeps `parts` numbers of each; `merge` makes `made` numbers of those
// that all threads of a column have kept, part(i, strip). Where a target `reads` a tensor as large as that of results,
// or of null, `row` gets its numbers.

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
  static constexpr bool reads = false;
  PYNAS_DEVICE static const T* read(const Arguments&) { return nullptr; }

  template <int n>
  PYNAS_DEVICE static void row(const Arguments& a, float (&kept)[parts][n], const float (&values)[n], int64_t at,
                               const Table*, const Vector<T, n>&) {
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) {
      Shifted shifted{kept[0][v], kept[1][v], kept[2][v], kept[3][v]};
      shifted.add({values[v]}, 1);
      kept[0][v] = shifted.count;
      kept[1][v] = shifted.shift;
      kept[2][v] = shifted.sum;
      kept[3][v] = shifted.squares;
    }
    store<n>(a.y + at, narrow<T>(values));
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
  static constexpr bool reads = true;
  PYNAS_DEVICE static const T* read(const Arguments& a) { return a.x; }

  template <int n>
  PYNAS_DEVICE static void row(const Arguments& a, float (&kept)[parts][n], const float (&values)[n], int64_t at,
                               const Table* channel, const Vector<T, n>& of_x) {
    const Vector<T, n> vector = narrow<T>(values);
    float x[n], made[n], slope[n];
    widen(of_x, x);
    with_activation(a.norm.act, [&](auto act) {
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) {
        const float z = channel[v](x[v]);
        made[v] = activate(act.value, z);
        slope[v] = chain(act.value, 1.0f, z);
      }
    });
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) {
      const float xhat = (x[v] - channel[v].mean) * channel[v].inverse, along = slope[v] * xhat;
      kept[0][v] += values[v] * made[v];
      kept[1][v] += values[v] * slope[v];
      kept[2][v] += slope[v];
      kept[3][v] += values[v] * along;
      kept[4][v] += along;
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

  static constexpr bool reads = true;
  PYNAS_DEVICE static const T* read(const Arguments& a) { return a.residual; }

  template <int n>
  PYNAS_DEVICE static void row(const Arguments& a, float (&)[1][n], const float (&values)[n], int64_t at,
                               const Table* table, const Vector<T, n>& residual) {
    float y[n];
    widen(residual, y);
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) y[v] += table[v](values[v]);
    store<n>(a.y + at, narrow<T>(y));
  }

  template <class Part>
  PYNAS_DEVICE static void merge(int, const Part&, float (&)[1]) {}
};

// --- results = source weight^T ---

template <class T, class Source, class Target, bool transposed>
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
    Vector<T, n_in> raw[Source::tensors][passes][threads];  // each thread's own
  };
  struct Shared {
    union {
      Panels panels;
      float results[rows][columns + 8];
    };
    float kept[kept_parts][high_out][columns];  // of the thread that has this strip and column: registers are few
    typename Target::Table table[columns];
    alignas(16) T read[Target::reads ? rows * columns : 1];
    Shared() {}
  };

  static RowTiles tiles_of(const Arguments& a) { return RowTiles::of_product(a.pixels, a.out, Target::by_group); }
  static Grid grid(const Arguments& a) { return {(a.out + columns - 1) / columns, tiles_of(a).chunks}; }

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
      block.each([&](int t) {
        sums[t] = {};
        fetch(shared.panels, a, from, to, 0, t);
        tabulate(shared.panels, a, 0, t);
      });
      for (int k = 0; k < a.in; k += depth) {
        block.each([&](int t) {
          fill(shared.panels, a, from, to, first, k, t);
          tabulate(shared.panels, a, k + depth, t);
        });
        block.own([&](int t) {
          fetch(shared.panels, a, from, to, k + depth, t);
          if (k == 0) fetch_read(shared, a, from, to, first, t);
        });
        Tile::template multiply<depth>(block, Panel{shared.panels.a[0]}, Panel{shared.panels.b[0]}, sums);
        block.each([](int) {});
      }
      block.each([&](int t) {
        Tile::each_row(t, sums[t], [&](int row, const auto& values) {
          values([&](int column, float value) { shared.results[row][column] = value; });
        });
        await_copies();
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
          Vector<T, n_out> other{};
          if (Target::read(a.target) != nullptr) other = load<n_out>(shared.read + r * columns + column);
          Target::template row<n_out>(a.target, kept, values, static_cast<int64_t>(from + r) * a.out + first + column,
                                      shared.table + column, other);
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

  // What the target needs of this tile, while products are made.
  PYNAS_DEVICE static void fetch_read(Shared& shared, const Arguments& a, int from, int to, int first, int t) {
    const T* const of = Target::read(a.target);
    if (of == nullptr) return;
    for (int i = t; i < rows * columns / vector_of<T>; i += threads) {
      const int r = i * vector_of<T> / columns, column = i * vector_of<T> % columns;
      if (from + r < to && first + column < a.out)
        copy_later(shared.read + r * columns + column, of + static_cast<int64_t>(from + r) * a.out + first + column);
    }
  }

  PYNAS_DEVICE static void tabulate(Panels& panels, const Arguments& a, int k, int t) {
    if (t < depth && k + t < a.in) panels.table[k / depth % 2][t] = Source::table(a.source, k + t, a.in);
  }

  // The next numbers of the source, while products are made of those before.
  PYNAS_DEVICE static void fetch(Panels& panels, const Arguments& a, int from, int to, int k, int t) {
    const int column = k + t % wide_in * n_in;
    PYNAS_UNROLL
    for (int p = 0; p < passes; ++p) {
      const Place place{from + p * high_in + t / wide_in, a.pixels.rows, column, a.in};
      if (column >= a.in || place.row >= to) continue;
      PYNAS_UNROLL
      for (int i = 0; i < Source::tensors; ++i) copy_later(panels.raw[i][p][t].values, Source::at(a.source, i, place));
    }
  }

  PYNAS_DEVICE static void fill(Panels& panels, const Arguments& a, int from, int to, int first, int k, int t) {
    await_copies();
    PYNAS_ROLLED
    for (int piece = 0; piece < passes * n_in / some; ++piece) {
      const int p = piece * some / n_in, of_piece = piece * some % n_in;
      const int r = p * high_in + t / wide_in, lane = t % wide_in * n_in + of_piece;
      const Place place{from + r, a.pixels.rows, k + lane, a.in};
      float values[some] = {};
      if (place.column < a.in && place.row < to) {
        Vector<T, some> raw[Source::tensors];
        PYNAS_UNROLL
        for (int i = 0; i < Source::tensors; ++i) raw[i] = load<some>(panels.raw[i][p][t].values + of_piece);
        Source::template values<some>(a.source, raw, panels.table[k / depth % 2] + lane, place, values);
      }
      store<some>(&panels.a[r][lane], narrow<T>(values));
    }
    fill_panel<T, columns, depth, threads, transposed>(panels.b, a.weight, first, a.out, k, a.in, t);
  }
};

// --- gradient of weights = left^T right, sums over rows ---

template <class T, class Left, class Right>
struct OuterProduct {
  static constexpr int threads = product::threads, blocks = sizeof(T) == 2 ? 3 : 2;
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
    static constexpr int n = vector_of<T>, wide = side / n, high = threads / wide, passes = rows / high;
    static_assert(rows % high == 0);
    T values[rows][side + pad];
    typename Source::Table table[side];
    Vector<T, n> raw[Source::tensors][passes][threads];  // each thread's own

    PYNAS_DEVICE void fetch(const typename Source::Arguments& a, int columns, int first, int from, int to,
                            int rows_of_group, int t) {
      PYNAS_UNROLL
      for (int p = 0; p < passes; ++p) {
        const Place place{from + p * high + t / wide, rows_of_group, first + t % wide * n, columns};
        if (place.column >= columns || place.row >= to) continue;
        PYNAS_UNROLL
        for (int i = 0; i < Source::tensors; ++i) copy_later(raw[i][p][t].values, Source::at(a, i, place));
      }
    }

    PYNAS_DEVICE void fill(const typename Source::Arguments& a, int columns, int first, int from, int to,
                           int rows_of_group, int t) {
      PYNAS_ROLLED
      for (int piece = 0; piece < passes * n / some; ++piece) {
        const int p = piece * some / n, of_piece = piece * some % n;
        const int r = p * high + t / wide, lane = t % wide * n + of_piece;
        const Place place{from + r, rows_of_group, first + lane, columns};
        float row[some] = {};
        if (place.column < columns && place.row < to) {
          Vector<T, some> own[Source::tensors];
          PYNAS_UNROLL
          for (int i = 0; i < Source::tensors; ++i) own[i] = load<some>(raw[i][p][t].values + of_piece);
          Source::template values<some>(a, own, table + lane, place, row);
        }
        store<some>(&values[r][lane], narrow<T>(row));
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
    const auto fetch = [&](int i, int t) {
      shared.left.fetch(a.left, a.left_columns, left, i * rows, tiles.rows, a.pixels.rows, t);
      shared.right.fetch(a.right, a.right_columns, right, i * rows, tiles.rows, a.pixels.rows, t);
    };
    block.own([&](int t) { fetch(begin, t); });
    for (int i = begin; i < end; ++i) {
      block.each([&](int t) {
        await_copies();
        shared.left.fill(a.left, a.left_columns, left, i * rows, tiles.rows, a.pixels.rows, t);
        shared.right.fill(a.right, a.right_columns, right, i * rows, tiles.rows, a.pixels.rows, t);
      });
      block.own([&](int t) {
        if (i + 1 < end) fetch(i + 1, t);
      });
      Tile::template multiply<rows>(block, Panel{shared.left.values[0]}, Panel{shared.right.values[0]}, sums);
      block.each([](int) {});
    }
    float* const to = a.partial + static_cast<int64_t>(at.y) * a.left_columns * a.right_columns;
    block.own([&](int t) {
      Tile::each_row(t, sums[t], [&](int row, const auto& values) {
        if (left + row >= a.left_columns) return;
        values([&](int column, float value) {
          if (right + column < a.right_columns)
            to[static_cast<int64_t>(left + row) * a.right_columns + right + column] = value;
        });
      });
    });
  }
};

}  // namespace pynas::kernels::cuda::product
