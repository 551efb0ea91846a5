// The predictor's arithmetic on a block of genomes, compiled once for each instruction set.
//
//   embedding = relu(A x + a)      hidden = relu(H [embedding; r] + h)      score = o . hidden + b
//
// with x the planes of statistics and of the architecture and r those of the recipe. Lanes are genomes: every lane
// starts from the bias and adds its products in the order of the inputs with fused multiply-adds, so all instruction
// sets give the same bits.
#pragma once

namespace pynas {

inline constexpr int block_lanes = 64;      // genomes a block; a multiple of every instruction set's vector pair
inline constexpr int outputs_together = 4;  // rows of a layer computed at once; layers are padded to it with zeros

// Plain pointers and numbers only, see lanes.hpp. A packed layer holds, for every group of `outputs_together` outputs,
// their biases and then their weights input by input.
struct ScoreNetwork {
  const float* embedding_layer;
  const float* hidden_layer;
  const float* output_weights;  // one a padded hidden unit
  float output_bias;
  int embedding_planes, recipe_planes;
  int embedding_size, embedding_groups, hidden_groups;
};

// planes: (embedding_planes + recipe_planes, block_lanes), scratch: room for (embedding_groups * outputs_together,
// block_lanes), scores: block_lanes.
using ScoreKernel = void (*)(const ScoreNetwork& network, const float* planes, float* scratch, float* scores);

void score_block_baseline(const ScoreNetwork& network, const float* planes, float* scratch, float* scores);
#if defined(PYNAS_X86)
void score_block_avx2(const ScoreNetwork& network, const float* planes, float* scratch, float* scores);
void score_block_avx512(const ScoreNetwork& network, const float* planes, float* scratch, float* scores);
#endif

}  // namespace pynas
