// The genetic operators on padded genome rows: uniform crossover and mutation to another choice.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "random.hpp"
#include "space.hpp"

namespace pynas {

// Bit i of a byte spread to byte i of a word: the genes that one of 8 random bits selects.
inline constexpr auto gene_masks = [] {
  std::array<std::uint64_t, 256> masks{};
  for (std::size_t bits = 0; bits < 256; ++bits)
    for (std::size_t i = 0; i < 8; ++i)
      if (bits >> i & 1) masks[bits] |= std::uint64_t{0xff} << (8 * i);
  return masks;
}();

// child = x with each gene exchanged for y's with probability 1/2. Rows are padded to whole 8-byte words.
inline void cross_uniformly(Stream& random, const std::uint8_t* x, const std::uint8_t* y, std::uint8_t* child,
                            std::size_t row) {
  std::uint64_t bits = 0;
  for (std::size_t word = 0; word < row / 8; ++word) {
    if (word % 8 == 0) bits = random.next();
    std::uint64_t a, b;
    std::memcpy(&a, x + word * 8, 8);
    std::memcpy(&b, y + word * 8, 8);
    a ^= (a ^ b) & gene_masks[bits & 255];
    bits >>= 8;
    std::memcpy(child + word * 8, &a, 8);
  }
}

// Mutates each gene with one probability, independently. How many genes mutate is drawn first, from the binomial
// distribution, then which: the same distribution as a draw for every gene, at the cost of a draw for every mutation.
class Mutation {
 public:
  explicit Mutation(const Space& space);

  void set_probability(double probability);

  // Each mutated gene goes to a choice other than its present one with equal probabilities.
  void mutate(Stream& random, std::uint8_t* genome);

 private:
  void change(std::uint8_t* genome, std::size_t v, std::uint64_t fraction) const {
    const auto other = static_cast<std::uint8_t>((static_cast<uint128>(fraction) * other_choices_[v]) >> 64);
    genome[v] = static_cast<std::uint8_t>(other + (other >= genome[v]));
  }

  std::vector<std::uint64_t> other_choices_;  // number of choices of each variable, less one
  std::vector<double> ratios_;                // (n - i) / (i + 1) of n variables
  double probability_ = -1;
  bool inverted_ = false;                  // whether the genes that do not mutate are drawn
  std::vector<std::uint64_t> thresholds_;  // the number drawn is the first i with a 64-bit draw below thresholds_[i]
  std::vector<std::uint8_t> chosen_;       // flags, all 0 between calls
  std::vector<std::uint32_t> positions_;
};

}  // namespace pynas
