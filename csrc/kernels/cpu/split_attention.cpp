#include "split_attention.hpp"

#include "depthwise_rows.hpp"

namespace pynas::kernels::PYNAS_ISA {
namespace {

constexpr int64_t chunk_pixels = 256;  // of one image, that a thread takes at once
constexpr int64_t block_pixels = 32;   // summed before float64: one after another, more would lose digits
constexpr int64_t group_pixels = 8;    // whose sums stay in registers
constexpr int64_t grain = 1 << 14;     // values that a thread takes at least

typedef int64_t Longs __attribute__((vector_size(4 * PYNAS_LANES)));

// Integers as wide as a vector's values, to choose among them.
inline Bits choice(Floats) {
  return Bits{};
}

inline Longs choice(Doubles) {
  return Longs{};
}

// The values of a vector of channels, each S times: vector v of the S that this makes.
template <int S, class Vector>
inline Vector repeated(Vector channels, int v) {
  constexpr int lanes = sizeof(Vector) / sizeof(channels[0]);
  auto from = choice(channels);
  for (int l = 0; l < lanes; ++l) from[l] = (v * lanes + l) / S;
  return __builtin_shuffle(channels, from);
}

// Sums of S neighbours of S vectors, a power of two: in pairs, in place, until one vector is left.
template <int S, class Vector>
inline Vector sum_of_splits(Vector (&values)[S]) {
  constexpr int lanes = sizeof(Vector) / sizeof(values[0][0]);
  auto even = choice(values[0]), odd = even;
  for (int l = 0; l < lanes; ++l) {
    even[l] = 2 * l;
    odd[l] = 2 * l + 1;
  }
  for (int left = S; left > 1; left /= 2)
    for (int i = 0; i < left / 2; ++i)
      values[i] = __builtin_shuffle(values[2 * i], values[2 * i + 1], even) +
                  __builtin_shuffle(values[2 * i], values[2 * i + 1], odd);
  return values[0];
}

// sums[c, s] += sum over `pixels` pixels of x, or of dy x; and where there is a dy, dx = dy weights.
template <class T, int S, bool weighted>
void add_pixels(const SplitShape& shape, int64_t pixels, const T* x, const T* dy, const T* weights, T* dx,
                typename Computed<T>::Scalar* sums) {
  typedef typename Computed<T>::Vector Vector;
  constexpr int lanes = Computed<T>::lanes;
  const int64_t maps = shape.maps();
  for (int64_t c = 0; c < shape.channels; c += lanes) {
    const int64_t left = least(lanes, shape.channels - c);
    Vector found[S], weight[S];
    for (int v = 0; v < S; ++v) {
      const int64_t count = most(0, left * S - v * lanes);
      found[v] = Vector{};
      if constexpr (weighted) weight[v] = load_first(weights + c * S + v * lanes, count);
    }
    for (int64_t p = 0; p < pixels; ++p) {
      Vector gradient{};
      if constexpr (weighted) gradient = load_first(dy + p * shape.channels + c, left);
      for (int v = 0; v < S; ++v) {
        const int64_t count = left * S - v * lanes, at = p * maps + c * S + v * lanes;
        if (count <= 0) break;
        const Vector value = load_first(x + at, count);
        if constexpr (weighted) {
          const Vector mine = repeated<S>(gradient, v);
          store_first(dx + at, mine * weight[v], count);
          found[v] = multiply_add(mine, value, found[v]);
        } else {
          found[v] += value;
        }
      }
    }
    for (int v = 0; v < S; ++v) {
      typename Computed<T>::Scalar* const to = sums + c * S + v * lanes;
      const int64_t count = left * S - v * lanes;
      if (count > 0) store_first(to, load_first(to, count) + found[v], count);
    }
  }
}

// Sums over each image's pixels, as float64 (n, channels, splits), handed to finish(image, sums).
template <class T, int S, bool weighted, class Finish>
void sum_pixels(const SplitShape& shape, const T* x, const T* dy, const T* weights, T* dx, const Parallel& parallel,
                const Finish& finish) {
  typedef typename Computed<T>::Scalar Scalar;
  const int64_t chunks = quotient_up(shape.pixels, chunk_pixels), maps = shape.maps();
  const Buffer<double> sums(most(1, shape.n * chunks * maps));
  const int64_t tasks = most(1, grain / most(1, least(shape.pixels, chunk_pixels) * maps));
  parallel(shape.n * chunks, tasks, [&](int64_t begin, int64_t end) {
    const Buffer<Scalar> block(most(1, maps));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / chunks, first = task % chunks * chunk_pixels;
      const int64_t stop = least(shape.pixels, first + chunk_pixels);
      double* const to = sums.get() + task * maps;
      for (int64_t i = 0; i < maps; ++i) to[i] = 0;
      for (int64_t from = first; from < stop; from += block_pixels) {
        const int64_t end_of_block = least(stop, from + block_pixels);
        for (int64_t i = 0; i < maps; ++i) block.get()[i] = 0;
        for (int64_t p = from; p < end_of_block; p += group_pixels) {
          const int64_t at = image * shape.pixels + p;
          add_pixels<T, S, weighted>(shape, least(group_pixels, end_of_block - p), x + at * maps,
                                     weighted ? dy + at * shape.channels : nullptr,
                                     weighted ? weights + image * maps : nullptr, weighted ? dx + at * maps : nullptr,
                                     block.get());
        }
        for (int64_t i = 0; i < maps; ++i) to[i] += block.get()[i];
      }
    }
  });
  const Buffer<double> totals(most(1, maps));
  for (int64_t image = 0; image < shape.n; ++image) {
    for (int64_t i = 0; i < maps; ++i) totals.get()[i] = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t i = 0; i < maps; ++i) totals.get()[i] += sums.get()[(image * chunks + chunk) * maps + i];
    finish(image, totals.get());
  }
}

template <class T>
void store_one(T* to, double value) {
  typename Computed<T>::Vector rounded = {static_cast<typename Computed<T>::Scalar>(value)};
  store_part(to, rounded, 1);
}

template <class T, int S>
void pool(const SplitShape& shape, const T* x, T* pooled, const Parallel& parallel) {
  sum_pixels<T, S, false>(shape, x, static_cast<const T*>(nullptr), static_cast<const T*>(nullptr),
                          static_cast<T*>(nullptr), parallel, [&](int64_t image, const double* sums) {
                            for (int64_t c = 0; c < shape.channels; ++c) {
                              double total = 0;
                              for (int s = 0; s < S; ++s) total += sums[c * S + s];
                              store_one(pooled + image * shape.channels + c, total / static_cast<double>(shape.pixels));
                            }
                          });
}

template <class T>
void pool_backward(const SplitShape& shape, const T* dpooled, T* dx, const Parallel& parallel) {
  const int64_t maps = shape.maps(), row = maps * static_cast<int64_t>(sizeof(T));
  parallel(shape.n, most(1, grain / most(1, shape.pixels * maps)), [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      T* const first = dx + image * shape.pixels * maps;
      for (int64_t c = 0; c < shape.channels; ++c) {
        const double value = widened(dpooled[image * shape.channels + c]);
        for (int64_t s = 0; s < shape.splits; ++s)
          store_one(first + c * shape.splits + s, value / static_cast<double>(shape.pixels));
      }
      for (int64_t p = 1; p < shape.pixels; ++p) std::memcpy(first + p * maps, first, static_cast<uint64_t>(row));
    }
  });
}

template <class T, int S>
void combine(const SplitShape& shape, const T* x, const T* weights, T* y, const Parallel& parallel) {
  typedef typename Computed<T>::Vector Vector;
  constexpr int lanes = Computed<T>::lanes;
  const int64_t maps = shape.maps();
  parallel(shape.n * shape.pixels, most(1, grain / maps), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const T* const weight = weights + p / shape.pixels * maps;
      for (int64_t c = 0; c < shape.channels; c += lanes) {
        const int64_t left = least(lanes, shape.channels - c);
        Vector products[S];
        for (int v = 0; v < S; ++v) {
          const int64_t count = most(0, left * S - v * lanes), at = c * S + v * lanes;
          products[v] = load_first(x + p * maps + at, count) * load_first(weight + at, count);
        }
        store_first(y + p * shape.channels + c, sum_of_splits(products), left);
      }
    }
  });
}

template <class T, int S>
void combine_backward(const SplitShape& shape, const T* dy, const T* x, const T* weights, T* dx, T* dweights,
                      const Parallel& parallel) {
  sum_pixels<T, S, true>(shape, x, dy, weights, dx, parallel, [&](int64_t image, const double* sums) {
    for (int64_t i = 0; i < shape.maps(); ++i) store_one(dweights + image * shape.maps() + i, sums[i]);
  });
}

template <class T>
constexpr SplitAttentionOf<T> split_attention_of{
    [](const SplitShape& shape, const T* x, T* pooled, const Parallel& parallel) {
      (shape.splits == 1 ? pool<T, 1> : shape.splits == 2 ? pool<T, 2> : pool<T, 4>)(shape, x, pooled, parallel);
    },
    pool_backward<T>,
    [](const SplitShape& shape, const T* x, const T* weights, T* y, const Parallel& parallel) {
      (shape.splits == 1   ? combine<T, 1>
       : shape.splits == 2 ? combine<T, 2>
                           : combine<T, 4>)(shape, x, weights, y, parallel);
    },
    [](const SplitShape& shape, const T* dy, const T* x, const T* weights, T* dx, T* dweights,
       const Parallel& parallel) {
      (shape.splits == 1   ? combine_backward<T, 1>
       : shape.splits == 2 ? combine_backward<T, 2>
                           : combine_backward<T, 4>)(shape, dy, x, weights, dx, dweights, parallel);
    }};

}  // namespace

const SplitAttention split_attention{split_attention_of<float>, split_attention_of<bf16>, split_attention_of<double>};

}  // namespace pynas::kernels::PYNAS_ISA
