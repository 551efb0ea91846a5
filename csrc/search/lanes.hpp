// One vector of float lanes an instruction set, for the score kernel. Each kernel translation unit is compiled for one
// instruction set and may include nothing but this and score_kernel.hpp: an inline function of the standard library
// compiled here with wider instructions could be the copy the linker keeps for everybody.
#pragma once

#if defined(PYNAS_LANES_AVX512) || defined(PYNAS_LANES_AVX2)
#include <immintrin.h>
#endif

namespace pynas {
namespace {

#if defined(PYNAS_LANES_AVX512)

struct Lanes {
  using Vector = __m512;
  static constexpr int width = 16;
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static Vector broadcast(float x) { return _mm512_set1_ps(x); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector relu(Vector v) { return _mm512_max_ps(v, _mm512_setzero_ps()); }
};

#elif defined(PYNAS_LANES_AVX2)

struct Lanes {
  using Vector = __m256;
  static constexpr int width = 8;
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  static Vector broadcast(float x) { return _mm256_set1_ps(x); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector relu(Vector v) { return _mm256_max_ps(v, _mm256_setzero_ps()); }
};

#else

struct Lanes {
  using Vector = float;
  static constexpr int width = 1;
  static Vector load(const float* p) { return *p; }
  static void store(float* p, Vector v) { *p = v; }
  static Vector broadcast(float x) { return x; }
  static Vector fma(Vector a, Vector b, Vector c) { return __builtin_fmaf(a, b, c); }
  static Vector relu(Vector v) { return v > 0 ? v : 0; }
};

#endif

}  // namespace
}  // namespace pynas
