// C += A B^T of tiles in shared memory: by tensor cores for 16-bit numbers, by fused multiply-adds for float32.
#pragma once

#include <type_traits>

#include "numbers.hpp"

namespace pynas::kernels::cuda {

// An operand in shared memory, (rows x depth), or (depth x rows) where `across`.
template <class T, int stride, bool across>
struct Operand {
  PYNAS_DEVICE const T& operator()(int row, int k) const { return from[across ? k * stride + row : row * stride + k]; }

  // Numbers k and k + 1 of 16 bits as one register, the first in the lower half. k is even.
  PYNAS_DEVICE uint32_t pair(int row, int k) const {
#ifdef __CUDA_ARCH__
    if constexpr (!across) return *reinterpret_cast<const uint32_t*>(from + row * stride + k);
#endif
    return static_cast<uint32_t>((*this)(row, k).bits) | static_cast<uint32_t>((*this)(row, k + 1).bits) << 16;
  }

  const T* from;
};

// Rows from `first` on and depths from `k` on of a weight (count, in), or (in, count) where transposed, put beside each
// other in shared memory as T, zeros beyond its ends. Both are multiples of 4, weight begins at one of 16 bytes.
template <class T, int rows, int depth, int threads, bool transposed, int stride>
PYNAS_DEVICE void fill_panel(T (*to)[stride], const float* weight, int first, int count, int k, int in, int t) {
  if constexpr (!transposed) {
    constexpr int pieces = rows * depth / 4;
    PYNAS_UNROLL
    for (int begin = 0; begin < pieces; begin += threads) {
      const int i = begin + t;
      if (i >= pieces) break;
      const int row = i / (depth / 4), d = i % (depth / 4) * 4;
      float values[4] = {};
      // A weight has fewer than 2^31 numbers.
      if (first + row < count && k + d < in) widen(load<4>(weight + (first + row) * in + k + d), values);
      store<4>(&to[row][d], narrow<T>(values));
    }
  } else {
    constexpr int pair = 4 / sizeof(T), pairs = depth / pair;  // what one bank of shared memory holds
    constexpr int pieces = rows / 4 * pairs;
    PYNAS_UNROLL
    for (int begin = 0; begin < pieces; begin += threads) {
      const int i = begin + t;
      if (i >= pieces) break;
      // Neighbours among threads have neighbours of both ways: a sector in memory, banks in shared memory.
      const int row = (i % 4 + i / (4 * pairs) * 4) * 4, d = i / 4 % pairs * pair;
      float values[pair][4] = {};
      PYNAS_UNROLL
      for (int p = 0; p < pair; ++p)
        if (first + row < count && k + d + p < in)
          widen(load<4>(weight + (k + d + p) * count + first + row), values[p]);
      PYNAS_UNROLL
      for (int j = 0; j < 4; ++j) {
        float both[pair];
        PYNAS_UNROLL
        for (int p = 0; p < pair; ++p) both[p] = values[p][j];
        store<pair>(&to[row + j][d], narrow<T>(both));
      }
    }
  }
}

// 8 warps, 4 along the rows of C and 2 along its columns.
template <class T, int rows, int columns>
struct TensorCores {
  static constexpr int threads = 256, step = 16;                      // of the depth
  static constexpr int high = rows / 4 / 16, wide = columns / 2 / 8;  // products of 16 x 8 x 16 of a warp
  static_assert(rows % 64 == 0 && columns % 16 == 0);

  struct Sums {
    float values[high][wide][4];
  };
  struct Operands {
    uint32_t a[high][4], b[wide][2];
  };

  // Row and column of a thread's sum `i` of a 16 x 8 product, as of mma.m16n8k16 (PTX ISA, matrix fragments).
  PYNAS_DEVICE static int row_of(int t, int up, int i) {
    return t / 32 % 4 * (rows / 4) + up * 16 + t % 32 / 4 + (i / 2) * 8;
  }
  PYNAS_DEVICE static int column_of(int t, int across, int i) {
    return t / 128 * (columns / 2) + across * 8 + t % 4 * 2 + i % 2;
  }

  template <int depth, class A, class B>
  PYNAS_DEVICE static void multiply(const Block<threads>& block, const A& a, const B& b,
                                    PerThread<Sums, threads>& sums) {
    PYNAS_UNROLL
    for (int k = 0; k < depth; k += step) {
      PerThread<Operands, threads> operands;
      block.own([&](int t) {
        const int row = row_of(t, 0, 0), column = t / 128 * (columns / 2) + t % 32 / 4, at = k + t % 4 * 2;
        Operands& own = operands[t];
        PYNAS_UNROLL
        for (int i = 0; i < high; ++i) PYNAS_UNROLL
        for (int j = 0; j < 4; ++j) {
          const int r = row + i * 16 + j % 2 * 8, d = at + j / 2 * 8;
          own.a[i][j] = a.pair(r, d);
        }
        PYNAS_UNROLL
        for (int i = 0; i < wide; ++i) PYNAS_UNROLL
        for (int j = 0; j < 2; ++j) {
          const int c = column + i * 8, d = at + j * 8;
          own.b[i][j] = b.pair(c, d);
        }
      });
      add_products(operands, sums);
    }
  }

#ifdef __CUDACC__
  PYNAS_DEVICE static void add_products(PerThread<Operands, threads>& operands, PerThread<Sums, threads>& sums) {
    const Operands& own = operands[0];
    PYNAS_UNROLL
    for (int i = 0; i < high; ++i) PYNAS_UNROLL
    for (int j = 0; j < wide; ++j) add_product(own.a[i], own.b[j], sums[0].values[i][j]);
  }

  PYNAS_DEVICE static void add_product(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
    if constexpr (std::is_same_v<T, bf16>)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  // What a warp's tensor cores do with the registers of its 32 threads.
  static void add_products(PerThread<Operands, threads>& operands, PerThread<Sums, threads>& sums) {
    const auto half = [](uint32_t both, int i) { return value_of(T{static_cast<uint16_t>(both >> 16 * i)}); };
    for (int warp = 0; warp < threads; warp += 32)
      for (int i = 0; i < high; ++i)
        for (int j = 0; j < wide; ++j) {
          float a[16][16], b[8][16];
          for (int lane = 0; lane < 32; ++lane) {
            const Operands& own = operands[warp + lane];
            for (int part = 0; part < 8; ++part)
              a[lane / 4 + part / 2 % 2 * 8][lane % 4 * 2 + part / 4 * 8 + part % 2] =
                  half(own.a[i][part / 2], part % 2);
            for (int part = 0; part < 4; ++part)
              b[lane / 4][lane % 4 * 2 + part / 2 * 8 + part % 2] = half(own.b[j][part / 2], part % 2);
          }
          for (int lane = 0; lane < 32; ++lane)
            for (int part = 0; part < 4; ++part)
              for (int k = 0; k < 16; ++k)
                sums[warp + lane].values[i][j][part] += a[lane / 4 + part / 2 * 8][k] * b[lane % 4 * 2 + part % 2][k];
        }
  }
#endif

  // Calls use(row, columns) for each row of which the thread has sums, columns(use) calling use(column, sum).
  template <class Use>
  PYNAS_DEVICE static void each_row(int t, const Sums& sums, const Use& use) {
    PYNAS_UNROLL
    for (int i = 0; i < high; ++i) PYNAS_UNROLL
    for (int half = 0; half < 4; half += 2)
      use(row_of(t, i, half), [&](const auto& use_column) {
        PYNAS_UNROLL
        for (int j = 0; j < wide; ++j) PYNAS_UNROLL
        for (int part = half; part < half + 2; ++part) use_column(column_of(t, j, part), sums.values[i][j][part]);
      });
  }
};

// float32 as float32: 16 x 16 threads with every 16th row and column.
template <int rows, int columns>
struct FusedMultiplyAdd {
  static constexpr int threads = 256, step = 1;
  struct Sums {
    float values[rows / 16][columns / 16];
  };

  template <int depth, class A, class B>
  PYNAS_DEVICE static void multiply(const Block<threads>& block, const A& a, const B& b,
                                    PerThread<Sums, threads>& sums) {
    block.own([&](int t) {
      Sums& own = sums[t];
      PYNAS_BY_FOUR
      for (int k = 0; k < depth; ++k) {
        float left[rows / 16], right[columns / 16];
        PYNAS_UNROLL
        for (int i = 0; i < rows / 16; ++i) left[i] = a(t / 16 + 16 * i, k);
        PYNAS_UNROLL
        for (int j = 0; j < columns / 16; ++j) right[j] = b(t % 16 + 16 * j, k);
        PYNAS_UNROLL
        for (int i = 0; i < rows / 16; ++i) PYNAS_UNROLL
        for (int j = 0; j < columns / 16; ++j) own.values[i][j] += left[i] * right[j];
      }
    });
  }

  template <class Use>
  PYNAS_DEVICE static void each_row(int t, const Sums& sums, const Use& use) {
    PYNAS_UNROLL
    for (int i = 0; i < rows / 16; ++i)
      use(t / 16 + 16 * i, [&](const auto& use_column) {
        PYNAS_UNROLL
        for (int j = 0; j < columns / 16; ++j) use_column(t % 16 + 16 * j, sums.values[i][j]);
      });
  }
};

template <class T, int rows, int columns>
using Multiply =
    std::conditional_t<std::is_same_v<T, float>, FusedMultiplyAdd<rows, columns>, TensorCores<T, rows, columns>>;

}  // namespace pynas::kernels::cuda
