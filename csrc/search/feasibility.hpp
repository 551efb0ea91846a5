// The cost tables cut down to the bounds that can bite, for the many checks of sampling and evolution.
//
// Unrelated genomes are checked a block at a time: with genomes as lanes, the table indices of a term are a few vector
// operations, and the look-ups of different lanes overlap. A genome that differs from a known one in few genes costs
// the look-ups of the terms that depend on these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cost_tables.hpp"
#include "score_kernel.hpp"
#include "space.hpp"
#include "term_indices.hpp"

namespace pynas {

class Feasibility {
 public:
  Feasibility(const Space& space, const CostTables& tables, const Bounds& bounds);

  // The state of a block of genomes: where each lane looks in each term's table, and its sum for each limit.
  struct Block {
    explicit Block(const Feasibility& feasibility);
    std::vector<std::uint8_t> columns;
    std::vector<std::uint32_t> indices;  // (terms, block_lanes), into a limit's entries
    std::vector<std::int64_t> sums;      // (limits, block_lanes)
  };

  // genomes: block_lanes rows of `row` bytes, padded as transpose.hpp tells.
  void count(const std::uint8_t* genomes, std::size_t row, Block& block) const;

  bool fits(const Block& block, std::size_t lane) const {
    bool inside = true;
    for (std::size_t i = 0; i < limits_.size(); ++i) {
      const std::int64_t sum = block.sums[i * block_lanes + lane];
      inside &= sum >= limits_[i].lower && sum <= limits_[i].upper;
    }
    return inside;
  }

  // Where one genome looks in each term's table, and its sum for each limit.
  struct Position {
    explicit Position(const Feasibility& feasibility);
    std::vector<std::uint32_t> indices;
    std::vector<std::int64_t> sums;
  };
  void locate(const std::uint8_t* genome, Position& position) const;

  // Genes to be changed one after another, and room to follow what that does.
  struct Path {
    explicit Path(const Feasibility& feasibility);
    std::vector<std::uint16_t> genes;
    std::vector<std::uint32_t> indices;
    std::vector<std::uint8_t> inside;
  };
  // How many of the path's first `count` genes can at most be changed from `from` (located at `start`, and within the
  // bounds) to `to` such that the result is within the bounds.
  std::size_t longest_fit(const Position& start, const std::uint8_t* from, const std::uint8_t* to, Path& path,
                          std::size_t count) const;

  bool fits(const std::uint8_t* genome) const;

  // By how much the bounds are broken: the sum of the relative excesses, 0 where the genome fits.
  double violation(const std::uint8_t* genome) const;

  // Whether the choice of the variable can change a bounded cost.
  bool matters(std::size_t variable) const { return uses_begin_[variable] != uses_begin_[variable + 1]; }
  bool never_fits() const { return never_fits_; }
  // Padded length of a genome's row in a block.
  std::size_t row() const { return row_; }

 private:
  struct Term {
    std::uint32_t begin, end;  // of its factors
    std::uint32_t offset;      // of its table in a limit's entries
    bool small;                // indices fit into 16 bits
  };
  // Terms that depend on a variable, three at a time so that most variables are one step with no branch to predict;
  // unused places have stride 0 and a term of their own beyond the real ones.
  struct Uses {
    std::uint32_t term[3], stride[3];
  };
  struct Limit {
    std::int64_t lower, upper;
    bool narrow;                                // the entries fit into 32 bits, which halves what the caches must hold
    std::vector<std::uint32_t> narrow_entries;  // of all terms, one table after another
    std::vector<std::int64_t> wide_entries;

    template <class Use>
    void with_entries(const Use& use) const {
      if (narrow)
        use(narrow_entries.data());
      else
        use(wide_entries.data());
    }
  };
  std::int64_t sum(const Limit& limit, const std::uint8_t* genome) const;

  std::size_t row_;
  std::vector<Factor> factors_;
  std::vector<Term> terms_;
  std::vector<Limit> limits_;
  std::vector<Uses> uses_;
  std::vector<std::uint32_t> uses_begin_;  // where those of each variable begin
  bool never_fits_ = false;
};

}  // namespace pynas
