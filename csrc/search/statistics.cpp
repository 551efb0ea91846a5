#include "statistics.hpp"

#include <algorithm>
#include <bit>
#include <numbers>

#include "score_kernel.hpp"

namespace pynas {
namespace {

// Each value, 1 or more, becomes its natural logarithm less that of 2^exponent. Compiled for the baseline alone, and
// written without std::log, whose last bit differs from one library to another: the same bits everywhere.
//
// x = 2^k (1 + f) with 1 + f between the roots of 1/2 and 2; log(1 + f) is the polynomial of Cephes' logf. log(2) is
// added in two parts, the first with so few bits that its multiples are exact.
void to_logarithms(float* values, std::int32_t exponent) {
  constexpr std::int32_t root_of_half = 0x3f3504f3;  // as bits
  for (int lane = 0; lane < block_lanes; ++lane) {
    const auto bits = std::bit_cast<std::int32_t>(values[lane]);
    const std::int32_t above = bits - root_of_half;
    const auto k = static_cast<float>((above >> 23) - exponent);
    const float f = std::bit_cast<float>((above & 0x007fffff) + root_of_half) - 1.0f;
    const float square = f * f;
    float sum = 7.0376836292e-2f;
    sum = sum * f - 1.1514610310e-1f;
    sum = sum * f + 1.1676998740e-1f;
    sum = sum * f - 1.2420140846e-1f;
    sum = sum * f + 1.4249322787e-1f;
    sum = sum * f - 1.6668057665e-1f;
    sum = sum * f + 2.0000714765e-1f;
    sum = sum * f - 2.4999993993e-1f;
    sum = sum * f + 3.3333331174e-1f;
    sum = sum * f * square + k * -2.12194440e-4f - 0.5f * square;
    values[lane] = f + sum + k * 0.693359375f;
  }
}

std::int32_t bits(std::int64_t cost) {
  return static_cast<std::int32_t>(std::bit_width(static_cast<std::uint64_t>(std::max<std::int64_t>(cost, 1))));
}

}  // namespace

Statistics::Statistics(const CostTables& tables, const CostBatch& batch, const std::vector<std::size_t>& costs)
    : batch_(&batch) {
  for (const std::size_t cost : costs)
    logarithms_.push_back({cost, (bits(tables.floor()[cost]) + bits(tables.ceiling()[cost])) / 2 - 1});
}

double Statistics::centre(std::size_t i) const {
  return logarithms_[i].exponent * std::numbers::ln2;
}

Statistics::Scratch::Scratch(const Statistics& statistics) {
  if (statistics.size() == 0) return;
  indices.resize(statistics.batch_->terms() * block_lanes);
  costs.resize(block_lanes * cost_count);
}

void Statistics::fill(const std::uint8_t* columns, Scratch& scratch, float* planes) const {
  if (logarithms_.empty()) return;
  batch_->count_block(columns, block_lanes, scratch.indices.data(), scratch.costs.data());
  for (const Logarithm& logarithm : logarithms_) {
    const std::int64_t* costs = scratch.costs.data() + logarithm.cost;
    for (std::size_t lane = 0; lane < block_lanes; ++lane)
      planes[lane] = static_cast<float>(std::max<std::int64_t>(costs[lane * cost_count], 1));
    to_logarithms(planes, logarithm.exponent);
    planes += block_lanes;
  }
}

}  // namespace pynas
