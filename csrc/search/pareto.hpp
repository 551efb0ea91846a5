// The non-dominated points of a set (the maxima problem of Kung, Luccio & Preparata, J. ACM 22(4), 1975).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pynas {

// Ascending indices of the rows of (count, dimensions) that no other row dominates: is nowhere larger than and
// somewhere smaller. Equal rows do not dominate each other. Refuses NaN.
std::vector<std::int64_t> pareto_front(const double* points, std::size_t count, std::size_t dimensions);

}  // namespace pynas
