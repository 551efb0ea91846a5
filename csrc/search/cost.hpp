// The only counting rule of the project (the published one of the FBNetV2 and FBNetV3 models):
//
//   macs       = multiply-accumulates of every convolution and linear layer
//   flops      = macs + input elements of every global average pool (squeeze-and-excite, MBPool, before the classifier)
//   params     = weights of convolutions and linear layers only
//   parameters = all trainable parameters: biases and batch norm (2 a channel) included
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "space.hpp"

namespace pynas {

inline constexpr std::size_t cost_count = 4;
inline constexpr const char* cost_names[cost_count] = {"flops", "macs", "params", "parameters"};
using Costs = std::array<std::int64_t, cost_count>;

struct Block {
  std::int64_t row, kind, kernel, stride, padding, in_channels, mid_channels, channels, se_channels, in_size, out_size;
  Costs costs;
};

// Channels rounded to a multiple of 8: half up, at least 8 (also where x is 0), and never more than 5% below x.
std::int64_t round_channels(double x);

// The row's first block or one of its remaining blocks, given the feature map that enters it (in_size: height = width).
Block count_block(const Space& space, const std::uint8_t* genome, std::size_t row, bool first, std::int64_t in_channels,
                  std::int64_t in_size);

// Every block of the network in order; the reference that the cost tables are built from.
std::vector<Block> count_blocks(const Space& space, const std::uint8_t* genome);

// Channels and size of the feature map that enters the row.
std::int64_t input_channels(const Space& space, const std::uint8_t* genome, std::size_t row);
std::int64_t input_size(const Space& space, const std::uint8_t* genome, std::size_t row);

// a + b where the sum fits, else a refusal: costs never wrap.
Costs add(const Costs& a, const Costs& b);

}  // namespace pynas
