// What the chunks of a kernel's work have left, put together: in float64 and in an order that is always the same.
#pragma once

#include "norm.hpp"

namespace pynas::kernels::cuda::reduce {

constexpr int threads = 1024, most_strips = 128;

typedef double Row[threads];

// A block has `lanes` columns, for each of which `strips` threads go through the pieces: so many that a thread has some
// 16 of them, for what takes time is waiting for one after another. Powers of two.
struct Cut {
  int lanes, strips;

  PYNAS_BOTH static Cut of(int pieces, int columns) {
    Cut c{1, 1};
    while (c.strips < most_strips && c.strips * 16 < pieces) c.strips *= 2;
    while (c.lanes < threads / c.strips && c.lanes < columns) c.lanes *= 2;
    return c;
  }
  PYNAS_BOTH int blocks(int columns) const { return (columns + lanes - 1) / lanes; }
};

// to[lane]: the sum over pieces of term(piece, lane), for `real` lanes.
template <class Term>
PYNAS_DEVICE void sum(const Block<threads>& block, const Cut& cut, int pieces, int real, double* scratch, Row& to,
                      const Term& term) {
  block.each([&](int t) {
    const int lane = t % cut.lanes, strip = t / cut.lanes;
    double all = 0.0;
    if (lane < real && strip < cut.strips) {
      PYNAS_BY_FOUR
      for (int i = strip; i < pieces; i += cut.strips) all += term(i, lane);
    }
    scratch[t] = all;
  });
  for (int left = cut.strips / 2; left > 0; left /= 2)
    block.each([&](int t) {
      if (t < left * cut.lanes) scratch[t] += scratch[t + left * cut.lanes];
    });
  block.each([&](int t) {
    if (t < cut.lanes) to[t] = scratch[t];
  });
}

// Moments (chunks, 3, channels) to mean and biased variance (channels); zeros where there are no values. They are of
// values less `shift`, (channels) or null.
struct OfMoments {
  static constexpr int threads = reduce::threads, blocks = 1;
  struct Shared {
    double scratch[threads];
    Row count, mean, squares;
  };
  struct Arguments {
    const float* moments;
    const float* shift;
    int chunks, channels;
    float *mean, *var;
  };
  static Grid grid(const Arguments& a) { return {Cut::of(a.chunks, a.channels).blocks(a.channels), 1}; }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const Cut cut = Cut::of(a.chunks, a.channels);
    const int first = at.x * cut.lanes, real = a.channels - first;
    const auto of = [&a, first](int chunk, int what, int lane) {
      return static_cast<double>(a.moments[(static_cast<int64_t>(chunk) * 3 + what) * a.channels + first + lane]);
    };
    sum(block, cut, a.chunks, real, shared.scratch, shared.count, [&](int i, int lane) { return of(i, 0, lane); });
    sum(block, cut, a.chunks, real, shared.scratch, shared.mean,
        [&](int i, int lane) { return of(i, 0, lane) * of(i, 1, lane); });
    block.each([&](int t) {
      if (t < cut.lanes) shared.mean[t] = shared.count[t] > 0.0 ? shared.mean[t] / shared.count[t] : 0.0;
    });
    sum(block, cut, a.chunks, real, shared.scratch, shared.squares, [&](int i, int lane) {
      const double off = of(i, 1, lane) - shared.mean[lane];
      return of(i, 2, lane) + of(i, 0, lane) * off * off;
    });
    block.each([&](int t) {
      if (t >= cut.lanes || t >= real) return;
      const double shift = a.shift != nullptr && shared.count[t] > 0.0 ? a.shift[first + t] : 0.0;
      a.mean[first + t] = static_cast<float>(shift + shared.mean[t]);
      a.var[first + t] = shared.count[t] > 0.0 ? static_cast<float>(shared.squares[t] / shared.count[t]) : 0.0f;
    });
  }
};

// Sums (chunks, rows, channels): the first `weights` rows are gradients of a convolution's weights, to be
// (channels, weights); then those of dz and of dz (x - mean), to be (2, channels / 2^shift) of dz and dz xhat, with
// what every 2^shift-th channel has.
struct OfGradients {
  static constexpr int threads = reduce::threads, blocks = 1;
  struct Shared {
    double scratch[threads];
    Row total;
  };
  struct Arguments {
    const float* partial;
    int chunks, weights, channels, shift;
    Norm norm;
    float *dweight, *sums;
  };
  static Grid grid(const Arguments& a) { return {Cut::of(a.chunks, a.channels).blocks(a.channels), a.weights + 2}; }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const Cut cut = Cut::of(a.chunks, a.channels);
    const int first = at.x * cut.lanes, real = a.channels - first, row = at.y;
    const int64_t rows = a.weights + 2;
    sum(block, cut, a.chunks, real, shared.scratch, shared.total,
        [&](int i, int lane) { return static_cast<double>(a.partial[(i * rows + row) * a.channels + first + lane]); });
    block.each([&](int t) {
      const int c = first + t;
      if (t >= cut.lanes || t >= real) return;
      const int normed = c >> a.shift;
      if (row < a.weights)
        a.dweight[static_cast<int64_t>(c) * a.weights + row] = static_cast<float>(shared.total[t]);
      else if (c != normed << a.shift)
        return;
      else if (row == a.weights)
        a.sums[normed] = static_cast<float>(shared.total[t]);
      else
        a.sums[(a.channels >> a.shift) + normed] =
            static_cast<float>(shared.total[t] * Channel(a.norm, normed).inverse);
    });
  }
};

// Sums over pieces, times a factor: (groups, pieces, parts, columns) to (parts, groups, columns).
struct OfPieces {
  static constexpr int threads = reduce::threads, blocks = 1;
  struct Shared {
    double scratch[threads];
    Row total;
  };
  struct Arguments {
    const float* partial;
    int groups, pieces, parts, columns;
    float* sums;
    double factor;
  };
  static Grid grid(const Arguments& a) { return {Cut::of(a.pieces, a.columns).blocks(a.columns), a.groups * a.parts}; }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const Cut cut = Cut::of(a.pieces, a.columns);
    const int first = at.x * cut.lanes, real = a.columns - first, group = at.y / a.parts, part = at.y % a.parts;
    sum(block, cut, a.pieces, real, shared.scratch, shared.total, [&](int i, int lane) {
      const int64_t row = (static_cast<int64_t>(group) * a.pieces + i) * a.parts + part;
      return static_cast<double>(a.partial[row * a.columns + first + lane]);
    });
    block.each([&](int t) {
      if (t < cut.lanes && t < real)
        a.sums[(static_cast<int64_t>(part) * a.groups + group) * a.columns + first + t] =
            static_cast<float>(shared.total[t] * a.factor);
    });
  }
};

}  // namespace pynas::kernels::cuda::reduce
