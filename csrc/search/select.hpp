// The k best of many, in an order that leaves nothing to chance: by falling score, equal scores by rising index.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pynas {

struct Ranked {
  float score;
  std::uint32_t index;
};

inline bool ranks_before(const Ranked& a, const Ranked& b) {
  return a.score != b.score ? a.score > b.score : a.index < b.index;
}

// Cuts the list to its `count` best, sorted.
inline void keep_best(std::vector<Ranked>& ranked, std::size_t count) {
  if (count < ranked.size()) {
    std::nth_element(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(count), ranked.end(), ranks_before);
    ranked.resize(count);
  }
  std::sort(ranked.begin(), ranked.end(), ranks_before);
}

// Indices of the min(k, count) best. Refuses NaN, which has no rank.
std::vector<std::int64_t> top_k(const float* scores, std::size_t count, std::size_t k);

}  // namespace pynas
