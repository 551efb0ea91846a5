// Updates of weights that lie in one piece of memory: optimizer step and moving average in one pass.
//
// Every operation is rounded as torch's grouped operations do on a CPU with fused multiply-add, and the square root
// correctly, so that all instruction sets and a GPU give the same bits.
#pragma once

#include <cstdint>

#include "../types.hpp"

namespace pynas::kernels {

// A part of one tensor of the arena, as a row of an int64 table. Rows are ordered by `offset` and do not overlap.
struct ArenaChunk {
  int64_t offset;  // of its first value in weights, squares, momentum and average
  int64_t low;     // of its first value among the bf16 parameters; -1: the parameter is float32 and lies in weights
  int64_t start;   // of its first value in the tensor, and so in the tensor's gradient
  int64_t count;
  int64_t gradient;  // row of the table of gradients; -1: has none ever
  int64_t group;
};

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
  const int64_t* gradients;  // addresses, of values of the parameter's type in its order; 0: none in this step
  const ArenaGroup* groups;
  float average_share;  // 1 - decay of the moving average
};

// An average in the arena, of tensors elsewhere: `gradient` of a chunk is the row of its tensor in `values`, `low` is
// not negative where that is bf16.
struct ArenaFollow {
  float* average;
  const ArenaChunk* chunks;
  int64_t chunk_count;
  const int64_t* values;  // addresses
  float share;            // 1 - decay
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
