// Bringing children back within the bounds: a child takes back random genes of its parent, which is within them, until
// it is too.
//
// Seen from the parent: its differing genes are applied in random order, and the child is the longest prefix of them
// that is within the bounds. That is the same distribution, and one pass over the genes gives the costs of all
// prefixes, each from the last by the look-ups of the terms that depend on one gene; no genome is ever counted as a
// whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "feasibility.hpp"
#include "random.hpp"

namespace pynas {

class Reversal {
 public:
  Reversal(const Feasibility& feasibility, std::size_t variables);

  // The parent, a padded row within the bounds, of the children to come.
  void set_parent(const std::uint8_t* parent);

  // Makes the child, a padded row, fit. Genes that no bounded cost depends on stay as they are.
  void run(Stream& random, std::uint8_t* child);

 private:
  // Writes the differing genes that matter into the path, in random order.
  std::size_t shuffle_differing(Stream& random, const std::uint8_t* child);

  const Feasibility& feasibility_;
  std::vector<std::uint8_t> relevant_;  // 255 where a gene matters to the bounds
  const std::uint8_t* parent_ = nullptr;
  Feasibility::Position position_;  // of the parent
  Feasibility::Path path_;
};

}  // namespace pynas
