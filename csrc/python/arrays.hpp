// numpy arrays at the border: exact dtype, C-contiguous, expected shape, or a ValueError that says what came.
// Arguments are borrowed for the call and never written to; results are fresh arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../search/cost_tables.hpp"

namespace pynas::python {

namespace py = pybind11;

inline constexpr py::ssize_t any = -1;  // a dimension of any length

template <class T>
struct Borrowed {
  const T* data;
  std::vector<std::size_t> shape;

  std::size_t size() const {
    std::size_t size = 1;
    for (const std::size_t length : shape) size *= length;
    return size;
  }
};

void check_array(const py::handle& object, const char* name, const py::dtype& dtype,
                 const std::vector<py::ssize_t>& shape);

template <class T>
Borrowed<T> borrow(const py::handle& object, const char* name, const std::vector<py::ssize_t>& shape) {
  check_array(object, name, py::dtype::of<T>(), shape);
  const auto array = py::reinterpret_borrow<py::array>(object);
  return {static_cast<const T*>(array.data()), {array.shape(), array.shape() + array.ndim()}};
}

// A fresh array that takes over the vector's memory.
template <class T>
py::array_t<T> to_array(std::vector<T>&& values, const std::vector<py::ssize_t>& shape) {
  auto* owned = new std::vector<T>(std::move(values));
  const py::capsule owner(owned, [](void* vector) { delete static_cast<std::vector<T>*>(vector); });
  return py::array_t<T>(shape, owned->data(), owner);
}

// int64 arrays of length 4, lower and upper, in the order of COSTS.
Bounds borrow_bounds(const py::handle& lower, const py::handle& upper);

int check_threads(long long threads);
std::size_t check_count(long long count, const char* name, long long least);

}  // namespace pynas::python
