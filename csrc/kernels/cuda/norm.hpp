// Batch-norm as kernels that fuse across it see it: its application, its backward, and statistics in pieces.
#pragma once

#include "arguments.hpp"
#include "numbers.hpp"

namespace pynas::kernels::cuda {

// What one channel of a Norm needs.
struct Channel {
  Channel() = default;
  PYNAS_DEVICE Channel(const Norm& norm, int64_t c) {
    if (norm.mean == nullptr) return;
    mean = norm.mean[c];
    inverse = inverse_root(norm.var[c] + norm.eps);
    scale = norm.weight == nullptr ? inverse : inverse * norm.weight[c];
    bias = norm.bias == nullptr ? 0.0f : norm.bias[c];
  }
  PYNAS_DEVICE float operator()(float x) const { return (x - mean) * scale + bias; }

  float mean = 0.0f, inverse = 1.0f, scale = 1.0f, bias = 0.0f;
};

// act(norm(x)) of neighbouring channels.
template <int n>
PYNAS_DEVICE void apply(const Channel* channel, Activation act, float (&x)[n]) {
  PYNAS_UNROLL
  for (int v = 0; v < n; ++v) x[v] = channel[v](x[v]);
  activate(act, x);
}

// Mean of `count` values and the sum of squares around it.
struct Moments {
  float count = 0.0f, mean = 0.0f, squares = 0.0f;

  // Chan, Golub & LeVeque 1979.
  PYNAS_DEVICE void merge(const Moments& other) {
    const float all = count + other.count;
    if (all == 0.0f) return;
    const float off = other.mean - mean, share = divide(other.count, all);
    mean += off * share;
    squares += other.squares + off * off * (count * share);
    count = all;
  }
};

// Moments of values one after another: their sums around the first of them, which is near enough to the mean, however
// large that is, for nothing to be lost.
struct Shifted {
  float count = 0.0f, shift = 0.0f, sum = 0.0f, squares = 0.0f;

  // The first `real` of the values, at least one.
  template <int n>
  PYNAS_DEVICE void add(const float (&values)[n], int real) {
    if (count == 0.0f) shift = values[0];
    count += static_cast<float>(real);
    PYNAS_UNROLL
    for (int i = 0; i < n; ++i) {
      const float off = values[i] - shift;
      sum += i < real ? off : 0.0f;
      squares += i < real ? off * off : 0.0f;
    }
  }
  PYNAS_DEVICE Moments moments() const {
    if (count == 0.0f) return {};
    const float off = divide(sum, count), around = squares - sum * off;
    return {count, shift + off, around < 0.0f ? 0.0f : around};
  }
};

// What one channel of a NormBackward needs.
struct ChannelBackward {
  ChannelBackward() = default;
  PYNAS_DEVICE ChannelBackward(const NormBackward& of, int64_t c, int64_t channels) : norm(of.norm, c) {
    if (of.sums == nullptr) return;
    level = norm.scale * of.sums[c] * of.share;
    slope = norm.scale * of.sums[channels + c] * of.share * norm.inverse;
  }

  Channel norm;
  float level = 0.0f, slope = 0.0f;
};

// d, the gradient of act's results of neighbouring channels, becomes that of x.
template <int n>
PYNAS_DEVICE void apply(const ChannelBackward* channel, Activation act, float (&d)[n], const float (&x)[n]) {
  float z[n];
  PYNAS_UNROLL
  for (int v = 0; v < n; ++v) z[v] = channel[v].norm(x[v]);
  chain(act, d, z);
  PYNAS_UNROLL
  for (int v = 0; v < n; ++v) {
    const ChannelBackward& c = channel[v];
    d[v] = c.norm.scale * d[v] - (x[v] - c.norm.mean) * c.slope - c.level;
  }
}

}  // namespace pynas::kernels::cuda
