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

inline std::uint64_t load_genes(const std::uint8_t* p) {
  std::uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

inline void copy_row(std::uint8_t* to, const std::uint8_t* from, std::size_t row) {
  for (std::size_t byte = 0; byte < row; byte += 16) std::memcpy(to + byte, from + byte, 16);
}

// child = x, and if `crossing` with each gene exchanged for y's with probability 1/2. Whether to cross is a mask and
// not a branch: it is as good as random. Rows are padded to whole 16-byte pieces.
inline void cross_uniformly(Stream& random, bool crossing, const std::uint8_t* x, const std::uint8_t* y,
                            std::uint8_t* child, std::size_t row) {
  std::uint64_t bits = 0;
  for (std::size_t byte = 0; byte < row; byte += 8) {
    if (byte % 64 == 0) bits = random.next() & (std::uint64_t{0} - static_cast<std::uint64_t>(crossing));
    const std::uint64_t a = load_genes(x + byte), b = load_genes(y + byte);
    const std::uint64_t crossed = a ^ ((a ^ b) & gene_masks[bits & 255]);
    bits >>= 8;
    std::memcpy(child + byte, &crossed, sizeof crossed);
  }
}

// Mutates each gene with one probability, independently. How many genes mutate is drawn first, from the binomial
// distribution, then which: the same distribution as a draw for every gene, at the cost of a draw for every mutation.
class Mutation {
 public:
  explicit Mutation(const Space& space);

  void set_probability(double probability);

  // Each mutated gene goes to a choice other than its present one with equal probabilities.
  void mutate(Stream& random, std::uint8_t* genome) const;

 private:
  std::vector<std::uint64_t> other_choices_;  // number of choices of each variable, less one
  std::vector<double> ratios_;                // (n - i) / (i + 1) of n variables
  double probability_ = -1;
  bool inverted_ = false;                  // whether the genes that do not mutate are drawn
  std::vector<std::uint64_t> thresholds_;  // the number drawn is that of thresholds not above a 64-bit draw
};

}  // namespace pynas
