// What each bind_*.cpp adds to the module, and the objects they hand each other.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <vector>

#include "../search/cost_tables.hpp"
#include "../search/space.hpp"

namespace pynas::python {

// What Python holds as `Space`: the declaration and the cost tables compiled from it. Immutable.
struct CompiledSpace {
  Space space;
  CostTables tables;
};

void bind_space(pybind11::module_& module);

}  // namespace pynas::python
