// The steps of a block as calls: which instance of a kernel takes which shape, and what follows it. `Run` runs a
// kernel: in a GPU's stream (launch.inc), or on the CPU (tests/ops/tiles.cpp).
#pragma once

#include <algorithm>
#include <initializer_list>

#include "arguments.hpp"
#include "batch_norm.hpp"
#include "depthwise.hpp"
#include "pool.hpp"
#include "product.hpp"
#include "reduce.hpp"

namespace pynas::kernels::cuda {

template <int i>
using Constant = std::integral_constant<int, i>;

template <class Run>
void run_moments(const Run& run, const float* scratch, int chunks, int channels, Statistics to,
                 const float* shift = nullptr) {
  if (to.mean != nullptr)
    run.template operator()<reduce::OfMoments>({scratch, shift, chunks, channels, to.mean, to.var});
}

// --- batch-norm ---

// Calls call with the width of vectors that rows and pointers allow.
template <class T, class Call>
void with_vectors(int channels, std::initializer_list<const void*> pointers, const Call& call) {
  bool aligned = channels % vector_of<T> == 0;
  for (const void* const pointer : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  if (aligned) return call(Constant<vector_of<T>>{});
  call(Constant<1>{});
}

template <class T>
int64_t scratch_of(const ChannelStatistics<T>& of) {
  return (3 * static_cast<int64_t>(batch_norm::Cut::of(of.pixels, of.channels, 1).chunks) + 1) * of.channels;
}

template <class T>
int64_t scratch_of(const NormActSums<T>& of) {
  return static_cast<int64_t>(batch_norm::Cut::of(of.pixels, of.channels, 1).chunks) * 2 * of.channels;
}

template <class T, class Run>
void run_step(const Run& run, const ChannelStatistics<T>& of) {
  float* const moments = of.scratch + of.channels;  // after the shift
  with_vectors<T>(of.channels, {of.x}, [&](auto n) {
    run.template operator()<batch_norm::Statistics<T, n.value>>({of.pixels, of.channels, of.x, moments, of.scratch});
  });
  const int chunks = batch_norm::Cut::of(of.pixels, of.channels, 1).chunks;
  run_moments(run, moments, chunks, of.channels, of.statistics, of.scratch);
}

template <class T, class Run>
void run_step(const Run& run, const NormAct<T>& of) {
  with_vectors<T>(of.channels, {of.x, of.residual, of.y}, [&](auto n) {
    run.template operator()<batch_norm::Forward<T, n.value>>(
        {of.pixels, of.channels, of.x, of.norm, of.gate, of.residual, of.y});
  });
}

template <class T, class Run>
void run_step(const Run& run, const NormActSums<T>& of) {
  with_vectors<T>(of.channels, {of.d, of.x}, [&](auto n) {
    run.template operator()<batch_norm::BackwardSums<T, n.value>>(
        {of.pixels, of.channels, of.d, of.x, of.norm, of.gate, of.scratch});
  });
  const int chunks = batch_norm::Cut::of(of.pixels, of.channels, 1).chunks;
  run.template operator()<reduce::OfGradients>({of.scratch, chunks, 0, of.channels, 0, of.norm, nullptr, of.sums});
}

template <class T, class Run>
void run_step(const Run& run, const NormActBackward<T>& of) {
  with_vectors<T>(of.channels, {of.d, of.x, of.dx}, [&](auto n) {
    run.template operator()<batch_norm::Backward<T, n.value>>({of.pixels, of.channels, of.d, of.x, of.after, of.dx});
  });
}

// --- depthwise convolutions ---

// Calls call with kernel, stride and a tile's side as constants.
template <class Call>
void with_depthwise(const DepthwiseShape& s, bool small, const Call& call) {
  const auto with_stride = [&](auto kernel) {
    if (s.stride == 2) return call(kernel, Constant<2>{}, Constant<8>{});
    if (small) return call(kernel, Constant<1>{}, Constant<8>{});
    call(kernel, Constant<1>{}, Constant<16>{});
  };
  if (s.kernel == 3) return with_stride(Constant<3>{});
  if (s.kernel == 5) return with_stride(Constant<5>{});
  with_stride(Constant<7>{});
}

inline int shift_of(int splits) {
  return splits == 4 ? 2 : splits - 1;
}

inline depthwise::Shape shape_of(const DepthwiseShape& s) {
  return {s.n, s.channels, s.h, s.w, s.out_h(), s.out_w(), s.padding, shift_of(s.splits)};
}

inline int depthwise_side(const DepthwiseShape& s) {
  return s.stride == 2 || (s.out_h() <= 8 && s.out_w() <= 8) ? 8 : 16;
}

inline int64_t depthwise_scratch(const DepthwiseShape& s, int parts) {
  const int64_t groups = (s.maps() + depthwise::lanes - 1) / depthwise::lanes;
  return std::max<int64_t>(1, most_blocks / groups) * s.maps() * parts;
}

template <class T>
int64_t scratch_of(const Depthwise<T>& of) {
  return depthwise_scratch(of.shape, 3);
}

template <class T>
int64_t scratch_of(const DepthwiseBackward<T>& of) {
  return depthwise_scratch(of.shape, of.shape.kernel * of.shape.kernel + 2);
}

template <class T, class Run>
void run_step(const Run& run, const Depthwise<T>& of) {
  const DepthwiseShape& s = of.shape;
  int chunks = 0;
  with_depthwise(s, depthwise_side(s) == 8, [&](auto kernel, auto stride, auto side) {
    typedef depthwise::Forward<T, kernel.value, stride.value, side.value> Kernel;
    static_assert(sizeof(typename Kernel::Shared) <= most_shared);
    float* const moments = of.statistics.mean == nullptr ? nullptr : of.scratch;
    const typename Kernel::Arguments a{shape_of(s), of.expansion, of.norm, of.x,   of.weight,
                                       of.y,        Norm{},       moments, nullptr};
    chunks = Kernel::tiles_of(a).chunks;
    run.template operator()<Kernel>(a);
  });
  run_moments(run, of.scratch, chunks, s.maps(), of.statistics);
}

template <class T>
int64_t scratch_of(const DepthwiseApplied<T>& of) {
  const DepthwiseShape& s = of.shape;
  const int tiles = depthwise::Tiles::of(s.n, s.out_h(), s.out_w(), depthwise_side(s), s.maps()).count;
  return static_cast<int64_t>(tiles) * s.maps();
}

template <class T, class Run>
void run_step(const Run& run, const DepthwiseApplied<T>& of) {
  const DepthwiseShape& s = of.shape;
  depthwise::Tiles tiles{};
  with_depthwise(s, depthwise_side(s) == 8, [&](auto kernel, auto stride, auto side) {
    typedef depthwise::Forward<T, kernel.value, stride.value, side.value> Kernel;
    const typename Kernel::Arguments a{
        shape_of(s), of.expansion, of.norm, of.x, of.weight, of.y, of.after, nullptr, of.pooled ? of.scratch : nullptr};
    tiles = Kernel::tiles_of(a);
    run.template operator()<Kernel>(a);
  });
  if (of.pooled != nullptr)
    run.template operator()<reduce::OfPieces>(
        {of.scratch, s.n, tiles.high * tiles.wide, 1, s.maps(), of.pooled, 1.0 / (s.out_h() * s.out_w())});
}

template <class T, class Run>
void run_step(const Run& run, const DepthwiseBackward<T>& of) {
  const DepthwiseShape& s = of.shape;
  int chunks = 0;
  // The shared memory of a tile of 16 with an expansion and a kernel of 7 is more than GPUs of 8.6 and 8.9 have.
  const bool small = (s.h <= 8 && s.w <= 8) || (s.kernel == 7 && of.expansion.weight != nullptr);
  with_depthwise(s, small, [&](auto kernel, auto stride, auto side) {
    constexpr int of_x = stride.value == 2 ? 16 : side.value;
    typedef depthwise::Backward<T, kernel.value, stride.value, of_x> Kernel;
    static_assert(sizeof(typename Kernel::Shared) <= most_shared || (kernel.value == 7 && side.value == 16));
    static_assert(offsetof(typename Kernel::Shared, x) <= most_shared);
    const typename Kernel::Arguments a{shape_of(s), of.expansion, of.norm,   of.after, of.x,
                                       of.y,        of.d,         of.weight, of.dz,    of.scratch};
    chunks = Kernel::tiles_of(a).chunks;
    run.template operator()<Kernel>(a);
  });
  run.template operator()<reduce::OfGradients>(
      {of.scratch, chunks, s.kernel * s.kernel, s.maps(), shift_of(s.splits), of.norm, of.dweight, of.sums});
}

// --- squeeze-and-excite ---

template <class T, class Run>
void run_step(const Run& run, const Pooled<T>& of) {
  with_vectors<T>(of.channels, {of.x}, [&](auto n) {
    run.template operator()<Pool<T, n.value>>(
        {of.pixels.groups, of.pixels.rows, of.channels, of.x, of.norm, of.pooled});
  });
}

// --- 1x1 convolutions ---

inline int64_t product_scratch(Pixels pixels, int columns, int parts, bool by_group) {
  return product::RowTiles::of_product(pixels, columns, by_group).chunks * static_cast<int64_t>(parts) * columns;
}

inline int64_t outer_scratch(Pixels pixels, int left, int right) {
  return product::RowTiles::of_outer(pixels, left, right).chunks * static_cast<int64_t>(left) * right;
}

template <class T>
int64_t scratch_of(const Expand<T>& of) {
  return product_scratch(of.pixels, of.out, 3, false);
}

template <class T>
int64_t scratch_of(const Project<T>& of) {
  return product_scratch(of.pixels, of.out, 3, false);
}

template <class T>
int64_t scratch_of(const ProjectBackward<T>& of) {
  return product_scratch(of.pixels, of.in, 5, true);
}

template <class T>
int64_t scratch_of(const ProjectWeightBackward<T>& of) {
  return outer_scratch(of.pixels, of.out, of.in);
}

template <class T>
int64_t scratch_of(const Gram<T>& of) {
  return outer_scratch(of.pixels, of.left_columns, of.right_columns);
}

template <class T>
int64_t scratch_of(const ExpandWeightBackward<T>& of) {
  return outer_scratch(of.pixels, of.out, of.in);
}

// Runs the product of sources of `in` columns, and returns the number of its chunks.
template <class T, class Source, class Target, bool transposed = false, class Run>
int run_product(const Run& run, Pixels pixels, int in, int out, const typename Source::Arguments& source,
                const float* weight, const typename Target::Arguments& target, float* partial) {
  typedef product::Product<T, Source, Target, transposed> Kernel;
  static_assert(sizeof(typename Kernel::Shared) <= most_shared);
  const typename Kernel::Arguments a{pixels, in, out, source, weight, target, partial};
  run.template operator()<Kernel>(a);
  return Kernel::tiles_of(a).chunks;
}

// Runs left^T right.
template <class T, class Left, class Right, class Run>
void run_outer(const Run& run, Pixels pixels, int left_columns, int right_columns, const typename Left::Arguments& left,
               const typename Right::Arguments& right, float* scratch, float* dweight) {
  typedef product::OuterProduct<T, Left, Right> Kernel;
  static_assert(sizeof(typename Kernel::Shared) <= most_shared);
  const typename Kernel::Arguments a{pixels, left_columns, right_columns, left, right, scratch};
  run.template operator()<Kernel>(a);
  const int chunks = Kernel::tiles_of(a).chunks;
  run.template operator()<reduce::OfPieces>({scratch, 1, chunks, left_columns, right_columns, dweight, 1.0});
}

template <class T, class Run>
void run_step(const Run& run, const Expand<T>& of) {
  float* const partial = of.statistics.mean == nullptr ? nullptr : of.scratch;
  const int chunks = run_product<T, product::Plain<T>, product::WithMoments<T>>(
      run, of.pixels, of.in, of.out, {of.x, nullptr}, of.weight, {of.y}, partial);
  run_moments(run, of.scratch, chunks, of.out, of.statistics);
}

template <class T, class Run>
void run_step(const Run& run, const Project<T>& of) {
  float* const partial = of.statistics.mean == nullptr ? nullptr : of.scratch;
  const int chunks = run_product<T, product::Normalised<T>, product::WithMoments<T>>(
      run, of.pixels, of.in, of.out, {of.x, of.norm, of.gate}, of.weight, {of.y}, partial);
  run_moments(run, of.scratch, chunks, of.out, of.statistics);
}

template <class T, class Run>
void run_step(const Run& run, const ProjectApplied<T>& of) {
  run_product<T, product::Normalised<T>, product::Added<T>>(run, of.pixels, of.in, of.out, {of.x, Norm{}, of.gate},
                                                            of.weight, {of.y, of.residual, nullptr, of.after}, nullptr);
}

template <class T, class Run>
void run_step(const Run& run, const ProjectBackward<T>& of) {
  const int chunks = run_product<T, product::Backward<T>, product::WithGateSums<T>, true>(
      run, of.pixels, of.out, of.in, {of.d, of.y, of.after}, of.weight, {of.da, of.x, of.norm, shift_of(of.splits)},
      of.scratch);
  const int groups = of.pixels.groups;
  if (groups > 0)
    run.template operator()<reduce::OfPieces>({of.scratch, groups, chunks / groups, 5, of.in, of.sums, 1.0});
}

template <class T, class Run>
void run_step(const Run& run, const ExpandBackward<T>& of) {
  run_product<T, product::Backward<T>, product::Added<T>, true>(
      run, of.pixels, of.out, of.in, {of.d, of.y, of.after}, of.weight, {of.dx, of.residual, nullptr, Norm{}}, nullptr);
}

template <class T, class Run>
void run_step(const Run& run, const ProjectWeightBackward<T>& of) {
  run_outer<T, product::Backward<T>, product::Normalised<T>>(run, of.pixels, of.out, of.in, {of.d, of.y, of.after},
                                                             {of.x, of.norm, of.gate}, of.scratch, of.dweight);
}

template <class T, class Run>
void run_step(const Run& run, const Gram<T>& of) {
  run_outer<T, product::Plain<T>, product::Plain<T>>(run, of.pixels, of.left_columns, of.right_columns,
                                                     {of.left, of.left_centre}, {of.right, of.right_centre}, of.scratch,
                                                     of.sums);
}

template <class T, class Run>
void run_step(const Run& run, const ExpandedBackward<T>& of) {
  run_product<T, product::Beside<T>, product::Added<T>>(run, of.pixels, of.in + of.out, of.out,
                                                        {of.dz, of.x, of.centre, of.in}, of.weight,
                                                        {of.dx, of.residual, of.level, Norm{}}, nullptr);
}

template <class T, class Run>
void run_step(const Run& run, const ExpandWeightBackward<T>& of) {
  run_outer<T, product::Backward<T>, product::Plain<T>>(run, of.pixels, of.out, of.in, {of.d, of.y, of.after},
                                                        {of.x, nullptr}, of.scratch, of.dweight);
}

}  // namespace pynas::kernels::cuda
