#include "cost_tables.hpp"

#include <algorithm>
#include <set>

#include "random.hpp"
#include "text.hpp"

namespace pynas {
namespace {

constexpr std::size_t most_entries = std::size_t{1} << 22;  // 128 MB a term

using Variables = std::set<int>;

void insert(Variables& variables, std::initializer_list<Field> fields) {
  for (const Field& field : fields)
    if (field.variable >= 0) variables.insert(field.variable);
}

bool odd_or_none(const std::vector<double>& kernels) {
  return std::all_of(kernels.begin(), kernels.end(),
                     [](double kernel) { return kernel == 0 || static_cast<std::int64_t>(kernel) % 2 == 1; });
}

bool can_repeat(const Space& space, const Row& row) {
  const auto repeats = space.values(row.repeats);
  return *std::max_element(repeats.begin(), repeats.end()) > 1;
}

// An odd kernel padded by half of it maps size H to floor((H - 1) / s) + 1 whatever the kernel; so does a skip.
bool kernel_shapes_output(const Space& space, const Row& row) {
  const bool automatic = row.padding.variable < 0 && row.padding.constant < 0;
  return !automatic || !odd_or_none(space.values(row.kernel)) ||
         (can_repeat(space, row) && !odd_or_none(space.values(row.kernel_rest)));
}

// Adds the variables that the size of the row's output depends on, given those its input size depends on.
void insert_size_variables(const Space& space, const Row& row, Variables& size) {
  if (row.is_pooled()) {
    size.clear();
    return;
  }
  insert(size, {row.stride});
  if (!row.is_convolution() || !kernel_shapes_output(space, row)) return;
  insert(size, {row.kernel, row.padding});
  if (can_repeat(space, row)) insert(size, {row.kernel_rest, row.repeats});
}

Costs count_first(const Space& space, const std::uint8_t* genome, std::size_t row) {
  return count_block(space, genome, row, true, input_channels(space, genome, row), input_size(space, genome, row))
      .costs;
}

Costs count_rest(const Space& space, const std::uint8_t* genome, std::size_t row) {
  Costs sum{};
  const std::int64_t repeats = space.integer(space.rows()[row].repeats, genome);
  if (repeats == 1) return sum;
  Block block =
      count_block(space, genome, row, true, input_channels(space, genome, row), input_size(space, genome, row));
  for (std::int64_t repeat = 1; repeat < repeats; ++repeat) {
    block = count_block(space, genome, row, false, block.channels, block.out_size);
    sum = add(sum, block.costs);
  }
  return sum;
}

void set_strides(const Space& space, CostTerm& term) {
  term.strides.assign(term.variables.size(), 1);
  std::size_t entries = 1;
  for (std::size_t i = term.variables.size(); i-- > 0;) {
    term.strides[i] = static_cast<std::uint32_t>(entries);
    entries *= static_cast<std::size_t>(space.choices(term.variables[i]));
    if (entries > most_entries) {
      std::string names;
      for (const std::uint32_t v : term.variables) names += (names.empty() ? "" : ", ") + space.variables()[v].name;
      refuse("a cost term depends on too many joint choices (more than ", most_entries, ") of the variables ", names,
             "; use fewer choices, or kernels that are odd with automatic padding");
    }
  }
  term.entries.resize(entries);
}

// Calls visit(entry, genome) for every joint choice of the term's variables; all other genes are 0.
template <class Visit>
void for_each_choice(const Space& space, const CostTerm& term, const Visit& visit) {
  std::vector<std::uint8_t> genome(space.size() + 1);
  for (std::size_t entry = 0; entry < term.entries.size(); ++entry) {
    for (std::size_t i = 0; i < term.variables.size(); ++i) {
      const auto choices = static_cast<std::size_t>(space.choices(term.variables[i]));
      genome[term.variables[i]] = static_cast<std::uint8_t>(entry / term.strides[i] % choices);
    }
    visit(entry, genome.data());
  }
}

std::size_t index_of(const CostTerm& term, const std::uint8_t* genome) {
  std::size_t index = 0;
  for (std::size_t i = 0; i < term.variables.size(); ++i) index += term.strides[i] * genome[term.variables[i]];
  return index;
}

template <class Count>
CostTerm tabulate(const Space& space, const Variables& variables, const Count& count) {
  CostTerm term;
  term.variables.assign(variables.begin(), variables.end());
  set_strides(space, term);
  for_each_choice(space, term,
                  [&](std::size_t entry, const std::uint8_t* genome) { term.entries[entry] = count(genome); });
  return term;
}

// Drops the variables whose choice changes no entry.
CostTerm pruned(const Space& space, const CostTerm& term) {
  Variables needed;
  for (std::size_t i = 0; i < term.variables.size(); ++i) {
    const std::size_t stride = term.strides[i];
    const auto choices = static_cast<std::size_t>(space.choices(term.variables[i]));
    for (std::size_t entry = 0; entry < term.entries.size(); ++entry)
      if (term.entries[entry] != term.entries[entry - entry / stride % choices * stride]) {
        needed.insert(static_cast<int>(term.variables[i]));
        break;
      }
  }
  if (needed.size() == term.variables.size()) return term;
  return tabulate(space, needed, [&](const std::uint8_t* genome) { return term.entries[index_of(term, genome)]; });
}

std::vector<CostTerm> absorbed(const Space& space, std::vector<CostTerm> terms) {
  std::stable_sort(terms.begin(), terms.end(),
                   [](const CostTerm& a, const CostTerm& b) { return a.variables.size() < b.variables.size(); });
  std::vector<CostTerm> kept;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const auto& small = terms[i].variables;
    const auto host =
        std::find_if(terms.begin() + static_cast<std::ptrdiff_t>(i) + 1, terms.end(), [&](const CostTerm& t) {
          return std::includes(t.variables.begin(), t.variables.end(), small.begin(), small.end());
        });
    if (host == terms.end()) {
      kept.push_back(std::move(terms[i]));
    } else {
      for_each_choice(space, *host, [&](std::size_t entry, const std::uint8_t* genome) {
        host->entries[entry] = add(host->entries[entry], terms[i].entries[index_of(terms[i], genome)]);
      });
    }
  }
  return kept;
}

}  // namespace

CostTables::CostTables(const Space& space) {
  std::vector<CostTerm> terms;
  Variables size;
  insert(size, {space.resolution()});
  for (std::size_t index = 0; index < space.rows().size(); ++index) {
    const Row& row = space.rows()[index];
    Variables first = size;
    if (index > 0) insert(first, {space.rows()[index - 1].channels});
    insert(first, {row.channels});
    if (!row.is_pooled()) insert(first, {row.stride});
    if (row.is_convolution()) insert(first, {row.kernel, row.padding});
    if (row.kind == BlockKind::mbconv) insert(first, {row.squeeze});
    if (row.kind == BlockKind::mbconv || row.kind == BlockKind::mbpool) insert(first, {row.expansion});
    terms.push_back(pruned(
        space, tabulate(space, first, [&](const std::uint8_t* genome) { return count_first(space, genome, index); })));
    insert_size_variables(space, row, size);
    if (!row.is_convolution() || !can_repeat(space, row)) continue;
    Variables rest = size;  // of the row's output, of which the inputs of the remaining blocks are a step
    insert(rest, {row.kernel_rest, row.channels, row.repeats, row.padding});
    if (row.kind == BlockKind::mbconv) insert(rest, {row.expansion_rest, row.squeeze});
    terms.push_back(pruned(
        space, tabulate(space, rest, [&](const std::uint8_t* genome) { return count_rest(space, genome, index); })));
  }
  terms_ = absorbed(space, std::move(terms));

  floor_ = ceiling_ = Costs{};
  for (const CostTerm& term : terms_) {
    Costs low = term.entries.front(), high = term.entries.front();
    for (const Costs& entry : term.entries)
      for (std::size_t i = 0; i < cost_count; ++i) {
        low[i] = std::min(low[i], entry[i]);
        high[i] = std::max(high[i], entry[i]);
      }
    floor_ = add(floor_, low);
    ceiling_ = add(ceiling_, high);
  }
}

Costs CostTables::count(const std::uint8_t* genome) const {
  Costs sum{};
  for (const CostTerm& term : terms_) {
    const Costs& entry = term.entries[index_of(term, genome)];
    for (std::size_t i = 0; i < cost_count; ++i) sum[i] += entry[i];  // cannot wrap: ceiling_ fits
  }
  return sum;
}

CostRange cost_range(const Space& space, const CostTables& tables) {
  constexpr std::uint64_t starts = 6;  // the corners of all first and all last choices, then random ones
  CostRange range{tables.ceiling(), tables.floor()};
  for (std::size_t cost = 0; cost < cost_count; ++cost) {
    for (const std::int64_t sign : {+1, -1}) {
      for (std::uint64_t start = 0; start < starts; ++start) {
        Stream random(0, Purpose::range, {start});
        std::vector<std::uint8_t> genome(space.size() + 1);
        for (std::size_t v = 0; v < space.size(); ++v) {
          const auto choices = static_cast<std::uint32_t>(space.choices(v));
          genome[v] = static_cast<std::uint8_t>(start == 0 ? 0 : start == 1 ? choices - 1 : random.below(choices));
        }
        std::int64_t best = sign * tables.count(genome.data())[cost];
        for (bool better = true; better;) {
          better = false;
          for (std::size_t v = 0; v < space.size(); ++v) {
            std::uint8_t kept = genome[v];
            for (int choice = 0; choice < space.choices(v); ++choice) {
              genome[v] = static_cast<std::uint8_t>(choice);
              const std::int64_t value = sign * tables.count(genome.data())[cost];
              if (value < best) {
                best = value;
                kept = genome[v];
                better = true;
              }
            }
            genome[v] = kept;
          }
        }
        std::int64_t& extreme = sign > 0 ? range.lowest[cost] : range.highest[cost];
        extreme = sign > 0 ? std::min(extreme, best) : std::max(extreme, -best);
      }
    }
  }
  return range;
}

}  // namespace pynas
