#include "depthwise_rows.hpp"

namespace pynas::kernels::PYNAS_ISA {
namespace {

constexpr int64_t chunk_pixels = 2048;  // of dy, whose products are summed before float64

// How dy's rows, n out_h of them, and its maps are cut into tasks.
struct Cut {
  int64_t rows, chunk_rows, chunks, blocks;

  Cut(const DepthwiseShape& shape, int64_t width)
      : rows(shape.n * shape.out_h),
        chunk_rows(most(1, chunk_pixels / most(1, shape.out_w))),
        chunks(quotient_up(rows, chunk_rows)),
        blocks(quotient_up(shape.maps(), width)) {}
};

// sums[j] += sum over q of dy[q] x[q stride + j - padding], for one row of dy and one of x. `first` and `last` bound the
// pixels of dy whose taps all lie within the row.
template <class B, int K, int V>
inline void add_row(typename B::Scalar* sums, const typename B::Scalar* dy, const typename B::Scalar* x,
                    const DepthwiseShape& shape, int64_t first, int64_t last) {
  typedef decltype(load(dy)) Vector;
  const int64_t stride = shape.stride_w;
  Vector found[K][V] = {};
  const auto edge = [&](int64_t q) {
    const int64_t left = q * stride - shape.padding_w;
    for (int j = 0; j < K; ++j)
      if (left + j >= 0 && left + j < shape.w)
        for (int v = 0; v < V; ++v)
          found[j][v] += load(dy + q * B::width + v * B::lanes) * load(x + (left + j) * B::width + v * B::lanes);
  };
  for (int64_t q = 0; q < first; ++q) edge(q);
  const typename B::Scalar* at = x + (first * stride - shape.padding_w) * B::width;
  for (int64_t q = first; q < last; ++q, at += stride * B::width) {
    Vector gradient[V];
    for (int v = 0; v < V; ++v) gradient[v] = load(dy + q * B::width + v * B::lanes);
    for (int j = 0; j < K; ++j)
      for (int v = 0; v < V; ++v) found[j][v] += gradient[v] * load(at + j * B::width + v * B::lanes);
  }
  for (int64_t q = last; q < shape.out_w; ++q) edge(q);
  for (int j = 0; j < K; ++j)
    for (int v = 0; v < V; ++v) {
      typename B::Scalar* sum = sums + j * B::width + v * B::lanes;
      store(sum, load(sum) + found[j][v]);
    }
}

// Sums of one block of maps over rows [begin, end) of dy, as (kernel_h, kernel_w, width). scratch: kernel_h packed rows
// of x, in a ring, and one of dy.
template <class T, int K, int V>
void sum_chunk(const DepthwiseShape& shape, const T* x, const T* dy, const Block<T, V> block, int64_t begin, int64_t end,
               typename Computed<T>::Scalar* sums, typename Computed<T>::Scalar* scratch) {
  typedef Block<T, V> B;
  typedef typename B::Scalar Scalar;
  const int64_t kernel = shape.kernel_h;
  Scalar* const packed_dy = scratch + kernel * shape.w * B::width;
  for (int64_t i = 0; i < kernel * K * B::width; ++i) sums[i] = 0;
  // Of the pixels q of dy those in [first, last) have all their taps within x's row.
  const int64_t first = least(shape.out_w, quotient_up(shape.padding_w, shape.stride_w));
  const int64_t inside = shape.w + shape.padding_w - K;
  const int64_t last = most(first, least(shape.out_w, inside < 0 ? 0 : inside / shape.stride_w + 1));
  int64_t packed = 0;  // rows of this image's x before it are packed or no longer needed
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / shape.out_h, r = row % shape.out_h;
    if (row == begin || r == 0) packed = 0;
    const int64_t top = r * shape.stride_h - shape.padding_h;
    const int64_t from = most(0, top), to = least(shape.h, top + kernel);
    for (packed = most(packed, from); packed < to; ++packed)
      block.pack_repeated(scratch + packed % kernel * shape.w * B::width,
                          x + (image * shape.h + packed) * shape.w * shape.channels, shape.w, shape.multiplier);
    block.pack(packed_dy, dy + row * shape.out_w * shape.maps(), shape.out_w);
    for (int64_t i = from; i < to; ++i)
      add_row<B, K, V>(sums + (i - top) * K * B::width, packed_dy, scratch + i % kernel * shape.w * B::width, shape,
                       first, last);
  }
}

template <class T, int K>
void grad_weight_of(const DepthwiseShape& shape, const T* x, const T* dy, T* dweight, const Parallel& parallel) {
  typedef typename Computed<T>::Scalar Scalar;
  constexpr int lanes = Computed<T>::lanes;
  constexpr int width = widest_block * lanes;
  const Cut cut(shape, width);
  const int64_t taps = shape.kernel_h * K;
  const Buffer<Scalar> sums(cut.chunks * cut.blocks * taps * width);

  parallel(cut.chunks * cut.blocks, 1, [&](int64_t begin, int64_t end) {
    const Buffer<Scalar> scratch((shape.kernel_h * shape.w + shape.out_w) * width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % cut.blocks * width, row = task / cut.blocks * cut.chunk_rows;
      const int64_t stop = least(cut.rows, row + cut.chunk_rows);
      Scalar* const to = sums.get() + task * taps * width;
      if (shape.maps() - first > lanes)
        sum_chunk<T, K, 2>(shape, x, dy, {first, shape.maps()}, row, stop, to, scratch.get());
      else
        sum_chunk<T, K, 1>(shape, x, dy, {first, shape.maps()}, row, stop, to, scratch.get());
    }
  });

  parallel(cut.blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * width, count = least(width, shape.maps() - first);
      const int64_t pitch = count > lanes ? width : lanes;
      for (int64_t o = 0; o < count; ++o)
        for (int64_t tap = 0; tap < taps; ++tap) {
          double total = 0;
          for (int64_t chunk = 0; chunk < cut.chunks; ++chunk)
            total += sums.get()[(chunk * cut.blocks + block) * taps * width + tap * pitch + o];
          typename Computed<T>::Vector rounded = {static_cast<Scalar>(total)};
          store_part(dweight + (first + o) * taps + tap, rounded, 1);
        }
    }
  });
}

template <class T>
void grad_weight(const DepthwiseShape& shape, const T* x, const T* dy, T* dweight, const Parallel& parallel) {
  switch (shape.kernel_w) {
    case 1: return grad_weight_of<T, 1>(shape, x, dy, dweight, parallel);
    case 2: return grad_weight_of<T, 2>(shape, x, dy, dweight, parallel);
    case 3: return grad_weight_of<T, 3>(shape, x, dy, dweight, parallel);
    case 4: return grad_weight_of<T, 4>(shape, x, dy, dweight, parallel);
    case 5: return grad_weight_of<T, 5>(shape, x, dy, dweight, parallel);
    case 6: return grad_weight_of<T, 6>(shape, x, dy, dweight, parallel);
    default: return grad_weight_of<T, 7>(shape, x, dy, dweight, parallel);
  }
}

}  // namespace

const DepthwiseGradWeight depthwise_grad_weight{{grad_weight<float>}, {grad_weight<bf16>}, {grad_weight<double>}};

}  // namespace pynas::kernels::PYNAS_ISA
