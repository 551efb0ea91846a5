// Crossover and mutation probabilities that adapt to fitness: M. Srinivas & L. M. Patnaik, "Adaptive probabilities of
// crossover and mutation in genetic algorithms", IEEE Trans. SMC 24(4):656-667, 1994 (reference [44] of FBNetV3).
//
//   p_c(f') = k1 (f_max - f') / (f_max - f_mean)   if f' >= f_mean, else k3      f' the larger of the parents'
//   fitnesses p_m(f)  = k2 (f_max - f)  / (f_max - f_mean)   if f  >= f_mean, else k4      f  the mutated individual's
//   fitness
//
// Where all are equally fit (f_max = f_mean) the ratios are undefined and p_c = k3, p_m = k4. The best individual has
// p_c = p_m = 0: its children are clones unless p_m has a floor.
#pragma once

#include <cstddef>
#include <vector>

namespace pynas {

struct AdaptiveRates {
  double k1, k2, k3, k4;
  double mutation_floor;  // no p_m is below it
};

// Refuses rates outside [0, 1].
void check_rates(const AdaptiveRates& rates);

struct Probabilities {
  std::vector<double> crossover, mutation;  // per individual: crossover[i] holds for a pair whose fitter member is i
};

// Refuses an empty population and fitness that is not finite.
Probabilities adaptive_probabilities(const std::vector<double>& fitness, const AdaptiveRates& rates);

}  // namespace pynas
