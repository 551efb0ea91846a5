#define PYNAS_LANES_AVX512
#include "score_kernel.inc"

namespace pynas {

void score_block_avx512(const ScoreNetwork& network, const float* planes, float* scratch, float* scores) {
  score(network, planes, scratch, scores);
}

}  // namespace pynas
