// Statistics of genomes as inputs of a predictor: natural logarithms of counted costs, a plane each (see planes.hpp).
//
// A plane holds log(max(cost, 1)) less the statistic's centre, a constant near the middle of what the space can cost.
// The centre goes into the layer's bias: logarithms of FLOPs are near 20 and differ by little, and what a float loses
// at 20 times a weight would be lost from every sum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cost_batch.hpp"
#include "cost_tables.hpp"

namespace pynas {

class Statistics {
 public:
  // costs: indices into Costs, in the order of the planes. `batch` must outlive this.
  Statistics(const CostTables& tables, const CostBatch& batch, const std::vector<std::size_t>& costs);

  std::size_t size() const { return logarithms_.size(); }
  double centre(std::size_t i) const;

  // Memory that one thread needs for a block.
  struct Scratch {
    explicit Scratch(const Statistics& statistics);
    std::vector<std::uint32_t> indices;
    std::vector<std::int64_t> costs;
  };

  // columns: (variables, block_lanes) genes, see transpose.hpp; planes: (size(), block_lanes).
  void fill(const std::uint8_t* columns, Scratch& scratch, float* planes) const;

 private:
  struct Logarithm {
    std::size_t cost;
    std::int32_t exponent;  // the centre is log(2^exponent)
  };

  const CostBatch* batch_;
  std::vector<Logarithm> logarithms_;
};

}  // namespace pynas
