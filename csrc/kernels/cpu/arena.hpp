// Updates of weights that lie in one piece of memory: optimizer step and moving average in one pass.
//
// Every operation is rounded as torch's grouped operations do on a CPU with fused multiply-add, and the square root
// correctly, so that all instruction sets and a GPU give the same bits.
#pragma once

#include <cstdint>

#include "../types.hpp"

#ifdef __CUDACC__
#define PYNAS_ANYWHERE __host__ __device__
#else
#define PYNAS_ANYWHERE
#endif

namespace pynas::kernels {

// A part of one tensor of the arena, as a row of an int64 table. Rows are ordered by `offset` and do not overlap.
// A caller may have made the table of anything: `fits` is asked of each row before it is followed.
struct ArenaChunk {
  int64_t offset;  // of its first value in weights, squares, momentum and average
  int64_t low;     // of its first value among the bf16 parameters; -1: the parameter is float32 and lies in weights
  int64_t start;   // of its first value in the tensor, and so in the tensor's gradient
  int64_t count;
  int64_t gradient;  // number of its tensor's gradient; -1: has none ever
  int64_t group;
};

// A tensor outside the arena: values without gaps, in its parameter's order.
struct ArenaSource {
  int64_t address;  // 0: none in this step
  int64_t count;
  int64_t low;  // 1: bf16, 0: float32
};

// How much there is of what chunks point at.
struct ArenaBounds {
  int64_t values, low, groups, sources;
  bool all_have_sources;
};

PYNAS_ANYWHERE inline bool within(int64_t start, int64_t count, int64_t size) {
  return start >= 0 && count > 0 && count <= size && start <= size - count;
}

PYNAS_ANYWHERE inline bool fits(const ArenaChunk& chunk, const ArenaBounds& bounds, const ArenaSource* sources) {
  if (!within(chunk.offset, chunk.count, bounds.values)) return false;
  if (chunk.low >= 0 && !within(chunk.low, chunk.count, bounds.low)) return false;
  if (chunk.group < 0 || chunk.group >= bounds.groups || chunk.gradient >= bounds.sources) return false;
  if (chunk.gradient < 0 || sources[chunk.gradient].address == 0) return !bounds.all_have_sources;
  const ArenaSource& source = sources[chunk.gradient];
  return (source.low != 0) == (chunk.low >= 0) && within(chunk.start, chunk.count, source.count);
}

// Hyperparameters of one group.
struct ArenaGroup {
  float lr, weight_decay, momentum;
  float decay, share, eps;  // of RMSProp's running square average; share = 1 - decay
};

struct ArenaStep {
  float* weights;
  float* squares;  // null: heavy-ball SGD
  float* momentum;
  float* average;  // null: none
  bf16* low;       // null: no parameter is bf16
  const ArenaChunk* chunks;
  int64_t chunk_count;
  const ArenaSource* gradients;
  const ArenaGroup* groups;
  float average_share;  // 1 - decay of the moving average
  ArenaBounds bounds;
};

// An average in the arena, of tensors elsewhere: `gradient` of a chunk is the number of its tensor in `values`, `low`
// is not negative where that is bf16.
struct ArenaFollow {
  float* average;
  const ArenaChunk* chunks;
  int64_t chunk_count;
  const ArenaSource* values;
  float share;  // 1 - decay
  ArenaBounds bounds;
};

struct ArenaKernels {
  // average <- average + (1 - decay) (values - average) for elements [begin, end), as torch.lerp computes it.
  void (*average)(float* average, const float* values, float share, int64_t begin, int64_t end);
  void (*average_bf16)(float* average, const bf16* values, float share, int64_t begin, int64_t end);
  // The same for chunks whose offsets are in [begin, end), of values that lie anywhere.
  void (*follow)(const ArenaFollow& follow, int64_t begin, int64_t end);
  // One step of the values whose offsets are in [begin, end).
  void (*step)(const ArenaStep& step, int64_t begin, int64_t end);
};

namespace baseline {
extern const ArenaKernels arena;
}
namespace avx2 {
extern const ArenaKernels arena;
}
namespace avx512 {
extern const ArenaKernels arena;
}

}  // namespace pynas::kernels
