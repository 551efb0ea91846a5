#include "pareto.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "text.hpp"

namespace pynas {

std::vector<std::int64_t> pareto_front(const double* points, std::size_t count, std::size_t dimensions) {
  for (std::size_t i = 0; i < count * dimensions; ++i)
    if (std::isnan(points[i]))
      refuse("points: row ", i / dimensions, ", column ", i % dimensions, " is NaN, which cannot be compared");
  const auto row = [&](std::int64_t i) { return points + static_cast<std::size_t>(i) * dimensions; };

  // In lexicographic order a point can only be dominated by an earlier one, and if so by one of the front so far.
  std::vector<std::int64_t> order(count);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    const auto [x, y] = std::mismatch(row(a), row(a) + dimensions, row(b));
    return x == row(a) + dimensions ? a < b : *x < *y;
  });
  std::vector<std::int64_t> front;
  for (const std::int64_t candidate : order) {
    const double* point = row(candidate);
    // In two dimensions the last member, which has the smallest second coordinate so far, decides alone. Elsewhere
    // looking from the back finds a near one first, which often dominates.
    const auto end = dimensions == 2 && !front.empty() ? front.rbegin() + 1 : front.rend();
    const bool dominated = std::any_of(front.rbegin(), end, [&](std::int64_t member) {
      const double* other = row(member);
      bool no_larger = true, smaller = false;
      for (std::size_t d = 0; d < dimensions && no_larger; ++d) {
        no_larger = other[d] <= point[d];
        smaller |= other[d] < point[d];
      }
      return no_larger && smaller;
    });
    if (!dominated) front.push_back(candidate);
  }
  std::sort(front.begin(), front.end());
  return front;
}

}  // namespace pynas
