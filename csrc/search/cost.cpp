#include "cost.hpp"

#include <algorithm>
#include <cmath>

#include "text.hpp"

namespace pynas {
namespace {

std::int64_t product(std::initializer_list<std::int64_t> factors) {
  std::int64_t result = 1;
  for (const std::int64_t factor : factors)
    if (__builtin_mul_overflow(result, factor, &result)) refuse("a cost does not fit into 64 bits");
  return result;
}

// One layer's share. MACs of a convolution are its weights times its output positions.
struct Tally {
  Costs costs{};

  void layer(std::int64_t weights, std::int64_t positions, std::int64_t biases, std::int64_t normalised) {
    const std::int64_t macs = product({weights, positions});
    costs = add(costs, {macs, macs, weights, weights + biases + 2 * normalised});
  }
  void pool(std::int64_t elements) { costs = add(costs, {elements, 0, 0, 0}); }
};

std::int64_t convolved_size(std::size_t row, std::int64_t size, std::int64_t kernel, std::int64_t stride,
                            std::int64_t padding) {
  const std::int64_t reach = size + 2 * padding - kernel;
  if (reach < 0)
    refuse("row ", row, ": a feature map of ", size, " x ", size, " with padding ", padding,
           " is smaller than the kernel ", kernel, "; use a larger resolution, less stride or more padding");
  return reach / stride + 1;
}

std::int64_t padding_of(const Space& space, const std::uint8_t* genome, const Row& row, std::int64_t kernel) {
  const std::int64_t padding = space.integer(row.padding, genome);
  return padding < 0 ? kernel / 2 : padding;
}

std::int64_t output_size(const Space& space, const std::uint8_t* genome, std::size_t index, bool first,
                         std::int64_t in_size) {
  const Row& row = space.rows()[index];
  if (row.is_pooled()) return 1;
  const std::int64_t stride = first ? space.integer(row.stride, genome) : 1;
  if (row.kind == BlockKind::skip) return convolved_size(index, in_size, 1, stride, 0);
  const std::int64_t kernel = space.integer(first ? row.kernel : row.kernel_rest, genome);
  if (kernel == 0) return convolved_size(index, in_size, 1, stride, 0);
  return convolved_size(index, in_size, kernel, stride, padding_of(space, genome, row, kernel));
}

// A quarter, computed from the rounded width as the released models do.
std::int64_t hidden_channels(std::int64_t mid, double expansion, SqueezeFrom from) {
  const double quarter = static_cast<double>(mid) * 0.25;
  return round_channels(std::trunc(from == SqueezeFrom::middle ? quarter : quarter / expansion));
}

// The depthwise convolution makes `splits` maps of every channel; squeeze-and-excite is the attention of one split.
void count_mbconv(Tally& tally, Block& block, double expansion, std::int64_t splits, SqueezeFrom from) {
  const std::int64_t mid = round_channels(static_cast<double>(block.in_channels) * expansion);
  const std::int64_t in_area = product({block.in_size, block.in_size});
  const std::int64_t out_area = product({block.out_size, block.out_size});
  block.mid_channels = mid;
  if (mid != block.in_channels) tally.layer(product({block.in_channels, mid}), in_area, 0, mid);
  const std::int64_t depthwise = product({std::max<std::int64_t>(splits, 1), mid});
  tally.layer(product({block.kernel, block.kernel, depthwise}), out_area, 0, depthwise);
  if (splits > 0) {
    const std::int64_t hidden = hidden_channels(mid, expansion, from);
    block.se_channels = hidden;
    tally.pool(product({mid, out_area}));  // of the sum over the splits
    tally.layer(product({mid, hidden}), 1, hidden, 0);
    tally.layer(product({hidden, depthwise}), 1, depthwise, 0);
  }
  tally.layer(product({mid, block.channels}), out_area, 0, block.channels);
}

}  // namespace

Costs add(const Costs& a, const Costs& b) {
  Costs sum;
  for (std::size_t i = 0; i < cost_count; ++i)
    if (__builtin_add_overflow(a[i], b[i], &sum[i])) refuse("a cost does not fit into 64 bits");
  return sum;
}

std::int64_t round_channels(double x) {
  if (std::fmod(x, 8.0) == 0 && x > 0) return static_cast<std::int64_t>(x);
  const double rounded = std::max(std::floor(x / 8 + 0.5), 1.0) * 8;
  return static_cast<std::int64_t>(rounded < 0.95 * x ? rounded + 8 : rounded);
}

Block count_block(const Space& space, const std::uint8_t* genome, std::size_t index, bool first,
                  std::int64_t in_channels, std::int64_t in_size) {
  const Row& row = space.rows()[index];
  Block block{};
  block.row = static_cast<std::int64_t>(index);
  block.in_channels = block.mid_channels = in_channels;
  block.channels = space.integer(row.channels, genome);
  block.in_size = in_size;
  block.kernel = block.stride = 1;
  if (!row.is_pooled() && first) block.stride = space.integer(row.stride, genome);
  BlockKind kind = row.kind;
  if (row.is_convolution()) {
    const std::int64_t kernel = space.integer(first ? row.kernel : row.kernel_rest, genome);
    if (kernel == 0) {
      kind = BlockKind::skip;
    } else {
      block.kernel = kernel;
      block.padding = padding_of(space, genome, row, kernel);
    }
  }
  block.kind = static_cast<std::int64_t>(kind);
  block.out_size = output_size(space, genome, index, first, in_size);

  Tally tally;
  const std::int64_t in_area = product({in_size, in_size});
  switch (kind) {
    case BlockKind::conv:
      tally.layer(product({block.kernel, block.kernel, in_channels, block.channels}),
                  product({block.out_size, block.out_size}), row.bias ? block.channels : 0, block.channels);
      break;
    case BlockKind::mbconv:
      count_mbconv(tally, block, space.value(first ? row.expansion : row.expansion_rest, genome),
                   space.integer(row.squeeze, genome), row.squeeze_from);
      break;
    case BlockKind::mbpool: {
      const auto mid = round_channels(static_cast<double>(in_channels) * space.value(row.expansion, genome));
      block.mid_channels = mid;
      tally.layer(product({in_channels, mid}), in_area, 0, mid);
      tally.pool(product({mid, in_area}));
      tally.layer(product({mid, block.channels}), 1, 0, 0);
      break;
    }
    case BlockKind::fc:
      tally.pool(product({in_channels, in_area}));
      tally.layer(product({in_channels, block.channels}), 1, block.channels, 0);
      break;
    case BlockKind::skip:  // the identity, which costs nothing, where it can be
      if (block.stride != 1 || block.channels != in_channels)
        tally.layer(product({in_channels, block.channels}), product({block.out_size, block.out_size}), 0,
                    block.channels);
      break;
  }
  block.costs = tally.costs;
  return block;
}

std::int64_t input_channels(const Space& space, const std::uint8_t* genome, std::size_t row) {
  return row == 0 ? space.input_channels() : space.integer(space.rows()[row - 1].channels, genome);
}

std::int64_t input_size(const Space& space, const std::uint8_t* genome, std::size_t row) {
  std::int64_t size = space.integer(space.resolution(), genome);
  for (std::size_t i = 0; i < row; ++i) {
    size = output_size(space, genome, i, true, size);
    const std::int64_t repeats = space.integer(space.rows()[i].repeats, genome);
    for (std::int64_t repeat = 1; repeat < repeats; ++repeat) size = output_size(space, genome, i, false, size);
  }
  return size;
}

std::vector<Block> count_blocks(const Space& space, const std::uint8_t* genome) {
  std::vector<Block> blocks;
  std::int64_t channels = space.input_channels();
  std::int64_t size = space.integer(space.resolution(), genome);
  for (std::size_t row = 0; row < space.rows().size(); ++row) {
    const std::int64_t repeats = space.integer(space.rows()[row].repeats, genome);
    for (std::int64_t repeat = 0; repeat < repeats; ++repeat) {
      blocks.push_back(count_block(space, genome, row, repeat == 0, channels, size));
      channels = blocks.back().channels;
      size = blocks.back().out_size;
    }
  }
  return blocks;
}

}  // namespace pynas
