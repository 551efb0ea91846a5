#include "sample.hpp"

#include <algorithm>
#include <cstring>

#include "text.hpp"
#include "threads.hpp"

namespace pynas {
namespace {

constexpr std::size_t chunk_draws = 256;     // whole blocks
constexpr std::size_t trial_chunks = 4096;   // after 2^20 draws ...
constexpr std::size_t least_accepted = 105;  // ... an acceptance below 1e-4 ends rejection
constexpr std::size_t wave_chunks = 64;      // chunks between two looks at how many genomes there are
constexpr int repair_attempts = 32;
constexpr int repair_steps = 4000;

// Appends the accepted genomes of a chunk of draws.
void draw_chunk(const Space& space, const UniformGenome& uniform, const Feasibility& feasibility, std::uint64_t seed,
                std::size_t chunk, std::vector<std::uint8_t>& accepted) {
  Stream random(seed, Purpose::rejection, {chunk});
  Feasibility::Block block(feasibility);
  const std::size_t row = feasibility.row();
  std::vector<std::uint8_t> drawn(block_lanes * row);
  accepted.resize(chunk_draws * space.size());
  std::uint8_t* out = accepted.data();
  for (std::size_t i = 0; i < chunk_draws; i += block_lanes) {
    for (std::size_t lane = 0; lane < block_lanes; ++lane) uniform.draw(random, drawn.data() + lane * row);
    feasibility.count(drawn.data(), row, block);
    for (std::size_t lane = 0; lane < block_lanes; ++lane) {
      std::memcpy(out, drawn.data() + lane * row, space.size());
      out += feasibility.fits(block, lane) ? space.size() : 0;
    }
  }
  accepted.resize(static_cast<std::size_t>(out - accepted.data()));
}

// A random genome, then random changes of single genes that do not increase the violation, until nothing is violated.
bool draw_repaired(const Space& space, const UniformGenome& uniform, const Feasibility& feasibility, std::uint64_t seed,
                   std::size_t index, std::uint8_t* genome) {
  std::vector<std::uint32_t> relevant;
  for (std::size_t v = 0; v < space.size(); ++v)
    if (feasibility.matters(v)) relevant.push_back(static_cast<std::uint32_t>(v));
  for (std::uint64_t attempt = 0; attempt < repair_attempts; ++attempt) {
    Stream random(seed, Purpose::repair, {index, attempt});
    uniform.draw(random, genome);
    double violation = feasibility.violation(genome);
    if (relevant.empty()) return violation == 0;
    for (int step = 0; step < repair_steps && violation > 0; ++step) {
      const std::uint32_t v = relevant[random.below(static_cast<std::uint32_t>(relevant.size()))];
      const std::uint8_t old = genome[v];
      const auto other = random.below(static_cast<std::uint32_t>(space.choices(v)) - 1);
      genome[v] = static_cast<std::uint8_t>(other + (other >= old));
      const double changed = feasibility.violation(genome);
      if (changed <= violation)
        violation = changed;
      else
        genome[v] = old;
    }
    if (violation == 0) return true;
  }
  return false;
}

[[noreturn]] void refuse_unreachable(const Space& space, const CostTables& tables, const Bounds& bounds) {
  const CostRange range = cost_range(space, tables);
  std::string reasons;
  for (std::size_t i = 0; i < cost_count; ++i) {
    const std::string found = text("; genomes of this space have ", range.lowest[i], " to ", range.highest[i], ". ");
    if (bounds.lower[i] > bounds.upper[i])
      reasons += text(cost_names[i], " of at least ", bounds.lower[i], " and at most ", bounds.upper[i],
                      " exclude each other. ");
    else if (bounds.upper[i] < range.lowest[i])
      reasons += text(cost_names[i], " of at most ", bounds.upper[i], found);
    else if (bounds.lower[i] > range.highest[i])
      reasons += text(cost_names[i], " of at least ", bounds.lower[i], found);
  }
  if (reasons.empty()) {
    reasons = "each bound alone can be met, but no genome meets all of them together: ";
    for (std::size_t i = 0; i < cost_count; ++i)
      if (bounds.lower[i] > range.lowest[i] || bounds.upper[i] < range.highest[i])
        reasons += text(cost_names[i], " from ", std::max(bounds.lower[i], range.lowest[i]), " to ",
                        std::min(bounds.upper[i], range.highest[i]), " (this space has ", range.lowest[i], " to ",
                        range.highest[i], "). ");
  }
  reasons.pop_back();
  refuse("no genome found within the bounds: ", reasons);
}

}  // namespace

UniformGenome::UniformGenome(const Space& space) {
  for (std::size_t v = 0; v < space.size(); ++v) choices_.push_back(static_cast<std::uint64_t>(space.choices(v)));
}

std::vector<std::uint8_t> sample(const Space& space, const CostTables& tables, const Bounds& bounds, std::size_t count,
                                 std::uint64_t seed, int threads) {
  const Feasibility feasibility(space, tables, bounds);
  if (feasibility.never_fits()) refuse_unreachable(space, tables, bounds);
  const UniformGenome uniform(space);
  const std::size_t width = space.size();
  std::vector<std::uint8_t> genomes;
  genomes.reserve(count * width);
  const auto missing = [&] { return count - genomes.size() / std::max<std::size_t>(width, 1); };
  if (width == 0) return genomes;

  std::vector<std::vector<std::uint8_t>> accepted(wave_chunks);
  std::size_t accepted_count = 0;
  for (std::size_t chunk = 0; missing() > 0;) {
    if (chunk == trial_chunks && accepted_count < least_accepted) break;
    std::size_t wave = std::min(wave_chunks, missing() / chunk_draws + 1);  // divides the way to trial_chunks
    if (chunk < trial_chunks) wave = std::min(wave, trial_chunks - chunk);
    for_each_piece(wave, threads,
                   [&](std::size_t i) { draw_chunk(space, uniform, feasibility, seed, chunk + i, accepted[i]); });
    chunk += wave;
    for (std::size_t i = 0; i < wave; ++i) {
      accepted_count += accepted[i].size() / width;
      const std::size_t taken = std::min(accepted[i].size(), missing() * width);
      genomes.insert(genomes.end(), accepted[i].begin(), accepted[i].begin() + static_cast<std::ptrdiff_t>(taken));
    }
  }

  const std::size_t begin = genomes.size() / width;
  if (begin == count) return genomes;
  genomes.resize(count * width);
  for_each_range(count - begin, 64, threads, [&](std::size_t from, std::size_t to) {
    for (std::size_t i = begin + from; i < begin + to; ++i)
      if (!draw_repaired(space, uniform, feasibility, seed, i, genomes.data() + i * width))
        refuse_unreachable(space, tables, bounds);
  });
  return genomes;
}

void genomes_from_unit(const Space& space, const double* points, std::size_t count, std::uint8_t* genomes) {
  for (std::size_t i = 0; i < count; ++i)
    for (std::size_t v = 0; v < space.size(); ++v) {
      const double point = points[i * space.size() + v];
      if (!(point >= 0 && point < 1))
        refuse("points: row ", i, ", variable ", v, " is ", point, "; allowed are 0 <= point < 1");
      const int choice = static_cast<int>(point * space.choices(v));
      genomes[i * space.size() + v] = static_cast<std::uint8_t>(std::min(choice, space.choices(v) - 1));
    }
}

}  // namespace pynas
