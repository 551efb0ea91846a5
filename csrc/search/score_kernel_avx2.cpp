#define PYNAS_LANES_AVX2
#include "score_kernel.inc"

namespace pynas {

void score_block_avx2(const ScoreNetwork& network, const float* planes, float* scratch, float* scores) {
  score(network, planes, scratch, scores);
}

}  // namespace pynas
