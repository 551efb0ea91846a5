// What the chunks of a kernel's work have left, put together: in float64 and in an order that is always the same.
#pragma once

#include "norm.hpp"

namespace pynas::kernels::cuda::reduce {

constexpr int lanes = 32, strips = 32, threads = lanes * strips;

typedef double Row[lanes];

// to[lane]: the sum over chunks of term(chunk, lane).
template <class Term>
PYNAS_DEVICE void sum(const Block<threads>& block, int chunks, int real, Row* scratch, Row& to, const Term& term) {
  block.each([&](int t) {
    const int strip = t / lanes, lane = t % lanes;
    double all = 0.0;
    if (lane < real)
      for (int i = strip; i < chunks; i += strips) all += term(i, lane);
    scratch[strip][lane] = all;
  });
  block.each([&](int t) {
    if (t >= lanes) return;
    double all = 0.0;
    for (int i = 0; i < strips; ++i) all += scratch[i][t];
    to[t] = all;
  });
}

// Moments (chunks, 3, channels) to mean and biased variance (channels); zeros where there are no values. They are of
// values less `shift`, (channels) or null.
struct OfMoments {
  static constexpr int threads = reduce::threads, blocks = 1;
  struct Shared {
    Row scratch[strips], count, mean, squares;
  };
  struct Arguments {
    const float* moments;
    const float* shift;
    int chunks, channels;
    float *mean, *var;
  };
  static Grid grid(const Arguments& a) { return {(a.channels + lanes - 1) / lanes, 1}; }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const int first = at.x * lanes, real = a.channels - first;
    const auto of = [&a, first](int chunk, int what, int lane) {
      return static_cast<double>(a.moments[(static_cast<int64_t>(chunk) * 3 + what) * a.channels + first + lane]);
    };
    sum(block, a.chunks, real, shared.scratch, shared.count, [&](int i, int lane) { return of(i, 0, lane); });
    sum(block, a.chunks, real, shared.scratch, shared.mean,
        [&](int i, int lane) { return of(i, 0, lane) * of(i, 1, lane); });
    block.each([&](int t) {
      if (t < lanes) shared.mean[t] = shared.count[t] > 0.0 ? shared.mean[t] / shared.count[t] : 0.0;
    });
    sum(block, a.chunks, real, shared.scratch, shared.squares, [&](int i, int lane) {
      const double off = of(i, 1, lane) - shared.mean[lane];
      return of(i, 2, lane) + of(i, 0, lane) * off * off;
    });
    block.each([&](int t) {
      if (t >= lanes || t >= real) return;
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
    Row scratch[strips], total;
  };
  struct Arguments {
    const float* partial;
    int chunks, weights, channels, shift;
    Norm norm;
    float *dweight, *sums;
  };
  static Grid grid(const Arguments& a) { return {(a.channels + lanes - 1) / lanes, a.weights + 2}; }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const int first = at.x * lanes, real = a.channels - first, row = at.y;
    const int64_t rows = a.weights + 2;
    sum(block, a.chunks, real, shared.scratch, shared.total,
        [&](int i, int lane) { return static_cast<double>(a.partial[(i * rows + row) * a.channels + first + lane]); });
    block.each([&](int t) {
      const int c = first + t;
      if (t >= lanes || t >= real) return;
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
    Row scratch[strips], total;
  };
  struct Arguments {
    const float* partial;
    int groups, pieces, parts, columns;
    float* sums;
    double factor;
  };
  static Grid grid(const Arguments& a) { return {(a.columns + lanes - 1) / lanes, a.groups * a.parts}; }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const int first = at.x * lanes, real = a.columns - first, group = at.y / a.parts, part = at.y % a.parts;
    sum(block, a.pieces, real, shared.scratch, shared.total, [&](int i, int lane) {
      const int64_t row = (static_cast<int64_t>(group) * a.pieces + i) * a.parts + part;
      return static_cast<double>(a.partial[row * a.columns + first + lane]);
    });
    block.each([&](int t) {
      if (t < lanes && t < real)
        a.sums[(static_cast<int64_t>(part) * a.groups + group) * a.columns + first + t] =
            static_cast<float>(shared.total[t] * a.factor);
    });
  }
};

}  // namespace pynas::kernels::cuda::reduce
