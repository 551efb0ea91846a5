#include "space.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "text.hpp"

namespace pynas {
namespace {

constexpr int most_choices = 256;  // a gene is a byte
constexpr double most_channels = 1 << 16;
constexpr double most_pixels = 1 << 14;
constexpr double most_kernel = 255;
constexpr double most_repeats = 1024;
constexpr double most_expansion = 64;
constexpr double most_splits = 4;

bool can_repeat(const std::vector<double>& repeats) {
  for (const double value : repeats)
    if (value > 1) return true;
  return false;
}

}  // namespace

Space::Space(std::vector<Variable> variables, std::vector<Row> rows, Field resolution, std::int64_t input_channels)
    : variables_(std::move(variables)),
      rows_(std::move(rows)),
      resolution_(resolution),
      input_channels_(input_channels) {
  check_variables();
  while (architecture_variables_ < size() && !variables_[architecture_variables_].is_recipe) ++architecture_variables_;
  if (input_channels_ < 1 || static_cast<double>(input_channels_) > most_channels)
    refuse("input_channels is ", input_channels_, "; allowed are 1 to ", most_channels);
  if (rows_.empty()) {
    resolution_ = Field{};  // a space without a network: nothing reads it
    return;
  }
  check_field("resolution", resolution_, 1, most_pixels, true);
  for (std::size_t row = 0; row < rows_.size(); ++row) check_row(row);
}

void Space::check_variables() const {
  if (size() > most_variables) refuse("there are ", size(), " variables; allowed are up to ", most_variables);
  std::set<std::string> names;
  bool recipe_seen = false;
  for (const Variable& variable : variables_) {
    const auto& [name, is_list, is_recipe, values] = variable;
    if (!names.insert(name).second) refuse("two variables are named \"", name, "\"");
    if (variable.choices() < 2 || variable.choices() > most_choices)
      refuse("variable \"", name, "\" has ", values.size(), " choices; allowed are 2 to ", most_choices,
             " (a single choice is a constant)");
    for (const double value : values)
      if (!std::isfinite(value)) refuse("variable \"", name, "\" has the value ", value, "; values must be finite");
    if (!is_list && std::set<double>(values.begin(), values.end()).size() != values.size())
      refuse("range variable \"", name, "\" has the same value twice");
    if (recipe_seen && !is_recipe)
      refuse("architecture variable \"", name, "\" comes after a recipe variable; architecture variables come first");
    recipe_seen = recipe_seen || is_recipe;
  }
}

std::vector<double> Space::values(const Field& field) const {
  if (field.variable < 0) return {field.constant};
  return variables_[static_cast<std::size_t>(field.variable)].values;
}

void Space::check_field(const std::string& where, const Field& field, double low, double high, bool whole) const {
  if (field.variable < -1 || field.variable >= static_cast<int>(size()))
    refuse(where, " refers to variable ", field.variable, "; there are ", size(), " variables");
  if (field.variable >= 0 && variables_[static_cast<std::size_t>(field.variable)].is_recipe)
    refuse(where, " refers to the recipe variable \"", variables_[static_cast<std::size_t>(field.variable)].name,
           "\"; only architecture variables shape a network");
  for (const double value : values(field))
    if (!(value >= low && value <= high) || (whole && value != std::floor(value)))
      refuse(where, " can be ", value, "; allowed are ", whole ? "whole numbers from " : "numbers from ", low, " to ",
             high);
}

void Space::check_row(std::size_t index) const {
  const Row& row = rows_[index];
  const std::string where = text("row ", index, " (", block_kind_names[static_cast<std::size_t>(row.kind)], "): ");
  check_field(where + "c", row.channels, 1, most_channels, true);
  check_field(where + "n", row.repeats, 1, row.is_convolution() ? most_repeats : 1, true);
  if (!row.is_pooled()) check_field(where + "s", row.stride, 1, most_kernel, true);
  const double least_kernel = row.kind == BlockKind::mbconv ? 0 : 1;
  if (row.is_convolution()) {
    check_field(where + "k", row.kernel, least_kernel, most_kernel, true);
    check_field(where + "pad", row.padding, -1, most_kernel, true);
  }
  if (row.kind == BlockKind::mbconv) {
    check_field(where + "se", row.squeeze, 0, most_splits, true);
    for (const double splits : values(row.squeeze))
      if (splits == 3) refuse(where, "se can be 3; allowed are 0, 1, 2 and 4");
  }
  if (row.kind == BlockKind::mbconv || row.kind == BlockKind::mbpool)
    check_field(where + "e", row.expansion, 1.0 / most_expansion, most_expansion, false);
  if (can_repeat(values(row.repeats))) {
    check_field(where + "k_rest", row.kernel_rest, least_kernel, most_kernel, true);
    if (row.kind == BlockKind::mbconv)
      check_field(where + "e_rest", row.expansion_rest, 1.0 / most_expansion, most_expansion, false);
  }
}

void Space::check_genomes(const std::uint8_t* genomes, std::size_t count, const char* name) const {
  std::vector<std::uint8_t> last(size());
  for (std::size_t v = 0; v < size(); ++v) last[v] = static_cast<std::uint8_t>(choices(v) - 1);
  const std::size_t width = size();
  const std::uint8_t* const most = last.data();
  for (std::size_t row = 0; row < count; ++row) {
    const std::uint8_t* genome = genomes + row * width;
    std::uint8_t excess = 0;  // bytes, and no early exit: a loop for vector instructions
    for (std::size_t v = 0; v < width; ++v) excess |= static_cast<std::uint8_t>(std::max(genome[v], most[v]) ^ most[v]);
    if (excess == 0) continue;
    for (std::size_t v = 0; v < size(); ++v)
      if (genome[v] > last[v])
        refuse(name, ": row ", row, ", variable ", v, " (\"", variables_[v].name, "\") is ", int{genome[v]},
               "; allowed are 0 to ", int{last[v]});
  }
}

}  // namespace pynas
