#include "adaptive_genetic.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "feasibility.hpp"
#include "genome_set.hpp"
#include "instruction_set.hpp"
#include "random.hpp"
#include "reversal.hpp"
#include "sample.hpp"
#include "select.hpp"
#include "text.hpp"
#include "threads.hpp"
#include "variation.hpp"

namespace pynas {
namespace {

constexpr int most_redraws = 100;  // of a child outside the bounds in paper mode, then the child is dropped

struct Problem {
  const Space& space;
  const CostTables& tables;
  const Predictor& predictor;
  const Bounds& bounds;
  const EvolutionSettings& settings;
  std::uint64_t seed;
  Feasibility feasibility;
  ScoreKernel kernel;
};

// One run of the algorithm from the initial individuals and random ones of its own. Sequential: restarts are what is
// spread over threads, since a barrier in every generation (some 50 microseconds) costs more than it brings.
class Restart {
 public:
  Restart(const Problem& problem, std::size_t number)
      : problem_(problem),
        settings_(problem.settings),
        number_(number),
        row_(problem.predictor.row()),
        mutation_(problem.space),
        scratch_(problem.predictor),
        reversal_(problem.feasibility, problem.space.size()) {}

  EvolutionResult run(const std::uint8_t* initial, std::size_t count) {
    start(initial, count);
    double previous = settings_.literal ? 0.0 : -std::numeric_limits<double>::infinity();
    std::size_t stalled = 0;
    for (std::size_t generation = 0;; ++generation) {
      record(generation);
      const double best = scores_.front();
      stalled = best - previous > settings_.epsilon ? 0 : stalled + 1;
      previous = best;
      if (stalled >= settings_.patience || evaluations() >= settings_.max_evaluations) break;
      const std::size_t before = evaluations();
      breed(generation);
      if (evaluations() == before) break;  // nothing new can be drawn: a tiny space is exhausted
      select(settings_.keep);
    }
    result_.scores = scores_;
    for (std::size_t i = 0; i < scores_.size(); ++i)
      result_.genomes.insert(result_.genomes.end(), genome(i), genome(i) + problem_.space.size());
    return std::move(result_);
  }

 private:
  std::uint8_t* genome(std::size_t i) { return rows_.data() + i * row_; }
  std::size_t evaluations() const { return static_cast<std::size_t>(result_.evaluations); }

  // Room for so many rows, and a block more: what is in the rows beyond is scored along with the last ones.
  std::size_t room(std::size_t rows) const { return (rows + block_lanes) * row_; }

  void start(const std::uint8_t* initial, std::size_t count) {
    const std::size_t width = problem_.space.size();
    const std::uint64_t own_seed = Stream(problem_.seed, Purpose::restart, {number_}).next();
    const auto random = sample(problem_.space, problem_.tables, problem_.bounds, settings_.random, own_seed, 1);
    rows_.resize(room(count + settings_.random));
    known_.reset(count + settings_.random, row_);
    const auto add = [&](const std::uint8_t* candidate) {
      std::memcpy(genome(members_), candidate, width);
      if (!settings_.literal &&
          !(problem_.feasibility.fits(candidate) && known_.insert(rows_.data(), static_cast<std::uint32_t>(members_))))
        return;
      ++members_;
    };
    for (std::size_t i = 0; i < count; ++i) add(initial + i * width);
    for (std::size_t i = 0; i < settings_.random; ++i) add(random.data() + i * width);
    if (members_ == 0)
      refuse("there is nothing to start from: ", count, " initial individuals, none of them within the bounds, and ",
             settings_.random, " random ones");

    float scores[block_lanes];
    for (std::size_t i = 0; i < members_; ++i) {
      if (i % block_lanes == 0) problem_.predictor.score_block(problem_.kernel, genome(i), scratch_, scores);
      ranked_.push_back({scores[i % block_lanes], static_cast<std::uint32_t>(i)});
    }
    select(ranked_.size());
  }

  // Makes the `keep` best of ranked_ the members, best first.
  void select(std::size_t keep) {
    keep_best(ranked_, keep);
    next_rows_.resize(room(ranked_.size() * (1 + settings_.children)));
    scores_.clear();
    for (std::size_t i = 0; i < ranked_.size(); ++i) {
      std::memcpy(next_rows_.data() + i * row_, genome(ranked_[i].index), row_);
      scores_.push_back(ranked_[i].score);
    }
    rows_.swap(next_rows_);
    members_ = ranked_.size();
  }

  // Fills ranked_ with the members and the children that can displace one.
  void breed(std::size_t generation) {
    const Probabilities probabilities =
        adaptive_probabilities(std::vector<double>(scores_.begin(), scores_.end()), settings_.rates);
    if (!settings_.literal) {
      known_.reset(members_ * (1 + settings_.children), row_);
      for (std::size_t i = 0; i < members_; ++i) known_.insert(rows_.data(), static_cast<std::uint32_t>(i));
    }
    ranked_.clear();
    for (std::size_t i = 0; i < members_; ++i) ranked_.push_back({scores_[i], static_cast<std::uint32_t>(i)});
    end_ = scored_ = members_;
    least_ = members_ < settings_.keep ? -std::numeric_limits<float>::infinity() : scores_[settings_.keep - 1];

    for (std::size_t x = 0; x < members_ && wanted() > 0; ++x) {
      Stream random(problem_.seed, Purpose::children, {number_, generation + 1, x});
      breed_from(random, x, probabilities);
      while (end_ - scored_ >= block_lanes) score_pending();
    }
    if (end_ > scored_) score_pending();
  }

  // How many more children may be scored.
  std::size_t wanted() const { return settings_.max_evaluations - evaluations() - (end_ - scored_); }

  // Appends the children of member x to the rows. Each step is taken for all of them before the next: a step that reads
  // a child just written would wait for the bytes to arrive.
  void breed_from(Stream& random, std::size_t x, const Probabilities& probabilities) {
    mutation_.set_probability(probabilities.mutation[x]);
    std::uint8_t* const children = genome(end_);
    std::uint8_t* const end = children + settings_.children * row_;
    for (std::uint8_t* child = children; child != end; child += row_) propose(random, x, probabilities, child);
    if (!settings_.literal) {
      reversal_.set_parent(genome(x));
      for (std::uint8_t* child = children; child != end; child += row_) reversal_.run(random, child);
    }
    for (std::uint8_t* child = children; child != end && wanted() > 0; child += row_) {
      if (settings_.literal && !redrawn(random, x, probabilities, child)) continue;
      if (child != genome(end_)) copy_row(genome(end_), child, row_);
      end_ += settings_.literal || known_.insert(rows_.data(), static_cast<std::uint32_t>(end_)) ? 1 : 0;
    }
  }

  void propose(Stream& random, std::size_t x, const Probabilities& probabilities, std::uint8_t* child) {
    ++result_.proposals;
    const std::uint64_t bits = random.next();  // one half for the mate, the other for whether to cross
    const std::size_t mate = (bits >> 32) * members_ >> 32;
    const double p_c = probabilities.crossover[std::min(x, mate)];  // of two members the first is the fitter
    const bool crossing = static_cast<double>(bits & 0xffffffffu) < p_c * 0x1p32;
    cross_uniformly(random, crossing, genome(x), genome(mate), child, row_);
    mutation_.mutate(random, child);
  }

  // Proposes the child anew until it is within the bounds; false if that takes too long.
  bool redrawn(Stream& random, std::size_t x, const Probabilities& probabilities, std::uint8_t* child) {
    for (int draw = 0; draw <= most_redraws; ++draw) {
      if (problem_.feasibility.fits(child)) return true;
      propose(random, x, probabilities, child);
    }
    return false;
  }

  void score_pending() {
    float scores[block_lanes];
    problem_.predictor.score_block(problem_.kernel, genome(scored_), scratch_, scores);
    const std::size_t count = std::min<std::size_t>(block_lanes, end_ - scored_);
    for (std::size_t i = 0; i < count; ++i)
      if (scores[i] > least_) ranked_.push_back({scores[i], static_cast<std::uint32_t>(scored_ + i)});
    result_.evaluations += static_cast<std::int64_t>(count);
    scored_ += count;
  }

  void record(std::size_t generation) {
    double sum = 0;
    for (const float score : scores_) sum += score;
    result_.history.push_back({static_cast<std::int64_t>(number_), static_cast<std::int64_t>(generation),
                               result_.evaluations, scores_.front(), sum / static_cast<double>(scores_.size())});
  }

  const Problem& problem_;
  const EvolutionSettings& settings_;
  const std::size_t number_;
  const std::size_t row_;
  Mutation mutation_;
  Predictor::Scratch scratch_;
  Reversal reversal_;
  EvolutionResult result_;

  // Members (D*, best first) are rows [0, members_), this generation's children [members_, end_), of which those from
  // scored_ on are yet to be scored.
  std::vector<std::uint8_t> rows_, next_rows_;
  std::size_t members_ = 0, end_ = 0, scored_ = 0;
  std::vector<float> scores_;  // of the members
  std::vector<Ranked> ranked_;
  float least_ = 0;  // children must score more to be kept
  GenomeSet known_;
};

// The `keep` best of all restarts; in default mode without what several restarts found.
EvolutionResult merged(const Problem& problem, std::vector<EvolutionResult>& restarts) {
  const std::size_t width = problem.space.size();
  EvolutionResult result;
  std::vector<std::uint8_t> genomes;
  std::vector<Ranked> ranked;
  for (EvolutionResult& restart : restarts) {
    for (const float score : restart.scores) ranked.push_back({score, static_cast<std::uint32_t>(ranked.size())});
    genomes.insert(genomes.end(), restart.genomes.begin(), restart.genomes.end());
    result.history.insert(result.history.end(), restart.history.begin(), restart.history.end());
    result.evaluations += restart.evaluations;
    result.proposals += restart.proposals;
  }
  keep_best(ranked, ranked.size());
  const auto genome = [&](std::size_t i) { return genomes.data() + i * width; };
  std::size_t same_score = 0;  // where the run of equal scores in the result begins
  for (const Ranked& candidate : ranked) {
    if (result.scores.size() == problem.settings.keep) break;
    const std::uint8_t* own = genome(candidate.index);
    if (result.scores.empty() || result.scores[same_score] != candidate.score) same_score = result.scores.size();
    bool known = false;
    for (std::size_t i = same_score; !problem.settings.literal && i < result.scores.size() && !known; ++i)
      known = std::equal(own, own + width, result.genomes.data() + i * width);
    if (known) continue;
    result.genomes.insert(result.genomes.end(), own, own + width);
    result.scores.push_back(candidate.score);
  }
  return result;
}

void check(const Space& space, const EvolutionSettings& settings, std::size_t initial_count) {
  constexpr std::size_t most_rows = std::size_t{1} << 26;  // of a generation
  if (std::max(settings.keep, initial_count + settings.random) > most_rows / (settings.children + 1))
    refuse("a generation of ", initial_count, " initial and ", settings.random, " random members, or of ",
           settings.keep, " kept ones, with ", settings.children, " children each has more than ", most_rows,
           " individuals");
  if (space.size() == 0) refuse("the space has no variables: there is nothing to search");
  check_rates(settings.rates);
  if (!(settings.epsilon >= 0)) refuse("epsilon is ", settings.epsilon, "; it must be at least 0");
}

}  // namespace

EvolutionResult evolve(const Space& space, const CostTables& tables, const Predictor& predictor,
                       const std::uint8_t* initial, std::size_t initial_count, const Bounds& bounds,
                       const EvolutionSettings& settings, std::uint64_t seed, int threads) {
  check(space, settings, initial_count);
  const Problem problem{
      space, tables, predictor, bounds, settings, seed, Feasibility(space, tables, bounds), score_kernel("auto")};
  std::vector<EvolutionResult> results(settings.restarts);
  for_each_piece(settings.restarts, threads, [&](std::size_t restart) {
    results[restart] = Restart(problem, restart).run(initial, initial_count);
  });
  return merged(problem, results);
}

}  // namespace pynas
