// Numbers in memory as float32, vectors of them, and activations.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

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
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(value));
#else
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
#endif
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

// n numbers as they lie in memory: one, or 16, 8 or 4 bytes, aligned.
template <class T, int n>
struct alignas(sizeof(T) * n) Vector {
  static_assert(n == 1 || sizeof(T) * n == 4 || sizeof(T) * n == 8 || sizeof(T) * n == 16);
  T values[n];
};

// In one access, as the compiler alone would not of 16-bit numbers.
template <class T, int n>
PYNAS_DEVICE void copy(const Vector<T, n>* from, Vector<T, n>* to) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(*from) == 16)
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  else if constexpr (sizeof(*from) == 8)
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
  else if constexpr (sizeof(*from) == 4)
    *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
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

// 16 bytes from global to shared memory by the copy engine: there once this thread has called `await_copies`.
template <class T>
PYNAS_DEVICE void copy_later(T* shared, const T* from) {
#ifdef __CUDA_ARCH__
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#else
  std::memcpy(shared, from, 16);
#endif
}

PYNAS_DEVICE void await_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// The numbers of a vector as float32.
template <class T, int n>
PYNAS_DEVICE void widen(const Vector<T, n>& from, float (&to)[n]) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2 && n > 1) {
    uint32_t pairs[n / 2];
    memcpy(pairs, &from, sizeof pairs);
    PYNAS_UNROLL
    for (int i = 0; i < n / 2; ++i) {
      float &lower = to[2 * i], &upper = to[2 * i + 1];
      if constexpr (std::is_same_v<T, bf16>)
        lower = float_of(pairs[i] << 16), upper = float_of(pairs[i] & 0xffff0000u);
      else
        asm("{.reg .f16 l, u; mov.b32 {l, u}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, u;}"
            : "=f"(lower), "=f"(upper)
            : "r"(pairs[i]));
    }
  } else
#endif
  {
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) to[v] = value_of(from.values[v]);
  }
}

// And back, as `put`: on a GPU two of 16 bits at once.
template <class T, int n>
PYNAS_DEVICE Vector<T, n> narrow(const float (&from)[n]) {
  Vector<T, n> to;
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2 && n > 1) {
    uint32_t pairs[n / 2];
    PYNAS_UNROLL
    for (int i = 0; i < n / 2; ++i) {
      if constexpr (std::is_same_v<T, bf16>)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pairs[i]) : "f"(from[2 * i + 1]), "f"(from[2 * i]));
      else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pairs[i]) : "f"(from[2 * i + 1]), "f"(from[2 * i]));
    }
    memcpy(&to, pairs, sizeof pairs);
  } else
#endif
  {
    PYNAS_UNROLL
    for (int v = 0; v < n; ++v) put(&to.values[v], from[v]);
  }
  return to;
}

// By a positive number below 2^126, to some units in the last place.
PYNAS_DEVICE float divide(float x, float by) {
#ifdef __CUDA_ARCH__
  return __fdividef(x, by);  // without the call that a division makes where numbers are very small
#else
  return x / by;
#endif
}

PYNAS_DEVICE float inverse_root(float x) {
#ifdef __CUDA_ARCH__
  return __frsqrt_rn(x);  // without calls, as `divide`
#else
  return 1.0f / std::sqrt(x);
#endif
}

PYNAS_DEVICE float sigmoid(float z) {
#ifdef __CUDA_ARCH__
  // One instruction of the special-function unit each. That very small numbers are taken for zeros changes nothing
  // where 1 is added to them, nor, beyond 2^126, a result that is as good as zero.
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(z * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
  return inverse;
#else
  return 1.0f / (1.0f + std::exp(-z));
#endif
}

// The larger and the smaller of two, NaN where z is that.
PYNAS_DEVICE float at_least(float least, float z) {
#ifdef __CUDA_ARCH__
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(z) : "f"(least));
  return z;
#else
  return z < least ? least : z;
#endif
}

PYNAS_DEVICE float at_most(float most, float z) {
#ifdef __CUDA_ARCH__
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(z) : "f"(most));
  return z;
#else
  return z > most ? most : z;
#endif
}

// Between 0 and 1, as some number is where z is NaN.
PYNAS_DEVICE float saturate(float z) {
#ifdef __CUDA_ARCH__
  return __saturatef(z);
#else
  return z > 0.0f ? (z < 1.0f ? z : 1.0f) : 0.0f;
#endif
}

PYNAS_DEVICE float activate(Activation act, float z) {
  if (act == Activation::relu) return at_least(0.0f, z);
  if (act == Activation::relu6) return at_most(6.0f, at_least(0.0f, z));
  if (act == Activation::hswish) return z * saturate(z * (1.0f / 6.0f) + 0.5f);
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

// Calls call with the activation as a constant: of many numbers it is asked once.
template <class Call>
PYNAS_DEVICE void with_activation(Activation act, const Call& call) {
  if (act == Activation::identity) return call(std::integral_constant<Activation, Activation::identity>{});
  if (act == Activation::swish) return call(std::integral_constant<Activation, Activation::swish>{});
  if (act == Activation::hswish) return call(std::integral_constant<Activation, Activation::hswish>{});
  if (act == Activation::relu) return call(std::integral_constant<Activation, Activation::relu>{});
  call(std::integral_constant<Activation, Activation::relu6>{});
}

template <int n>
PYNAS_DEVICE void activate(Activation act, float (&z)[n]) {
  with_activation(act, [&z](auto known) {
    PYNAS_UNROLL
    for (int i = 0; i < n; ++i) z[i] = activate(known.value, z[i]);
  });
}

template <int n>
PYNAS_DEVICE void chain(Activation act, float (&dy)[n], const float (&z)[n]) {
  with_activation(act, [&dy, &z](auto known) {
    PYNAS_UNROLL
    for (int i = 0; i < n; ++i) dy[i] = chain(known.value, dy[i], z[i]);
  });
}

}  // namespace pynas::kernels::cuda
