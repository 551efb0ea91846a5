#include "variation.hpp"

#include <algorithm>

namespace pynas {

Mutation::Mutation(const Space& space) : chosen_(space.size(), 0), positions_(space.size()) {
  for (std::size_t v = 0; v < space.size(); ++v)
    other_choices_.push_back(static_cast<std::uint64_t>(space.choices(v)) - 1);
}

std::vector<std::uint64_t> Mutation::thresholds(double probability) const {
  // pmf[i + 1] / pmf[i] = (n - i) / (i + 1) * p / (1 - p), started at the end where it cannot underflow.
  const std::size_t genes = other_choices_.size();
  const bool likely = probability > 0.5;
  const double p = likely ? 1 - probability : probability;
  std::vector<double> pmf(genes + 1, 1.0);
  for (std::size_t i = 0; i < genes; ++i) pmf[0] *= 1 - p;
  for (std::size_t i = 0; i < genes; ++i)
    pmf[i + 1] = pmf[i] * (static_cast<double>(genes - i) / static_cast<double>(i + 1)) * (p / (1 - p));
  if (likely) std::reverse(pmf.begin(), pmf.end());

  std::vector<std::uint64_t> thresholds;
  double cumulative = 0;
  for (std::size_t i = 0; i < genes; ++i) {
    cumulative += pmf[i];
    if (cumulative >= 1 - 0x1p-53) break;
    thresholds.push_back(static_cast<std::uint64_t>(cumulative * 0x1p64));
  }
  return thresholds;
}

void Mutation::mutate(Stream& random, const std::vector<std::uint64_t>& thresholds, std::uint8_t* genome) {
  const std::size_t genes = other_choices_.size();
  const std::uint64_t draw = random.next();
  std::size_t count = 0;
  while (count < thresholds.size() && draw >= thresholds[count]) ++count;
  // Where more than half of the genes mutate, it is cheaper to draw those that do not.
  const bool inverted = 2 * count > genes;
  const std::size_t drawn = inverted ? genes - count : count;
  for (std::size_t i = 0; i < drawn;) {
    const uint128 scaled = static_cast<uint128>(random.next()) * genes;
    const auto v = static_cast<std::size_t>(scaled >> 64);
    if (chosen_[v] != 0) continue;
    chosen_[v] = 1;
    positions_[i++] = static_cast<std::uint32_t>(v);
    if (!inverted) change(genome, v, static_cast<std::uint64_t>(scaled));
  }
  if (inverted)
    for (std::size_t v = 0; v < genes; ++v)
      if (chosen_[v] == 0) change(genome, v, random.next());
  for (std::size_t i = 0; i < drawn; ++i) chosen_[positions_[i]] = 0;
}

}  // namespace pynas
