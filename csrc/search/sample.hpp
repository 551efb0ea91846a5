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

// Uniform random genomes. Each half of a 64-bit output is read as a fraction and multiplied by a number of choices; the
// bias of a gene is below choices / 2^32.
class UniformGenome {
 public:
  explicit UniformGenome(const Space& space);

  void draw(Stream& random, std::uint8_t* genome) const {
    const std::uint64_t* choices = choices_.data();  // bytes written may alias the members, but not these
    const std::size_t even = choices_.size() / 2 * 2;
    std::size_t v = 0;
    for (; v < even; v += 2) {
      const std::uint64_t bits = random.next();
      genome[v] = static_cast<std::uint8_t>((bits >> 32) * choices[v] >> 32);
      genome[v + 1] = static_cast<std::uint8_t>((bits & 0xffffffffu) * choices[v + 1] >> 32);
    }
    if (v < choices_.size()) genome[v] = static_cast<std::uint8_t>((random.next() >> 32) * choices[v] >> 32);
  }

 private:
  std::vector<std::uint64_t> choices_;
};

// `count` genomes, row-major, uniform among those within the bounds, by rejection. Where hardly any draw is accepted,
// the rest are random genomes repaired by single-gene changes, which are within the bounds but no longer uniform.
// Refuses bounds within which no genome is found, naming what the space can reach.
std::vector<std::uint8_t> sample(const Space& space, const CostTables& tables, const Bounds& bounds, std::size_t count,
                                 std::uint64_t seed, int threads);

// points: row-major (count, variables) in [0, 1); a variable's interval is cut into as many equal parts as choices.
void genomes_from_unit(const Space& space, const double* points, std::size_t count, std::uint8_t* genomes);

}  // namespace pynas
