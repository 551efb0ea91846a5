// What the depthwise kernels share: a block of maps, V vectors wide, and rows of activations packed for it.
//
// In channels_last the values of one map lie C apart. A packed row has the block's values of each pixel side by side,
// in the type that is computed in: so a row is converted, and a channel repeated for its maps, once rather than for
// every tap of the kernel, and strides of a power of two do not crowd into a few sets of the cache.
#pragma once

#ifdef __FMA__
#include <immintrin.h>
#endif

#include <new>

#include "depthwise.hpp"
#include "simd.hpp"

namespace pynas::kernels::PYNAS_ISA {
namespace {

constexpr int widest_block = 2;  // vectors
constexpr int ahead = 16;        // pixels that packing asks the memory for beforehand

// Aligned memory without a standard container, whose functions would be shared between instruction sets.
template <class Scalar>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : values_(
            static_cast<Scalar*>(operator new(static_cast<uint64_t>(count) * sizeof(Scalar), std::align_val_t{64}))) {}
  ~Buffer() { operator delete(values_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  Scalar* get() const { return values_; }

 private:
  Scalar* values_;
};

inline int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

inline int64_t most(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Rounded up, of a >= 0.
inline int64_t quotient_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline float widened(float value) {
  return value;
}

inline double widened(double value) {
  return value;
}

inline float widened(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// a b + c, rounded once where the processor can: written out, for the build forbids the compiler to contract.
#if defined(__AVX512F__)
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
  return _mm512_fmadd_pd(a, b, c);
}
#elif defined(__FMA__)
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
  return _mm256_fmadd_pd(a, b, c);
}
#else
template <class Vector>
inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return a * b + c;
}
#endif

template <class T>
inline typename Computed<T>::Vector load_first(const T* from, int64_t count) {
  return count >= Computed<T>::lanes ? load(from) : load_part(from, static_cast<int>(count));
}

template <class T>
inline void store_first(T* to, typename Computed<T>::Vector values, int64_t count) {
  if (count >= Computed<T>::lanes)
    store(to, values);
  else
    store_part(to, values, static_cast<int>(count));
}

// Maps [first, first + V lanes) of a tensor with `maps` of them; those past the end count as zeros.
template <class T, int V>
struct Block {
  typedef typename Computed<T>::Scalar Scalar;
  static constexpr int lanes = Computed<T>::lanes;
  static constexpr int width = V * lanes;

  int64_t first, maps;

  int64_t count() const { return least(width, maps - first); }

  // Packs `pixels` pixels of a row with as many channels as maps.
  void pack(Scalar* to, const T* row, int64_t pixels) const {
    const T* from = row + first;
    if (count() == width) {
      for (int64_t i = 0; i < pixels; ++i, from += maps, to += width) {
        __builtin_prefetch(from + ahead * maps);
        for (int v = 0; v < V; ++v) store(to + v * lanes, load(from + v * lanes));
      }
      return;
    }
    for (int64_t i = 0; i < pixels; ++i, from += maps, to += width)
      for (int v = 0; v < V; ++v) store(to + v * lanes, load_first(from + v * lanes, most(0, count() - v * lanes)));
  }

  // The same for a row whose channels have `multiplier` maps each.
  void pack_repeated(Scalar* to, const T* row, int64_t pixels, int64_t multiplier) const {
    if (multiplier == 1) return pack(to, row, pixels);
    const int64_t channels = maps / multiplier;
    int64_t from[width];
    for (int l = 0; l < width; ++l) from[l] = least(first + l, maps - 1) / multiplier;
    for (int64_t i = 0; i < pixels; ++i, row += channels, to += width)
      for (int l = 0; l < width; ++l) to[l] = widened(row[from[l]]);
  }
};

// Rows of one block's maps, packed with zeros left and right of them, in a ring of `rows`.
template <class T, int V>
struct Ring {
  typedef typename Computed<T>::Scalar Scalar;
  Scalar* memory;
  int64_t rows, pixels, before, after;

  int64_t pitch() const { return (before + pixels + after) * Block<T, V>::width; }
  Scalar* row(int64_t i) const { return memory + i % rows * pitch() + before * Block<T, V>::width; }

  void clear_margins() const {
    constexpr int width = Block<T, V>::width;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t l = 0; l < before * width; ++l) row(i)[l - before * width] = 0;
      for (int64_t l = 0; l < after * width; ++l) row(i)[pixels * width + l] = 0;
    }
  }
};

// How many zeros a packed row needs left and right.
struct Margins {
  int64_t before, after;
};

// Of the rows of x.
inline Margins forward_margins(const DepthwiseShape& shape) {
  const int64_t end = (shape.out_w - 1) * shape.stride_w + shape.kernel_w;
  return {shape.padding_w, most(0, end - shape.padding_w - shape.w)};
}

}  // namespace
}  // namespace pynas::kernels::PYNAS_ISA
