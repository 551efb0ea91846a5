// The operators of an inverted residual block's steps; their kernels are for GPUs alone (mbconv_cuda.cpp).
#include <string>

#include "glue.hpp"

STABLE_TORCH_LIBRARY_FRAGMENT(pynas, m) {
  const auto define = [&m](const std::string& schema) { m.def(schema.c_str()); };
  // act(norm(x)), and what a norm's input y has for gradient, of that of its result.
  const std::string rest = "Tensor? weight, Tensor? bias, float eps, int act";
  const std::string norm = "Tensor mean, Tensor var, " + rest, maybe = "Tensor? mean, Tensor? var, " + rest;
  const std::string of =
      "Tensor d, Tensor y, Tensor after_mean, Tensor after_var, Tensor? after_weight, Tensor? after_bias, "
      "float after_eps, int after_act";
  const std::string gated = "Tensor? after_gate, Tensor? dpool, ", sums = "Tensor? sums, float count";
  const std::string made = " -> (Tensor, Tensor, Tensor)";  // activations, mean, variance; the latter may be empty
  define("mbconv_expand(Tensor x, Tensor weight, bool statistics)" + made);
  define("mbconv_depthwise(Tensor x, " + maybe +
         ", Tensor kernels, int stride, int padding, bool statistics, Tensor? expand)" + made);
  const std::string after =
      "Tensor after_mean, Tensor after_var, Tensor? after_weight, Tensor? after_bias, "
      "float after_eps, int after_act";
  define("mbconv_depthwise_applied(Tensor x, " + maybe + ", Tensor kernels, int stride, int padding, " + after +
         ", bool pool, Tensor? expand) -> (Tensor, Tensor)");
  define("mbconv_project_applied(Tensor x, Tensor? gate, Tensor project, " + after + ", Tensor? residual) -> Tensor");
  define("mbconv_project(Tensor x, " + norm + ", Tensor? gate, Tensor project, bool statistics)" + made);
  define("mbconv_project_backward(" + of + ", " + gated + sums + ", Tensor project, Tensor x, " + norm +
         ", int splits) -> (Tensor, Tensor)");
  define("mbconv_project_weight_backward(" + of + ", " + gated + sums + ", Tensor x, " + norm +
         ", Tensor? gate) -> Tensor");
  define("mbconv_depthwise_backward(" + of + ", " + gated + sums + ", Tensor kernels, Tensor x, " + maybe +
         ", int stride, int padding, Tensor? expand)" + made);
  define("mbconv_expand_backward(" + of + ", " + sums + ", Tensor weight, Tensor? residual) -> Tensor");
  define("mbconv_gram(Tensor left, Tensor? left_centre, Tensor right, Tensor? right_centre) -> Tensor");
  define(
      "mbconv_expanded_backward(Tensor dz, Tensor x, Tensor centre, Tensor weight, Tensor level, Tensor? residual) -> "
      "Tensor");
  define("mbconv_expand_weight_backward(" + of + ", " + sums + ", Tensor x) -> Tensor");
}
