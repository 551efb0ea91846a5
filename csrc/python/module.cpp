// pynas._core: the table of contents. Each concept is bound in its own bind_<concept>.cpp.
#include <pybind11/pybind11.h>

#include "bindings.hpp"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of pynas: counting, sampling, scoring and evolutionary search over genomes.";
  pynas::python::bind_space(module);
}
