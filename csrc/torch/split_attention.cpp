#include "../kernels/cpu/split_attention.hpp"

#include <tuple>

#include "activations.hpp"

namespace pynas::torch_glue {
namespace {

using kernels::SplitShape;

void check_splits(const char* op, int64_t splits) {
  require(splits == 1 || splits == 2 || splits == 4, op, "splits", std::to_string(splits), "1, 2, 4");
}

void check_dtype(const Tensor& tensor, const Tensor& x, const char* op, const char* name) {
  require(tensor.scalar_type() == x.scalar_type(), op, name, dtype_of(tensor), "the dtype of x");
}

SplitShape shape_for(const Tensor& x, int64_t splits, const char* op) {
  check_splits(op, splits);
  check_activations(x, op, "x");
  require(x.size(1) > 0 && x.size(1) % splits == 0, op, "x", "of shape " + shape_of(x),
          "a number of maps that is a multiple of splits, above 0");
  return {x.size(0), x.size(2) * x.size(3), x.size(1) / splits, splits};
}

SplitShape shape_for(const Tensor& x, const Tensor& weights, const char* op) {
  require(weights.dim() == 3, op, "weights", "of shape " + shape_of(weights), "(N, C, splits)");
  const SplitShape shape = shape_for(x, weights.size(2), op);
  require(weights.size(0) == shape.n && weights.size(1) == shape.channels, op, "weights",
          "of shape " + shape_of(weights), "(N, C, splits) for x of (N, C splits, H, W)");
  require(weights.is_contiguous(), op, "weights", "not contiguous", "contiguous tensors");
  check_dtype(weights, x, op, "weights");
  return shape;
}

template <class T>
const T* values(const Tensor& tensor, T) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* values_of(const Tensor& tensor, T) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

Tensor pool(Tensor x, int64_t splits) {
  const char* op = "pynas::split_attention_pool";
  const SplitShape shape = shape_for(x, splits, op);
  const int64_t size[] = {shape.n, shape.channels};
  Tensor pooled = torch::stable::empty({size, 2}, x.scalar_type(), std::nullopt, x.device());
  by_dtype(x, op, "x", [&](auto type) {
    of_type(PYNAS_CHOOSE(split_attention), type).pool(shape, values(x, type), values_of(pooled, type), parallel());
  });
  return pooled;
}

Tensor pool_backward(Tensor dpooled, int64_t splits, int64_t h, int64_t w) {
  const char* op = "pynas::split_attention_pool_backward";
  check_splits(op, splits);
  require(dpooled.dim() == 2, op, "dpooled", "of shape " + shape_of(dpooled), "(N, C)");
  require(dpooled.is_contiguous(), op, "dpooled", "not contiguous", "contiguous tensors");
  const SplitShape shape{dpooled.size(0), h * w, dpooled.size(1), splits};
  Tensor dx = activations_like(dpooled, shape.n, shape.maps(), h, w);
  if (dx.numel() == 0) return dx;
  by_dtype(dpooled, op, "dpooled", [&](auto type) {
    of_type(PYNAS_CHOOSE(split_attention), type)
        .pool_backward(shape, values(dpooled, type), values_of(dx, type), parallel());
  });
  return dx;
}

Tensor combine(Tensor x, Tensor weights) {
  const char* op = "pynas::split_attention_combine";
  const SplitShape shape = shape_for(x, weights, op);
  Tensor y = activations_like(x, shape.n, shape.channels, x.size(2), x.size(3));
  by_dtype(x, op, "x", [&](auto type) {
    of_type(PYNAS_CHOOSE(split_attention), type)
        .combine(shape, values(x, type), values(weights, type), values_of(y, type), parallel());
  });
  return y;
}

std::tuple<Tensor, Tensor> combine_backward(Tensor dy, Tensor x, Tensor weights) {
  const char* op = "pynas::split_attention_combine_backward";
  const SplitShape shape = shape_for(x, weights, op);
  check_activations(dy, op, "dy");
  check_dtype(dy, x, op, "dy");
  require(dy.size(0) == shape.n && dy.size(1) == shape.channels && dy.size(2) == x.size(2) && dy.size(3) == x.size(3),
          op, "dy", "of shape " + shape_of(dy), "(N, C, H, W)");
  Tensor dx = activations_like(x, shape.n, shape.maps(), x.size(2), x.size(3));
  Tensor dweights = torch::stable::empty_like(weights);
  by_dtype(x, op, "x", [&](auto type) {
    of_type(PYNAS_CHOOSE(split_attention), type)
        .combine_backward(shape, values(dy, type), values(x, type), values(weights, type), values_of(dx, type),
                          values_of(dweights, type), parallel());
  });
  return {dx, dweights};
}

}  // namespace
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_FRAGMENT(pynas, m) {
  m.def("split_attention_pool(Tensor x, int splits) -> Tensor");
  m.def("split_attention_pool_backward(Tensor dpooled, int splits, SymInt h, SymInt w) -> Tensor");
  m.def("split_attention_combine(Tensor x, Tensor weights) -> Tensor");
  m.def("split_attention_combine_backward(Tensor dy, Tensor x, Tensor weights) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pynas, CPU, m) {
  m.impl("split_attention_pool", TORCH_BOX(&pynas::torch_glue::pool));
  m.impl("split_attention_pool_backward", TORCH_BOX(&pynas::torch_glue::pool_backward));
  m.impl("split_attention_combine", TORCH_BOX(&pynas::torch_glue::combine));
  m.impl("split_attention_combine_backward", TORCH_BOX(&pynas::torch_glue::combine_backward));
}
