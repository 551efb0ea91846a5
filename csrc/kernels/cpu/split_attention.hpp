// Split-Attention's passes over activations: x is (n, pixels, channels * splits), a channel's splits side by side.
// dtypes: float, bf16 (computed in float, rounded once) and double. splits: 1, 2 or 4.
#pragma once

#include <cstdint>

#include "../parallel.hpp"
#include "../types.hpp"

namespace pynas::kernels {

struct SplitShape {
  int64_t n, pixels, channels, splits;

  int64_t maps() const { return channels * splits; }
};

template <class T>
struct SplitAttentionOf {
  // pooled[n, c] = mean over pixels of the sum over splits of x.
  void (*pool)(const SplitShape&, const T* x, T* pooled, const Parallel&);
  // dx[n, p, c, s] = dpooled[n, c] / pixels.
  void (*pool_backward)(const SplitShape&, const T* dpooled, T* dx, const Parallel&);
  // y[n, p, c] = sum over splits of x[n, p, c, s] weights[n, c, s].
  void (*combine)(const SplitShape&, const T* x, const T* weights, T* y, const Parallel&);
  // dx[n, p, c, s] = dy[n, p, c] weights[n, c, s]; dweights[n, c, s] = sum over pixels of dy x.
  void (*combine_backward)(const SplitShape&, const T* dy, const T* x, const T* weights, T* dx, T* dweights,
                           const Parallel&);
};

struct SplitAttention {
  SplitAttentionOf<float> of_float;
  SplitAttentionOf<bf16> of_bf16;
  SplitAttentionOf<double> of_double;
};

namespace baseline {
extern const SplitAttention split_attention;
}
namespace avx2 {
extern const SplitAttention split_attention;
}
namespace avx512 {
extern const SplitAttention split_attention;
}

}  // namespace pynas::kernels
