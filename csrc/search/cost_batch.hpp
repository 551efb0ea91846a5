// All costs of many genomes: one look-up a term brings the four of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cost_tables.hpp"
#include "space.hpp"
#include "term_indices.hpp"

namespace pynas {

class CostBatch {
 public:
  CostBatch(const Space& space, const CostTables& tables);

  // genomes: (count, variables) genes, checked already; costs: (count, cost_count), in the order of Costs.
  void count(const std::uint8_t* genomes, std::size_t count, std::int64_t* costs) const;

  // The first `lanes` genomes of a block. columns: (variables, block_lanes) genes, see transpose.hpp; indices: room for
  // (terms(), block_lanes); costs: (lanes, cost_count).
  void count_block(const std::uint8_t* columns, std::size_t lanes, std::uint32_t* indices, std::int64_t* costs) const;

  std::size_t terms() const { return terms_.size(); }

 private:
  struct Term {
    std::uint32_t begin, end, offset;  // of its factors; of its entries
    bool small;                        // indices fit into 16 bits
  };
  template <class Number>
  using Entries = std::vector<std::array<Number, cost_count>>;

  template <class Number>
  void add_up(const Entries<Number>& entries, const std::uint32_t* indices, std::size_t lanes,
              std::int64_t* costs) const;

  std::size_t variables_, row_;
  std::vector<Factor> factors_;
  std::vector<Term> terms_;
  bool narrow_;                            // no genome's cost exceeds 32 bits, hence neither does any partial sum
  Entries<std::uint32_t> narrow_entries_;  // one of the two is filled
  Entries<std::int64_t> wide_entries_;
};

}  // namespace pynas
