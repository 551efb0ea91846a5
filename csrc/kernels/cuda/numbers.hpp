// Numbers in memory as float32, vectors of them, and activations.
#pragma once

#include <cmath>
#include <cstring>

#include "../types.hpp"
#include "block.hpp"

namespace pynas::kernels::cuda {

PYNAS_BOTH uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

PYNAS_BOTH float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

PYNAS_BOTH float value_of(float value) {
  return value;
}

PYNAS_BOTH float value_of(bf16 value) {
  return float_of(static_cast<uint32_t>(value.bits) << 16);
}

// Exactly: the exponent moves by multiplication, which subnormal numbers survive.
PYNAS_BOTH float value_of(fp16 value) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) return float_of(sign | 0x70000000u | rest);  // infinite or NaN
  return float_of(sign | bits_of(float_of(rest) * 0x1p112f));
#endif
}

// Rounded to the nearest, ties to even.
PYNAS_BOTH void put(float* to, float value) {
  *to = value;
}

PYNAS_BOTH void put(bf16* to, float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

PYNAS_BOTH void put(fp16* to, float value) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(value));
#else
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  uint32_t half;
  if (size > 0x7f800000u)
    half = 0x7fffu;
  else if (size >= 0x477ff000u)  // rounds to 2^16 or more
    half = 0x7c00u;
  else if (size < 0x38800000u)  // subnormal: units of 2^-24
    half = static_cast<uint32_t>(std::lrint(float_of(size) * 0x1p24f));
  else
    half = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  to->bits = static_cast<uint16_t>(sign | half);
#endif
}

// Numbers of 16 bytes.
template <class T>
constexpr int vector_of = 16 / sizeof(T);

// n numbers as they lie in memory: one, or 16 bytes or 8, aligned.
template <class T, int n>
struct alignas(sizeof(T) * n) Vector {
  static_assert(n == 1 || sizeof(T) * n == 8 || sizeof(T) * n == 16);
  T values[n];

  PYNAS_DEVICE float operator[](int i) const { return value_of(values[i]); }
};

// In one access, as the compiler alone would not of 16-bit numbers.
template <class T, int n>
PYNAS_DEVICE void copy(const Vector<T, n>* from, Vector<T, n>* to) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(*from) == 16)
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  else if constexpr (sizeof(*from) == 8)
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
  else
    *to = *from;
#else
  std::memcpy(static_cast<void*>(to), from, sizeof *from);
#endif
}

template <int n, class T>
PYNAS_DEVICE Vector<T, n> load(const T* from) {
  Vector<T, n> vector;
  copy(reinterpret_cast<const Vector<T, n>*>(from), &vector);
  return vector;
}

template <int n, class T>
PYNAS_DEVICE void store(T* to, const Vector<T, n>& vector) {
  copy(&vector, reinterpret_cast<Vector<T, n>*>(to));
}

PYNAS_DEVICE float inverse_root(float x) {
#ifdef __CUDA_ARCH__
  return __frsqrt_rn(x);  // without the calls that a division and a root make where numbers are very small
#else
  return 1.0f / std::sqrt(x);
#endif
}

PYNAS_DEVICE float sigmoid(float z) {
#ifdef __CUDA_ARCH__
  return __fdividef(1.0f, 1.0f + __expf(-z));  // both are one instruction of the special-function unit
#else
  return 1.0f / (1.0f + std::exp(-z));
#endif
}

PYNAS_DEVICE float activate(Activation act, float z) {
  if (act == Activation::relu || act == Activation::relu6) {
    const float most = act == Activation::relu ? INFINITY : 6.0f, above = z < 0.0f ? 0.0f : z;
    return above > most ? most : above;
  }
  if (act == Activation::hswish) {
    const float raised = z + 3.0f;
    const float above = raised < 0.0f ? 0.0f : raised;
    return z * (above > 6.0f ? 6.0f : above) * (1.0f / 6.0f);
  }
  if (act == Activation::swish) return z * sigmoid(z);
  return z;
}

// dy act'(z)
PYNAS_DEVICE float chain(Activation act, float dy, float z) {
  if (act == Activation::relu || act == Activation::relu6)
    return z <= 0.0f || (act == Activation::relu6 && z >= 6.0f) ? 0.0f : dy;
  if (act == Activation::hswish) return z <= -3.0f ? 0.0f : (z >= 3.0f ? dy : dy * (z * (1.0f / 3.0f) + 0.5f));
  if (act == Activation::swish) {
    const float s = sigmoid(z);
    return dy * s * (1.0f + z * (1.0f - s));
  }
  return dy;
}

}  // namespace pynas::kernels::cuda
