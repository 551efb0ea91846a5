#include "batch_norm.hpp"

#include <cmath>
#include <type_traits>

#include "activation.hpp"
#include "rows.hpp"
#include "simd.hpp"

namespace pynas::kernels::PYNAS_ISA {
namespace {

template <class T>
using Values = std::vector<Statistic<T>>;

template <class T>
void statistics(const T* x, int64_t rows, int64_t channels, Statistic<T>* mean, Statistic<T>* var,
                const Parallel& parallel) {
  typedef Statistic<T> Scalar;
  typedef typename Computed<T>::Vector Vector;
  const Cut<T> cut(1, rows, channels);
  std::vector<double> partial(static_cast<size_t>(cut.total * 2 * channels));  // mean, sum of squares around it
  parallel(cut.total, cut.grain, [&](int64_t begin, int64_t end) {
    Values<T> sums(static_cast<size_t>(2 * cut.period));
    Values<T> centre(static_cast<size_t>(cut.period));
    for (int64_t i = begin; i < end; ++i) {
      const Chunk chunk = cut.chunk(i);
      const T* const from = x + chunk.offset;
      const double count = static_cast<double>(chunk.values / channels);
      double* const means = partial.data() + i * 2 * channels;
      double* const squares = means + channels;
      std::fill(sums.begin(), sums.end(), Scalar{});
      accumulate<T, 1>(chunk.values, cut.period, sums.data(),
                       [&](auto access, int64_t at, int64_t, Vector* to)
                           __attribute__((always_inline)) { to[0] += access.load(from + at); });
      fold<1>(cut, sums.data(), means);
      for (int64_t c = 0; c < channels; ++c) centre[c] = static_cast<Scalar>(means[c] / count);
      repeat(centre.data(), channels, cut.period, centre.data());
      std::fill(sums.begin(), sums.end(), Scalar{});
      accumulate<T, 2>(chunk.values, cut.period, sums.data(),
                       [&](auto access, int64_t at, int64_t column, Vector* to) __attribute__((always_inline)) {
                         const Vector d = access.load(from + at) - load(centre.data() + column);
                         to[0] += d;
                         to[1] += d * d;
                       });
      fold<2>(cut, sums.data(), means);
      for (int64_t c = 0; c < channels; ++c) {
        const double off = means[c] / count;  // what rounding left of the mean
        squares[c] -= means[c] * off;
        means[c] = std::isfinite(centre[c]) ? centre[c] + off : centre[c];
      }
    }
  });
  const double total = static_cast<double>(std::max<int64_t>(rows, 1));
  std::vector<double> mean_of_all(static_cast<size_t>(channels));
  std::vector<double> square(static_cast<size_t>(channels));
  for (int64_t i = 0; i < cut.total; ++i) {
    const double share = static_cast<double>(cut.chunk(i).values / channels) / total;
    const double* const means = partial.data() + i * 2 * channels;
    for (int64_t c = 0; c < channels; ++c) mean_of_all[c] += share * means[c];
  }
  for (int64_t i = 0; i < cut.total; ++i) {
    const double count = static_cast<double>(cut.chunk(i).values / channels);
    const double* const means = partial.data() + i * 2 * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double off = means[c] - mean_of_all[c];
      square[c] += means[channels + c] + count * (off * off);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = static_cast<Scalar>(mean_of_all[c]);
    var[c] = static_cast<Scalar>(square[c] < 0.0 ? 0.0 : square[c] / total);
  }
}

// x of a column to z. Held by value in the loops: pointers that no store can be thought to change.
template <class T>
struct Normaliser {
  typedef typename Computed<T>::Vector Vector;

  Vector centre(Vector x, int64_t column) const { return x - load(mean + column); }
  Vector normalise(Vector centred, int64_t column) const {
    return centred * load(scale + column) + load(bias + column);
  }

  const Statistic<T>*mean, *scale, *bias;
};

// A normalisation's values in each column.
template <class T>
struct Columns {
  typedef Statistic<T> Scalar;

  Columns(const Cut<T>& cut, const Normalisation<T>& norm)
      : mean(static_cast<size_t>(cut.period)), scale(mean.size()), bias(mean.size()) {
    for (int64_t c = 0; c < cut.channels; ++c) {
      scale[c] = 1 / std::sqrt(norm.var[c] + static_cast<Scalar>(norm.eps));
      if (norm.weight != nullptr) scale[c] *= norm.weight[c];
    }
    repeat(norm.mean, cut.channels, cut.period, mean.data());
    repeat(scale.data(), cut.channels, cut.period, scale.data());
    if (norm.bias != nullptr) repeat(norm.bias, cut.channels, cut.period, bias.data());
  }

  Normaliser<T> normaliser() const { return {mean.data(), scale.data(), bias.data()}; }

  Values<T> mean, scale, bias;
};

// 1 / sqrt(var + eps) of a channel, what makes (x - mean) xhat.
template <class T>
double inverse_deviation(const Normalisation<T>& norm, int64_t c) {
  return 1.0 / std::sqrt(static_cast<double>(norm.var[c]) + norm.eps);
}

// A group's gate in each column.
template <class T>
void fill_gate(const Cut<T>& cut, Gate<T> gate, int64_t group, Values<T>& columns) {
  if (gate.by_channel)
    repeat(gate.values + group * cut.channels, cut.channels, cut.period, columns.data());
  else
    std::fill(columns.begin(), columns.end(), gate.values[group]);
}

// Without a gate all samples are one group: small ones then share their chunks.
Shape flat(Shape shape, bool by_group) {
  return by_group ? shape : Shape{1, shape.groups * shape.rows, shape.channels};
}

template <class T, Activation act>
void forward_with(const T* x, Shape given, const Normalisation<T>& norm, Gate<T> gate, const T* residual, T* y,
                  const Parallel& parallel) {
  typedef typename Computed<T>::Vector Vector;
  const bool gated = gate.values != nullptr;
  const Shape shape = flat(given, gated);
  const Cut<T> cut(shape.groups, shape.rows, shape.channels);
  const Columns<T> columns(cut, norm);
  parallel(cut.total, cut.grain, [&](int64_t begin, int64_t end) {
    Values<T> gates(static_cast<size_t>(gated ? cut.period : 0));
    for (int64_t i = begin; i < end; ++i) {
      const Chunk chunk = cut.chunk(i);
      if (gated) fill_gate(cut, gate, chunk.group, gates);
      const Normaliser<T> norm_at = columns.normaliser();
      const Statistic<T>* const gate_at = gates.data();
      const T* const from = x + chunk.offset;
      const T* const added = residual == nullptr ? nullptr : residual + chunk.offset;
      T* const to = y + chunk.offset;
      sweep<Computed<T>::lanes>(chunk.values, cut.period,
                                [&](auto access, int64_t at, int64_t column) __attribute__((always_inline)) {
                                  const Vector centred = norm_at.centre(access.load(from + at), column);
                                  Vector value = activate<act>(norm_at.normalise(centred, column));
                                  if (gated) value *= load(gate_at + column);
                                  if (added != nullptr) value += access.load(added + at);
                                  access.store(to + at, value);
                                });
    }
  });
}

// Sums over the rows of each group, in chunks: add(chunk, sums) adds a chunk's to K x period float sums of columns.
// Returns groups x K x channels totals.
template <int K, class T, class Add>
std::vector<double> summed(const Cut<T>& cut, int64_t groups, const Parallel& parallel, const Add& add) {
  const int64_t size = K * cut.channels;
  std::vector<double> partial(static_cast<size_t>(cut.total * size));
  parallel(cut.total, cut.grain, [&](int64_t begin, int64_t end) {
    Values<T> sums(static_cast<size_t>(K * cut.period));
    for (int64_t i = begin; i < end; ++i) {
      std::fill(sums.begin(), sums.end(), Statistic<T>{});
      add(cut.chunk(i), sums.data());
      fold<K>(cut, sums.data(), partial.data() + i * size);
    }
  });
  if (cut.chunks == 1) return partial;
  std::vector<double> totals(static_cast<size_t>(groups * size));
  for (int64_t i = 0; i < cut.total; ++i) {
    double* const to = totals.data() + i / cut.chunks * size;
    const double* const from = partial.data() + i * size;
    for (int64_t j = 0; j < size; ++j) to[j] += from[j];
  }
  return totals;
}

template <class T, Activation act>
void backward_sums_with(const T* dy, const T* x, Shape given, const Normalisation<T>& norm, Gate<T> gate,
                        Statistic<T>* sums, const Parallel& parallel) {
  typedef typename Computed<T>::Vector Vector;
  const bool gated = gate.values != nullptr;
  const Shape shape = flat(given, gated);
  const Cut<T> cut(shape.groups, shape.rows, shape.channels);
  const Columns<T> columns(cut, norm);
  const std::vector<double> totals = summed<2>(cut, shape.groups, parallel, [&](const Chunk& chunk, Statistic<T>* to) {
    Values<T> gates(static_cast<size_t>(gated ? cut.period : 0));
    if (gated) fill_gate(cut, gate, chunk.group, gates);
    const Normaliser<T> norm_at = columns.normaliser();
    const Statistic<T>* const gate_at = gates.data();
    const T* const from = x + chunk.offset;
    const T* const gradient = dy + chunk.offset;
    accumulate<T, 2>(chunk.values, cut.period, to,
                     [&](auto access, int64_t at, int64_t column, Vector* into) __attribute__((always_inline)) {
                       const Vector centred = norm_at.centre(access.load(from + at), column);
                       Vector d = access.load(gradient + at);
                       if (gated) d *= load(gate_at + column);
                       const Vector dz = chain<act>(d, norm_at.normalise(centred, column));
                       into[0] += dz;
                       into[1] += dz * centred;
                     });
  });
  for (int64_t c = 0; c < shape.channels; ++c) {
    double total = 0.0, along = 0.0;
    for (int64_t g = 0; g < shape.groups && !totals.empty(); ++g) {
      total += totals[(g * 2) * shape.channels + c];
      along += totals[(g * 2 + 1) * shape.channels + c];
    }
    sums[c] = static_cast<Statistic<T>>(total);
    sums[shape.channels + c] = static_cast<Statistic<T>>(along * inverse_deviation(norm, c));
  }
}

template <class T, Activation act>
void backward_with(const T* dy, const T* x, Shape given, const Normalisation<T>& norm, Gate<T> gate,
                   const Statistic<T>* dpool, const Statistic<T>* sums, double count, T* dx, const Parallel& parallel) {
  typedef Statistic<T> Scalar;
  typedef typename Computed<T>::Vector Vector;
  const bool gated = gate.values != nullptr;
  const bool pooled = dpool != nullptr;
  const bool varies = sums != nullptr;
  const Shape shape = flat(given, gated || pooled);
  const Cut<T> cut(shape.groups, shape.rows, shape.channels);
  const Columns<T> columns(cut, norm);
  // dx = scale dz - slope (x - mean) - level
  Values<T> slope(static_cast<size_t>(cut.period)), level(static_cast<size_t>(cut.period));
  if (varies) {
    for (int64_t c = 0; c < shape.channels; ++c) {
      level[c] = static_cast<Scalar>(columns.scale[c] * (sums[c] / count));
      slope[c] =
          static_cast<Scalar>(columns.scale[c] * (sums[shape.channels + c] / count) * inverse_deviation(norm, c));
    }
    repeat(level.data(), shape.channels, cut.period, level.data());
    repeat(slope.data(), shape.channels, cut.period, slope.data());
  }
  parallel(cut.total, cut.grain, [&](int64_t begin, int64_t end) {
    Values<T> gates(static_cast<size_t>(gated ? cut.period : 0));
    Values<T> pools(static_cast<size_t>(pooled ? cut.period : 0));
    for (int64_t i = begin; i < end; ++i) {
      const Chunk chunk = cut.chunk(i);
      if (gated) fill_gate(cut, gate, chunk.group, gates);
      if (pooled) repeat(dpool + chunk.group * cut.channels, cut.channels, cut.period, pools.data());
      const Normaliser<T> norm_at = columns.normaliser();
      const Statistic<T>*const gate_at = gates.data(), *const pool_at = pools.data();
      const Statistic<T>*const slope_at = slope.data(), *const level_at = level.data();
      const T* const from = x + chunk.offset;
      const T* const gradient = dy + chunk.offset;
      T* const to = dx + chunk.offset;
      sweep<Computed<T>::lanes>(
          chunk.values, cut.period, [&](auto access, int64_t at, int64_t column) __attribute__((always_inline)) {
            const Vector centred = norm_at.centre(access.load(from + at), column);
            Vector d = access.load(gradient + at);
            if (gated) d *= load(gate_at + column);
            if (pooled) d += load(pool_at + column);
            Vector out = chain<act>(d, norm_at.normalise(centred, column)) * load(norm_at.scale + column);
            if (varies) out -= centred * load(slope_at + column) + load(level_at + column);
            access.store(to + at, out);
          });
    }
  });
}

template <class T, Activation act>
void pool_with(const T* x, Shape shape, const Normalisation<T>& norm, Statistic<T>* pooled, const Parallel& parallel) {
  typedef typename Computed<T>::Vector Vector;
  const Cut<T> cut(shape.groups, shape.rows, shape.channels);
  const Columns<T> columns(cut, norm);
  const std::vector<double> totals = summed<1>(cut, shape.groups, parallel, [&](const Chunk& chunk, Statistic<T>* to) {
    const Normaliser<T> norm_at = columns.normaliser();
    const T* const from = x + chunk.offset;
    accumulate<T, 1>(chunk.values, cut.period, to,
                     [&](auto access, int64_t at, int64_t column, Vector* into) __attribute__((always_inline)) {
                       const Vector centred = norm_at.centre(access.load(from + at), column);
                       into[0] += activate<act>(norm_at.normalise(centred, column));
                     });
  });
  const double rows = static_cast<double>(shape.rows);
  for (size_t i = 0; i < totals.size(); ++i) pooled[i] = static_cast<Statistic<T>>(totals[i] / rows);
}

template <class T, Activation act>
void gate_sums_with(const T* dy, const T* x, Shape shape, const Normalisation<T>& norm, Statistic<T>* sums,
                    const Parallel& parallel) {
  typedef typename Computed<T>::Vector Vector;
  const Cut<T> cut(shape.groups, shape.rows, shape.channels);
  const Columns<T> columns(cut, norm);
  const std::vector<double> totals = summed<5>(cut, shape.groups, parallel, [&](const Chunk& chunk, Statistic<T>* to) {
    const Normaliser<T> norm_at = columns.normaliser();
    const T* const from = x + chunk.offset;
    const T* const gradient = dy + chunk.offset;
    accumulate<T, 5>(chunk.values, cut.period, to,
                     [&](auto access, int64_t at, int64_t column, Vector* into) __attribute__((always_inline)) {
                       const Vector centred = norm_at.centre(access.load(from + at), column);
                       const Vector z = norm_at.normalise(centred, column);
                       const Vector d = access.load(gradient + at);
                       const Vector dz = chain<act>(d, z);
                       const Vector slope = chain<act>(Vector{} + 1, z);
                       into[0] += d * activate<act>(z);
                       into[1] += dz;
                       into[2] += slope;
                       into[3] += dz * centred;
                       into[4] += slope * centred;
                     });
  });
  for (int64_t g = 0; g < shape.groups && !totals.empty(); ++g)
    for (int k = 0; k < 5; ++k)
      for (int64_t c = 0; c < shape.channels; ++c) {
        const double factor = k < 3 ? 1.0 : inverse_deviation(norm, c);
        sums[(k * shape.groups + g) * shape.channels + c] =
            static_cast<Statistic<T>>(totals[(g * 5 + k) * shape.channels + c] * factor);
      }
}

// Calls call(std::integral_constant<Activation, act>) for a value known at run time.
template <class Call>
void with_activation(Activation act, const Call& call) {
  switch (act) {
    case Activation::identity:
      return call(std::integral_constant<Activation, Activation::identity>());
    case Activation::relu:
      return call(std::integral_constant<Activation, Activation::relu>());
    case Activation::hswish:
      return call(std::integral_constant<Activation, Activation::hswish>());
    case Activation::swish:
      return call(std::integral_constant<Activation, Activation::swish>());
    case Activation::relu6:
      return call(std::integral_constant<Activation, Activation::relu6>());
  }
}

template <class T>
constexpr BatchNormKernels<T> kernels_of = {
    statistics<T>,
    [](const T* x, Shape shape, const Normalisation<T>& norm, Gate<T> gate, const T* residual, T* y,
       const Parallel& parallel) {
      with_activation(norm.act, [&](auto act) { forward_with<T, act()>(x, shape, norm, gate, residual, y, parallel); });
    },
    [](const T* dy, const T* x, Shape shape, const Normalisation<T>& norm, Gate<T> gate, Statistic<T>* sums,
       const Parallel& parallel) {
      with_activation(norm.act,
                      [&](auto act) { backward_sums_with<T, act()>(dy, x, shape, norm, gate, sums, parallel); });
    },
    [](const T* dy, const T* x, Shape shape, const Normalisation<T>& norm, Gate<T> gate, const Statistic<T>* dpool,
       const Statistic<T>* sums, double count, T* dx, const Parallel& parallel) {
      with_activation(norm.act, [&](auto act) {
        backward_with<T, act()>(dy, x, shape, norm, gate, dpool, sums, count, dx, parallel);
      });
    },
    [](const T* x, Shape shape, const Normalisation<T>& norm, Statistic<T>* pooled, const Parallel& parallel) {
      with_activation(norm.act, [&](auto act) { pool_with<T, act()>(x, shape, norm, pooled, parallel); });
    },
    [](const T* dy, const T* x, Shape shape, const Normalisation<T>& norm, Statistic<T>* sums,
       const Parallel& parallel) {
      with_activation(norm.act, [&](auto act) { gate_sums_with<T, act()>(dy, x, shape, norm, sums, parallel); });
    },
};

}  // namespace

const BatchNormKernels<float> batch_norm_float = kernels_of<float>;
const BatchNormKernels<bf16> batch_norm_bf16 = kernels_of<bf16>;
const BatchNormKernels<double> batch_norm_double = kernels_of<double>;

}  // namespace pynas::kernels::PYNAS_ISA
