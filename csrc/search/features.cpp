#include "features.hpp"

#include <algorithm>

namespace pynas {

std::size_t feature_count(const Variable& variable) {
  return variable.is_list ? variable.values.size() : 1;
}

std::size_t architecture_feature_count(const Space& space) {
  std::size_t count = 0;
  for (std::size_t v = 0; v < space.architecture_variables(); ++v) count += feature_count(space.variables()[v]);
  return count;
}

std::size_t feature_count(const Space& space) {
  std::size_t count = 0;
  for (const Variable& variable : space.variables()) count += feature_count(variable);
  return count;
}

std::vector<double> normalised_values(const Variable& variable) {
  const auto [low, high] = std::minmax_element(variable.values.begin(), variable.values.end());
  std::vector<double> normalised;
  for (const double value : variable.values) normalised.push_back((value - *low) / (*high - *low));
  return normalised;
}

void features(const Space& space, const std::uint8_t* genomes, std::size_t count, float* out) {
  // One row of features per choice; a genome's features are the rows of its genes one after another.
  std::vector<std::vector<float>> rows(space.size());
  for (std::size_t v = 0; v < space.size(); ++v) {
    const Variable& variable = space.variables()[v];
    const std::size_t width = feature_count(variable);
    rows[v].assign(variable.values.size() * width, 0.0f);
    const auto normalised = variable.is_list ? std::vector<double>() : normalised_values(variable);
    for (std::size_t choice = 0; choice < variable.values.size(); ++choice)
      rows[v][variable.is_list ? choice * width + choice : choice] =
          variable.is_list ? 1.0f : static_cast<float>(normalised[choice]);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* genome = genomes + i * space.size();
    for (std::size_t v = 0; v < space.size(); ++v) {
      const std::size_t width = feature_count(space.variables()[v]);
      out = std::copy_n(rows[v].data() + genome[v] * width, width, out);
    }
  }
}

}  // namespace pynas
