// pynas._core: the table of contents. Each concept is bound in its own bind_<concept>.cpp.
#include <pybind11/pybind11.h>

#include "bindings.hpp"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of pynas: counting, sampling, scoring and evolutionary search over genomes.";
  pynas::python::bind_space(module);      // Space, COSTS, BLOCK_COLUMNS, BLOCK_KINDS
  pynas::python::bind_predictor(module);  // Predictor, instruction_sets
  pynas::python::bind_evolution(module);  // evolve, adaptive_probabilities
  pynas::python::bind_selection(module);  // top_k, pareto_front
}
