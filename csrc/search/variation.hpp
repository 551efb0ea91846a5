// The genetic operators on padded genome rows: uniform crossover and mutation to another choice.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

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

using Words2 = std::uint64_t __attribute__((vector_size(16)));

inline void copy_row(std::uint8_t* to, const std::uint8_t* from, std::size_t row) {
  for (std::size_t byte = 0; byte < row; byte += 16) std::memcpy(to + byte, from + byte, 16);
}

// Bit i is set where a[i] != b[i] and mask[i] is 255 and not 0, for the 16 bytes of a piece of a row.
inline std::uint64_t differing_bytes(const std::uint8_t* a, const std::uint8_t* b, const std::uint8_t* mask) {
#if defined(__SSE2__)
  const auto load = [](const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
  const __m128i differs = _mm_andnot_si128(_mm_cmpeq_epi8(load(a), load(b)), load(mask));
  return static_cast<std::uint64_t>(_mm_movemask_epi8(differs));
#else
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < 16; ++i) bits |= std::uint64_t{a[i] != b[i] && mask[i] != 0} << i;
  return bits;
#endif
}

// child = x, and if `crossing` with each gene exchanged for y's with probability 1/2. Whether to cross is a mask and
// not a branch: it is as good as random. Rows are padded to whole 16-byte pieces.
inline void cross_uniformly(Stream& random, bool crossing, const std::uint8_t* x, const std::uint8_t* y,
                            std::uint8_t* child, std::size_t row) {
  std::uint64_t bits = 0;
  for (std::size_t byte = 0; byte < row; byte += 16) {
    if (byte % 64 == 0) bits = random.next() & (std::uint64_t{0} - static_cast<std::uint64_t>(crossing));
    const Words2 mask = {gene_masks[bits & 255], gene_masks[bits >> 8 & 255]};
    bits >>= 16;
    Words2 a, b;
    std::memcpy(&a, x + byte, sizeof a);
    std::memcpy(&b, y + byte, sizeof b);
    a ^= (a ^ b) & mask;
    std::memcpy(child + byte, &a, sizeof a);
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
  static constexpr std::size_t few = 8;

  std::vector<std::uint64_t> other_choices_;  // number of choices of each variable, less one
  std::vector<double> ratios_;                // (n - i) / (i + 1) of n variables
  double probability_ = -1;
  bool inverted_ = false;                  // whether the genes that do not mutate are drawn
  std::vector<std::uint64_t> thresholds_;  // a 63-bit draw means as many genes as it reaches thresholds; at least `few`
  std::vector<std::uint64_t> chosen_;      // bits: the genes drawn so far
};

}  // namespace pynas
