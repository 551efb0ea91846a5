#include "variation.hpp"

namespace pynas {

Mutation::Mutation(const Space& space) {
  for (std::size_t v = 0; v < space.size(); ++v)
    other_choices_.push_back(static_cast<std::uint64_t>(space.choices(v)) - 1);
  for (std::size_t i = 0; i < space.size(); ++i)
    ratios_.push_back(static_cast<double>(space.size() - i) / static_cast<double>(i + 1));
}

void Mutation::set_probability(double probability) {
  if (probability == probability_) return;
  probability_ = probability;
  // pmf(i + 1) / pmf(i) = (n - i) / (i + 1) * p / (1 - p), from the end where it cannot underflow. Where mutation is
  // the likelier, what is drawn is how many genes stay.
  const std::size_t genes = other_choices_.size();
  inverted_ = probability > 0.5;
  const double p = inverted_ ? 1 - probability : probability;
  double pmf = 1;
  for (std::size_t i = 0; i < genes; ++i) pmf *= 1 - p;
  double cumulative = pmf;
  thresholds_.clear();
  for (std::size_t i = 0; i < genes && cumulative < 1 - 0x1p-53; ++i) {
    thresholds_.push_back(static_cast<std::uint64_t>(cumulative * 0x1p64));
    pmf *= ratios_[i] * (p / (1 - p));
    cumulative += pmf;
  }
}

void Mutation::mutate(Stream& random, std::uint8_t* genome) const {
  const std::size_t genes = other_choices_.size();
  const std::uint64_t* other_choices = other_choices_.data();
  const auto change = [&](std::size_t v, std::uint64_t fraction) {
    const auto other = static_cast<std::uint8_t>((static_cast<uint128>(fraction) * other_choices[v]) >> 64);
    genome[v] = static_cast<std::uint8_t>(other + (other >= genome[v]));
  };
  const std::uint64_t draw = random.next();
  std::size_t count = 0;
  for (const std::uint64_t threshold : thresholds_) count += draw >= threshold;  // no branch to predict

  std::array<std::uint64_t, (most_variables + 63) / 64> chosen{};  // bits
  while (count > 0) {
    const uint128 scaled = static_cast<uint128>(random.next()) * genes;
    const auto v = static_cast<std::size_t>(scaled >> 64);
    const std::uint64_t bit = std::uint64_t{1} << (v % 64);
    if ((chosen[v / 64] & bit) != 0) continue;
    chosen[v / 64] |= bit;
    --count;
    if (!inverted_) change(v, static_cast<std::uint64_t>(scaled));
  }
  if (!inverted_) return;
  for (std::size_t v = 0; v < genes; ++v)
    if ((chosen[v / 64] >> (v % 64) & 1) == 0) change(v, random.next());
}

}  // namespace pynas
