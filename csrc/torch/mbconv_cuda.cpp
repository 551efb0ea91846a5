// The steps of an inverted residual block on a GPU: float32, bfloat16, float16. docs/kernels.md has them as F1 to B5.
#ifdef PYNAS_HAS_CUDA
#include <tuple>

#include "steps_cuda.hpp"

namespace pynas::torch_glue {
namespace mbconv_cuda {

using namespace steps_cuda;
typedef std::tuple<Tensor, Tensor, Tensor> Made;  // activations and their statistics, empty where nobody asked

// Whether channels of x's dtype are whole vectors of 16 bytes.
bool is_whole(int64_t channels, const Tensor& x) {
  return channels > 0 && channels % (x.scalar_type() == ScalarType::Float ? 4 : 8) == 0;
}

// As check_rows, in whole vectors.
void check_x(const char* op, const char* argument, const Tensor& x) {
  check_rows(op, argument, x);
  PYNAS_REQUIRE(is_whole(x.size(1), x) && x.size(2) > 0 && x.size(3) > 0, op, argument, "of shape " + shape_of(x),
                "(N, C, H, W) with C a multiple of 8 (4 of float32), H, W > 0");
  check_address(op, argument, x);
}

void check_product(const char* op, const Tensor& weight, const Tensor& x, int64_t in) {
  PYNAS_REQUIRE(weight.dim() == 4 && is_whole(weight.size(0), x), op, "weight", "of shape " + shape_of(weight),
                "(C', C, 1, 1) with C' a multiple of 8 (4 of float32)");
  check_float(op, "weight", weight, x, {weight.size(0), in, 1, 1});
  check_address(op, "weight", weight);
}

Made expand(Tensor x, Tensor weight, bool statistics) {
  const char* const op = "pynas::mbconv_expand";
  check_x(op, "x", x);
  check_product(op, weight, x, x.size(1));
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = new_activations(x, x.size(0), weight.size(0), x.size(2), x.size(3));
  const Asked asked(x, weight.size(0), statistics);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::Expand<T>{pixels_of(x), width(x), width(weight, 0), values<T>(x), values<float>(weight), data<T>(y),
                        asked.pointers(), nullptr},
        x);
  });
  return {y, asked.mean, asked.var};
}

bool are_splits(int64_t splits) {
  return splits == 1 || splits == 2 || splits == 4;
}

// The channels that a depthwise step reads: x's own, or those that an expansion makes of them.
int64_t check_expansion(const char* op, const Optional& expand, const Tensor& x) {
  if (!expand.has_value()) return x.size(1);
  check_product(op, *expand, x, x.size(1));
  return expand->size(0);
}

cuda::Expansion expansion_of(const Optional& expand, const Tensor& x) {
  return {values<float>(expand), width(x)};
}

cuda::DepthwiseShape depthwise_shape(const char* op, const Tensor& x, int64_t channels, const Tensor& kernels,
                                     int64_t stride, int64_t padding) {
  const int64_t kernel = kernels.dim() == 4 ? kernels.size(2) : 0;
  PYNAS_REQUIRE(kernel == 3 || kernel == 5 || kernel == 7, op, "kernels", "of shape " + shape_of(kernels),
                "(C, 1, k, k) with k 3, 5 or 7");
  const int64_t splits = kernels.size(0) / channels;
  PYNAS_REQUIRE(are_splits(splits) && kernels.size(0) == splits * channels, op, "kernels",
                "of shape " + shape_of(kernels), "1, 2 or 4 for each channel");
  check_float(op, "kernels", kernels, x, {kernels.size(0), 1, kernel, kernel});
  PYNAS_REQUIRE(stride == 1 || stride == 2, op, "stride", std::to_string(stride), "1, 2");
  PYNAS_REQUIRE(padding >= 0 && padding < kernel, op, "padding", std::to_string(padding), "0 to kernel - 1");
  PYNAS_REQUIRE(std::min(x.size(2), x.size(3)) + 2 * padding >= kernel, op, "x", "of shape " + shape_of(x),
                "H and W that with their padding are no less than the kernel");
  return {width(x, 0),
          static_cast<int>(channels),
          width(x, 2),
          width(x, 3),
          static_cast<int>(kernel),
          static_cast<int>(stride),
          static_cast<int>(padding),
          static_cast<int>(splits)};
}

Made depthwise(Tensor x, Optional mean, Optional var, Optional weight, Optional bias, double eps, int64_t act,
               Tensor kernels, int64_t stride, int64_t padding, bool statistics, Optional expand) {
  const char* const op = "pynas::mbconv_depthwise";
  check_x(op, "x", x);
  const int64_t channels = check_expansion(op, expand, x);
  const cuda::Norm norm = NormGiven{mean, var, weight, bias, eps, act}.of(op, x, channels);
  const cuda::DepthwiseShape shape = depthwise_shape(op, x, channels, kernels, stride, padding);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = new_activations(x, x.size(0), shape.maps(), shape.out_h(), shape.out_w());
  const Asked asked(x, shape.maps(), statistics);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::Depthwise<T>{shape, expansion_of(expand, x), norm, values<T>(x), values<float>(kernels), data<T>(y),
                           asked.pointers(), nullptr},
        x);
  });
  return {y, asked.mean, asked.var};
}

std::tuple<Tensor, Tensor> depthwise_applied(Tensor x, Optional mean, Optional var, Optional weight, Optional bias,
                                             double eps, int64_t act, Tensor kernels, int64_t stride, int64_t padding,
                                             Tensor after_mean, Tensor after_var, Optional after_weight,
                                             Optional after_bias, double after_eps, int64_t after_act, bool pool,
                                             Optional expand) {
  const char* const op = "pynas::mbconv_depthwise_applied";
  check_x(op, "x", x);
  const int64_t channels = check_expansion(op, expand, x);
  const cuda::Norm norm = NormGiven{mean, var, weight, bias, eps, act}.of(op, x, channels);
  const cuda::DepthwiseShape shape = depthwise_shape(op, x, channels, kernels, stride, padding);
  const cuda::Norm after =
      NormGiven{after_mean, after_var, after_weight, after_bias, after_eps, after_act}.of(op, x, shape.maps());
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = new_activations(x, x.size(0), shape.maps(), shape.out_h(), shape.out_w());
  Tensor pooled = new_float(x, {pool ? x.size(0) : 0, shape.maps()});
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::DepthwiseApplied<T>{shape, expansion_of(expand, x), norm, values<T>(x), values<float>(kernels), after,
                                  data<T>(y), pool ? data<float>(pooled) : nullptr, nullptr},
        x);
  });
  return {y, pooled};
}

Tensor project_applied(Tensor x, Optional gate, Tensor project, Tensor after_mean, Tensor after_var,
                       Optional after_weight, Optional after_bias, double after_eps, int64_t after_act,
                       Optional residual) {
  const char* const op = "pynas::mbconv_project_applied";
  check_x(op, "x", x);
  PYNAS_REQUIRE(after_act == 0, op, "after_act", std::to_string(after_act), "0 identity");
  const cuda::Gate gated = gate_of(op, gate, x);
  check_product(op, project, x, x.size(1));
  const cuda::Norm after =
      NormGiven{after_mean, after_var, after_weight, after_bias, after_eps, after_act}.of(op, x, project.size(0));
  if (residual.has_value()) check_beside(op, "residual", *residual, x, project.size(0));
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = new_activations(x, x.size(0), project.size(0), x.size(2), x.size(3));
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    cuda::launch_step(cuda::ProjectApplied<T>{pixels_of(x), width(x), width(project, 0), values<T>(x), gated,
                                              values<float>(project), after, values<T>(residual), data<T>(y)},
                      stream_of(x));
  });
  check_launch(op);
  return y;
}

Made project(Tensor x, Tensor mean, Tensor var, Optional weight, Optional bias, double eps, int64_t act, Optional gate,
             Tensor project, bool statistics) {
  const char* const op = "pynas::mbconv_project";
  check_x(op, "x", x);
  const cuda::Norm norm = NormGiven{mean, var, weight, bias, eps, act}.of(op, x);
  const cuda::Gate gated = gate_of(op, gate, x);
  check_product(op, project, x, x.size(1));
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = new_activations(x, x.size(0), project.size(0), x.size(2), x.size(3));
  const Asked asked(x, project.size(0), statistics);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::Project<T>{pixels_of(x), width(x), width(project, 0), values<T>(x), norm, gated, values<float>(project),
                         data<T>(y), asked.pointers(), nullptr},
        x);
  });
  return {y, asked.mean, asked.var};
}

std::tuple<Tensor, Tensor> project_backward(Tensor d, Tensor y, Tensor after_mean, Tensor after_var,
                                            Optional after_weight, Optional after_bias, double after_eps,
                                            int64_t after_act, Optional after_gate, Optional dpool, Optional sums,
                                            double count, Tensor project, Tensor x, Tensor mean, Tensor var,
                                            Optional weight, Optional bias, double eps, int64_t act, int64_t splits) {
  const char* const op = "pynas::mbconv_project_backward";
  check_x(op, "x", x);
  PYNAS_REQUIRE(are_splits(splits) && x.size(1) % (splits * (x.scalar_type() == ScalarType::Float ? 4 : 8)) == 0, op,
                "splits", std::to_string(splits),
                "1, 2 or 4, with channels of x that are multiples of 16 bytes of each");
  check_product(op, project, x, x.size(1));
  check_beside(op, "y", y, x, project.size(0));
  check_beside(op, "d", d, x, project.size(0));
  const cuda::NormBackward after =
      BackwardGiven{
          {after_mean, after_var, after_weight, after_bias, after_eps, after_act}, after_gate, dpool, sums, count}
          .of(op, y);
  const cuda::Norm norm = NormGiven{mean, var, weight, bias, eps, act}.of(op, x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor da = new_activations(x, x.size(0), x.size(1) / splits, x.size(2), x.size(3));
  Tensor found = new_float(x, {5, x.size(0), x.size(1)});
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::ProjectBackward<T>{pixels_of(x), width(x), width(project, 0), static_cast<int>(splits), values<T>(d),
                                 values<T>(y), after, values<float>(project), values<T>(x), norm, data<T>(da),
                                 data<float>(found), nullptr},
        x);
  });
  return {da, found};
}

Tensor project_weight_backward(Tensor d, Tensor y, Tensor after_mean, Tensor after_var, Optional after_weight,
                               Optional after_bias, double after_eps, int64_t after_act, Optional after_gate,
                               Optional dpool, Optional sums, double count, Tensor x, Tensor mean, Tensor var,
                               Optional weight, Optional bias, double eps, int64_t act, Optional gate) {
  const char* const op = "pynas::mbconv_project_weight_backward";
  check_x(op, "x", x);
  check_x(op, "y", y);
  check_beside(op, "y", y, x, y.size(1));
  check_beside(op, "d", d, x, y.size(1));
  const cuda::NormBackward after =
      BackwardGiven{
          {after_mean, after_var, after_weight, after_bias, after_eps, after_act}, after_gate, dpool, sums, count}
          .of(op, y);
  const cuda::Norm norm = NormGiven{mean, var, weight, bias, eps, act}.of(op, x);
  const cuda::Gate gated = gate_of(op, gate, x);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dweight = new_float(x, {y.size(1), x.size(1), 1, 1});
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::ProjectWeightBackward<T>{pixels_of(x), width(x), width(y), values<T>(d), values<T>(y), after,
                                       values<T>(x), norm, gated, data<float>(dweight), nullptr},
        x);
  });
  return dweight;
}

Made depthwise_backward(Tensor d, Tensor y, Tensor after_mean, Tensor after_var, Optional after_weight,
                        Optional after_bias, double after_eps, int64_t after_act, Optional after_gate, Optional dpool,
                        Optional sums, double count, Tensor kernels, Tensor x, Optional mean, Optional var,
                        Optional weight, Optional bias, double eps, int64_t act, int64_t stride, int64_t padding,
                        Optional expand) {
  const char* const op = "pynas::mbconv_depthwise_backward";
  check_x(op, "x", x);
  check_x(op, "y", y);
  const int64_t channels = check_expansion(op, expand, x);
  const cuda::DepthwiseShape shape = depthwise_shape(op, x, channels, kernels, stride, padding);
  const bool made =
      y.size(0) == x.size(0) && y.size(1) == shape.maps() && y.size(2) == shape.out_h() && y.size(3) == shape.out_w();
  PYNAS_REQUIRE(made && y.scalar_type() == x.scalar_type(), op, "y", "of shape " + shape_of(y) + " and " + dtype_of(y),
                "the shape of the convolution's output, x's dtype");
  check_beside(op, "d", d, y, channels);
  const cuda::NormBackward after =
      BackwardGiven{
          {after_mean, after_var, after_weight, after_bias, after_eps, after_act}, after_gate, dpool, sums, count}
          .of(op, y);
  const cuda::Norm norm = NormGiven{mean, var, weight, bias, eps, act}.of(op, x, channels);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dz = new_activations(x, x.size(0), channels, x.size(2), x.size(3));
  Tensor dweight = new_float(x, {shape.maps(), 1, shape.kernel, shape.kernel});
  Tensor found = new_float(x, {2, channels});
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::DepthwiseBackward<T>{shape, expansion_of(expand, x), values<T>(d), values<T>(y), after,
                                   values<float>(kernels), values<T>(x), norm, data<T>(dz), data<float>(dweight),
                                   data<float>(found), nullptr},
        x);
  });
  return {dz, dweight, found};
}

Tensor gram(Tensor left, Optional left_centre, Tensor right, Optional right_centre) {
  const char* const op = "pynas::mbconv_gram";
  check_x(op, "left", left);
  check_x(op, "right", right);
  check_beside(op, "right", right, left, right.size(1));
  check_float(op, "left_centre", left_centre, left, {left.size(1)});
  check_float(op, "right_centre", right_centre, left, {right.size(1)});
  torch::stable::accelerator::DeviceGuard guard(left.get_device_index());
  Tensor sums = new_float(left, {left.size(1), right.size(1)});
  with_gpu_type(left, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::Gram<T>{pixels_of(left), width(left), width(right), values<T>(left), values<float>(left_centre),
                      values<T>(right), values<float>(right_centre), data<float>(sums), nullptr},
        left);
  });
  return sums;
}

Tensor expanded_backward(Tensor dz, Tensor x, Tensor centre, Tensor weight, Tensor level, Optional residual) {
  const char* const op = "pynas::mbconv_expanded_backward";
  check_x(op, "dz", dz);
  check_x(op, "x", x);
  check_beside(op, "dz", dz, x, dz.size(1));
  if (residual.has_value()) check_beside(op, "residual", *residual, x, x.size(1));
  check_float(op, "centre", centre, x, {x.size(1)});
  check_float(op, "level", level, x, {x.size(1)});
  check_float(op, "weight", weight, x, {x.size(1), dz.size(1) + x.size(1)});
  check_address(op, "weight", weight);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dx = new_like(x);
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    cuda::launch_step(
        cuda::ExpandedBackward<T>{pixels_of(x), width(dz), width(x), values<T>(dz), values<T>(x), values<float>(centre),
                                  values<float>(weight), values<float>(level), values<T>(residual), data<T>(dx)},
        stream_of(x));
  });
  check_launch(op);
  return dx;
}

Tensor expand_backward(Tensor d, Tensor y, Tensor after_mean, Tensor after_var, Optional after_weight,
                       Optional after_bias, double after_eps, int64_t after_act, Optional sums, double count,
                       Tensor weight, Optional residual) {
  const char* const op = "pynas::mbconv_expand_backward";
  check_x(op, "y", y);
  check_beside(op, "d", d, y, y.size(1));
  PYNAS_REQUIRE(weight.dim() == 4 && is_whole(weight.size(1), y), op, "weight", "of shape " + shape_of(weight),
                "(C', C, 1, 1) with C a multiple of 8 (4 of float32)");
  check_float(op, "weight", weight, y, {y.size(1), weight.size(1), 1, 1});
  check_address(op, "weight", weight);
  if (residual.has_value()) check_beside(op, "residual", *residual, y, weight.size(1));
  const cuda::NormBackward after =
      BackwardGiven{{after_mean, after_var, after_weight, after_bias, after_eps, after_act}, {}, {}, sums, count}.of(op,
                                                                                                                     y);
  torch::stable::accelerator::DeviceGuard guard(y.get_device_index());
  Tensor dx = new_activations(y, y.size(0), weight.size(1), y.size(2), y.size(3));
  with_gpu_type(y, [&](auto type) {
    typedef decltype(type) T;
    cuda::launch_step(cuda::ExpandBackward<T>{pixels_of(y), width(weight), width(y), values<T>(d), values<T>(y), after,
                                              values<float>(weight), values<T>(residual), data<T>(dx)},
                      stream_of(y));
  });
  check_launch(op);
  return dx;
}

Tensor expand_weight_backward(Tensor d, Tensor y, Tensor after_mean, Tensor after_var, Optional after_weight,
                              Optional after_bias, double after_eps, int64_t after_act, Optional sums, double count,
                              Tensor x) {
  const char* const op = "pynas::mbconv_expand_weight_backward";
  check_x(op, "x", x);
  check_x(op, "y", y);
  check_beside(op, "y", y, x, y.size(1));
  check_beside(op, "d", d, y, y.size(1));
  const cuda::NormBackward after =
      BackwardGiven{{after_mean, after_var, after_weight, after_bias, after_eps, after_act}, {}, {}, sums, count}.of(op,
                                                                                                                     y);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dweight = new_float(x, {y.size(1), x.size(1), 1, 1});
  with_gpu_type(x, [&](auto type) {
    typedef decltype(type) T;
    run(op,
        cuda::ExpandWeightBackward<T>{pixels_of(x), width(x), width(y), values<T>(d), values<T>(y), after, values<T>(x),
                                      data<float>(dweight), nullptr},
        x);
  });
  return dweight;
}

}  // namespace mbconv_cuda
}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY_IMPL(pynas, CUDA, m) {
  namespace cuda = pynas::torch_glue::mbconv_cuda;
  m.impl("mbconv_expand", TORCH_BOX(&cuda::expand));
  m.impl("mbconv_depthwise", TORCH_BOX(&cuda::depthwise));
  m.impl("mbconv_project", TORCH_BOX(&cuda::project));
  m.impl("mbconv_project_backward", TORCH_BOX(&cuda::project_backward));
  m.impl("mbconv_project_weight_backward", TORCH_BOX(&cuda::project_weight_backward));
  m.impl("mbconv_depthwise_backward", TORCH_BOX(&cuda::depthwise_backward));
  m.impl("mbconv_expand_backward", TORCH_BOX(&cuda::expand_backward));
  m.impl("mbconv_depthwise_applied", TORCH_BOX(&cuda::depthwise_applied));
  m.impl("mbconv_project_applied", TORCH_BOX(&cuda::project_applied));
  m.impl("mbconv_gram", TORCH_BOX(&cuda::gram));
  m.impl("mbconv_expanded_backward", TORCH_BOX(&cuda::expanded_backward));
  m.impl("mbconv_expand_weight_backward", TORCH_BOX(&cuda::expand_weight_backward));
}
#endif
