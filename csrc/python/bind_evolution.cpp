// evolve and the adaptive probabilities it uses.
#include <pybind11/stl.h>

#include <algorithm>
#include <set>
#include <string>

#include "../search/adaptive_genetic.hpp"
#include "../search/text.hpp"
#include "arrays.hpp"
#include "bindings.hpp"

namespace pynas::python {
namespace {

// Reads a settings dict of which every key is required and no other is allowed.
class Settings {
 public:
  explicit Settings(const py::dict& dict) : dict_(dict) {}

  std::size_t count(const char* key, long long least) {
    return check_count(get<long long>(key, "a whole number"), key, least);
  }
  double number(const char* key) { return get<double>(key, "a number"); }
  std::string word(const char* key) { return get<std::string>(key, "a string"); }

  void refuse_others() const {
    std::string allowed;
    for (const std::string& key : read_) allowed += (allowed.empty() ? "" : ", ") + key;
    for (const auto& [key, value] : dict_)
      if (!read_.contains(py::str(key)))
        refuse("settings: unknown key ", std::string(py::repr(key)), "; keys are ", allowed);
  }

 private:
  template <class T>
  T get(const char* key, const char* wanted) {
    read_.insert(key);
    if (!dict_.contains(key)) refuse("settings lacks \"", key, "\"");
    const py::object value = dict_[key];
    try {
      if (!py::isinstance<py::bool_>(value)) return value.cast<T>();
    } catch (const py::cast_error&) {
    }
    refuse("settings: ", key, " is ", std::string(py::repr(value)), "; expected ", wanted);
  }

  const py::dict& dict_;
  std::set<std::string> read_;
};

EvolutionSettings parse(const py::dict& dict) {
  Settings settings(dict);
  EvolutionSettings parsed{};
  const std::string mode = settings.word("mode");
  if (mode != "paper" && mode != "default")
    refuse("settings: mode is \"", mode, "\"; allowed are \"paper\" and \"default\"");
  parsed.literal = mode == "paper";
  parsed.children = settings.count("children", 1);
  parsed.keep = settings.count("keep", 1);
  parsed.random = settings.count("random", 0);
  parsed.patience = settings.count("patience", 1);
  parsed.epsilon = settings.number("epsilon");
  parsed.max_evaluations = settings.count("max_evaluations", 1);
  parsed.restarts = settings.count("restarts", 1);
  parsed.rates = {settings.number("k1"), settings.number("k2"), settings.number("k3"), settings.number("k4"),
                  settings.number("mutation_floor")};
  settings.refuse_others();
  return parsed;
}

template <class T, class Member>
py::array_t<T> column(const std::vector<GenerationRecord>& history, Member member) {
  std::vector<T> values;
  for (const GenerationRecord& record : history) values.push_back(record.*member);
  return to_array(std::move(values), {static_cast<py::ssize_t>(history.size())});
}

py::dict evolve_genomes(const CompiledSpace& space, const CompiledPredictor& predictor, const py::object& initial,
                        const py::object& lower, const py::object& upper, const py::dict& settings, std::uint64_t seed,
                        long long threads) {
  if (predictor.space.get() != &space) refuse("the predictor was made for another space");
  const auto width = static_cast<py::ssize_t>(space.space.size());
  const auto borrowed = borrow<std::uint8_t>(initial, "initial", {any, width});
  const Bounds bounds = borrow_bounds(lower, upper);
  const EvolutionSettings parsed = parse(settings);
  const int workers = check_threads(threads);
  EvolutionResult found;
  {
    const py::gil_scoped_release release;
    space.space.check_genomes(borrowed.data, borrowed.shape[0], "initial");
    found = evolve(space.space, space.tables, predictor.predictor, borrowed.data, borrowed.shape[0], bounds, parsed,
                   seed, workers);
  }
  py::dict history;
  history["restart"] = column<std::int64_t>(found.history, &GenerationRecord::restart);
  history["generation"] = column<std::int64_t>(found.history, &GenerationRecord::generation);
  history["evaluations"] = column<std::int64_t>(found.history, &GenerationRecord::evaluations);
  history["best"] = column<double>(found.history, &GenerationRecord::best);
  history["mean"] = column<double>(found.history, &GenerationRecord::mean);
  py::dict result;
  const auto count = static_cast<py::ssize_t>(found.scores.size());
  result["genomes"] = to_array(std::move(found.genomes), {count, width});
  result["scores"] = to_array(std::move(found.scores), {count});
  result["history"] = history;
  result["evaluations"] = found.evaluations;
  result["proposals"] = found.proposals;
  return result;
}

py::tuple probabilities(const py::object& fitness, double k1, double k2, double k3, double k4, double floor) {
  const auto borrowed = borrow<double>(fitness, "fitness", {any});
  const AdaptiveRates rates{k1, k2, k3, k4, floor};
  check_rates(rates);
  Probabilities result =
      adaptive_probabilities(std::vector<double>(borrowed.data, borrowed.data + borrowed.size()), rates);
  const auto count = static_cast<py::ssize_t>(borrowed.size());
  return py::make_tuple(to_array(std::move(result.crossover), {count}), to_array(std::move(result.mutation), {count}));
}

}  // namespace

void bind_evolution(py::module_& module) {
  module.def("evolve", &evolve_genomes, py::arg("space"), py::arg("predictor"), py::arg("initial"), py::arg("lower"),
             py::arg("upper"), py::arg("settings"), py::arg("seed"), py::arg("threads"));
  module.def("adaptive_probabilities", &probabilities, py::arg("fitness"), py::arg("k1"), py::arg("k2"), py::arg("k3"),
             py::arg("k4"), py::arg("floor"));
}

}  // namespace pynas::python
