// Batch-norm as passes of its own over rows of channels: statistics, application, and both passes of its backward. Any
// number of channels; 16 bytes at once where rows and pointers allow that.
#pragma once

#include "norm.hpp"

namespace pynas::kernels::cuda::batch_norm {

constexpr int threads = 256;
constexpr int most_chunks = most_blocks < 1024 ? most_blocks : 1024, least_rows = 32;

// Rows in chunks, channels in groups, of which a block has one each. Chunks are the same for every width of vectors.
struct Cut {
  int groups, wide;    // groups of `wide` vectors of a row, a thread for each
  int high;            // rows that a block reads at once
  int chunks, length;  // chunks of `length` rows

  PYNAS_BOTH static Cut of(Pixels pixels, int channels, int vector) {
    const int rows = pixels.groups * pixels.rows, vectors = channels / vector, most = threads / vector;
    Cut c{};
    c.groups = (vectors + most - 1) / most;
    c.wide = (vectors + c.groups - 1) / c.groups;
    c.high = threads / c.wide;
    const int chunks = most_chunks / c.groups > 1 ? most_chunks / c.groups : 1;
    c.length = rows / chunks + (rows % chunks != 0);
    if (c.length < least_rows) c.length = least_rows;
    c.chunks = rows / c.length + (rows % c.length != 0);
    return c;
  }
};

// What a thread has of a block's rows: every step-th from begin on, and `vector` channels from c on.
struct Share {
  PYNAS_DEVICE Share(const Cut& cut, Pixels pixels, int channels, int vector, Index at, int t) {
    const int rows = pixels.groups * pixels.rows, first = at.y * cut.length;
    c = (at.x * cut.wide + t % cut.wide) * vector;
    real = t / cut.wide < cut.high && c < channels;
    begin = static_cast<uint32_t>(first + t / cut.wide);
    end = static_cast<uint32_t>(real ? (rows - first < cut.length ? rows : first + cut.length) : 0);
    step = static_cast<uint32_t>(cut.high);
  }
  int c;
  bool real;
  uint32_t begin, end, step;  // beyond the last row there may be no number below 2^31
};

PYNAS_DEVICE float gate_at(Gate gate, uint32_t group, int channels, int c) {
  if (gate.values == nullptr) return 1.0f;
  return gate.values[gate.by_channel ? static_cast<int64_t>(group) * channels + c : group];
}

// To the value of each thread of a block's first row that of the threads below it, `left` rows in all; add(to, from)
// of threads' numbers. In an order that depends on `left` alone.
template <class Add>
PYNAS_DEVICE void over_rows(const Block<threads>& block, const Cut& cut, const Add& add) {
  for (int left = cut.high; left > 1;) {
    const int half = (left + 1) / 2;
    block.each([&](int t) {
      if (t < (left - half) * cut.wide) add(t, t + half * cut.wide);
    });
    left = half;
  }
}

// Moments of each chunk less x's first row: that is near enough to the mean, however large this is, for nothing to be
// lost, and the same for all, so that sums can be added.
template <class T, int n>
struct Statistics {
  static constexpr int threads = batch_norm::threads, blocks = 2;
  struct Shared {
    float sum[n][threads], squares[n][threads];
  };
  struct Arguments {
    Pixels pixels;
    int channels;
    const T* x;
    float* moments;  // (chunks, 3, channels)
    float* shift;    // (channels), the first row
  };
  static Grid grid(const Arguments& a) {
    const Cut cut = Cut::of(a.pixels, a.channels, n);
    return {cut.groups, cut.chunks};
  }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const Cut cut = Cut::of(a.pixels, a.channels, n);
    block.each([&](int t) {
      const Share share(cut, a.pixels, a.channels, n, at, t);
      float sum[n] = {}, squares[n] = {}, shift[n] = {};
      if (share.real) widen(load<n>(a.x + share.c), shift);
      for (uint32_t r = share.begin; r < share.end; r += share.step) {
        float x[n];
        widen(load<n>(a.x + static_cast<int64_t>(r) * a.channels + share.c), x);
        PYNAS_UNROLL
        for (int v = 0; v < n; ++v) {
          const float off = x[v] - shift[v];
          sum[v] += off;
          squares[v] += off * off;
        }
      }
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) {
        shared.sum[v][t] = sum[v];
        shared.squares[v][t] = squares[v];
      }
    });
    over_rows(block, cut, [&](int to, int from) {
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) {
        shared.sum[v][to] += shared.sum[v][from];
        shared.squares[v][to] += shared.squares[v][from];
      }
    });
    block.each([&](int t) {
      const Share share(cut, a.pixels, a.channels, n, at, t);
      if (t >= cut.wide || !share.real) return;
      const float count = static_cast<float>(share.end - share.begin);
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) {
        const float off = divide(shared.sum[v][t], count), around = shared.squares[v][t] - shared.sum[v][t] * off;
        float* const to = a.moments + static_cast<int64_t>(at.y) * 3 * a.channels + share.c + v;
        to[0] = count;
        to[a.channels] = off;
        to[2 * a.channels] = around < 0.0f ? 0.0f : around;
        if (at.y == 0) a.shift[share.c + v] = value_of(a.x[share.c + v]);
      }
    });
  }
};

// y = act(norm(x)) gate + residual.
template <class T, int n>
struct Forward {
  static constexpr int threads = batch_norm::threads, blocks = 2;
  struct Shared {};
  struct Arguments {
    Pixels pixels;
    int channels;
    const T* x;
    Norm norm;
    Gate gate;
    const T* residual;
    T* y;
  };
  static Grid grid(const Arguments& a) {
    const Cut cut = Cut::of(a.pixels, a.channels, n);
    return {cut.groups, cut.chunks};
  }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared&, const Arguments& a, Index at) {
    const Cut cut = Cut::of(a.pixels, a.channels, n);
    block.own([&](int t) {
      const Share share(cut, a.pixels, a.channels, n, at, t);
      if (!share.real) return;
      Channel channel[n];
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) channel[v] = Channel(a.norm, share.c + v);
      for (uint32_t r = share.begin; r < share.end; r += share.step) {
        const int64_t from = static_cast<int64_t>(r) * a.channels + share.c;
        const uint32_t group = a.gate.values == nullptr ? 0 : r / static_cast<uint32_t>(a.pixels.rows);
        float y[n], added[n] = {};
        widen(load<n>(a.x + from), y);
        if (a.residual != nullptr) widen(load<n>(a.residual + from), added);
        apply(channel, a.norm.act, y);
        PYNAS_UNROLL
        for (int v = 0; v < n; ++v) {
          y[v] *= gate_at(a.gate, group, a.channels, share.c + v);
          if (a.residual != nullptr) y[v] += added[v];
        }
        store<n>(a.y + from, narrow<T>(y));
      }
    });
  }
};

// Of each chunk the sums of dz and of dz (x - mean), dz = d gate act'(norm(x)).
template <class T, int n>
struct BackwardSums {
  static constexpr int threads = batch_norm::threads, blocks = 2;
  struct Shared {
    float total[n][threads], along[n][threads];
  };
  struct Arguments {
    Pixels pixels;
    int channels;
    const T *d, *x;
    Norm norm;
    Gate gate;
    float* partial;  // (chunks, 2, channels)
  };
  static Grid grid(const Arguments& a) {
    const Cut cut = Cut::of(a.pixels, a.channels, n);
    return {cut.groups, cut.chunks};
  }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared& shared, const Arguments& a, Index at) {
    const Cut cut = Cut::of(a.pixels, a.channels, n);
    block.each([&](int t) {
      const Share share(cut, a.pixels, a.channels, n, at, t);
      Channel channel[n];
      float total[n] = {}, along[n] = {};
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v)
        if (share.real) channel[v] = Channel(a.norm, share.c + v);
      for (uint32_t r = share.begin; r < share.end; r += share.step) {
        const int64_t from = static_cast<int64_t>(r) * a.channels + share.c;
        const uint32_t group = a.gate.values == nullptr ? 0 : r / static_cast<uint32_t>(a.pixels.rows);
        float dz[n], x[n], z[n];
        widen(load<n>(a.d + from), dz);
        widen(load<n>(a.x + from), x);
        PYNAS_UNROLL
        for (int v = 0; v < n; ++v) {
          dz[v] *= gate_at(a.gate, group, a.channels, share.c + v);
          z[v] = channel[v](x[v]);
        }
        chain(a.norm.act, dz, z);
        PYNAS_UNROLL
        for (int v = 0; v < n; ++v) {
          total[v] += dz[v];
          along[v] += dz[v] * (x[v] - channel[v].mean);
        }
      }
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) {
        shared.total[v][t] = total[v];
        shared.along[v][t] = along[v];
      }
    });
    over_rows(block, cut, [&](int to, int from) {
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) {
        shared.total[v][to] += shared.total[v][from];
        shared.along[v][to] += shared.along[v][from];
      }
    });
    block.each([&](int t) {
      const Share share(cut, a.pixels, a.channels, n, at, t);
      if (t >= cut.wide || !share.real) return;
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) {
        float* const to = a.partial + static_cast<int64_t>(at.y) * 2 * a.channels + share.c + v;
        to[0] = shared.total[v][t];
        to[a.channels] = shared.along[v][t];
      }
    });
  }
};

// dx, the gradient of the norm's input.
template <class T, int n>
struct Backward {
  static constexpr int threads = batch_norm::threads, blocks = 2;
  struct Shared {};
  struct Arguments {
    Pixels pixels;
    int channels;
    const T *d, *x;
    NormBackward after;
    T* dx;
  };
  static Grid grid(const Arguments& a) {
    const Cut cut = Cut::of(a.pixels, a.channels, n);
    return {cut.groups, cut.chunks};
  }

  PYNAS_DEVICE static void run(const Block<threads>& block, Shared&, const Arguments& a, Index at) {
    const Cut cut = Cut::of(a.pixels, a.channels, n);
    block.own([&](int t) {
      const Share share(cut, a.pixels, a.channels, n, at, t);
      if (!share.real) return;
      const NormBackward& after = a.after;
      ChannelBackward channel[n];
      PYNAS_UNROLL
      for (int v = 0; v < n; ++v) channel[v] = ChannelBackward(after, share.c + v, a.channels);
      for (uint32_t r = share.begin; r < share.end; r += share.step) {
        const int64_t from = static_cast<int64_t>(r) * a.channels + share.c;
        const uint32_t group = r / static_cast<uint32_t>(a.pixels.rows);
        float d[n], x[n];
        widen(load<n>(a.d + from), d);
        widen(load<n>(a.x + from), x);
        PYNAS_UNROLL
        for (int v = 0; v < n; ++v) {
          const int c = share.c + v;
          d[v] *= gate_at(after.gate, group, a.channels, c);
          if (after.dpool != nullptr) d[v] += after.dpool[static_cast<int64_t>(group) * a.channels + c];
        }
        apply(channel, after.norm.act, d, x);
        store<n>(a.dx + from, narrow<T>(d));
      }
    });
  }
};

}  // namespace pynas::kernels::cuda::batch_norm
