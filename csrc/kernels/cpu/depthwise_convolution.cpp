#include "depthwise_rows.hpp"

namespace pynas::kernels::PYNAS_ISA {
namespace {

constexpr int64_t chunk_pixels = 1024;  // of what is written
constexpr int at_once = 6;              // pixels whose sums are in registers: 6 x 2 vectors of 16

// One tap of a kernel: where the row that it reads begins, for the first pixel written, and its weights.
template <class Scalar>
struct Tap {
  const Scalar *row, *weight;
};

// to[i to_step] = sum over taps of row[i step] weight, for U pixels i. Steps are in values.
template <class T, int V, int U>
inline void write_pixels(T* to, int64_t to_step, int64_t count, const Tap<typename Computed<T>::Scalar>* taps,
                         int64_t number, int64_t offset, int64_t step) {
  typedef typename Computed<T>::Vector Vector;
  constexpr int lanes = Computed<T>::lanes;
  Vector sums[U][V] = {};
  for (int64_t t = 0; t < number; ++t) {
    const auto* from = taps[t].row + offset;
    Vector weight[V];
    for (int v = 0; v < V; ++v) weight[v] = load(taps[t].weight + v * lanes);
    for (int u = 0; u < U; ++u)
      for (int v = 0; v < V; ++v) sums[u][v] = multiply_add(weight[v], load(from + u * step + v * lanes), sums[u][v]);
  }
  for (int u = 0; u < U; ++u)
    for (int v = 0; v < V; ++v)
      if (count > v * lanes) store_first(to + u * to_step + v * lanes, sums[u][v], count - v * lanes);
}

template <class T, int V>
void write_row(T* to, int64_t to_step, int64_t pixels, int64_t count, const Tap<typename Computed<T>::Scalar>* taps,
               int64_t number, int64_t step) {
  int64_t i = 0;
  for (; i + at_once <= pixels; i += at_once)
    write_pixels<T, V, at_once>(to + i * to_step, to_step, count, taps, number, i * step, step);
  for (; i < pixels; ++i) write_pixels<T, V, 1>(to + i * to_step, to_step, count, taps, number, i * step, step);
}

// weight as (kernel_h, kernel_w, width) of one block's maps, zeros where there is none.
template <class T, int V>
void pack_weight(typename Computed<T>::Scalar* to, const T* weight, const Block<T, V>& block, int64_t taps) {
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t l = 0; l < block.width; ++l)
      to[tap * block.width + l] = l < block.count() ? widened(weight[(block.first + l) * taps + tap]) : 0;
}

// Of the rows of dy, for grad_input.
Margins grad_input_margins(const DepthwiseShape& shape) {
  const int64_t end = (shape.w - 1 + shape.padding_w) / shape.stride_w + 1;
  return {(shape.kernel_w - 1) / shape.stride_w, most(0, end - shape.out_w)};
}

template <class T, int V>
void forward_rows(const DepthwiseShape& shape, const T* x, T* y, const Block<T, V> block, int64_t begin, int64_t end,
                  const typename Computed<T>::Scalar* weight, const Ring<T, V>& ring,
                  Tap<typename Computed<T>::Scalar>* taps) {
  constexpr int width = Block<T, V>::width;
  int64_t packed = 0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / shape.out_h, r = row % shape.out_h;
    if (row == begin || r == 0) packed = 0;
    const int64_t top = r * shape.stride_h - shape.padding_h;
    const int64_t from = most(0, top), to = least(shape.h, top + shape.kernel_h);
    for (packed = most(packed, from); packed < to; ++packed)
      block.pack_repeated(ring.row(packed), x + (image * shape.h + packed) * shape.w * shape.channels, shape.w,
                          shape.multiplier);
    int64_t number = 0;
    for (int64_t i = from; i < to; ++i)
      for (int64_t j = 0; j < shape.kernel_w; ++j)
        taps[number++] = {ring.row(i) + (j - shape.padding_w) * width,
                          weight + ((i - top) * shape.kernel_w + j) * width};
    write_row<T, V>(y + row * shape.out_w * shape.maps() + block.first, shape.maps(), shape.out_w, block.count(), taps,
                    number, shape.stride_w * width);
  }
}

// dx[r, q] = sum over the taps (i, j) that read it, dy[(r + padding_h - i) / stride_h, (q + padding_w - j) / stride_w]
// weight[i, j]. Pixels q with the same remainder of (q + padding_w) / stride_w have the same taps j: they are written
// together.
template <class T, int V>
void grad_input_rows(const DepthwiseShape& shape, const T* dy, T* dx, const Block<T, V> block, int64_t begin,
                     int64_t end, const typename Computed<T>::Scalar* weight, const Ring<T, V>& ring,
                     Tap<typename Computed<T>::Scalar>* taps) {
  constexpr int width = Block<T, V>::width;
  const int64_t maps = shape.maps();
  int64_t packed = 0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / shape.h, r = row % shape.h;
    if (row == begin || r == 0) packed = 0;
    const int64_t above =
        r + shape.padding_h - shape.kernel_h + 1;  // times stride_h: the first row that reads this one
    const int64_t from = quotient_up(most(0, above), shape.stride_h);
    const int64_t to = least(shape.out_h, (r + shape.padding_h) / shape.stride_h + 1);
    for (packed = most(packed, from); packed < to; ++packed)
      block.pack(ring.row(packed), dy + (image * shape.out_h + packed) * shape.out_w * maps, shape.out_w);
    for (int64_t phase = 0; phase < shape.stride_w; ++phase) {
      const int64_t skip = quotient_up(most(0, shape.padding_w - phase), shape.stride_w);
      const int64_t q = skip * shape.stride_w + phase - shape.padding_w;  // the first pixel of this phase
      if (q >= shape.w) continue;
      int64_t number = 0;
      for (int64_t i = from; i < to; ++i)
        for (int64_t j = phase, t = 0; j < shape.kernel_w; j += shape.stride_w, ++t)
          taps[number++] = {ring.row(i) + (skip - t) * width,
                            weight + ((r + shape.padding_h - i * shape.stride_h) * shape.kernel_w + j) * width};
      write_row<T, V>(dx + (row * shape.w + q) * maps + block.first, shape.stride_w * maps,
                      quotient_up(shape.w - q, shape.stride_w), block.count(), taps, number, width);
    }
  }
}

// Cuts what is written into chunks of rows and blocks of maps. from: (rows of from_h x from_w); to: to_h x to_w.
template <bool forward, class T>
void convolve(const DepthwiseShape& shape, const T* from, const T* weight, T* to, const Parallel& parallel) {
  typedef typename Computed<T>::Scalar Scalar;
  constexpr int lanes = Computed<T>::lanes;
  constexpr int width = widest_block * lanes;
  const int64_t taps = shape.kernel_h * shape.kernel_w;
  const int64_t rows = shape.n * (forward ? shape.out_h : shape.h);
  const int64_t chunk_rows = most(1, chunk_pixels / most(1, forward ? shape.out_w : shape.w));
  const int64_t blocks = quotient_up(shape.maps(), width);
  const Margins margins = forward ? forward_margins(shape) : grad_input_margins(shape);
  const int64_t pixels = forward ? shape.w : shape.out_w;

  const auto run = [&]<int V>(int64_t first, int64_t begin, int64_t end, Scalar* memory, Tap<Scalar>* list) {
    const Block<T, V> block{first, shape.maps()};
    pack_weight(memory, weight, block, taps);
    const Ring<T, V> ring{memory + taps * width, shape.kernel_h, pixels, margins.before, margins.after};
    ring.clear_margins();
    if constexpr (forward)
      forward_rows<T, V>(shape, from, to, block, begin, end, memory, ring, list);
    else
      grad_input_rows<T, V>(shape, from, to, block, begin, end, memory, ring, list);
  };
  parallel(quotient_up(rows, chunk_rows) * blocks, 1, [&](int64_t begin, int64_t end) {
    const Buffer<Scalar> memory((taps + shape.kernel_h * (margins.before + pixels + margins.after)) * width);
    const Buffer<Tap<Scalar>> list(taps);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * width, row = task / blocks * chunk_rows;
      const int64_t stop = least(rows, row + chunk_rows);
      if (shape.maps() - first > lanes)
        run.template operator()<2>(first, row, stop, memory.get(), list.get());
      else
        run.template operator()<1>(first, row, stop, memory.get(), list.get());
    }
  });
}

template <class T>
constexpr DepthwiseConvolutionOf<T> convolution_of{convolve<true, T>, convolve<false, T>};

}  // namespace

const DepthwiseConvolution depthwise_convolution{convolution_of<float>, convolution_of<bf16>, convolution_of<double>};

}  // namespace pynas::kernels::PYNAS_ISA
