// Stage 3 of NARS: predictor-based evolutionary search within cost bounds (Algorithm 1 and sec. 3.4 of Dai et al.,
// "FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining", CVPR 2021) by an adaptive genetic algorithm.
//
//   D* = the inherited individuals and some random ones, scored
//   while the best score of D* still rises:
//     for each x in D*: children of x: a mate y from D*, uniform crossover with p_c(max(f_x, f_y)), mutation with
//     p_m(f_x) D* = the K best of D* and the children
//
// Paper mode is that to the letter. Default mode mends what the letter gets wrong:
//   - inherited individuals outside the bounds are left out (the letter bounds only the children);
//   - the first best score is compared with minus infinity, not 0 (scores may be negative);
//   - a child outside the bounds takes back random genes of x, which is within them, until it is too (reversal.hpp; the
//     letter says only "subject to resource constraints", for which paper mode draws anew);
//   - a child that D* or its generation already holds is dropped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "adaptive_probabilities.hpp"
#include "cost_tables.hpp"
#include "predictor.hpp"
#include "space.hpp"

namespace pynas {

struct EvolutionSettings {
  bool literal;          // paper mode
  std::size_t children;  // proposed for each individual of D* in a generation
  std::size_t keep;      // K
  std::size_t random;    // random individuals added to the inherited ones
  std::size_t patience;  // generations without a gain above epsilon that end a restart; 1 in Algorithm 1
  double epsilon;
  std::size_t max_evaluations;  // children scored, per restart
  std::size_t restarts;
  AdaptiveRates rates;
};

struct GenerationRecord {
  std::int64_t restart, generation, evaluations;
  double best, mean;  // of D*
};

struct EvolutionResult {
  std::vector<std::uint8_t> genomes;  // (scores.size(), variables), best first
  std::vector<float> scores;
  std::vector<GenerationRecord> history;  // generation 0 is the initial D*
  std::int64_t evaluations = 0;           // children scored
  std::int64_t proposals = 0;             // children drawn: these, and those outside the bounds or known already
};

// initial: row-major (count, variables). The result is the same for any number of threads.
EvolutionResult evolve(const Space& space, const CostTables& tables, const Predictor& predictor,
                       const std::uint8_t* initial, std::size_t initial_count, const Bounds& bounds,
                       const EvolutionSettings& settings, std::uint64_t seed, int threads);

}  // namespace pynas
