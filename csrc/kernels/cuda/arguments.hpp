// What kernels for GPUs are told: plain values and pointers, for whoever calls them too.
#pragma once

#include <cstdint>

#include "../types.hpp"

namespace pynas::kernels::cuda {

// act((x - mean) / sqrt(var + eps) weight + bias). No mean: act(x). weight and bias may be null.
struct Norm {
  const float *mean, *var, *weight, *bias;  // (channels)
  float eps;
  Activation act;
};

// Null: ones. by_channel: (groups, channels), else (groups).
struct Gate {
  const float* values;
  bool by_channel;
};

// The gradient of batch-norm's input x: scale dz - level - (x - mean) slope, with the gradient dz of act's argument.
struct NormBackward {
  Norm norm;
  Gate gate;           // what act's result is multiplied by
  const float* dpool;  // (groups, channels) or null: gradient that every pixel of act's result has beside
  const float* sums;   // (2, channels), of dz and of dz xhat over all values; null where statistics are constant
  float share;         // 1 / values of a channel
};

// What the step's output is normalised by: float32 (channels) each, or null where nobody asks.
struct Statistics {
  float *mean, *var;  // biased
};

// Groups (images) of `rows` pixels each.
struct Pixels {
  int groups, rows;  // fewer than 2^31 in all
};

// --- batch-norm: any number of channels ---

// Mean and biased variance of x's channels. Steps' `scratch` has as many floats as scratch_size says.
template <class T>
struct ChannelStatistics {
  Pixels pixels;
  int channels;
  const T* x;
  Statistics statistics;
  float* scratch;
};

// y = act(norm(x)) gate + residual, or without. F5.
template <class T>
struct NormAct {
  Pixels pixels;
  int channels;
  const T* x;
  Norm norm;
  Gate gate;
  const T* residual;
  T* y;
};

// B1: of the gradient d of act(norm(x)) gate the sums of dz and of dz xhat, (2, channels), dz = d gate act'(norm(x)).
template <class T>
struct NormActSums {
  Pixels pixels;
  int channels;
  const T *d, *x;
  Norm norm;
  Gate gate;
  float *sums, *scratch;
};

// The gradient of x, of that of what follows it.
template <class T>
struct NormActBackward {
  Pixels pixels;
  int channels;
  const T *d, *x;
  NormBackward after;
  T* dx;
};

// --- the steps of a block: docs/kernels.md has them as F1 to B5 ---
//
// Activations are NHWC, of T, their channels multiples of 16 bytes; weights, statistics and gradients of weights are
// float32.

// F1: y = x weight^T, x (pixels, in), weight (out, in).
template <class T>
struct Expand {
  Pixels pixels;
  int in, out;
  const T* x;
  const float* weight;
  T* y;
  Statistics statistics;
  float* scratch;
};

// Images of a depthwise convolution; kernel is 3, 5 or 7, stride 1 or 2, padding less than kernel and enough that the
// output has a pixel. A channel has `splits` kernels, 1, 2 or 4, whose results stand side by side: the output has
// channels * splits maps.
struct DepthwiseShape {
  int n, channels, h, w, kernel, stride, padding, splits;

  int maps() const { return channels * splits; }
  int out_h() const { return (h + 2 * padding - kernel) / stride + 1; }
  int out_w() const { return (w + 2 * padding - kernel) / stride + 1; }
};

// A 1x1 convolution whose result is not in memory: x (pixels, in) stands for x weight^T, weight (channels, in), of
// which its reader makes what it needs. Null: x has the channels itself.
struct Expansion {
  const float* weight;
  int in;
};

// F2: y = conv(act(norm(x))), weight (maps, kernel, kernel).
template <class T>
struct Depthwise {
  DepthwiseShape shape;
  Expansion expansion;
  Norm norm;
  const T* x;
  const float* weight;
  T* y;
  Statistics statistics;
  float* scratch;
};

// Inference, F2 with known statistics of the norm after it: y = act(after(conv(act(norm(x))))), and its mean over the
// pixels of each image, pooled (n, maps) or null.
template <class T>
struct DepthwiseApplied {
  DepthwiseShape shape;
  Expansion expansion;
  Norm norm;
  const T* x;
  const float* weight;
  Norm after;
  T* y;
  float *pooled, *scratch;
};

// Inference, F4 with known statistics of the norm after it: y = after((x gate) weight^T) + residual, or null.
template <class T>
struct ProjectApplied {
  Pixels pixels;
  int in, out;
  const T* x;
  Gate gate;
  const float* weight;
  Norm after;
  const T* residual;
  T* y;
};

// F3: pooled (groups, channels), the mean of act(norm(x)) over the pixels of a group.
template <class T>
struct Pooled {
  Pixels pixels;
  int channels;
  const T* x;
  Norm norm;
  float* pooled;
};

// F4: y = (act(norm(x)) gate) weight^T, weight (out, in).
template <class T>
struct Project {
  Pixels pixels;
  int in, out;
  const T* x;
  Norm norm;
  Gate gate;
  const float* weight;
  T* y;
  Statistics statistics;
  float* scratch;
};

// B2: of the gradient d of what follows Project's y, that of what it multiplies, da, and its sums over the pixels of
// each group, (5, groups, in): of da a, da a', a', da a' xhat and a' xhat with a = act(norm(x)), a' = act'(norm(x)).
// Where maps side by side, `splits` of them, have the same columns of the weight, da is written once for all of them,
// (pixels, in / splits).
template <class T>
struct ProjectBackward {
  Pixels pixels;
  int in, out;  // as Project's
  int splits;
  const T *d, *y;
  NormBackward after;
  const float* weight;
  const T* x;
  Norm norm;
  T* da;
  float *sums, *scratch;
};

// B2: the gradient of Project's weight.
template <class T>
struct ProjectWeightBackward {
  Pixels pixels;
  int in, out;
  const T *d, *y;
  NormBackward after;
  const T* x;
  Norm norm;
  Gate gate;
  float *dweight, *scratch;
};

// B4: of the gradient d of what follows Depthwise's y: dz, that of norm(x), or of x where there is no norm; its sums,
// of dz and of dz xhat (2, channels); and the gradient of the weight. d has the channels of x: where each has several
// maps it is the gradient of their sum, weighted by after.gate.
template <class T>
struct DepthwiseBackward {
  DepthwiseShape shape;
  Expansion expansion;
  const T *d, *y;
  NormBackward after;
  const float* weight;
  const T* x;
  Norm norm;
  T* dz;
  float *dweight, *sums, *scratch;
};

// B5: of the gradient d of what follows Expand's y, that of x; residual, or null, is added.
template <class T>
struct ExpandBackward {
  Pixels pixels;
  int in, out;  // as Expand's
  const T *d, *y;
  NormBackward after;
  const float* weight;
  const T* residual;
  T* dx;
};

// Sums over pixels of left right^T, (left_columns, right_columns), each less its centre, float32 (columns) or null.
template <class T>
struct Gram {
  Pixels pixels;
  int left_columns, right_columns;
  const T* left;
  const float* left_centre;
  const T* right;
  const float* right_centre;
  float *sums, *scratch;
};

// B5 where y is not in memory, being linear in x: dx = dz weight^T + (x - centre) along^T + level + residual, weight
// and along beside each other in (out, in + out); residual or null.
template <class T>
struct ExpandedBackward {
  Pixels pixels;
  int in, out;  // channels of dz, and of x
  const T *dz, *x;
  const float *centre, *weight, *level;
  const T* residual;
  T* dx;
};

// B5: the gradient of Expand's weight.
template <class T>
struct ExpandWeightBackward {
  Pixels pixels;
  int in, out;
  const T *d, *y;
  NormBackward after;
  const T* x;
  float *dweight, *scratch;
};

}  // namespace pynas::kernels::cuda
