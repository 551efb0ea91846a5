#include "cost_batch.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "transpose.hpp"

namespace pynas {

CostBatch::CostBatch(const Space& space, const CostTables& tables)
    : variables_(space.size()),
      row_(padded_row(space.size())),
      narrow_(std::all_of(tables.ceiling().begin(), tables.ceiling().end(),
                          [](std::int64_t cost) { return cost <= std::numeric_limits<std::uint32_t>::max(); })) {
  std::uint32_t offset = 0;
  for (const CostTerm& term : tables.terms()) {
    const auto begin = static_cast<std::uint32_t>(factors_.size());
    for (std::size_t i = 0; i < term.variables.size(); ++i) factors_.push_back({term.variables[i], term.strides[i]});
    terms_.push_back({begin, static_cast<std::uint32_t>(factors_.size()), offset, term.entries.size() <= 1 << 16});
    offset += static_cast<std::uint32_t>(term.entries.size());
    for (const Costs& entry : term.entries) {
      if (narrow_) {
        auto& narrow = narrow_entries_.emplace_back();
        std::transform(entry.begin(), entry.end(), narrow.begin(),
                       [](std::int64_t cost) { return static_cast<std::uint32_t>(cost); });
      } else {
        wide_entries_.push_back(entry);
      }
    }
  }
}

template <class Number>
void CostBatch::add_up(const Entries<Number>& entries, const std::uint32_t* indices, std::size_t lanes,
                       std::int64_t* costs) const {
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    using Sum __attribute__((vector_size(sizeof(Number) * cost_count))) = Number;
    Sum sum{};
    for (std::size_t term = 0; term < terms_.size(); ++term) {
      Sum entry;
      std::memcpy(&entry, entries[indices[term * block_lanes + lane]].data(), sizeof entry);
      sum += entry;
    }
    for (std::size_t i = 0; i < cost_count; ++i) costs[lane * cost_count + i] = static_cast<std::int64_t>(sum[i]);
  }
}

void CostBatch::count_block(const std::uint8_t* columns, std::size_t lanes, std::uint32_t* indices,
                            std::int64_t* costs) const {
  for (std::size_t term = 0; term < terms_.size(); ++term)
    add_up_indices(factors_.data() + terms_[term].begin, factors_.data() + terms_[term].end, terms_[term].small,
                   columns, terms_[term].offset, indices + term * block_lanes);
  if (narrow_)
    add_up(narrow_entries_, indices, lanes, costs);
  else
    add_up(wide_entries_, indices, lanes, costs);
}

void CostBatch::count(const std::uint8_t* genomes, std::size_t count, std::int64_t* costs) const {
  std::vector<std::uint8_t> rows(block_lanes * row_), columns(block_lanes * row_);
  std::vector<std::uint32_t> indices(terms_.size() * block_lanes);
  for (std::size_t begin = 0; begin < count; begin += block_lanes) {
    const std::size_t lanes = std::min<std::size_t>(block_lanes, count - begin);
    // Lanes beyond the last genome keep the genes of the block before, or zeros: their costs are not taken.
    for (std::size_t lane = 0; lane < lanes; ++lane)
      std::copy_n(genomes + (begin + lane) * variables_, variables_, rows.data() + lane * row_);
    transpose_block(rows.data(), row_, block_lanes, columns.data());
    count_block(columns.data(), lanes, indices.data(), costs + begin * cost_count);
  }
}

}  // namespace pynas
