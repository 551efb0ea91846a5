// Space: compile a declared table; count, sample, and turn genomes into features.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <utility>

#include "../search/cost.hpp"
#include "../search/features.hpp"
#include "../search/sample.hpp"
#include "../search/text.hpp"
#include "../search/threads.hpp"
#include "arrays.hpp"
#include "bindings.hpp"

namespace pynas::python {
namespace {

constexpr const char* block_columns[] = {"row",         "kind",         "kernel",   "stride",      "padding",
                                         "in_channels", "mid_channels", "channels", "se_channels", "in_size",
                                         "out_size",    "flops",        "macs",     "params",      "parameters"};
constexpr py::ssize_t block_width = std::size(block_columns);

constexpr double most_rounded = 1e15;

template <class T>
T item(const py::dict& dict, const char* key, const std::string& where) {
  if (!dict.contains(key)) refuse(where, " lacks \"", key, "\"");
  try {
    return dict[key].cast<T>();
  } catch (const py::cast_error&) {
    refuse(where, ": \"", key, "\" is ", std::string(py::repr(dict[key])), ", which is of the wrong type");
  }
}

bool one_of(const py::dict& dict, const char* key, const std::string& where, const char* no, const char* yes) {
  const auto value = item<std::string>(dict, key, where);
  if (value != no && value != yes)
    refuse(where, ": \"", key, "\" is \"", value, "\"; allowed are \"", no, "\" and \"", yes, "\"");
  return value == yes;
}

Variable parse_variable(const py::dict& dict, std::size_t index) {
  const std::string where = text("variable ", index);
  return {item<std::string>(dict, "name", where), one_of(dict, "kind", where, "range", "list"),
          one_of(dict, "group", where, "architecture", "recipe"), item<std::vector<double>>(dict, "values", where)};
}

Field to_field(const std::pair<int, double>& pair) {
  return {pair.first, pair.second};
}

Row parse_row(const py::dict& dict, std::size_t index) {
  const std::string where = text("row ", index);
  const auto block = item<std::string>(dict, "block", where);
  std::optional<BlockKind> kind;
  for (std::size_t i = 0; i < std::size(block_kind_names); ++i)
    if (block == block_kind_names[i]) kind = static_cast<BlockKind>(i);
  if (!kind) refuse(where, ": block is \"", block, "\"; allowed are conv, mbconv, mbpool, fc and skip");
  const auto field = [&](const char* key) { return to_field(item<std::pair<int, double>>(dict, key, where)); };
  const bool from_middle = one_of(dict, "se_from", where, "in", "mid");
  return {*kind,
          field("k"),
          field("k_rest"),
          field("e"),
          field("e_rest"),
          field("c"),
          field("n"),
          field("s"),
          field("se"),
          field("pad"),
          from_middle ? SqueezeFrom::middle : SqueezeFrom::input,
          item<bool>(dict, "bias", where)};
}

std::shared_ptr<CompiledSpace> compile_space(const std::vector<py::dict>& variables, const std::vector<py::dict>& rows,
                                             const std::pair<int, double>& resolution, std::int64_t input_channels) {
  std::vector<Variable> parsed_variables;
  for (const py::dict& variable : variables)
    parsed_variables.push_back(parse_variable(variable, parsed_variables.size()));
  std::vector<Row> parsed_rows;
  for (const py::dict& row : rows) parsed_rows.push_back(parse_row(row, parsed_rows.size()));
  const py::gil_scoped_release release;
  Space space(std::move(parsed_variables), std::move(parsed_rows), to_field(resolution), input_channels);
  CostTables tables(space);
  CostBatch batch(space, tables);
  return std::make_shared<CompiledSpace>(CompiledSpace{std::move(space), std::move(tables), std::move(batch)});
}

Borrowed<std::uint8_t> borrow_genomes(const CompiledSpace& self, const py::handle& genomes) {
  return borrow<std::uint8_t>(genomes, "genomes", {any, static_cast<py::ssize_t>(self.space.size())});
}

py::array_t<std::uint8_t> sample_genomes(const CompiledSpace& self, long long n, std::uint64_t seed,
                                         const py::object& lower, const py::object& upper, long long threads) {
  const Bounds bounds = borrow_bounds(lower, upper);
  const std::size_t count = check_count(n, "n", 0);
  const int workers = check_threads(threads);
  std::vector<std::uint8_t> genomes;
  {
    const py::gil_scoped_release release;
    genomes = sample(self.space, self.tables, bounds, count, seed, workers);
  }
  return to_array(std::move(genomes), {static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(self.space.size())});
}

py::array_t<std::uint8_t> from_unit(const CompiledSpace& self, const py::object& points) {
  const auto width = static_cast<py::ssize_t>(self.space.size());
  const auto borrowed = borrow<double>(points, "points", {any, width});
  py::array_t<std::uint8_t> genomes({static_cast<py::ssize_t>(borrowed.shape[0]), width});
  std::uint8_t* out = genomes.mutable_data();
  const py::gil_scoped_release release;
  genomes_from_unit(self.space, borrowed.data, borrowed.shape[0], out);
  return genomes;
}

py::array_t<std::int64_t> costs(const CompiledSpace& self, const py::object& genomes, long long threads) {
  const auto borrowed = borrow_genomes(self, genomes);
  const int workers = check_threads(threads);
  const std::size_t count = borrowed.shape[0], width = self.space.size();
  py::array_t<std::int64_t> result({static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(cost_count)});
  std::int64_t* out = result.mutable_data();
  const py::gil_scoped_release release;
  self.space.check_genomes(borrowed.data, count, "genomes");
  for_each_range(count, 4096, workers, [&](std::size_t begin, std::size_t end) {
    self.batch.count(borrowed.data + begin * width, end - begin, out + begin * cost_count);
  });
  return result;
}

py::array_t<float> genome_features(const CompiledSpace& self, const py::object& genomes) {
  const auto borrowed = borrow_genomes(self, genomes);
  const std::size_t count = borrowed.shape[0];
  py::array_t<float> result({static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(feature_count(self.space))});
  float* out = result.mutable_data();
  const py::gil_scoped_release release;
  self.space.check_genomes(borrowed.data, count, "genomes");
  features(self.space, borrowed.data, count, out);
  return result;
}

py::array_t<std::int64_t> blocks(const CompiledSpace& self, const py::object& genome) {
  const auto borrowed = borrow<std::uint8_t>(genome, "genome", {static_cast<py::ssize_t>(self.space.size())});
  self.space.check_genomes(borrowed.data, 1, "genome");
  std::vector<std::int64_t> table;
  const auto counted = self.space.rows().empty() ? std::vector<Block>() : count_blocks(self.space, borrowed.data);
  for (const Block& block : counted) {
    table.insert(table.end(), {block.row, block.kind, block.kernel, block.stride, block.padding, block.in_channels,
                               block.mid_channels, block.channels, block.se_channels, block.in_size, block.out_size});
    table.insert(table.end(), block.costs.begin(), block.costs.end());
  }
  return to_array(std::move(table), {static_cast<py::ssize_t>(counted.size()), block_width});
}

py::array_t<std::int64_t> found_cost_range(const CompiledSpace& self) {
  CostRange range;
  {
    const py::gil_scoped_release release;
    range = cost_range(self.space, self.tables);
  }
  std::vector<std::int64_t> table;
  for (std::size_t i = 0; i < cost_count; ++i) table.insert(table.end(), {range.lowest[i], range.highest[i]});
  return to_array(std::move(table), {static_cast<py::ssize_t>(cost_count), 2});
}

template <std::size_t size>
py::tuple names(const char* const (&array)[size]) {
  py::tuple result(size);
  for (std::size_t i = 0; i < size; ++i) result[i] = array[i];
  return result;
}

}  // namespace

void bind_space(py::module_& module) {
  module.attr("COSTS") = names(cost_names);
  module.attr("BLOCK_COLUMNS") = names(block_columns);
  module.attr("BLOCK_KINDS") = names(block_kind_names);
  module.def(
      "round_channels",
      [](double channels) {
        if (!(channels >= 0 && channels <= most_rounded))
          refuse("channels is ", channels, "; allowed are 0 to ", most_rounded);
        return round_channels(channels);
      },
      py::arg("channels"));
  py::class_<CompiledSpace, std::shared_ptr<CompiledSpace>>(module, "Space")
      .def(py::init(&compile_space), py::arg("variables"), py::arg("rows"), py::arg("resolution"),
           py::arg("input_channels"))
      .def("sample", &sample_genomes, py::arg("n"), py::arg("seed"), py::arg("lower"), py::arg("upper"),
           py::arg("threads"))
      .def("from_unit", &from_unit, py::arg("points"))
      .def("costs", &costs, py::arg("genomes"), py::arg("threads"))
      .def("features", &genome_features, py::arg("genomes"))
      .def("blocks", &blocks, py::arg("genome"))
      .def("cost_range", &found_cost_range);
}

}  // namespace pynas::python
