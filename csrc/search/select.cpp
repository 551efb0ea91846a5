#include "select.hpp"

#include <cmath>

#include "text.hpp"

namespace pynas {

std::vector<std::int64_t> top_k(const float* scores, std::size_t count, std::size_t k) {
  std::vector<Ranked> ranked;
  std::size_t room = 4 * k + 1024;  // candidates held before they are cut to the k best
  Ranked last{};                    // the k-th best so far, once there are k
  bool full = false;
  for (std::size_t i = 0; i < count; ++i) {
    const Ranked candidate{scores[i], static_cast<std::uint32_t>(i)};
    if (std::isnan(candidate.score)) refuse("scores: element ", i, " is NaN, which cannot be ranked");
    if (full && !ranks_before(candidate, last)) continue;
    ranked.push_back(candidate);
    if (ranked.size() < room) continue;
    keep_best(ranked, k);
    full = true;
    if (k > 0) last = ranked.back();
    if (k == 0) return {};
  }
  keep_best(ranked, k);
  std::vector<std::int64_t> indices;
  indices.reserve(ranked.size());
  for (const Ranked& candidate : ranked) indices.push_back(candidate.index);
  return indices;
}

}  // namespace pynas
