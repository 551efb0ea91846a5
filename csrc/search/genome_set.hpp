// Which rows of a genome buffer are distinct: a hash table with open addressing that refers to the rows by number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "random.hpp"

namespace pynas {

class GenomeSet {
 public:
  // Forgets everything; at most `rows` rows will be inserted. Rows are padded to whole 8-byte words.
  void reset(std::size_t rows, std::size_t row) {
    std::size_t slots = 16;
    while (slots < 4 * rows) slots *= 2;
    slots_.assign(slots, 0);
    row_ = row;
  }

  // Whether row `index` of the buffer differs from all rows inserted before; it then counts as inserted.
  bool insert(const std::uint8_t* rows, std::uint32_t index) {
    const std::uint8_t* genome = rows + index * row_;
    for (std::size_t slot = hash(genome);; ++slot) {
      std::uint32_t& entry = slots_[slot & (slots_.size() - 1)];
      if (entry == 0) {
        entry = index + 1;
        return true;
      }
      if (equal(genome, rows + (entry - 1) * row_)) return false;
    }
  }

 private:
  bool equal(const std::uint8_t* a, const std::uint8_t* b) const {
    for (std::size_t byte = 0; byte < row_; byte += 8)  // most rows differ in the first word: no call of memcmp
      if (std::memcmp(a + byte, b + byte, 8) != 0) return false;
    return true;
  }

  std::size_t hash(const std::uint8_t* genome) const {
    std::uint64_t sum = 0, factor = splitmix_gamma;
    for (std::size_t byte = 0; byte < row_; byte += 8) {
      std::uint64_t word;
      std::memcpy(&word, genome + byte, 8);
      sum += (word ^ (word >> 29)) * factor;
      factor += 2 * splitmix_gamma;  // stays odd
    }
    return static_cast<std::size_t>(sum ^ (sum >> 32));
  }

  std::vector<std::uint32_t> slots_;  // row number + 1, 0 where free
  std::size_t row_ = 0;
};

}  // namespace pynas
