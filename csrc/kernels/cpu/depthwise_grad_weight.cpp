#include "depthwise_rows.hpp"

namespace pynas::kernels::PYNAS_ISA {
namespace {

constexpr int64_t chunk_pixels = 2048;   // of dy, whose products are added up before float64
constexpr int64_t segment_pixels = 128;  // of dy, whose products are added up in registers; they stay in the L1 cache

// Rows of dy that are taken together.
inline int64_t segment_rows(const DepthwiseShape& shape) {
  return most(1, least(shape.out_h, segment_pixels / shape.out_w));
}

// Rows of x that they need.
inline int64_t ring_rows(const DepthwiseShape& shape) {
  return (segment_rows(shape) - 1) * shape.stride_h + shape.kernel_h;
}

// How dy's rows, n out_h of them, and its maps are cut into tasks.
struct Cut {
  int64_t rows, chunk_rows, chunks, blocks;

  Cut(const DepthwiseShape& shape, int64_t width)
      : rows(shape.n * shape.out_h),
        chunk_rows(most(1, chunk_pixels / most(1, shape.out_w))),
        chunks(quotient_up(rows, chunk_rows)),
        blocks(quotient_up(shape.maps(), width)) {}
};

// sums[j] += sum over rows r, pixels q of dy[r, q] x[r, q stride + j - padding]. The rows of x
// are rows x_row, x_row + stride_h, ... of the ring.
template <class T, int K, int V>
inline void add_rows(typename Computed<T>::Scalar* sums, const typename Computed<T>::Scalar* dy, const Ring<T, V>& ring,
                     const DepthwiseShape& shape, int64_t rows, int64_t x_row) {
  constexpr int lanes = Computed<T>::lanes, width = V * lanes;
  typename Computed<T>::Vector found[K][V] = {};
  const int64_t step = shape.stride_w * width;
  for (int64_t r = 0; r < rows; ++r, x_row += shape.stride_h) {
    const auto* x = ring.row(x_row) - shape.padding_w * width;
    const auto* const end = dy + shape.out_w * width;
    for (; dy != end; dy += width, x += step)
      for (int j = 0; j < K; ++j)
        for (int v = 0; v < V; ++v)
          found[j][v] = multiply_add(load(dy + v * lanes), load(x + j * width + v * lanes), found[j][v]);
  }
  for (int j = 0; j < K; ++j)
    for (int v = 0; v < V; ++v) {
      auto* sum = sums + j * width + v * lanes;
      store(sum, load(sum) + found[j][v]);
    }
}

// Sums of one block of maps over rows [begin, end) of dy, as (kernel_h, kernel_w, width). packed_dy has room for
// segment_rows(shape) rows.
template <class T, int K, int V>
void sum_chunk(const DepthwiseShape& shape, const T* x, const T* dy, const Block<T, V> block, int64_t begin,
               int64_t end, typename Computed<T>::Scalar* sums, const Ring<T, V>& ring,
               typename Computed<T>::Scalar* packed_dy) {
  constexpr int width = Block<T, V>::width;
  for (int64_t i = 0; i < shape.kernel_h * K * width; ++i) sums[i] = 0;
  int64_t packed = 0;  // rows of this image's x before it are in the ring or no longer needed
  for (int64_t row = begin, rows; row < end; row += rows) {
    const int64_t image = row / shape.out_h, r = row % shape.out_h;
    rows = least(segment_rows(shape), least(end - row, shape.out_h - r));
    if (row == begin || r == 0) packed = 0;
    const int64_t top = r * shape.stride_h - shape.padding_h;
    packed = most(packed, top);
    for (const int64_t to = least(shape.h, top + (rows - 1) * shape.stride_h + shape.kernel_h); packed < to; ++packed)
      block.pack_repeated(ring.row(packed), x + (image * shape.h + packed) * shape.w * shape.channels, shape.w,
                          shape.multiplier);
    block.pack(packed_dy, dy + row * shape.out_w * shape.maps(), rows * shape.out_w);
    for (int64_t i = 0; i < shape.kernel_h; ++i) {
      // Of the segment's rows those in [skip, stop) meet a row of x, not padding.
      const int64_t skip = quotient_up(most(0, -(top + i)), shape.stride_h);
      const int64_t below = shape.h - 1 - top - i;
      const int64_t stop = below < 0 ? 0 : least(rows, below / shape.stride_h + 1);
      if (skip < stop)
        add_rows<T, K, V>(sums + i * K * width, packed_dy + skip * shape.out_w * width, ring, shape, stop - skip,
                          top + i + skip * shape.stride_h);
    }
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

  const Margins margins = forward_margins(shape);
  const int64_t ring_size = ring_rows(shape) * (margins.before + shape.w + margins.after) * width;
  const auto run = [&]<int V>(int64_t first, int64_t begin, int64_t end, Scalar* to, Scalar* memory) {
    const Ring<T, V> ring{memory, ring_rows(shape), shape.w, margins.before, margins.after};
    ring.clear_margins();
    sum_chunk<T, K, V>(shape, x, dy, {first, shape.maps()}, begin, end, to, ring, memory + ring_size);
  };
  parallel(cut.chunks * cut.blocks, 1, [&](int64_t begin, int64_t end) {
    const Buffer<Scalar> memory(ring_size + segment_rows(shape) * shape.out_w * width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % cut.blocks * width, row = task / cut.blocks * cut.chunk_rows;
      const int64_t stop = least(cut.rows, row + cut.chunk_rows);
      Scalar* const to = sums.get() + task * taps * width;
      if (shape.maps() - first > lanes)
        run.template operator()<2>(first, row, stop, to, memory.get());
      else
        run.template operator()<1>(first, row, stop, to, memory.get());
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
    case 1:
      return grad_weight_of<T, 1>(shape, x, dy, dweight, parallel);
    case 2:
      return grad_weight_of<T, 2>(shape, x, dy, dweight, parallel);
    case 3:
      return grad_weight_of<T, 3>(shape, x, dy, dweight, parallel);
    case 4:
      return grad_weight_of<T, 4>(shape, x, dy, dweight, parallel);
    case 5:
      return grad_weight_of<T, 5>(shape, x, dy, dweight, parallel);
    case 6:
      return grad_weight_of<T, 6>(shape, x, dy, dweight, parallel);
    default:
      return grad_weight_of<T, 7>(shape, x, dy, dweight, parallel);
  }
}

}  // namespace

const DepthwiseGradWeight depthwise_grad_weight{{grad_weight<float>}, {grad_weight<bf16>}, {grad_weight<double>}};

}  // namespace pynas::kernels::PYNAS_ISA
