// Types that all kernels share; no torch, no CUDA.
#pragma once

#include <cstdint>

namespace pynas::kernels {

// The upper half of a float32.
struct bf16 {
  uint16_t bits;
};

// IEEE half precision.
struct fp16 {
  uint16_t bits;
};

enum class Activation : int32_t { identity = 0, relu = 1, hswish = 2, swish = 3, relu6 = 4 };

}  // namespace pynas::kernels
