// Drawing genomes: uniform among those within bounds, and from points of the unit cube (quasi-Monte Carlo).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cost_tables.hpp"
#include "feasibility.hpp"
#include "random.hpp"
#include "space.hpp"

namespace pynas {

// Uniform random genomes. One 64-bit output serves several variables: it is read as a fraction, multiplied by the
// number of choices, the whole part is the choice and the fraction goes on; the bias of a gene is below 2^-32.
class UniformGenome {
 public:
  explicit UniformGenome(const Space& space);

  void draw(Stream& random, std::uint8_t* genome) const {
    std::size_t v = 0;
    for (const std::uint32_t end : group_ends_) {
      std::uint64_t fraction = random.next();
      for (; v < end; ++v) {
        const uint128 scaled = static_cast<uint128>(fraction) * choices_[v];
        genome[v] = static_cast<std::uint8_t>(scaled >> 64);
        fraction = static_cast<std::uint64_t>(scaled);
      }
    }
  }

 private:
  std::vector<std::uint64_t> choices_;
  std::vector<std::uint32_t> group_ends_;  // variables up to here share an output
};

// `count` genomes, row-major, uniform among those within the bounds, by rejection. Where hardly any draw is accepted,
// the rest are random genomes repaired by single-gene changes, which are within the bounds but no longer uniform.
// Refuses bounds within which no genome is found, naming what the space can reach.
std::vector<std::uint8_t> sample(const Space& space, const CostTables& tables, const Bounds& bounds, std::size_t count,
                                 std::uint64_t seed, int threads);

// points: row-major (count, variables) in [0, 1); a variable's interval is cut into as many equal parts as choices.
void genomes_from_unit(const Space& space, const double* points, std::size_t count, std::uint8_t* genomes);

}  // namespace pynas
