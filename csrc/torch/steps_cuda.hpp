// What the glue of the GPU's steps shares: checks and conversions of the operators' arguments, launches.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>

#include "../kernels/cuda/launch.hpp"
#include "activations.hpp"

namespace pynas::torch_glue::steps_cuda {

namespace cuda = kernels::cuda;
typedef std::optional<Tensor> Optional;

// Activations that kernels count with int32: (N, C, H, W) in channels_last, C > 0.
inline void check_rows(const char* op, const char* argument, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  PYNAS_REQUIRE(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, op, argument,
                dtype_of(x), "float32, bfloat16, float16 on a GPU");
  check_layout(op, argument, x);
  bool fits = x.size(1) > 0;
  for (const int64_t d : {0, 1, 2, 3}) fits = fits && is_size(x.size(d));
  fits = fits && is_size(x.size(0) * x.size(2)) && is_size(x.size(2) * x.size(3)) &&
         is_size(x.size(0) * x.size(2) * x.size(3));
  PYNAS_REQUIRE(fits, op, argument, "of shape " + shape_of(x), "(N, C, H, W) with C > 0 and fewer than 2^31 pixels");
}

inline void check_float(const char* op, const char* argument, const Optional& tensor, const Tensor& x,
                        std::initializer_list<int64_t> sizes) {
  if (tensor.has_value()) check_dense(op, argument, *tensor, x, ScalarType::Float, "float32", sizes);
}

// Kernels of a block read 16 bytes at once.
inline void check_address(const char* op, const char* argument, const Tensor& tensor) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  PYNAS_REQUIRE(address % 16 == 0, op, argument, "a view at an odd address", "multiples of 16 bytes");
}

// Activations of x's dtype and device, (N, channels, H, W).
inline void check_beside(const char* op, const char* argument, const Tensor& tensor, const Tensor& x,
                         int64_t channels) {
  PYNAS_REQUIRE(tensor.scalar_type() == x.scalar_type(), op, argument, dtype_of(tensor), "x's dtype");
  check_layout(op, argument, tensor);
  const bool same = tensor.size(0) == x.size(0) && tensor.size(2) == x.size(2) && tensor.size(3) == x.size(3);
  PYNAS_REQUIRE(same && tensor.size(1) == channels, op, argument, "of shape " + shape_of(tensor),
                "that of the other activations");
  PYNAS_REQUIRE(tensor.get_device_index() == x.get_device_index(), op, argument, "on another device", "x's device");
  check_address(op, argument, tensor);
}

// act(norm(x)) as the operators take it.
struct NormGiven {
  Optional mean, var, weight, bias;
  double eps;
  int64_t act;

  cuda::Norm of(const char* op, const Tensor& x) const { return of(op, x, x.size(1)); }

  // Of that many channels, on x's device.
  cuda::Norm of(const char* op, const Tensor& x, int64_t channels) const {
    PYNAS_REQUIRE(mean.has_value() == var.has_value(), op, "var", "without mean, or mean without it",
                  "both or neither");
    for (const auto& [name, value] : {std::pair{"mean", &mean}, {"var", &var}, {"weight", &weight}, {"bias", &bias}})
      check_float(op, name, *value, x, {channels});
    PYNAS_REQUIRE(act >= 0 && act <= 4, op, "act", std::to_string(act),
                  "0 identity, 1 relu, 2 hswish, 3 swish, 4 relu6");
    return {values<float>(mean), values<float>(var),      values<float>(weight),
            values<float>(bias), static_cast<float>(eps), static_cast<kernels::Activation>(act)};
  }
};

inline cuda::Gate gate_of(const char* op, const Optional& gate, const Tensor& x) {
  if (!gate.has_value()) return {nullptr, false};
  const bool by_channel = gate->dim() == 2 && gate->size(1) == x.size(1);
  check_float(op, "gate", gate, x, {x.size(0), by_channel ? x.size(1) : 1});
  return {values<float>(gate), by_channel};
}

// What a norm's input y has for gradient, as the operators take it.
struct BackwardGiven {
  NormGiven norm;
  Optional gate, dpool, sums;
  double count;

  cuda::NormBackward of(const char* op, const Tensor& y) const {
    check_float(op, "dpool", dpool, y, {y.size(0), y.size(1)});
    check_float(op, "sums", sums, y, {2, y.size(1)});
    PYNAS_REQUIRE(norm.mean.has_value(), op, "after", "without mean", "a norm's statistics");
    return {norm.of(op, y), gate_of(op, gate, y), values<float>(dpool), values<float>(sums),
            static_cast<float>(1.0 / std::max(count, 1.0))};
  }
};

inline cuda::Pixels pixels_of(const Tensor& x) {
  return {static_cast<int>(x.size(0)), static_cast<int>(x.size(2) * x.size(3))};
}

inline int width(const Tensor& x, int64_t d = 1) {
  return static_cast<int>(x.size(d));
}

inline Tensor new_float(const Tensor& x, std::initializer_list<int64_t> sizes) {
  return new_dense(x, ScalarType::Float, sizes);
}

template <class Call>
void with_gpu_type(const Tensor& x, const Call& call) {
  if (x.scalar_type() == ScalarType::BFloat16) return call(kernels::bf16{});
  if (x.scalar_type() == ScalarType::Half) return call(kernels::fp16{});
  call(float{});
}

// With scratch, in the current stream.
template <class Step>
void run(const char* op, Step step, const Tensor& x) {
  Tensor scratch = new_float(x, {cuda::scratch_size(step)});
  step.scratch = data<float>(scratch);
  cuda::launch_step(step, stream_of(x));
  check_launch(op);
}

struct Asked {
  Asked(const Tensor& x, int64_t channels, bool wanted)
      : mean(new_float(x, {wanted ? channels : 0})), var(new_float(x, {wanted ? channels : 0})), wanted(wanted) {}
  cuda::Statistics pointers() const {
    return wanted ? cuda::Statistics{data<float>(mean), data<float>(var)} : cuda::Statistics{};
  }
  Tensor mean, var;
  bool wanted;
};

}  // namespace pynas::torch_glue::steps_cuda
