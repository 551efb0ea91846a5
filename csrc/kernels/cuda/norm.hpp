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

// Mean of `count` values and the sum of squares around it.
struct Moments {
  float count = 0.0f, mean = 0.0f, squares = 0.0f;

  // Chan, Golub & LeVeque 1979.
  PYNAS_DEVICE void merge(const Moments& other) {
    const float all = count + other.count;
    if (all == 0.0f) return;
    const float off = other.mean - mean, share = other.count / all;
    mean += off * share;
    squares += other.squares + off * off * (count * share);
    count = all;
  }
};

// Moments of values one after another: their sums around the first of them, which is near enough to the mean, however
// large that is, for nothing to be lost.
struct Shifted {
  float count = 0.0f, shift = 0.0f, sum = 0.0f, squares = 0.0f;

  PYNAS_DEVICE void add(float value) {
    if (count == 0.0f) shift = value;
    const float off = value - shift;
    count += 1.0f;
    sum += off;
    squares += off * off;
  }
  PYNAS_DEVICE Moments moments() const {
    if (count == 0.0f) return {};
    const float off = sum / count, around = squares - sum * off;
    return {count, shift + off, around < 0.0f ? 0.0f : around};
  }
};

// What one channel of a NormBackward needs.
struct ChannelBackward : Channel {
  ChannelBackward() = default;
  PYNAS_DEVICE ChannelBackward(const NormBackward& of, int64_t c, int64_t channels) : Channel(of.norm, c) {
    if (of.sums == nullptr) return;
    level = scale * of.sums[c] * of.share;
    slope = scale * of.sums[channels + c] * of.share * inverse;
  }
  // da: gradient of act's result.
  PYNAS_DEVICE float operator()(Activation act, float da, float x) const {
    return scale * chain(act, da, (*this)(x)) - (x - mean) * slope - level;
  }
  using Channel::operator();

  float level = 0.0f, slope = 0.0f;
};

}  // namespace pynas::kernels::cuda
