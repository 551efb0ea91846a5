#include "feasibility.hpp"

#include <algorithm>
#include <cmath>

#include "transpose.hpp"

namespace pynas {
namespace {

// indices[lane] = the sum of stride * gene over the term's factors.
template <class Index, class Factors>
void add_up(const Factors* factor, const Factors* end, const std::uint8_t* columns, std::uint32_t* indices) {
  Index sums[block_lanes] = {};
  for (; factor != end; ++factor) {
    const std::uint8_t* genes = columns + factor->variable * block_lanes;
    const auto stride = static_cast<Index>(factor->stride);
    for (int lane = 0; lane < block_lanes; ++lane) sums[lane] = static_cast<Index>(sums[lane] + stride * genes[lane]);
  }
  for (int lane = 0; lane < block_lanes; ++lane) indices[lane] = sums[lane];
}

}  // namespace

Feasibility::Feasibility(const Space& space, const CostTables& tables, const Bounds& bounds)
    : row_(padded_row(space.size())) {
  for (std::size_t cost = 0; cost < cost_count; ++cost) {
    const std::int64_t lower = bounds.lower[cost], upper = bounds.upper[cost];
    never_fits_ |= lower > upper || upper < tables.floor()[cost] || lower > tables.ceiling()[cost];
    if (lower <= tables.floor()[cost] && upper >= tables.ceiling()[cost]) continue;  // every genome is within
    limits_.push_back({lower, upper, {}});
    for (const CostTerm& term : tables.terms())
      for (const Costs& entry : term.entries) limits_.back().entries.push_back(entry[cost]);
  }

  std::vector<std::vector<Use>> uses(space.size());
  std::uint32_t offset = 0;
  for (const CostTerm& term : tables.terms()) {
    if (limits_.empty()) break;
    const auto begin = static_cast<std::uint32_t>(factors_.size());
    for (std::size_t i = 0; i < term.variables.size(); ++i) {
      factors_.push_back({term.variables[i], term.strides[i]});
      uses[term.variables[i]].push_back({static_cast<std::uint32_t>(terms_.size()), term.strides[i]});
    }
    terms_.push_back({begin, static_cast<std::uint32_t>(factors_.size()), offset, term.entries.size() <= 1 << 16});
    offset += static_cast<std::uint32_t>(term.entries.size());
  }
  for (const auto& own : uses) {
    uses_begin_.push_back(static_cast<std::uint32_t>(uses_.size()));
    uses_.insert(uses_.end(), own.begin(), own.end());
  }
  uses_begin_.push_back(static_cast<std::uint32_t>(uses_.size()));
}

Feasibility::Block::Block(const Feasibility& feasibility)
    : columns(feasibility.row_ * block_lanes),
      indices(feasibility.terms_.size() * block_lanes),
      sums(feasibility.limits_.size() * block_lanes) {}

void Feasibility::count(const std::uint8_t* genomes, std::size_t row, Block& block) const {
  if (limits_.empty()) return;
  transpose_block(genomes, row, block_lanes, block.columns.data());
  std::uint32_t* indices = block.indices.data();
  for (const Term& term : terms_) {
    const Factor *begin = factors_.data() + term.begin, *end = factors_.data() + term.end;
    if (term.small)
      add_up<std::uint16_t>(begin, end, block.columns.data(), indices);
    else
      add_up<std::uint32_t>(begin, end, block.columns.data(), indices);
    indices += block_lanes;
  }
  std::fill(block.sums.begin(), block.sums.end(), 0);
  for (std::size_t i = 0; i < limits_.size(); ++i) {
    std::int64_t* sums = block.sums.data() + i * block_lanes;
    indices = block.indices.data();
    for (const Term& term : terms_) {
      const std::int64_t* table = limits_[i].entries.data() + term.offset;
      for (int lane = 0; lane < block_lanes; ++lane) sums[lane] += table[indices[lane]];
      indices += block_lanes;
    }
  }
}

void Feasibility::change(Block& block, std::size_t lane, std::size_t variable, int from, int to) const {
  for (std::uint32_t i = uses_begin_[variable]; i < uses_begin_[variable + 1]; ++i) {
    const Use& use = uses_[i];
    std::uint32_t& index = block.indices[use.term * block_lanes + lane];
    const std::uint32_t old = index;
    index += use.stride * static_cast<std::uint32_t>(to - from);  // wraps like the difference does
    for (std::size_t l = 0; l < limits_.size(); ++l) {
      const std::int64_t* table = limits_[l].entries.data() + terms_[use.term].offset;
      block.sums[l * block_lanes + lane] += table[index] - table[old];
    }
  }
}

std::int64_t Feasibility::sum(const Limit& limit, const std::uint8_t* genome) const {
  std::int64_t sum = 0;
  for (const Term& term : terms_) {
    std::uint32_t index = term.offset;
    for (std::uint32_t i = term.begin; i < term.end; ++i) index += factors_[i].stride * genome[factors_[i].variable];
    sum += limit.entries[index];
  }
  return sum;
}

bool Feasibility::fits(const std::uint8_t* genome) const {
  return std::all_of(limits_.begin(), limits_.end(), [&](const Limit& limit) {
    const std::int64_t cost = sum(limit, genome);
    return cost >= limit.lower && cost <= limit.upper;
  });
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
