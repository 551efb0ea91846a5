// Convolution with one kernel, or a few, for each channel (groups = C), over channels_last activations.
// dtypes: float, bf16 (computed in float, rounded once) and double.
#pragma once

#include <cstdint>

#include "../parallel.hpp"
#include "../types.hpp"

namespace pynas::kernels {

// x: (n, h, w, channels); y: (n, out_h, out_w, channels * multiplier); weight: (channels * multiplier, kernel_h,
// kernel_w). Map o of y is computed from channel o / multiplier of x.
struct DepthwiseShape {
  int64_t n, channels, multiplier;
  int64_t h, w, out_h, out_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;

  int64_t maps() const { return channels * multiplier; }
};

template <class T>
struct DepthwiseGradWeightOf {
  // dweight[o, i, j] = sum over n, r, q of dy[n, r, q, o] x[n, r stride_h + i - padding_h, q stride_w + j - padding_w,
  // c]. Padding is left out of the sum rather than added as zeros. kernel_w: 1 to 7.
  void (*run)(const DepthwiseShape&, const T* x, const T* dy, T* dweight, const Parallel&);
};

template <class T>
struct DepthwiseConvolutionOf {
  // y from x. Padding is zeros; kernels of any size.
  void (*forward)(const DepthwiseShape&, const T* x, const T* weight, T* y, const Parallel&);
  // dx from dy, for multiplier 1.
  void (*grad_input)(const DepthwiseShape&, const T* dy, const T* weight, T* dx, const Parallel&);
};

struct DepthwiseGradWeight {
  DepthwiseGradWeightOf<float> of_float;
  DepthwiseGradWeightOf<bf16> of_bf16;
  DepthwiseGradWeightOf<double> of_double;
};

struct DepthwiseConvolution {
  DepthwiseConvolutionOf<float> of_float;
  DepthwiseConvolutionOf<bf16> of_bf16;
  DepthwiseConvolutionOf<double> of_double;
};

namespace baseline {
extern const DepthwiseGradWeight depthwise_grad_weight;
extern const DepthwiseConvolution depthwise_convolution;
}  // namespace baseline
namespace avx2 {
extern const DepthwiseGradWeight depthwise_grad_weight;
extern const DepthwiseConvolution depthwise_convolution;
}  // namespace avx2
namespace avx512 {
extern const DepthwiseGradWeight depthwise_grad_weight;
extern const DepthwiseConvolution depthwise_convolution;
}  // namespace avx512

}  // namespace pynas::kernels
