// The accuracy predictor of NARS (sec. 3.1, A.3 of the FBNetV3 paper): a multi-layer perceptron with an embedding of
// the architecture's features and of the statistics that are asked for, joined by the recipe's features before one
// hidden layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "planes.hpp"
#include "score_kernel.hpp"
#include "space.hpp"
#include "statistics.hpp"
#include "transpose.hpp"

namespace pynas {

// Weights in feature space, row-major (outputs, inputs).
struct PredictorWeights {
  std::size_t embedding_size, hidden_size;
  std::span<const float> embedding_weight;  // (embedding, architecture features + statistics)
  std::span<const float> embedding_bias;
  std::span<const float> hidden_weight;  // (hidden, embedding + recipe features)
  std::span<const float> hidden_bias;
  std::span<const float> output_weight;  // (hidden,)
  double output_bias, mean, scale;       // score = (output_weight . hidden + output_bias) * scale + mean
};

class Predictor {
 public:
  Predictor(const Space& space, Statistics statistics, const PredictorWeights& weights);

  std::size_t variables() const { return variables_; }
  std::size_t row() const { return padded_row(variables_); }

  // Memory that one thread needs to score a block.
  struct Scratch {
    explicit Scratch(const Predictor& predictor);
    std::vector<std::uint8_t> bytes;
    Statistics::Scratch statistics;
    std::vector<float> planes, embedding;
  };

  // genomes: block_lanes rows of row() bytes; scores: block_lanes.
  void score_block(ScoreKernel kernel, const std::uint8_t* genomes, Scratch& scratch, float* scores) const;

  // genomes: row-major (count, variables()).
  void score(ScoreKernel kernel, const std::uint8_t* genomes, std::size_t count, int threads, float* scores) const;

 private:
  ScoreNetwork network() const;

  std::size_t variables_, embedding_size_;
  Planes planes_;
  Statistics statistics_;
  std::vector<float> embedding_layer_, hidden_layer_, output_weights_;
  float output_bias_;
};

}  // namespace pynas
