// Genomes as the planes the score kernel reads: one float a lane (genome), plane after plane.
//
// One-hot and min-max features are affine in a few planes, so the first layer's weights are folded onto these:
//   range, equally spaced   w f(g) = w f(0) + w (f(1) - f(0)) g        the raw choice index g
//   range, else             w f(g)                                     the normalised value f(g), looked up
//   list of 2               w_g    = w_0 + (w_1 - w_0) g               the raw choice index
//   list of c               w_g    = w_0 + sum_i (w_i - w_0) [g = i]   c - 1 indicators
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "score_kernel.hpp"
#include "space.hpp"

namespace pynas {

class Planes {
 public:
  explicit Planes(const Space& space);

  std::size_t architecture_planes() const { return architecture_planes_; }
  std::size_t size() const { return planes_.size(); }
  std::size_t recipe_planes() const { return planes_.size() - architecture_planes_; }

  // Folds the weights of one output, given for all features from the variable `first` on (up to `last`, excluded), to
  // its planes: appends their weights and returns what adds to the bias.
  double fold(const Space& space, std::size_t first, std::size_t last, const float* weights,
              std::vector<double>& folded) const;

  // genomes: block_lanes rows of `row` bytes (see transpose.hpp). bytes: room for (row, block_lanes).
  void fill(const std::uint8_t* genomes, std::size_t row, std::uint8_t* bytes, float* planes) const;

 private:
  enum class Kind { index, lookup, indicator };
  struct Plane {
    Kind kind;
    std::uint32_t variable;
    std::uint8_t choice;       // of an indicator
    std::vector<float> table;  // of a look-up, one entry a byte value
  };

  std::vector<Plane> planes_;
  std::size_t architecture_planes_ = 0;
};

}  // namespace pynas
