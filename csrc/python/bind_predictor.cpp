// Predictor: fold trained weights onto a space; score genomes.
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "../search/features.hpp"
#include "../search/instruction_set.hpp"
#include "../search/predictor.hpp"
#include "../search/text.hpp"
#include "arrays.hpp"
#include "bindings.hpp"

namespace pynas::python {
namespace {

std::span<const float> weights(const py::object& array, const char* name, const std::vector<py::ssize_t>& shape) {
  const auto borrowed = borrow<float>(array, name, shape);
  return {borrowed.data, borrowed.size()};
}

// A Python number, or a float32 array of one element as a linear layer's bias comes.
double number(const py::object& object, const char* name) {
  if (py::isinstance<py::array>(object)) return *borrow<float>(object, name, {1}).data;
  try {
    return object.cast<double>();
  } catch (const py::cast_error&) {
    refuse(name, " is ", std::string(py::repr(object)), "; expected a number or a float32 array of shape (1,)");
  }
}

// Indices into Costs.
std::vector<std::size_t> parse_statistics(const std::vector<std::string>& names) {
  std::vector<std::size_t> costs;
  for (const std::string& name : names) {
    const auto found = std::find(std::begin(cost_names), std::end(cost_names), name);
    if (found == std::end(cost_names)) {
      std::string allowed;
      for (const char* cost : cost_names) allowed += (allowed.empty() ? "" : ", ") + std::string(cost);
      refuse("statistics holds \"", name, "\"; allowed are ", allowed);
    }
    costs.push_back(static_cast<std::size_t>(found - std::begin(cost_names)));
    if (std::count(costs.begin(), costs.end(), costs.back()) > 1)
      refuse("statistics holds \"", name, "\" twice; allowed is each once");
  }
  return costs;
}

std::shared_ptr<CompiledPredictor> compile_predictor(const std::shared_ptr<CompiledSpace>& space,
                                                     const std::vector<std::string>& statistics,
                                                     const py::object& embedding_weight,
                                                     const py::object& embedding_bias, const py::object& hidden_weight,
                                                     const py::object& hidden_bias, const py::object& output_weight,
                                                     const py::object& output_bias, const py::object& mean,
                                                     const py::object& scale) {
  const std::vector<std::size_t> costs = parse_statistics(statistics);
  const auto architecture = static_cast<py::ssize_t>(architecture_feature_count(space->space));
  const auto recipe = static_cast<py::ssize_t>(feature_count(space->space)) - architecture;
  const auto embedding = static_cast<py::ssize_t>(borrow<float>(embedding_bias, "embedding_bias", {any}).shape[0]);
  const auto hidden = static_cast<py::ssize_t>(borrow<float>(hidden_bias, "hidden_bias", {any}).shape[0]);
  return std::make_shared<CompiledPredictor>(CompiledPredictor{
      space,
      Predictor(space->space, Statistics(space->tables, space->batch, costs),
                {static_cast<std::size_t>(embedding), static_cast<std::size_t>(hidden),
                 weights(embedding_weight, "embedding_weight",
                         {embedding, architecture + static_cast<py::ssize_t>(costs.size())}),
                 weights(embedding_bias, "embedding_bias", {embedding}),
                 weights(hidden_weight, "hidden_weight", {hidden, embedding + recipe}),
                 weights(hidden_bias, "hidden_bias", {hidden}), weights(output_weight, "output_weight", {hidden}),
                 number(output_bias, "output_bias"), number(mean, "mean"), number(scale, "scale")})});
}

py::array_t<float> score(const CompiledPredictor& self, const py::object& genomes, long long threads,
                         const std::string& instruction_set) {
  const Space& space = self.space->space;
  const auto borrowed = borrow<std::uint8_t>(genomes, "genomes", {any, static_cast<py::ssize_t>(space.size())});
  const int workers = check_threads(threads);
  const ScoreKernel kernel = score_kernel(instruction_set);
  py::array_t<float> result(static_cast<py::ssize_t>(borrowed.shape[0]));
  float* out = result.mutable_data();
  const py::gil_scoped_release release;
  space.check_genomes(borrowed.data, borrowed.shape[0], "genomes");
  self.predictor.score(kernel, borrowed.data, borrowed.shape[0], workers, out);
  return result;
}

}  // namespace

void bind_predictor(py::module_& module) {
  module.def("instruction_sets", &instruction_sets);
  py::class_<CompiledPredictor, std::shared_ptr<CompiledPredictor>>(module, "Predictor")
      .def(py::init(&compile_predictor), py::arg("space"), py::arg("statistics"), py::arg("embedding_weight"),
           py::arg("embedding_bias"), py::arg("hidden_weight"), py::arg("hidden_bias"), py::arg("output_weight"),
           py::arg("output_bias"), py::arg("mean"), py::arg("scale"))
      .def("score", &score, py::arg("genomes"), py::arg("threads"), py::arg("instruction_set"));
}

}  // namespace pynas::python
