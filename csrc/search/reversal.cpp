#include "reversal.hpp"

#include <bit>

#include "transpose.hpp"
#include "variation.hpp"

namespace pynas {

Reversal::Reversal(const Feasibility& feasibility, std::size_t variables)
    : feasibility_(feasibility), relevant_(feasibility.row(), 0), position_(feasibility), path_(feasibility) {
  for (std::size_t v = 0; v < variables; ++v) relevant_[v] = feasibility.matters(v) ? 255 : 0;
}

void Reversal::set_parent(const std::uint8_t* parent) {
  parent_ = parent;
  feasibility_.locate(parent, position_);
}

std::size_t Reversal::shuffle_differing(Stream& random, const std::uint8_t* child) {
  std::uint16_t* const genes = path_.genes.data();
  std::size_t count = 0;
  std::uint64_t fraction = random.next();
  for (std::size_t begin = 0; begin < relevant_.size(); begin += 64) {
    std::uint64_t bits = 0;
    for (std::size_t byte = begin; byte < relevant_.size() && byte < begin + 64; byte += row_align)
      bits |= differing_bytes(child + byte, parent_ + byte, relevant_.data() + byte) << (byte - begin);
    for (; bits != 0; bits &= bits - 1) {
      // The inside-out shuffle of Fisher and Yates; the fraction that a step leaves over serves the next.
      const uint128 scaled = static_cast<uint128>(fraction) * (count + 1);
      const auto place = static_cast<std::size_t>(scaled >> 64);
      fraction = static_cast<std::uint64_t>(scaled);
      genes[count] = genes[place];
      genes[place] = static_cast<std::uint16_t>(begin + static_cast<std::size_t>(std::countr_zero(bits)));
      if (++count % 8 == 0) fraction = random.next();
    }
  }
  return count;
}

void Reversal::run(Stream& random, std::uint8_t* child) {
  const std::size_t count = shuffle_differing(random, child);
  const std::uint16_t* const genes = path_.genes.data();
  for (std::size_t i = feasibility_.longest_fit(position_, parent_, child, path_, count); i < count; ++i)
    child[genes[i]] = parent_[genes[i]];
}

}  // namespace pynas
