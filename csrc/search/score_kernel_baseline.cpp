#include "score_kernel.inc"

namespace pynas {

void score_block_baseline(const ScoreNetwork& network, const float* planes, float* scratch, float* scores) {
  score(network, planes, scratch, scores);
}

}  // namespace pynas
