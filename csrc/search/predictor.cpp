#include "predictor.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "features.hpp"
#include "text.hpp"
#include "threads.hpp"

namespace pynas {
namespace {

constexpr std::size_t group = outputs_together;

std::size_t groups(std::size_t outputs) {
  return (outputs + group - 1) / group;
}

void check(const char* name, std::span<const float> values, std::size_t expected) {
  if (values.size() != expected) refuse(name, " has ", values.size(), " elements; expected ", expected);
  for (const float value : values)
    if (!std::isfinite(value)) refuse(name, " holds ", value, "; weights must be finite");
}

void check(const char* name, double value) {
  if (!std::isfinite(value)) refuse(name, " is ", value, "; it must be finite");
}

// rows[i] = (bias, weights...) of output i; the order is the one ScoreNetwork tells.
std::vector<float> packed(const std::vector<std::vector<double>>& rows, std::size_t inputs) {
  std::vector<float> layer(groups(rows.size()) * group * (inputs + 1), 0.0f);
  for (std::size_t output = 0; output < rows.size(); ++output)
    for (std::size_t i = 0; i <= inputs; ++i)
      layer[(output / group * (inputs + 1) + i) * group + output % group] = static_cast<float>(rows[output][i]);
  return layer;
}

}  // namespace

Predictor::Predictor(const Space& space, Statistics statistics, const PredictorWeights& weights)
    : variables_(space.size()),
      embedding_size_(weights.embedding_size),
      planes_(space),
      statistics_(std::move(statistics)) {
  const std::size_t architecture = architecture_feature_count(space);
  const std::size_t recipe = feature_count(space) - architecture;
  const std::size_t embedding_inputs = architecture + statistics_.size();
  const std::size_t hidden_inputs = embedding_size_ + recipe;
  if (weights.hidden_size == 0) refuse("the hidden layer has no units; at least 1 is needed");
  check("embedding_weight", weights.embedding_weight, embedding_size_ * embedding_inputs);
  check("embedding_bias", weights.embedding_bias, embedding_size_);
  check("hidden_weight", weights.hidden_weight, weights.hidden_size * hidden_inputs);
  check("hidden_bias", weights.hidden_bias, weights.hidden_size);
  check("output_weight", weights.output_weight, weights.hidden_size);
  check("output_bias", weights.output_bias);
  check("mean", weights.mean);
  check("scale", weights.scale);

  std::vector<std::vector<double>> rows(embedding_size_);
  for (std::size_t i = 0; i < embedding_size_; ++i) {
    rows[i] = {weights.embedding_bias[i]};
    const float* own = weights.embedding_weight.data() + i * embedding_inputs;
    for (std::size_t j = 0; j < statistics_.size(); ++j) {
      rows[i].push_back(own[architecture + j]);
      rows[i][0] += own[architecture + j] * statistics_.centre(j);
    }
    const double bias = planes_.fold(space, 0, space.architecture_variables(), own, rows[i]);
    rows[i][0] += bias;
  }
  embedding_layer_ = packed(rows, statistics_.size() + planes_.architecture_planes());

  rows.assign(weights.hidden_size, {});
  for (std::size_t i = 0; i < weights.hidden_size; ++i) {
    const float* own = weights.hidden_weight.data() + i * hidden_inputs;
    rows[i] = {weights.hidden_bias[i]};
    rows[i].insert(rows[i].end(), own, own + embedding_size_);
    const double bias =
        planes_.fold(space, space.architecture_variables(), space.size(), own + embedding_size_, rows[i]);
    rows[i][0] += bias;
  }
  hidden_layer_ = packed(rows, embedding_size_ + planes_.recipe_planes());

  output_weights_.assign(groups(weights.hidden_size) * group, 0.0f);
  std::transform(weights.output_weight.begin(), weights.output_weight.end(), output_weights_.begin(),
                 [&](float weight) { return static_cast<float>(weight * weights.scale); });
  output_bias_ = static_cast<float>(weights.output_bias * weights.scale + weights.mean);
}

Predictor::Scratch::Scratch(const Predictor& predictor)
    : bytes(predictor.row() * block_lanes),
      statistics(predictor.statistics_),
      planes((predictor.statistics_.size() + predictor.planes_.size()) * block_lanes),
      embedding(groups(predictor.embedding_size_) * group * block_lanes) {}

ScoreNetwork Predictor::network() const {
  return {embedding_layer_.data(),
          hidden_layer_.data(),
          output_weights_.data(),
          output_bias_,
          static_cast<int>(statistics_.size() + planes_.architecture_planes()),
          static_cast<int>(planes_.recipe_planes()),
          static_cast<int>(embedding_size_),
          static_cast<int>(groups(embedding_size_)),
          static_cast<int>(output_weights_.size() / group)};
}

void Predictor::score_block(ScoreKernel kernel, const std::uint8_t* genomes, Scratch& scratch, float* scores) const {
  float* const planes = scratch.planes.data();
  planes_.fill(genomes, row(), scratch.bytes.data(), planes + statistics_.size() * block_lanes);
  statistics_.fill(scratch.bytes.data(), scratch.statistics, planes);
  kernel(network(), planes, scratch.embedding.data(), scores);
}

void Predictor::score(ScoreKernel kernel, const std::uint8_t* genomes, std::size_t count, int threads,
                      float* scores) const {
  for_each_range(count, 64 * block_lanes, threads, [&](std::size_t begin, std::size_t end) {
    Scratch scratch(*this);
    std::vector<std::uint8_t> rows(row() * block_lanes);
    float block_scores[block_lanes];
    for (std::size_t block = begin; block < end; block += block_lanes) {
      const std::size_t lanes = std::min<std::size_t>(block_lanes, end - block);
      for (std::size_t lane = 0; lane < lanes; ++lane)
        std::memcpy(rows.data() + lane * row(), genomes + (block + lane) * variables_, variables_);
      score_block(kernel, rows.data(), scratch, block_scores);
      std::copy_n(block_scores, lanes, scores + block);
    }
  });
}

}  // namespace pynas
