#include "feasibility.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "transpose.hpp"

namespace pynas {
namespace {

// Eight lanes of genes and of 16-bit indices (a vector type of gcc and clang on every processor).
using Genes8 = std::uint8_t __attribute__((vector_size(8)));
using Index8 = std::uint16_t __attribute__((vector_size(16)));
using Wide8 = std::uint32_t __attribute__((vector_size(32)));

// indices[lane] = offset + the sum of stride * gene over the term's factors, where all such sums fit into 16 bits.
template <class Factor>
void add_up_small(const Factor* begin, const Factor* end, const std::uint8_t* columns, std::uint32_t offset,
                  std::uint32_t* indices) {
  for (int lane = 0; lane < block_lanes; lane += 8) {
    Index8 sum = {};
    for (const Factor* factor = begin; factor != end; ++factor) {
      Genes8 genes;
      std::memcpy(&genes, columns + factor->variable * block_lanes + lane, sizeof genes);
      sum += __builtin_convertvector(genes, Index8) * static_cast<std::uint16_t>(factor->stride);
    }
    const Wide8 wide = __builtin_convertvector(sum, Wide8) + offset;
    std::memcpy(indices + lane, &wide, sizeof wide);
  }
}

template <class Factor>
void add_up_large(const Factor* begin, const Factor* end, const std::uint8_t* columns, std::uint32_t offset,
                  std::uint32_t* indices) {
  std::fill_n(indices, block_lanes, offset);
  for (const Factor* factor = begin; factor != end; ++factor)
    for (int lane = 0; lane < block_lanes; ++lane)
      indices[lane] += factor->stride * columns[factor->variable * block_lanes + static_cast<std::uint32_t>(lane)];
}

}  // namespace

Feasibility::Feasibility(const Space& space, const CostTables& tables, const Bounds& bounds)
    : row_(padded_row(space.size())) {
  std::size_t entries = 0;
  for (const CostTerm& term : tables.terms()) entries += term.entries.size();
  for (std::size_t cost = 0; cost < cost_count; ++cost) {
    const std::int64_t lower = bounds.lower[cost], upper = bounds.upper[cost];
    never_fits_ |= lower > upper || upper < tables.floor()[cost] || lower > tables.ceiling()[cost];
    if (lower <= tables.floor()[cost] && upper >= tables.ceiling()[cost]) continue;  // every genome is within
    limits_.push_back({lower, upper, tables.ceiling()[cost] <= std::numeric_limits<std::uint32_t>::max(), {}, {}});
    Limit& limit = limits_.back();
    limit.narrow ? limit.narrow_entries.reserve(entries) : limit.wide_entries.reserve(entries);
    for (const CostTerm& term : tables.terms())
      for (const Costs& entry : term.entries)
        if (limit.narrow)
          limit.narrow_entries.push_back(static_cast<std::uint32_t>(entry[cost]));
        else
          limit.wide_entries.push_back(entry[cost]);
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
      add_up_small(begin, end, block.columns.data(), term.offset, indices);
    else
      add_up_large(begin, end, block.columns.data(), term.offset, indices);
    indices += block_lanes;
  }
  std::fill(block.sums.begin(), block.sums.end(), 0);
  for (std::size_t i = 0; i < limits_.size(); ++i)
    limits_[i].with_entries([&](const auto* entries) {
      std::int64_t* sums = block.sums.data() + i * block_lanes;
      const std::uint32_t* index = block.indices.data();
      for (std::size_t term = 0; term < terms_.size(); ++term, index += block_lanes)
        for (int lane = 0; lane < block_lanes; ++lane) sums[lane] += entries[index[lane]];
    });
}

void Feasibility::change(Block& block, std::size_t lane, std::size_t variable, int from, int to) const {
  const std::uint32_t* indices = block.indices.data() + lane;
  const Use *begin = uses_.data() + uses_begin_[variable], *end = uses_.data() + uses_begin_[variable + 1];
  const auto difference = static_cast<std::uint32_t>(to - from);  // products and sums wrap as they should
  for (std::size_t i = 0; i < limits_.size(); ++i)
    limits_[i].with_entries([&](const auto* entries) {
      std::int64_t change = 0;
      for (const Use* use = begin; use != end; ++use) {
        const std::uint32_t old = indices[use->term * block_lanes];
        change += std::int64_t{entries[old + use->stride * difference]} - std::int64_t{entries[old]};
      }
      block.sums[i * block_lanes + lane] += change;
    });
  for (const Use* use = begin; use != end; ++use)
    block.indices[use->term * block_lanes + lane] += use->stride * difference;
}

std::int64_t Feasibility::sum(const Limit& limit, const std::uint8_t* genome) const {
  std::int64_t sum = 0;
  limit.with_entries([&](const auto* entries) {
    for (const Term& term : terms_) {
      std::uint32_t index = term.offset;
      for (std::uint32_t i = term.begin; i < term.end; ++i) index += factors_[i].stride * genome[factors_[i].variable];
      sum += entries[index];
    }
  });
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
