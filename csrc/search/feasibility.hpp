// The cost tables cut down to the bounds that can bite, for the many checks of sampling and evolution.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cost_tables.hpp"
#include "space.hpp"

namespace pynas {

class Feasibility {
 public:
  Feasibility(const Space& space, const CostTables& tables, const Bounds& bounds);

  bool fits(const std::uint8_t* genome) const {
    for (const Limit& limit : limits_) {
      std::int64_t sum = 0;
      const std::uint32_t* factor = factors_.data();
      for (const Term& term : terms_) {
        std::uint32_t index = 0;
        for (std::uint32_t i = 0; i < term.size; ++i, factor += 2) index += factor[1] * genome[factor[0]];
        sum += limit.entries[term.offset + index];
      }
      if (sum < limit.lower || sum > limit.upper) return false;
    }
    return true;
  }

  // By how much the bounds are broken: the sum of the relative excesses, 0 where the genome fits.
  double violation(const std::uint8_t* genome) const;

  // Whether the choice of the variable can change a bounded cost.
  bool matters(std::size_t variable) const { return matters_[variable] != 0; }
  bool always_fits() const { return limits_.empty(); }
  bool never_fits() const { return never_fits_; }

 private:
  struct Term {
    std::uint32_t size, offset;
  };
  struct Limit {
    std::int64_t lower, upper;
    std::vector<std::int64_t> entries;
  };
  std::int64_t sum(const Limit& limit, const std::uint8_t* genome) const;

  std::vector<Term> terms_;
  std::vector<std::uint32_t> factors_;  // (variable, stride) pairs, term by term
  std::vector<Limit> limits_;
  std::vector<std::uint8_t> matters_;
  bool never_fits_ = false;
};

}  // namespace pynas
