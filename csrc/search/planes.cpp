#include "planes.hpp"

#include <algorithm>
#include <cmath>

#include "features.hpp"
#include "transpose.hpp"

namespace pynas {
namespace {

bool equally_spaced(const std::vector<double>& values) {
  const double step = values[1] - values[0];
  for (std::size_t i = 0; i < values.size(); ++i)
    if (std::abs(values[i] - (values[0] + step * static_cast<double>(i))) > 1e-12) return false;
  return true;
}

}  // namespace

Planes::Planes(const Space& space) {
  for (std::uint32_t v = 0; v < space.size(); ++v) {
    const Variable& variable = space.variables()[v];
    if (variable.is_list && variable.choices() > 2) {
      for (int choice = 1; choice < variable.choices(); ++choice)
        planes_.push_back({Kind::indicator, v, static_cast<std::uint8_t>(choice), {}});
    } else if (variable.is_list || equally_spaced(normalised_values(variable))) {
      planes_.push_back({Kind::index, v, 0, {}});
    } else {
      std::vector<float> table(256);
      const auto normalised = normalised_values(variable);
      std::transform(normalised.begin(), normalised.end(), table.begin(),
                     [](double x) { return static_cast<float>(x); });
      planes_.push_back({Kind::lookup, v, 0, std::move(table)});
    }
    if (v < space.architecture_variables()) architecture_planes_ = planes_.size();
  }
}

double Planes::fold(const Space& space, std::size_t first, std::size_t last, const float* weights,
                    std::vector<double>& folded) const {
  double bias = 0;
  for (const Plane& plane : planes_) {
    if (plane.variable < first || plane.variable >= last) continue;
    const Variable& variable = space.variables()[plane.variable];
    const float* own = weights;
    for (std::size_t v = first; v < plane.variable; ++v) own += feature_count(space.variables()[v]);
    const double w0 = own[0];
    switch (plane.kind) {
      case Kind::indicator:
        folded.push_back(own[plane.choice] - w0);
        if (plane.choice == 1) bias += w0;
        break;
      case Kind::lookup:
        folded.push_back(w0);
        break;
      case Kind::index:
        if (variable.is_list) {
          folded.push_back(own[1] - w0);
          bias += w0;
        } else {
          const auto normalised = normalised_values(variable);
          folded.push_back(w0 * (normalised[1] - normalised[0]));
          bias += w0 * normalised[0];
        }
        break;
    }
  }
  return bias;
}

void Planes::fill(const std::uint8_t* genomes, std::size_t row, std::uint8_t* bytes, float* planes) const {
  transpose_block(genomes, row, block_lanes, bytes);
  for (const Plane& plane : planes_) {
    const std::uint8_t* genes = bytes + plane.variable * block_lanes;
    if (plane.kind == Kind::index) {
      for (int lane = 0; lane < block_lanes; ++lane) planes[lane] = static_cast<float>(genes[lane]);
    } else if (plane.kind == Kind::indicator) {
      const std::uint8_t choice = plane.choice;
      for (int lane = 0; lane < block_lanes; ++lane) planes[lane] = genes[lane] == choice ? 1.0f : 0.0f;
    } else {
      for (int lane = 0; lane < block_lanes; ++lane) planes[lane] = plane.table[genes[lane]];
    }
    planes += block_lanes;
  }
}

}  // namespace pynas
