#include "feasibility.hpp"

#include <algorithm>
#include <cmath>

namespace pynas {

Feasibility::Feasibility(const Space& space, const CostTables& tables, const Bounds& bounds)
    : matters_(space.size(), 0) {
  std::uint32_t offset = 0;
  for (const CostTerm& term : tables.terms()) {
    terms_.push_back({static_cast<std::uint32_t>(term.variables.size()), offset});
    for (std::size_t i = 0; i < term.variables.size(); ++i) {
      factors_.push_back(term.variables[i]);
      factors_.push_back(term.strides[i]);
    }
    offset += static_cast<std::uint32_t>(term.entries.size());
  }
  for (std::size_t cost = 0; cost < cost_count; ++cost) {
    const std::int64_t lower = bounds.lower[cost], upper = bounds.upper[cost];
    never_fits_ |= lower > upper || upper < tables.floor()[cost] || lower > tables.ceiling()[cost];
    if (lower <= tables.floor()[cost] && upper >= tables.ceiling()[cost]) continue;  // every genome is within
    Limit limit{lower, upper, {}};
    limit.entries.reserve(offset);
    for (const CostTerm& term : tables.terms()) {
      for (const Costs& entry : term.entries) limit.entries.push_back(entry[cost]);
      for (const std::uint32_t variable : term.variables) matters_[variable] = 1;
    }
    limits_.push_back(std::move(limit));
  }
}

std::int64_t Feasibility::sum(const Limit& limit, const std::uint8_t* genome) const {
  std::int64_t sum = 0;
  const std::uint32_t* factor = factors_.data();
  for (const Term& term : terms_) {
    std::uint32_t index = 0;
    for (std::uint32_t i = 0; i < term.size; ++i, factor += 2) index += factor[1] * genome[factor[0]];
    sum += limit.entries[term.offset + index];
  }
  return sum;
}

double Feasibility::violation(const std::uint8_t* genome) const {
  double total = 0;
  for (const Limit& limit : limits_) {
    const auto cost = static_cast<double>(sum(limit, genome));
    const auto upper = static_cast<double>(limit.upper), lower = static_cast<double>(limit.lower);
    if (cost > upper) total += (cost - upper) / std::max(std::abs(upper), 1.0);
    if (cost < lower) total += (lower - cost) / std::max(std::abs(lower), 1.0);
  }
  return total;
}

}  // namespace pynas
