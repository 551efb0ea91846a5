// The build contracts a * b + c where it can; here each rounding is part of the definition. Before the includes, so
// that their functions have the same options and can be inlined.
#ifdef __GNUC__
#pragma GCC optimize("fp-contract=off")
#endif

#include "arena.hpp"

#include <algorithm>

#include "simd.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pynas::kernels::PYNAS_ISA {
namespace {

constexpr int lanes = PYNAS_LANES;

#if defined(__FMA__) && PYNAS_LANES == 16
inline Floats fused(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Floats root(Floats a) {
  return _mm512_sqrt_ps(a);
}
#elif defined(__FMA__) && PYNAS_LANES == 8
inline Floats fused(Floats a, Floats b, Floats c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Floats root(Floats a) {
  return _mm256_sqrt_ps(a);
}
#elif defined(__FP_FAST_FMAF)
inline Floats fused(Floats a, Floats b, Floats c) {
  for (int i = 0; i < lanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
inline Floats root(Floats a) {
  for (int i = 0; i < lanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
#else
// a b + c rounded once, in float64: the product is exact, and the sum is rounded to odd where it is not, after which
// rounding to float32 gives the right value. What the sum lost is found as Knuth's TwoSum does.
inline Floats fused(Floats a, Floats b, Floats c) {
  typedef double Wide __attribute__((vector_size(8 * PYNAS_LANES)));
  typedef int64_t WideBits __attribute__((vector_size(8 * PYNAS_LANES)));
  const Wide product = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
  const Wide addend = __builtin_convertvector(c, Wide);
  const Wide sum = product + addend;
  const Wide part = sum - product;
  const Wide lost = (product - (sum - part)) + (addend - part);
  const WideBits bits = reinterpret_cast<WideBits>(sum);
  const WideBits inexact = (lost < 0.0) | (lost > 0.0);  // false for NaN, that is where the sum is infinite
  const WideBits even = (bits & 1) == 0;
  const WideBits towards_lost = (lost < 0.0) == (sum < 0.0) ? WideBits{} + 1 : WideBits{} - 1;
  return __builtin_convertvector(reinterpret_cast<Wide>(bits + (inexact & even & towards_lost)), Floats);
}
inline Floats root(Floats a) {
#if defined(__SSE2__) && PYNAS_LANES == 4
  return _mm_sqrt_ps(a);
#else
  for (int i = 0; i < lanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}
#endif

// Vectors in the middle of a run, and what is left at its end.
struct Whole {
  template <class T>
  Floats get(const T* from) const {
    return load(from);
  }
  template <class T>
  void put(T* to, Floats values) const {
    store(to, values);
  }
};

struct Part {
  int count;
  template <class T>
  Floats get(const T* from) const {
    return load_part(from, count);
  }
  template <class T>
  void put(T* to, Floats values) const {
    store_part(to, values, count);
  }
};

template <class Body>
inline void over(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(i, Whole{});
  if (i < count) body(i, Part{static_cast<int>(count - i)});
}

// torch.lerp: from the nearer end.
struct Lerp {
  explicit Lerp(float share) : late(share >= 0.5f), factor(all<Floats>(late ? share - 1.0f : share)) {}

  Floats operator()(Floats from, Floats to) const { return fused(factor, to - from, late ? to : from); }

  bool late;
  Floats factor;
};

template <class T>
void average_of(float* average, const T* values, float share, int64_t begin, int64_t end) {
  const Lerp lerp(share);
  average += begin;
  values += begin;
  over(end - begin,
       [&](int64_t i, auto part) { part.put(average + i, lerp(part.get(average + i), part.get(values + i))); });
}

inline Floats rounded_to_bf16(Floats values) {
  bf16 stored[lanes];
  store(stored, values);
  return load(stored);
}

// The float32 master of a bf16 parameter, unless the parameter was set to something else since.
template <class Access>
inline Floats master(const float* weights, const bf16* low, Access part) {
  const Floats kept = part.get(weights), shown = part.get(low);
  return rounded_to_bf16(kept) == shown ? kept : shown;
}

// Values [start, start + count) of a chunk, whose parameter and gradient are of type T.
template <class T, bool squared, bool averaged>
void update(const ArenaStep& step, const ArenaChunk& chunk, const T* gradient, int64_t start, int64_t count) {
  constexpr bool mixed = sizeof(T) == sizeof(bf16);
  const ArenaGroup& group = step.groups[chunk.group];
  const Floats lr = all<Floats>(group.lr), minus_lr = all<Floats>(-group.lr);
  const Floats weight_decay = all<Floats>(group.weight_decay), friction = all<Floats>(group.momentum);
  const Floats decay = all<Floats>(group.decay), share = all<Floats>(group.share), eps = all<Floats>(group.eps);
  const bool decays = group.weight_decay != 0.0f;  // 0 times an infinite weight would be NaN
  const Lerp lerp(step.average_share);
  float* const weights = step.weights + chunk.offset + start;
  float* const squares = squared ? step.squares + chunk.offset + start : nullptr;
  float* const momentum = step.momentum + chunk.offset + start;
  float* const average = averaged ? step.average + chunk.offset + start : nullptr;
  bf16* const low = mixed ? step.low + chunk.low + start : nullptr;
  gradient += chunk.start + start;
  over(count, [&](int64_t i, auto part) {
    Floats weight;
    if constexpr (mixed)
      weight = master(weights + i, low + i, part);
    else
      weight = part.get(weights + i);
    Floats slope = part.get(gradient + i);
    if (decays) slope = fused(weight_decay, weight, slope);
    Floats moved = part.get(momentum + i) * friction;
    if constexpr (squared) {
      const Floats square = fused(share * slope, slope, part.get(squares + i) * decay);
      part.put(squares + i, square);
      moved = moved + lr * slope / root(square + eps);
      weight = weight - moved;
    } else {
      moved = moved + slope;
      weight = fused(minus_lr, moved, weight);
    }
    part.put(momentum + i, moved);
    part.put(weights + i, weight);
    if constexpr (mixed) part.put(low + i, weight);
    if constexpr (averaged) part.put(average + i, lerp(part.get(average + i), weight));
  });
}

// Parameters without a gradient and buffers: the average alone follows them.
void follow(const ArenaStep& step, const ArenaChunk& chunk, int64_t start, int64_t count) {
  const int64_t first = chunk.offset + start;
  if (chunk.low < 0) return average_of(step.average, step.weights, step.average_share, first, first + count);
  const Lerp lerp(step.average_share);
  const bf16* low = step.low + chunk.low + start;
  over(count, [&](int64_t i, auto part) {
    const Floats weight = master(step.weights + first + i, low + i, part);
    part.put(step.weights + first + i, weight);
    part.put(step.average + first + i, lerp(part.get(step.average + first + i), weight));
  });
}

template <class T>
void update_as(const ArenaStep& step, const ArenaChunk& chunk, const T* gradient, int64_t start, int64_t count) {
  const bool averaged = step.average != nullptr;
  if (step.squares != nullptr)
    (averaged ? update<T, true, true> : update<T, true, false>)(step, chunk, gradient, start, count);
  else
    (averaged ? update<T, false, true> : update<T, false, false>)(step, chunk, gradient, start, count);
}

// body(chunk, start, count) for what of each chunk lies in [begin, end).
template <class Body>
void over_chunks(const ArenaChunk* chunks, int64_t chunk_count, int64_t begin, int64_t end, const Body& body) {
  const ArenaChunk* const last = chunks + chunk_count;
  const ArenaChunk* chunk =
      std::partition_point(chunks, last, [&](const ArenaChunk& other) { return other.offset + other.count <= begin; });
  for (; chunk != last && chunk->offset < end; ++chunk) {
    const int64_t start = std::max(begin - chunk->offset, int64_t{0});
    body(*chunk, start, std::min(end - chunk->offset, chunk->count) - start);
  }
}

void step(const ArenaStep& step, int64_t begin, int64_t end) {
  over_chunks(step.chunks, step.chunk_count, begin, end, [&](const ArenaChunk& chunk, int64_t start, int64_t count) {
    const int64_t gradient = chunk.gradient < 0 ? 0 : step.gradients[chunk.gradient].address;
    if (gradient == 0) {
      if (step.average != nullptr) follow(step, chunk, start, count);
    } else if (chunk.low < 0) {
      update_as(step, chunk, reinterpret_cast<const float*>(gradient), start, count);
    } else {
      update_as(step, chunk, reinterpret_cast<const bf16*>(gradient), start, count);
    }
  });
}

void follow_elsewhere(const ArenaFollow& follow, int64_t begin, int64_t end) {
  over_chunks(
      follow.chunks, follow.chunk_count, begin, end, [&](const ArenaChunk& chunk, int64_t start, int64_t count) {
        float* const average = follow.average + chunk.offset + start;
        const int64_t values = follow.values[chunk.gradient].address;
        if (chunk.low < 0)
          average_of(average, reinterpret_cast<const float*>(values) + chunk.start + start, follow.share, 0, count);
        else
          average_of(average, reinterpret_cast<const bf16*>(values) + chunk.start + start, follow.share, 0, count);
      });
}

}  // namespace

const ArenaKernels arena{average_of<float>, average_of<bf16>, follow_elsewhere, step};

}  // namespace pynas::kernels::PYNAS_ISA
