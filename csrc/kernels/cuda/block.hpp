// A kernel as a class whose work is written once, for a GPU and for the CPU.
//
//   struct Kernel {
//     static constexpr int threads, blocks;    // of a block; blocks at once on a multiprocessor, at least
//     struct Shared;                           // what the threads of a block share
//     struct Arguments;                        // plain values and pointers
//     static Grid grid(const Arguments&);
//     static int bytes(const Arguments&);      // of Shared, from its beginning, that it uses; may be left out: all
//     PYNAS_DEVICE static void run(const Block<threads>&, Shared&, const Arguments&, Index);
//   };
//
// `run` is a sequence of phases: functions of a thread's number, all threads being through with one before the next
// begins. What a thread keeps from phase to phase is `PerThread`. On a GPU these are barriers and registers; on the
// CPU, where tests drive the same arithmetic over the same tiles, loops and arrays (`emulate`).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define PYNAS_DEVICE __device__ __forceinline__
#define PYNAS_BOTH __host__ __device__ __forceinline__
#define PYNAS_UNROLL _Pragma("unroll")
#define PYNAS_ROLLED _Pragma("unroll 1")  // where registers are few
#define PYNAS_BY_FOUR _Pragma("unroll 4")
#else
#define PYNAS_DEVICE inline
#define PYNAS_BOTH inline
#define PYNAS_UNROLL
#define PYNAS_ROLLED
#define PYNAS_BY_FOUR
#endif

#ifndef PYNAS_BLOCKS
#define PYNAS_BLOCKS 4096
#endif

namespace pynas::kernels::cuda {

// Blocks of a kernel that goes through tiles, at most, or one for each group of rows: enough to fill any GPU several
// times, few enough that what they leave is soon put together. Not a GPU's number, on which results would depend.
constexpr int most_blocks = PYNAS_BLOCKS;

// Bytes of shared memory that a block may have on every GPU that these kernels are for.
constexpr int most_shared = 99 << 10;

struct Index {
  int x, y;
};

// Blocks along x, which runs fastest, and along y.
struct Grid {
  int x, y;
};

#ifdef __CUDACC__

template <int threads>
struct Block {
  // No phase may be begun by a part of the threads.
  template <class Phase>
  PYNAS_DEVICE void each(const Phase& phase) const {
    phase(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  // A phase after which threads read nothing that another has written in it.
  template <class Phase>
  PYNAS_DEVICE void own(const Phase& phase) const {
    phase(static_cast<int>(threadIdx.x));
  }
};

template <class T, int threads>
struct PerThread {
  PYNAS_DEVICE T& operator[](int) { return value; }
  T value;
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks)
    run_kernel(typename Kernel::Arguments arguments, int wide) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int block = static_cast<int>(blockIdx.x);
  Kernel::run(Block<Kernel::threads>{}, *reinterpret_cast<typename Kernel::Shared*>(memory), arguments,
              Index{block % wide, block / wide});
}

template <class Kernel>
auto bytes_of(const typename Kernel::Arguments& arguments, int) -> decltype(Kernel::bytes(arguments)) {
  return Kernel::bytes(arguments);
}

template <class Kernel>
int bytes_of(const typename Kernel::Arguments&, ...) {
  return sizeof(typename Kernel::Shared);
}

// Errors are those of cudaGetLastError.
template <class Kernel>
void launch(const typename Kernel::Arguments& arguments, cudaStream_t stream) {
  const int bytes = bytes_of<Kernel>(arguments, 0);
  const Grid grid = Kernel::grid(arguments);
  if (grid.x == 0 || grid.y == 0) return;
  if (bytes > 48 << 10)  // of the current device; costs less than a launch
    cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  // In one dimension, the others being of 65535 at most. Nobody has as many images and columns as make 2^31 blocks.
  run_kernel<Kernel><<<grid.x * grid.y, Kernel::threads, bytes, stream>>>(arguments, grid.x);
}

#else

// Results must not depend on it: where they do, a thread reads what another writes in the same phase.
inline bool last_thread_first = false;

template <int threads>
struct Block {
  template <class Phase>
  void each(const Phase& phase) const {
    for (int i = 0; i < threads; ++i) phase(last_thread_first ? threads - 1 - i : i);
  }

  template <class Phase>
  void own(const Phase& phase) const {
    each(phase);
  }
};

template <class T, int threads>
struct PerThread {
  T& operator[](int thread) { return values[thread]; }
  T values[threads] = {};
};

template <class Kernel>
void emulate(const typename Kernel::Arguments& arguments) {
  const auto shared = std::make_unique<typename Kernel::Shared>();
  const Grid grid = Kernel::grid(arguments);
  for (int y = 0; y < grid.y; ++y)
    for (int x = 0; x < grid.x; ++x) {
      // A GPU's shared memory holds what other blocks have left there: here NaN, which what is not written shows.
      auto* const bytes = reinterpret_cast<unsigned char*>(shared.get());
      for (std::size_t i = 0; i < sizeof(typename Kernel::Shared); ++i) bytes[i] = 0xff;
      Kernel::run(Block<Kernel::threads>{}, *shared, arguments, Index{x, y});
    }
}

#endif

}  // namespace pynas::kernels::cuda
