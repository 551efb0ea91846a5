// Byte matrices from rows (genomes) to columns (variables), 16 x 16 at a time. Rows of genomes are padded to whole
// tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pynas {

inline constexpr std::size_t row_align = 16;
constexpr std::size_t padded_row(std::size_t variables) {
  return (variables + row_align - 1) / row_align * row_align;
}

// out[column * out_stride + row] = in[row * in_stride + column] for 16 rows and columns.
inline void transpose_tile(const std::uint8_t* in, std::size_t in_stride, std::uint8_t* out, std::size_t out_stride) {
#if defined(__SSE2__)
  // Interleaving rows i and i + 8 rotates the 8-bit address (row, column) of every byte by one bit; four rotations
  // exchange row and column.
  __m128i a[16], b[16];
  for (std::size_t i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i * in_stride));
  for (int rotation = 0; rotation < 4; ++rotation) {
    for (std::size_t i = 0; i < 8; ++i) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
      b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
    for (std::size_t i = 0; i < 16; ++i) a[i] = b[i];
  }
  for (std::size_t i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * out_stride), a[i]);
#else
  for (std::size_t row = 0; row < 16; ++row)
    for (std::size_t column = 0; column < 16; ++column) out[column * out_stride + row] = in[row * in_stride + column];
#endif
}

// columns[variable * count + genome] = genomes[genome * row + variable]; count is a multiple of 16.
inline void transpose_block(const std::uint8_t* genomes, std::size_t row, std::size_t count, std::uint8_t* columns) {
  for (std::size_t genome = 0; genome < count; genome += 16)
    for (std::size_t v = 0; v < row; v += 16)
      transpose_tile(genomes + genome * row + v, row, columns + v * count + genome, count);
}

}  // namespace pynas
