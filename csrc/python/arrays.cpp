#include "arrays.hpp"

#include <algorithm>

#include "../search/text.hpp"

namespace pynas::python {
namespace {

std::string shape_text(const py::ssize_t* shape, std::size_t dimensions) {
  std::string result = "(";
  for (std::size_t i = 0; i < dimensions; ++i) {
    if (i > 0) result += ", ";
    result += shape[i] == any ? "any" : std::to_string(shape[i]);
  }
  return result + (dimensions == 1 ? ",)" : ")");
}

}  // namespace

void check_array(const py::handle& object, const char* name, const py::dtype& dtype,
                 const std::vector<py::ssize_t>& shape) {
  const std::string wanted = text("; expected a C-contiguous numpy array of dtype ", std::string(py::str(dtype)),
                                  " and shape ", shape_text(shape.data(), shape.size()));
  if (!py::isinstance<py::array>(object))
    refuse(name, " is a ", std::string(py::str(py::type::of(object).attr("__name__"))), wanted);
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!array.dtype().equal(dtype)) refuse(name, " has dtype ", std::string(py::str(array.dtype())), wanted);
  bool fits = static_cast<std::size_t>(array.ndim()) == shape.size();
  for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] == any || shape[i] == array.shape()[i];
  if (!fits) refuse(name, " has shape ", shape_text(array.shape(), static_cast<std::size_t>(array.ndim())), wanted);
  constexpr int needed = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
  if ((array.flags() & needed) != needed) refuse(name, " is not C-contiguous and aligned", wanted);
}

Bounds borrow_bounds(const py::handle& lower, const py::handle& upper) {
  Bounds bounds;
  constexpr py::ssize_t length = cost_count;
  std::copy_n(borrow<std::int64_t>(lower, "lower", {length}).data, cost_count, bounds.lower.begin());
  std::copy_n(borrow<std::int64_t>(upper, "upper", {length}).data, cost_count, bounds.upper.begin());
  return bounds;
}

int check_threads(long long threads) {
  constexpr long long most = 1024;
  if (threads < 1 || threads > most) refuse("threads is ", threads, "; allowed are 1 to ", most);
  return static_cast<int>(threads);
}

std::size_t check_count(long long count, const char* name, long long least) {
  constexpr long long most = 1'000'000'000;
  if (count < least || count > most) refuse(name, " is ", count, "; allowed are ", least, " to ", most);
  return static_cast<std::size_t>(count);
}

}  // namespace pynas::python
