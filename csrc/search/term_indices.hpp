// Where a block of genomes looks in a cost term's table, with genomes as lanes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "score_kernel.hpp"

namespace pynas {

// A variable's part in a term's index: stride * gene.
struct Factor {
  std::uint32_t variable, stride;
};

// Eight lanes of genes and of 16-bit indices (a vector type of gcc and clang on every processor).
using Genes8 = std::uint8_t __attribute__((vector_size(8)));
using Index8 = std::uint16_t __attribute__((vector_size(16)));
using Wide8 = std::uint32_t __attribute__((vector_size(32)));

// indices[lane] = offset + the sum of stride * gene over the term's factors, where all such sums fit into 16 bits.
inline void add_up_small(const Factor* begin, const Factor* end, const std::uint8_t* columns, std::uint32_t offset,
                         std::uint32_t* indices) {
  constexpr int together = 4;
  for (int lane = 0; lane < block_lanes; lane += 8 * together) {
    Index8 sums[together] = {};
    for (const Factor* factor = begin; factor != end; ++factor) {
      const Index8 stride = Index8{} + static_cast<std::uint16_t>(factor->stride);
      const std::uint8_t* column = columns + std::size_t{factor->variable} * block_lanes + lane;
      for (int i = 0; i < together; ++i) {
        Genes8 genes;
        std::memcpy(&genes, column + 8 * i, sizeof genes);
        sums[i] += __builtin_convertvector(genes, Index8) * stride;
      }
    }
    for (int i = 0; i < together; ++i) {
      const Wide8 wide = __builtin_convertvector(sums[i], Wide8) + offset;
      std::memcpy(indices + lane + 8 * i, &wide, sizeof wide);
    }
  }
}

inline void add_up_large(const Factor* begin, const Factor* end, const std::uint8_t* columns, std::uint32_t offset,
                         std::uint32_t* indices) {
  std::fill_n(indices, block_lanes, offset);
  for (const Factor* factor = begin; factor != end; ++factor)
    for (int lane = 0; lane < block_lanes; ++lane)
      indices[lane] += factor->stride * columns[factor->variable * block_lanes + static_cast<std::uint32_t>(lane)];
}

// columns: (variables, block_lanes) genes; indices: (block_lanes) into tables laid one after another, this at `offset`.
inline void add_up_indices(const Factor* begin, const Factor* end, bool small, const std::uint8_t* columns,
                           std::uint32_t offset, std::uint32_t* indices) {
  if (small)
    add_up_small(begin, end, columns, offset, indices);
  else
    add_up_large(begin, end, columns, offset, indices);
}

}  // namespace pynas
