// Batch-norm with what follows it, on activations of (groups, rows, channels): groups are samples, rows their pixels.
//
// With z = (x - mean) scale + bias, scale = weight / sqrt(var + eps), and a gate g (1 where there is none):
//   y  = act(z) g + residual
//   dz = (dy g + dpool) act'(z),  dx = scale (dz - sum(dz) / count - xhat sum(dz xhat) / count)
// Sums are float32 within a chunk of some ten KB, float64 over chunks.
#pragma once

#include <cstdint>

#include "../parallel.hpp"
#include "../types.hpp"

namespace pynas::kernels {

// What statistics, weights and gates of activations of type T are in.
template <class T>
struct StatisticOf {
  typedef float Type;
};
template <>
struct StatisticOf<double> {
  typedef double Type;
};
template <class T>
using Statistic = typename StatisticOf<T>::Type;

struct Shape {
  int64_t groups, rows, channels;
};

template <class T>
struct Normalisation {
  const Statistic<T>*mean, *var, *weight, *bias;  // (channels); weight and bias may be null
  double eps;
  Activation act;
};

// One value for each group, or for each group and channel. Null: one.
template <class T>
struct Gate {
  const Statistic<T>* values;
  bool by_channel;
};

template <class T>
struct BatchNormKernels {
  // Mean and biased variance of each channel, zeros where there are no rows. The mean of a chunk comes first, then
  // squares around it, and chunks are combined by Chan's formula: a large mean costs nothing.
  void (*statistics)(const T* x, int64_t rows, int64_t channels, Statistic<T>* mean, Statistic<T>* var,
                     const Parallel&);

  // residual may be null.
  void (*forward)(const T* x, Shape, const Normalisation<T>&, Gate<T>, const T* residual, T* y, const Parallel&);

  // sums: (2, channels), sum(dz) and sum(dz xhat), with dpool = 0.
  void (*backward_sums)(const T* dy, const T* x, Shape, const Normalisation<T>&, Gate<T>, Statistic<T>* sums,
                        const Parallel&);

  // dpool: (groups, channels) or null. sums: as of backward_sums, or null where the statistics are constants.
  void (*backward)(const T* dy, const T* x, Shape, const Normalisation<T>&, Gate<T>, const Statistic<T>* dpool,
                   const Statistic<T>* sums, double count, T* dx, const Parallel&);

  // pooled: (groups, channels), the mean of act(z) over rows.
  void (*pool)(const T* x, Shape, const Normalisation<T>&, Statistic<T>* pooled, const Parallel&);

  // sums: (5, groups, channels), over rows, of dy a, dy a', a', dy a' xhat, a' xhat, where a = act(z), a' = act'(z).
  void (*gate_sums)(const T* dy, const T* x, Shape, const Normalisation<T>&, Statistic<T>* sums, const Parallel&);
};

#define PYNAS_DECLARE_BATCH_NORM(isa)                      \
  namespace isa {                                          \
  extern const BatchNormKernels<float> batch_norm_float;   \
  extern const BatchNormKernels<bf16> batch_norm_bf16;     \
  extern const BatchNormKernels<double> batch_norm_double; \
  }
PYNAS_DECLARE_BATCH_NORM(baseline)
PYNAS_DECLARE_BATCH_NORM(avx2)
PYNAS_DECLARE_BATCH_NORM(avx512)
#undef PYNAS_DECLARE_BATCH_NORM

}  // namespace pynas::kernels
