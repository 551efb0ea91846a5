#include "glue.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#ifdef PYNAS_HAS_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
// Weak: a torch without CUDA does not have it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace pynas::torch_glue {
namespace {

constexpr const char* names[] = {"baseline", "avx2", "avx512"};

int widest() {
#ifdef PYNAS_X86
  __builtin_cpu_init();
#ifdef PYNAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
    return 2;
#endif
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

int wanted() {
  const char* given = std::getenv("PYNAS_INSTRUCTION_SET");
  const int most = widest();
  if (given == nullptr || *given == '\0') return most;
  for (int i = 0; i <= most; ++i)
    if (std::strcmp(given, names[i]) == 0) return i;
  throw std::runtime_error(std::string("PYNAS_INSTRUCTION_SET is \"") + given + "\"; this processor has up to " +
                           names[most] + " of baseline, avx2, avx512");
}

int64_t instruction_set_number() {
  return instruction_set();
}

#ifdef PYNAS_HAS_CUDA
constexpr bool compiled_cuda = true;
#else
constexpr bool compiled_cuda = false;
#endif

bool has_cuda() {
  return compiled_cuda;
}

}  // namespace

kernels::Parallel parallel() {
  return {[](int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
            torch::stable::parallel_for(0, count, grain,
                                        [&](int64_t begin, int64_t end) { body(context, begin, end); });
          },
          static_cast<int>(torch::stable::get_num_threads())};
}

int instruction_set() {
  static const int chosen = wanted();
  return chosen;
}

void refuse(const char* op, const char* argument, const std::string& came, const char* allowed) {
  throw std::runtime_error(std::string(op) + ": " + argument + " is " + came + "; allowed: " + allowed);
}

std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + (tensor.dim() == 1 ? ",)" : ")");
}

std::string dtype_of(const Tensor& tensor) {
  return torch::headeronly::toString(tensor.scalar_type());
}

#ifdef PYNAS_HAS_CUDA
cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr ||
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("this torch has no CUDA stream for the tensor's device");
  return static_cast<cudaStream_t>(stream);
}

void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}
#endif

}  // namespace pynas::torch_glue

STABLE_TORCH_LIBRARY(pynas, m) {
  m.def("instruction_set() -> int");
  m.def("has_cuda() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(pynas, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&pynas::torch_glue::instruction_set_number));
  m.impl("has_cuda", TORCH_BOX(&pynas::torch_glue::has_cuda));
}
