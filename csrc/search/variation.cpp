#include "variation.hpp"

namespace pynas {

Mutation::Mutation(const Space& space) {
  chosen_.resize((space.size() + 63) / 64);
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
    thresholds_.push_back(static_cast<std::uint64_t>(cumulative * 0x1p63));
    pmf *= ratios_[i] * (p / (1 - p));
    cumulative += pmf;
  }
  while (thresholds_.size() <= few) thresholds_.push_back(std::uint64_t{1} << 63);
}

void Mutation::mutate(Stream& random, std::uint8_t* genome) {
  const std::size_t genes = other_choices_.size();
  const std::uint64_t* other_choices = other_choices_.data();
  const auto change = [&](std::size_t v, std::uint64_t bits) {
    const auto other = static_cast<std::uint8_t>((bits & 0xffffffffu) * other_choices[v] >> 32);
    genome[v] = static_cast<std::uint8_t>(other + (other >= genome[v]));
  };
  const std::uint64_t draw = random.next() >> 1;
  std::size_t count = 0;
  for (std::size_t i = 0; i < few; ++i) count += draw >= thresholds_[i];  // the usual counts, with no branch to predict
  if (count == few)
    while (count < thresholds_.size() && draw >= thresholds_[count]) ++count;

  std::uint64_t* chosen = chosen_.data();
  for (std::size_t word = 0; word < chosen_.size(); ++word) chosen[word] = 0;
  while (count > 0) {
    const std::uint64_t bits = random.next();  // one half for which gene, the other for which choice
    const auto v = static_cast<std::size_t>((bits >> 32) * genes >> 32);
    const std::uint64_t bit = std::uint64_t{1} << (v % 64);
    if ((chosen[v / 64] & bit) != 0) continue;
    chosen[v / 64] |= bit;
    --count;
    if (!inverted_) change(v, bits);
  }
  if (!inverted_) return;
  for (std::size_t v = 0; v < genes; ++v)
    if ((chosen[v / 64] >> (v % 64) & 1) == 0) change(v, random.next());
}

}  // namespace pynas
