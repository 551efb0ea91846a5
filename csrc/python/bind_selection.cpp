// top_k and pareto_front.
#include "../search/pareto.hpp"
#include "../search/select.hpp"
#include "arrays.hpp"
#include "bindings.hpp"

namespace pynas::python {
namespace {

py::array_t<std::int64_t> best_indices(const py::object& scores, long long k) {
  const auto borrowed = borrow<float>(scores, "scores", {any});
  const std::size_t count = check_count(k, "k", 0);
  std::vector<std::int64_t> indices;
  {
    const py::gil_scoped_release release;
    indices = top_k(borrowed.data, borrowed.size(), count);
  }
  const auto length = static_cast<py::ssize_t>(indices.size());
  return to_array(std::move(indices), {length});
}

py::array_t<std::int64_t> front_indices(const py::object& points) {
  const auto borrowed = borrow<double>(points, "points", {any, any});
  std::vector<std::int64_t> indices;
  {
    const py::gil_scoped_release release;
    indices = pareto_front(borrowed.data, borrowed.shape[0], borrowed.shape[1]);
  }
  const auto length = static_cast<py::ssize_t>(indices.size());
  return to_array(std::move(indices), {length});
}

}  // namespace

void bind_selection(py::module_& module) {
  module.def("top_k", &best_indices, py::arg("scores"), py::arg("k"));
  module.def("pareto_front", &front_indices, py::arg("points"));
}

}  // namespace pynas::python
