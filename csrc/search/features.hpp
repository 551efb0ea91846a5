// Genomes as the predictor's inputs: one-hot for lists, min-max by value for ranges (sec. 3.1 of the FBNetV3 paper).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "space.hpp"

namespace pynas {

std::size_t feature_count(const Variable& variable);
// Features of all variables, and of the architecture variables alone (they come first).
std::size_t feature_count(const Space& space);
std::size_t architecture_feature_count(const Space& space);

// The min-max normalised value of each choice of a range variable.
std::vector<double> normalised_values(const Variable& variable);

// Writes float32 (count, feature_count) for row-major genomes.
void features(const Space& space, const std::uint8_t* genomes, std::size_t count, float* out);

}  // namespace pynas
