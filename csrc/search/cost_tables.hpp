// Counting a genome by table look-ups.
//
// A block's cost depends on few variables, so a network's cost is a sum of terms (the first block of a row; its
// remaining blocks), each a table over the joint choices of the variables it depends on. The tables are filled by
// count_block, hence exact. Axes that turn out not to matter are dropped, and a term whose variables are a subset of
// another's is added into it: fewer look-ups, same sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "cost.hpp"
#include "space.hpp"

namespace pynas {

struct CostTerm {
  std::vector<std::uint32_t> variables;  // ascending
  std::vector<std::uint32_t> strides;    // of each variable's choice in `entries`
  std::vector<Costs> entries;            // one a joint choice
};

// Inclusive limits on each cost.
struct Bounds {
  Costs lower, upper;

  bool contain(const Costs& costs) const {
    bool inside = true;
    for (std::size_t i = 0; i < cost_count; ++i) inside &= costs[i] >= lower[i] && costs[i] <= upper[i];
    return inside;
  }
};

class CostTables {
 public:
  // Refuses spaces with a genome that has a feature map smaller than a kernel, and terms over too many variables.
  explicit CostTables(const Space& space);

  const std::vector<CostTerm>& terms() const { return terms_; }
  Costs count(const std::uint8_t* genome) const;

  // Sums of the terms' extremes: no genome costs less or more. Seldom reached, since terms share variables.
  const Costs& floor() const { return floor_; }
  const Costs& ceiling() const { return ceiling_; }

 private:
  std::vector<CostTerm> terms_;
  Costs floor_, ceiling_;
};

// Lowest and highest value of each cost found by coordinate descent from several starts: exact where costs are
// monotone in every variable, as in Table 2, else what the search should expect to reach.
struct CostRange {
  Costs lowest, highest;
};
CostRange cost_range(const Space& space, const CostTables& tables);

}  // namespace pynas
