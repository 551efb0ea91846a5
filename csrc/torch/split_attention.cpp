#include "../kernels/cpu/split_attention.hpp"

#include <tuple>

#include "activations.hpp"

namespace pynas::torch_glue {
namespace split_attention {

using kernels::SplitShape;

void check_splits(const char* op, int64_t splits) {
  PYNAS_REQUIRE(splits == 1 || splits == 2 || splits == 4, op, "splits", std::to_string(splits), "1, 2, 4");
}

SplitShape shape_for(const Tensor& x, int64_t splits, const char* op) {
  check_splits(op, splits);
  check_activations(op, "x", x);
  PYNAS_REQUIRE(x.size(1) > 0 && x.size(1) % splits == 0, op, "x", "of shape " + shape_of(x),
                "a number of maps that is a multiple of splits, above 0");
  return {x.size(0), x.size(2) * x.size(3), x.size(1) / splits, splits};
}

SplitShape shape_for(const Tensor& x, const Tensor& weights, const char* op) {
  PYNAS_REQUIRE(weights.dim() == 3, op, "weights", "of shape " + shape_of(weights),
                "(N, C, splits) for x of (N, C splits, H, W)");
  const SplitShape shape = shape_for(x, weights.size(2), op);
  check_dense(op, "weights", weights, x, x.scalar_type(), "x's dtype", {shape.n, shape.channels, shape.splits});
  return shape;
}

Tensor pool(Tensor x, int64_t splits) {
  const char* op = "pynas::split_attention_pool";
  const SplitShape shape = shape_for(x, splits, op);
  Tensor pooled = new_dense(x, x.scalar_type(), {shape.n, shape.channels});
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    of_type(PYNAS_CHOOSE(split_attention), type).pool(shape, values<T>(x), data<T>(pooled), parallel());
  });
  return pooled;
}

Tensor pool_backward(Tensor dpooled, int64_t splits, int64_t h, int64_t w) {
  const char* op = "pynas::split_attention_pool_backward";
  check_splits(op, splits);
  check_dtype(op, "dpooled", dpooled);
  PYNAS_REQUIRE(dpooled.dim() == 2, op, "dpooled", "of shape " + shape_of(dpooled), "(N, C)");
  PYNAS_REQUIRE(dpooled.is_contiguous(), op, "dpooled", "not contiguous", "contiguous tensors");
  PYNAS_REQUIRE(is_size(h), op, "h", std::to_string(h), SIZES);
  PYNAS_REQUIRE(is_size(w), op, "w", std::to_string(w), SIZES);
  const SplitShape shape{dpooled.size(0), h * w, dpooled.size(1), splits};
  Tensor dx = new_activations(dpooled, shape.n, shape.maps(), h, w);
  if (dx.numel() == 0) return dx;
  with_type(dpooled, [&](auto type) {
    typedef decltype(type) T;
    of_type(PYNAS_CHOOSE(split_attention), type).pool_backward(shape, values<T>(dpooled), data<T>(dx), parallel());
  });
  return dx;
}

Tensor combine(Tensor x, Tensor weights) {
  const char* op = "pynas::split_attention_combine";
  const SplitShape shape = shape_for(x, weights, op);
  Tensor y = new_activations(x, shape.n, shape.channels, x.size(2), x.size(3));
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    of_type(PYNAS_CHOOSE(split_attention), type)
        .combine(shape, values<T>(x), values<T>(weights), data<T>(y), parallel());
  });
  return y;
}

std::tuple<Tensor, Tensor> combine_backward(Tensor dy, Tensor x, Tensor weights) {
  const char* op = "pynas::split_attention_combine_backward";
  const SplitShape shape = shape_for(x, weights, op);
  check_activations(op, "dy", dy);
  PYNAS_REQUIRE(dy.scalar_type() == x.scalar_type(), op, "dy", dtype_of(dy), "x's dtype");
  PYNAS_REQUIRE(
      dy.size(0) == shape.n && dy.size(1) == shape.channels && dy.size(2) == x.size(2) && dy.size(3) == x.size(3), op,
      "dy", "of shape " + shape_of(dy), "(N, C, H, W)");
  Tensor dx = new_activations(x, shape.n, shape.maps(), x.size(2), x.size(3));
  Tensor dweights = torch::stable::empty_like(weights);
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    of_type(PYNAS_CHOOSE(split_attention), type)
        .combine_backward(shape, values<T>(dy), values<T>(x), values<T>(weights), data<T>(dx), data<T>(dweights),
                          parallel());
  });
  return {dx, dweights};
}

}  // namespace split_attention
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_FRAGMENT(pynas, m) {
  m.def("split_attention_pool(Tensor x, int splits) -> Tensor");
  m.def("split_attention_pool_backward(Tensor dpooled, int splits, SymInt h, SymInt w) -> Tensor");
  m.def("split_attention_combine(Tensor x, Tensor weights) -> Tensor");
  m.def("split_attention_combine_backward(Tensor dy, Tensor x, Tensor weights) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pynas, CPU, m) {
  m.impl("split_attention_pool", TORCH_BOX(&pynas::torch_glue::split_attention::pool));
  m.impl("split_attention_pool_backward", TORCH_BOX(&pynas::torch_glue::split_attention::pool_backward));
  m.impl("split_attention_combine", TORCH_BOX(&pynas::torch_glue::split_attention::combine));
  m.impl("split_attention_combine_backward", TORCH_BOX(&pynas::torch_glue::split_attention::combine_backward));
}
