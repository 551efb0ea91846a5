#include "batch_norm.hpp"

namespace pynas::torch_glue {
namespace {

int32_t device_type_of(const Tensor& tensor) {
  int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

// The stable ABI's own `empty` goes by name through the dispatcher, at twice the time.
Tensor new_strided(const Tensor& x, ScalarType dtype, int64_t dims, const int64_t* sizes, const int64_t* strides) {
  int32_t type = aoti_torch_dtype_float32();
  if (dtype == ScalarType::Double) type = aoti_torch_dtype_float64();
  if (dtype == ScalarType::BFloat16) type = aoti_torch_dtype_bfloat16();
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides, type, device_type_of(x), x.get_device_index(), &made));
  return Tensor(made);
}

// Rows of channels without gaps. What a dimension of one value has for a stride says nothing.
bool channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

std::string text_of(std::initializer_list<int64_t> sizes) {
  std::string text = "(";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + (sizes.size() == 1 ? ",)" : ")");
}

bool has_sizes(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  if (tensor.dim() != static_cast<int64_t>(sizes.size())) return false;
  int64_t d = 0;
  for (const int64_t size : sizes)
    if (tensor.size(d++) != size) return false;
  return true;
}

}  // namespace

Tensor new_statistics(const Tensor& x, std::initializer_list<int64_t> sizes) {
  int64_t strides[4] = {1, 1, 1, 1};
  const auto dims = static_cast<int64_t>(sizes.size());
  for (int64_t d = dims - 2; d >= 0; --d) strides[d] = strides[d + 1] * std::max<int64_t>(1, sizes.begin()[d + 1]);
  return new_strided(x, statistic_type(x), dims, sizes.begin(), strides);
}

Tensor new_like(const Tensor& x) {
  return new_strided(x, x.scalar_type(), x.dim(), x.sizes().data(), x.strides().data());
}

Shape check_activations(const char* op, const Tensor& x) {
  PYNAS_REQUIRE(x.dim() == 4 && x.size(1) > 0, op, "x", shape_of(x), "(N, C, H, W) with C > 0");
  const ScalarType dtype = x.scalar_type();
  PYNAS_REQUIRE(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Double, op, "x",
                dtype_of(x), activation_types);
  PYNAS_REQUIRE(x.numel() == 0 || channels_last(x), op, "x", "not channels_last", "channels_last without gaps");
  return {x.size(0), x.size(2) * x.size(3), x.size(1)};
}

void check_like(const char* op, const char* argument, const Tensor& tensor, const Tensor& x) {
  PYNAS_REQUIRE(tensor.scalar_type() == x.scalar_type(), op, argument, dtype_of(tensor), "x's dtype");
  bool same = tensor.dim() == 4;
  for (int64_t d = 0; d < 4 && same; ++d) same = tensor.size(d) == x.size(d);
  PYNAS_REQUIRE(same, op, argument, shape_of(tensor), "x's shape");
  PYNAS_REQUIRE(device_type_of(tensor) == device_type_of(x), op, argument, "on another device", "x's device");
  PYNAS_REQUIRE(x.numel() == 0 || channels_last(tensor), op, argument, "not channels_last",
                "channels_last without gaps");
}

void check_statistics(const char* op, const char* argument, const Tensor& tensor, const Tensor& x,
                      std::initializer_list<int64_t> sizes) {
  PYNAS_REQUIRE(tensor.scalar_type() == statistic_type(x), op, argument, dtype_of(tensor),
                "float32, or float64 where x is float64");
  PYNAS_REQUIRE(has_sizes(tensor, sizes), op, argument, shape_of(tensor), text_of(sizes).c_str());
  PYNAS_REQUIRE(device_type_of(tensor) == device_type_of(x), op, argument, "on another device", "x's device");
  PYNAS_REQUIRE(tensor.is_contiguous(), op, argument, "not contiguous", "contiguous tensors");
}

Shape NormArguments::check() const {
  const Shape shape = check_activations(op, x);
  check_statistics(op, "mean", mean, x, {shape.channels});
  check_statistics(op, "var", var, x, {shape.channels});
  if (weight.has_value()) check_statistics(op, "weight", *weight, x, {shape.channels});
  if (bias.has_value()) check_statistics(op, "bias", *bias, x, {shape.channels});
  PYNAS_REQUIRE(act >= 0 && act <= 3, op, "act", std::to_string(act), "0 identity, 1 relu, 2 hswish, 3 swish");
  return shape;
}

void check_gate(const char* op, const std::optional<Tensor>& gate, const Tensor& x, Shape shape) {
  if (!gate.has_value()) return;
  const bool by_channel = gate->dim() == 2 && gate->size(1) == shape.channels;
  PYNAS_REQUIRE(by_channel || (gate->dim() == 2 && gate->size(1) == 1), op, "gate", shape_of(*gate),
                "(N, 1) or (N, C)");
  check_statistics(op, "gate", *gate, x, {shape.groups, by_channel ? shape.channels : 1});
}

}  // namespace pynas::torch_glue
