#include "feasibility.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "transpose.hpp"

namespace pynas {
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

  std::uint32_t offset = 0;
  for (const CostTerm& term : tables.terms()) {
    if (limits_.empty()) break;
    const auto begin = static_cast<std::uint32_t>(factors_.size());
    for (std::size_t i = 0; i < term.variables.size(); ++i) factors_.push_back({term.variables[i], term.strides[i]});
    terms_.push_back({begin, static_cast<std::uint32_t>(factors_.size()), offset, term.entries.size() <= 1 << 16});
    offset += static_cast<std::uint32_t>(term.entries.size());
  }

  for (std::uint32_t v = 0; v < space.size(); ++v) {
    uses_begin_.push_back(static_cast<std::uint32_t>(uses_.size()));
    std::size_t place = std::size(Uses{}.term);
    for (std::uint32_t term = 0; term < terms_.size(); ++term)
      for (std::uint32_t i = terms_[term].begin; i < terms_[term].end; ++i) {
        if (factors_[i].variable != v) continue;
        if (place == std::size(Uses{}.term)) {
          const auto unused = static_cast<std::uint32_t>(terms_.size());
          uses_.push_back({{unused, unused + 1, unused + 2}, {0, 0, 0}});
          place = 0;
        }
        uses_.back().term[place] = term;
        uses_.back().stride[place++] = factors_[i].stride;
      }
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
    add_up_indices(begin, end, term.small, block.columns.data(), term.offset, indices);
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

Feasibility::Position::Position(const Feasibility& feasibility)
    : indices(feasibility.terms_.size() + std::size(Uses{}.term)), sums(feasibility.limits_.size()) {}

Feasibility::Path::Path(const Feasibility& feasibility)
    : genes(feasibility.row_),
      indices(feasibility.terms_.size() + std::size(Uses{}.term)),
      inside(feasibility.row_ + 1) {}

void Feasibility::locate(const std::uint8_t* genome, Position& position) const {
  for (std::size_t term = 0; term < terms_.size(); ++term) {
    std::uint32_t index = terms_[term].offset;
    for (std::uint32_t i = terms_[term].begin; i < terms_[term].end; ++i)
      index += factors_[i].stride * genome[factors_[i].variable];
    position.indices[term] = index;
  }
  for (std::size_t i = 0; i < limits_.size(); ++i) {
    position.sums[i] = 0;
    limits_[i].with_entries([&](const auto* entries) {
      for (std::size_t term = 0; term < terms_.size(); ++term) position.sums[i] += entries[position.indices[term]];
    });
  }
}

std::size_t Feasibility::longest_fit(const Position& start, const std::uint8_t* from, const std::uint8_t* to,
                                     Path& path, std::size_t count) const {
  if (limits_.empty()) return count;
  const Uses* const uses = uses_.data();
  const std::uint32_t* const begins = uses_begin_.data();
  const std::uint16_t* const genes = path.genes.data();
  std::uint8_t* const inside = path.inside.data();
  std::uint32_t* const indices = path.indices.data();
  for (std::size_t l = 0; l < limits_.size(); ++l) {
    const std::int64_t lower = limits_[l].lower, upper = limits_[l].upper;
    std::copy(start.indices.begin(), start.indices.end(), indices);
    limits_[l].with_entries([&](const auto* entries) {
      std::int64_t sum = start.sums[l];
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t v = genes[i];
        const auto difference = static_cast<std::uint32_t>(to[v] - from[v]);  // products and sums wrap as they should
        for (std::uint32_t u = begins[v]; u < begins[v + 1]; ++u)
          for (std::size_t place = 0; place < std::size(uses[u].term); ++place) {
            std::uint32_t& index = indices[uses[u].term[place]];
            const std::uint32_t old = index, now = old + uses[u].stride[place] * difference;
            index = now;
            sum += std::int64_t{entries[now]} - std::int64_t{entries[old]};
          }
        const auto fits = static_cast<std::uint8_t>((sum >= lower) & (sum <= upper));
        inside[i] = l == 0 ? fits : fits & inside[i];
      }
    });
  }
  while (count > 0 && inside[count - 1] == 0) --count;
  return count;
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
