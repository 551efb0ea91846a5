#include "adaptive_probabilities.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "text.hpp"

namespace pynas {

void check_rates(const AdaptiveRates& rates) {
  for (const auto& [name, value] : {std::pair{"k1", rates.k1}, std::pair{"k2", rates.k2}, std::pair{"k3", rates.k3},
                                    std::pair{"k4", rates.k4}, std::pair{"mutation_floor", rates.mutation_floor}})
    if (!(value >= 0 && value <= 1)) refuse(name, " is ", value, "; allowed are 0 to 1");
}

Probabilities adaptive_probabilities(const std::vector<double>& fitness, const AdaptiveRates& rates) {
  if (fitness.empty()) refuse("fitness is empty; at least one individual is needed");
  const double best = *std::max_element(fitness.begin(), fitness.end());
  // Offsets from the best, so that a population of equals has a mean of exactly 0 below it.
  double mean_gap = 0;
  for (std::size_t i = 0; i < fitness.size(); ++i) {
    if (!std::isfinite(fitness[i])) refuse("fitness: element ", i, " is ", fitness[i], "; it must be finite");
    mean_gap += (best - fitness[i]) / static_cast<double>(fitness.size());
  }
  Probabilities probabilities;
  for (const double f : fitness) {
    const double gap = best - f;
    const bool adapts = mean_gap > 0 && gap <= mean_gap;
    probabilities.crossover.push_back(adapts ? rates.k1 * gap / mean_gap : rates.k3);
    probabilities.mutation.push_back(std::max(adapts ? rates.k2 * gap / mean_gap : rates.k4, rates.mutation_floor));
  }
  return probabilities;
}

}  // namespace pynas
