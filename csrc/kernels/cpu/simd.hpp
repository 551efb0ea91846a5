// Vectors of floats for the instruction set that a file is compiled for: PYNAS_ISA names the namespace, PYNAS_LANES is
// the number of floats of a vector. A kernel is written once, and its file compiled for each set. Everything in it
// stays in the namespace of its instruction set, so that the linker never takes one set's function for another's.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "../types.hpp"

namespace pynas::kernels::PYNAS_ISA {

typedef float Floats __attribute__((vector_size(4 * PYNAS_LANES)));
typedef double Doubles __attribute__((vector_size(4 * PYNAS_LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * PYNAS_LANES)));
typedef float UnalignedFloats __attribute__((vector_size(4 * PYNAS_LANES), aligned(4), may_alias));
typedef double UnalignedDoubles __attribute__((vector_size(4 * PYNAS_LANES), aligned(8), may_alias));
typedef uint16_t UnalignedHalves __attribute__((vector_size(2 * PYNAS_LANES), aligned(2), may_alias));

// What values of type T are computed in: float and bf16 in float, double (for gradcheck) in double.
template <class T>
struct Computed {
  typedef float Scalar;
  typedef Floats Vector;
  static constexpr int lanes = PYNAS_LANES;
};
template <>
struct Computed<double> {
  typedef double Scalar;
  typedef Doubles Vector;
  static constexpr int lanes = PYNAS_LANES / 2;
};

template <class Vector, class Scalar>
inline Vector all(Scalar value) {
  return Vector{} + value;
}

inline Floats load(const float* from) {
  return *reinterpret_cast<const UnalignedFloats*>(from);
}

inline Doubles load(const double* from) {
  return *reinterpret_cast<const UnalignedDoubles*>(from);
}

inline Floats load(const bf16* from) {
#if defined(__AVX2__) && PYNAS_LANES == 8
  // gcc 12 makes five instructions of the conversion below.
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Floats>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
#else
  const UnalignedHalves halves = *reinterpret_cast<const UnalignedHalves*>(from);
  return reinterpret_cast<Floats>(__builtin_convertvector(halves, Bits) << 16);
#endif
}

inline void store(float* to, Floats values) {
  *reinterpret_cast<UnalignedFloats*>(to) = values;
}

inline void store(double* to, Doubles values) {
  *reinterpret_cast<UnalignedDoubles*>(to) = values;
}

// Rounds to nearest, ties to even, as torch does; NaN stays NaN.
inline void store(bf16* to, Floats values) {
  const Bits bits = reinterpret_cast<Bits>(values);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits kept = values == values ? rounded : Bits{} + 0x7fc0u;
#if defined(__AVX2__) && PYNAS_LANES == 8
  const __m256i wide = reinterpret_cast<__m256i>(kept);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
#else
  *reinterpret_cast<UnalignedHalves*>(to) = __builtin_convertvector(kept, UnalignedHalves);
#endif
}

// The first `count` of a vector's values, for the end of a row; the others load as zeros and are not stored.
template <class T>
inline typename Computed<T>::Vector load_part(const T* from, int count) {
  T values[Computed<T>::lanes] = {};
  std::memcpy(values, from, sizeof(T) * static_cast<unsigned>(count));
  return load(values);
}

template <class T>
inline void store_part(T* to, typename Computed<T>::Vector values, int count) {
  T stored[Computed<T>::lanes];
  store(stored, values);
  std::memcpy(to, stored, sizeof(T) * static_cast<unsigned>(count));
}

template <class Vector>
inline Vector minimum(Vector a, Vector b) {
  return a < b ? a : b;
}

template <class Vector>
inline Vector maximum(Vector a, Vector b) {
  return a > b ? a : b;
}

}  // namespace pynas::kernels::PYNAS_ISA
