// Updates of weights that lie in one piece of memory: optimizer step and moving average in one pass.
#pragma once

#include <cstdint>

#include "../types.hpp"

namespace pynas::kernels {

struct ArenaKernels {
  // average <- average + (1 - decay) (values - average) for elements [begin, end), as torch.lerp computes it.
  void (*average)(float* average, const float* values, float decay, int64_t begin, int64_t end);
};

namespace baseline {
extern const ArenaKernels arena;
}
namespace avx2 {
extern const ArenaKernels arena;
}
namespace avx512 {
extern const ArenaKernels arena;
}

}  // namespace pynas::kernels
