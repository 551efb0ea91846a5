#include "arena.hpp"

#include "simd.hpp"

namespace pynas::kernels::PYNAS_ISA {
namespace {

void average(float* average, const float* values, float decay, int64_t begin, int64_t end) {
  const Floats share = all<Floats>(1.0f - decay);
  constexpr int lanes = PYNAS_LANES;
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    const Floats old = load(average + i);
    store(average + i, old + share * (load(values + i) - old));
  }
  if (i < end) {
    const int left = static_cast<int>(end - i);
    const Floats old = load_part(average + i, left);
    store_part(average + i, old + share * (load_part(values + i, left) - old), left);
  }
}

}  // namespace

const ArenaKernels arena{average};

}  // namespace pynas::kernels::PYNAS_ISA
