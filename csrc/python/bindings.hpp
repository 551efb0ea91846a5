// What each bind_*.cpp adds to the module, and the objects they hand each other.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "../search/cost_batch.hpp"
#include "../search/cost_tables.hpp"
#include "../search/predictor.hpp"
#include "../search/space.hpp"

namespace pynas::python {

// What Python holds as `Space`: the declaration and the cost tables compiled from it. Immutable.
struct CompiledSpace {
  Space space;
  CostTables tables;
  CostBatch batch;
};

// What Python holds as `Predictor`: weights folded onto the space they are for. Immutable.
struct CompiledPredictor {
  std::shared_ptr<CompiledSpace> space;
  Predictor predictor;
};

void bind_space(pybind11::module_& module);
void bind_predictor(pybind11::module_& module);
void bind_evolution(pybind11::module_& module);
void bind_selection(pybind11::module_& module);

}  // namespace pynas::python
