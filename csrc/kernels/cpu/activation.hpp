// The networks' activations on vectors: act(z), and dy act'(z). At the borders and for NaN as torch's own.
#pragma once

#include <cmath>

#include "simd.hpp"

namespace pynas::kernels::PYNAS_ISA {

// e^x within 2 ulp; zero where it would be subnormal, infinite above 88.7.
inline Floats exponential(Floats x) {
  const Floats low = all<Floats>(-87.33654f);
  const Floats high = all<Floats>(88.72283f);
  const Floats clamped = x < low ? low : (x > high ? high : x);
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
  const Floats magic = all<Floats>(12582912.0f);
  const Floats shifted = clamped * 1.44269504f + magic;
  const Floats whole = shifted - magic;
  const Floats rest = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
  // Cephes' polynomial for e^r - 1 - r over r^2, |r| <= ln(2) / 2.
  Floats p = all<Floats>(1.9875691500e-4f);
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * (rest * rest) + rest + 1.0f;
  // 2^n in two factors: n may be 128, which no float's exponent holds.
  const Bits n = reinterpret_cast<Bits>(shifted) - 0x4b400000u;
  const Floats scaled = p * reinterpret_cast<Floats>((n + 126u) << 23) * 2.0f;
  return x > high ? all<Floats>(__builtin_inff()) : scaled;
}

inline Doubles exponential(Doubles x) {
  for (int i = 0; i < Computed<double>::lanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

template <class Vector>
inline Vector sigmoid(Vector z) {
  return 1 / (1 + exponential(-z));
}

template <Activation act, class Vector>
inline Vector activate(Vector z) {
  const Vector zero = {};
  if constexpr (act == Activation::relu) return z < 0 ? zero : z;
  if constexpr (act == Activation::relu6) {
    const Vector above = z < 0 ? zero : z;
    return above > 6 ? zero + 6 : above;
  }
  if constexpr (act == Activation::hswish) {
    const Vector six = zero + 6;
    const Vector raised = z + 3;
    const Vector above = raised < 0 ? zero : raised;
    return z * (above > 6 ? six : above) * (static_cast<decltype(z[0] + 0)>(1) / 6);
  }
  if constexpr (act == Activation::swish) return z * sigmoid(z);
  return z;
}

template <Activation act, class Vector>
inline Vector chain(Vector dy, Vector z) {
  const Vector zero = {};
  if constexpr (act == Activation::relu) return z <= 0 ? zero : dy;
  if constexpr (act == Activation::relu6) return z <= 0 ? zero : (z >= 6 ? zero : dy);
  if constexpr (act == Activation::hswish) {
    const Vector between = dy * (z * (static_cast<decltype(z[0] + 0)>(1) / 3) + (zero + 1) / 2);
    return z <= -3 ? zero : (z >= 3 ? dy : between);
  }
  if constexpr (act == Activation::swish) {
    const Vector s = sigmoid(z);
    return dy * s * (1 + z * (1 - s));
  }
  return dy;
}

}  // namespace pynas::kernels::PYNAS_ISA
