// The steps of csrc/kernels/cuda on the CPU: the same tiles, phases and fragments, one thread after another.
#define PYNAS_BLOCKS 6  // so that a block goes through several tiles, some have fewer, and some tensors a single one
#include "../../csrc/kernels/cuda/steps.hpp"

using namespace pynas::kernels;
using namespace pynas::kernels::cuda;

namespace {

struct Emulate {
  template <class Kernel>
  void operator()(const typename Kernel::Arguments& arguments) const {
    emulate<Kernel>(arguments);
  }
};

// A step of any T is laid out as that of float.
template <template <class> class Step, class Call>
void with_type(int type, const void* step, const Call& call) {
  if (type == 0) return call(*static_cast<const Step<float>*>(step));
  if (type == 1) return call(*static_cast<const Step<bf16>*>(step));
  call(*static_cast<const Step<fp16>*>(step));
}

}  // namespace

#define STEP(Step)                                                                \
  extern "C" void run_##Step(int type, const void* step) {                        \
    with_type<Step>(type, step, [](const auto& of) { run_step(Emulate{}, of); }); \
  }
#define STEP_WITH_SCRATCH(Step)                                                          \
  STEP(Step)                                                                             \
  extern "C" int64_t scratch_##Step(int type, const void* step) {                        \
    int64_t floats = 0;                                                                  \
    with_type<Step>(type, step, [&floats](const auto& of) { floats = scratch_of(of); }); \
    return floats;                                                                       \
  }

STEP_WITH_SCRATCH(ChannelStatistics)
STEP(NormAct)
STEP_WITH_SCRATCH(NormActSums)
STEP(NormActBackward)
STEP_WITH_SCRATCH(Expand)
STEP_WITH_SCRATCH(Depthwise)
STEP_WITH_SCRATCH(DepthwiseApplied)
STEP(ProjectApplied)
STEP(Pooled)
STEP_WITH_SCRATCH(Project)
STEP_WITH_SCRATCH(ProjectBackward)
STEP_WITH_SCRATCH(ProjectWeightBackward)
STEP_WITH_SCRATCH(DepthwiseBackward)
STEP(ExpandBackward)
STEP_WITH_SCRATCH(Gram)
STEP(ExpandedBackward)
STEP_WITH_SCRATCH(ExpandWeightBackward)

// Numbers of 16 bits to float32 and back: type is 1 for bf16, 2 for fp16.
extern "C" float number_of(int type, uint16_t bits) {
  return type == 1 ? value_of(bf16{bits}) : value_of(fp16{bits});
}

extern "C" uint16_t bits_for(int type, float value) {
  bf16 brain{};
  fp16 half{};
  put(&brain, value);
  put(&half, value);
  return type == 1 ? brain.bits : half.bits;
}

extern "C" void run_last_thread_first(bool wanted) {
  last_thread_first = wanted;
}
