#include "../kernels/cpu/depthwise.hpp"

#include "activations.hpp"

namespace pynas::torch_glue {
namespace depthwise {

using kernels::DepthwiseShape;

std::string pair_of(int64_t a, int64_t b) {
  return std::string("(").append(std::to_string(a)).append(", ").append(std::to_string(b)).append(")");
}

int64_t positions(int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
  return size + 2 * padding < kernel ? 0 : (size + 2 * padding - kernel) / stride + 1;
}

bool is_extent(int64_t value) {
  return value > 0 && is_size(value);
}

// The shape of a convolution of (n, channels, h, w) to `maps` maps, its numbers checked.
DepthwiseShape shape_for(const char* op, int64_t n, int64_t channels, int64_t h, int64_t w, int64_t maps,
                         int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t padding_h,
                         int64_t padding_w) {
  const char* const from_one = "1 to 2147483647";
  PYNAS_REQUIRE(is_extent(kernel_h) && is_extent(kernel_w), op, "kernel", pair_of(kernel_h, kernel_w), from_one);
  PYNAS_REQUIRE(is_extent(stride_h) && is_extent(stride_w), op, "stride", pair_of(stride_h, stride_w), from_one);
  PYNAS_REQUIRE(is_size(padding_h) && is_size(padding_w), op, "padding", pair_of(padding_h, padding_w), SIZES);
  PYNAS_REQUIRE(is_size(h) && is_size(w), op, "the size of images", pair_of(h, w), SIZES);
  PYNAS_REQUIRE(channels > 0 && maps > 0 && maps % channels == 0, op, "the number of maps", std::to_string(maps),
                "a multiple of the number of channels, both above 0");
  const int64_t out_h = positions(h, kernel_h, stride_h, padding_h);
  const int64_t out_w = positions(w, kernel_w, stride_w, padding_w);
  PYNAS_REQUIRE(out_h > 0 && out_w > 0, op, "the size of images", pair_of(h, w),
                "with their padding no less than the kernel");
  return {n,        channels, maps / channels, h,        w,         out_h,    out_w,
          kernel_h, kernel_w, stride_h,        stride_w, padding_h, padding_w};
}

void check_weight(const Tensor& weight, const Tensor& activations, const char* op) {
  PYNAS_REQUIRE(weight.dim() == 4 && weight.size(1) == 1, op, "weight", "of shape " + shape_of(weight),
                "(maps, 1, kernel height, kernel width)");
  PYNAS_REQUIRE(weight.is_contiguous(), op, "weight", "not contiguous", "contiguous tensors");
  PYNAS_REQUIRE(weight.scalar_type() == activations.scalar_type(), op, "weight", dtype_of(weight),
                "the dtype of the activations");
}

Tensor forward(Tensor x, Tensor weight, int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w) {
  const char* op = "pynas::depthwise_forward";
  check_activations(op, "x", x);
  check_weight(weight, x, op);
  const auto shape = shape_for(op, x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), weight.size(2),
                               weight.size(3), stride_h, stride_w, padding_h, padding_w);
  Tensor y = new_activations(x, shape.n, shape.maps(), shape.out_h, shape.out_w);
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    of_type(PYNAS_CHOOSE(depthwise_convolution), type)
        .forward(shape, values<T>(x), values<T>(weight), data<T>(y), parallel());
  });
  return y;
}

void check_gradient(const Tensor& dy, const DepthwiseShape& shape, const char* op) {
  PYNAS_REQUIRE(
      dy.size(0) == shape.n && dy.size(1) == shape.maps() && dy.size(2) == shape.out_h && dy.size(3) == shape.out_w, op,
      "dy", "of shape " + shape_of(dy), "the shape of the convolution's output");
}

Tensor grad_input(Tensor dy, Tensor weight, int64_t h, int64_t w, int64_t stride_h, int64_t stride_w, int64_t padding_h,
                  int64_t padding_w) {
  const char* op = "pynas::depthwise_grad_input";
  check_activations(op, "dy", dy);
  check_weight(weight, dy, op);
  PYNAS_REQUIRE(dy.size(1) == weight.size(0), op, "dy", "of shape " + shape_of(dy),
                "one channel for each kernel of weight");
  const auto shape = shape_for(op, dy.size(0), dy.size(1), h, w, dy.size(1), weight.size(2), weight.size(3), stride_h,
                               stride_w, padding_h, padding_w);
  check_gradient(dy, shape, op);
  Tensor dx = new_activations(dy, shape.n, shape.channels, h, w);
  with_type(dy, [&](auto type) {
    typedef decltype(type) T;
    of_type(PYNAS_CHOOSE(depthwise_convolution), type)
        .grad_input(shape, values<T>(dy), values<T>(weight), data<T>(dx), parallel());
  });
  return dx;
}

Tensor grad_weight(Tensor dy, Tensor x, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                   int64_t padding_h, int64_t padding_w) {
  const char* op = "pynas::depthwise_grad_weight";
  check_activations(op, "dy", dy);
  check_activations(op, "x", x);
  PYNAS_REQUIRE(dy.scalar_type() == x.scalar_type(), op, "dy", dtype_of(dy), "the dtype of x");
  PYNAS_REQUIRE(kernel_w <= 7, op, "kernel", pair_of(kernel_h, kernel_w), "up to 7 wide");
  const auto shape = shape_for(op, x.size(0), x.size(1), x.size(2), x.size(3), dy.size(1), kernel_h, kernel_w, stride_h,
                               stride_w, padding_h, padding_w);
  check_gradient(dy, shape, op);
  Tensor dweight = new_dense(x, x.scalar_type(), {shape.maps(), 1, kernel_h, kernel_w});
  with_type(x, [&](auto type) {
    typedef decltype(type) T;
    of_type(PYNAS_CHOOSE(depthwise_grad_weight), type)
        .run(shape, values<T>(x), values<T>(dy), data<T>(dweight), parallel());
  });
  return dweight;
}

}  // namespace depthwise
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_FRAGMENT(pynas, m) {
  m.def(
      "depthwise_forward(Tensor x, Tensor weight, int stride_h, int stride_w, int padding_h, int padding_w) -> Tensor");
  m.def(
      "depthwise_grad_input(Tensor dy, Tensor weight, SymInt h, SymInt w, int stride_h, int stride_w, int padding_h, "
      "int padding_w) -> Tensor");
  m.def(
      "depthwise_grad_weight(Tensor dy, Tensor x, int kernel_h, int kernel_w, int stride_h, int stride_w, "
      "int padding_h, int padding_w) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pynas, CPU, m) {
  m.impl("depthwise_forward", TORCH_BOX(&pynas::torch_glue::depthwise::forward));
  m.impl("depthwise_grad_input", TORCH_BOX(&pynas::torch_glue::depthwise::grad_input));
  m.impl("depthwise_grad_weight", TORCH_BOX(&pynas::torch_glue::depthwise::grad_weight));
}
