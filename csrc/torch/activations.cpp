#include "activations.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace pynas::torch_glue {
namespace {

int32_t device_type_of(const Tensor& tensor) {
  int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

bool same_device(const Tensor& a, const Tensor& b) {
  return device_type_of(a) == device_type_of(b) && a.get_device_index() == b.get_device_index();
}

std::string text_of(const int64_t* begin, const int64_t* end) {
  std::string text = "(";
  for (const int64_t* size = begin; size != end; ++size) text += (size != begin ? ", " : "") + std::to_string(*size);
  return text + (end - begin == 1 ? ",)" : ")");
}

// Beyond 64 bits the largest number: torch then has no memory for it.
int64_t stride_times(int64_t stride, int64_t size) {
  int64_t product = 0;
  const bool fits = !__builtin_mul_overflow(stride, std::max<int64_t>(1, size), &product);
  return fits ? product : std::numeric_limits<int64_t>::max();
}

// The stable ABI's own `empty` goes by name through the dispatcher, at twice the time.
Tensor new_strided(const Tensor& x, ScalarType dtype, int64_t dims, const int64_t* sizes, const int64_t* strides) {
  int32_t type = aoti_torch_dtype_float32();
  if (dtype == ScalarType::Double) type = aoti_torch_dtype_float64();
  if (dtype == ScalarType::BFloat16) type = aoti_torch_dtype_bfloat16();
  if (dtype == ScalarType::Half) type = aoti_torch_dtype_float16();
  AtenTensorHandle made = nullptr;
  // The error's text does not come through the stable ABI.
  if (aoti_torch_empty_strided(dims, sizes, strides, type, device_type_of(x), x.get_device_index(), &made) != 0)
    throw std::runtime_error("pynas: no memory for a tensor of shape " + text_of(sizes, sizes + dims));
  return Tensor(made);
}

// Rows of channels without gaps. What a dimension of one value has for a stride says nothing.
bool channels_last(const Tensor& x) {
  if (x.numel() == 0) return true;
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

bool has_sizes(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  if (tensor.dim() != static_cast<int64_t>(sizes.size())) return false;
  int64_t d = 0;
  for (const int64_t size : sizes)
    if (tensor.size(d++) != size) return false;
  return true;
}

}  // namespace

void check_dtype(const char* op, const char* argument, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  PYNAS_REQUIRE(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Double, op,
                argument, dtype_of(tensor), "float32, bfloat16, float64");
}

void check_layout(const char* op, const char* argument, const Tensor& tensor) {
  PYNAS_REQUIRE(tensor.dim() == 4, op, argument, "of shape " + shape_of(tensor), "(N, C, H, W)");
  PYNAS_REQUIRE(channels_last(tensor), op, argument, "not in channels_last", "channels_last without gaps");
}

void check_activations(const char* op, const char* argument, const Tensor& tensor) {
  PYNAS_REQUIRE(tensor.dim() == 4, op, argument, "of shape " + shape_of(tensor), "(N, C, H, W)");
  check_dtype(op, argument, tensor);
  check_layout(op, argument, tensor);
}

void check_like(const char* op, const char* argument, const Tensor& tensor, const Tensor& x) {
  PYNAS_REQUIRE(tensor.scalar_type() == x.scalar_type(), op, argument, dtype_of(tensor), "x's dtype");
  bool same = tensor.dim() == 4;
  for (int64_t d = 0; d < 4 && same; ++d) same = tensor.size(d) == x.size(d);
  PYNAS_REQUIRE(same, op, argument, "of shape " + shape_of(tensor), "x's shape");
  PYNAS_REQUIRE(same_device(tensor, x), op, argument, "on another device", "x's device");
  PYNAS_REQUIRE(channels_last(tensor), op, argument, "not in channels_last", "channels_last without gaps");
}

void check_dense(const char* op, const char* argument, const Tensor& tensor, const Tensor& x, ScalarType dtype,
                 const char* dtypes, std::initializer_list<int64_t> sizes) {
  PYNAS_REQUIRE(tensor.scalar_type() == dtype, op, argument, dtype_of(tensor), dtypes);
  PYNAS_REQUIRE(has_sizes(tensor, sizes), op, argument, "of shape " + shape_of(tensor),
                text_of(sizes.begin(), sizes.end()).c_str());
  PYNAS_REQUIRE(same_device(tensor, x), op, argument, "on another device", "x's device");
  PYNAS_REQUIRE(tensor.is_contiguous(), op, argument, "not contiguous", "contiguous tensors");
}

Tensor new_dense(const Tensor& x, ScalarType dtype, std::initializer_list<int64_t> sizes) {
  int64_t strides[4] = {1, 1, 1, 1};
  const auto dims = static_cast<int64_t>(sizes.size());
  for (int64_t d = dims - 2; d >= 0; --d) strides[d] = stride_times(strides[d + 1], sizes.begin()[d + 1]);
  return new_strided(x, dtype, dims, sizes.begin(), strides);
}

Tensor new_like(const Tensor& x) {
  return new_strided(x, x.scalar_type(), x.dim(), x.sizes().data(), x.strides().data());
}

Tensor new_activations(const Tensor& x, int64_t n, int64_t channels, int64_t h, int64_t w) {
  const int64_t sizes[] = {n, channels, h, w};
  const int64_t pixel = stride_times(1, channels), row = stride_times(pixel, w);
  const int64_t strides[] = {stride_times(row, h), 1, row, pixel};
  return new_strided(x, x.scalar_type(), 4, sizes, strides);
}

}  // namespace pynas::torch_glue
