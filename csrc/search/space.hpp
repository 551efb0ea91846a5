// The declared search space: variables, and the rows of a Table-2-like network whose fields refer to them.
//
// A genome is one uint8 choice index per variable, in the order of the variables; architecture variables come first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pynas {

struct Variable {
  std::string name;
  bool is_list;    // one-hot as a feature; a range is min-max normalised by value
  bool is_recipe;  // a training hyper-parameter: used by no field
  std::vector<double> values;

  int choices() const { return static_cast<int>(values.size()); }
};

// A cell of the table: a variable, or a constant where variable is -1.
struct Field {
  int variable = -1;
  double constant = 0;
};

inline constexpr std::size_t most_variables = 1000;

enum class BlockKind { conv, mbconv, mbpool, fc, skip };
inline constexpr const char* block_kind_names[] = {"conv", "mbconv", "mbpool", "fc", "skip"};

// Whose quarter the hidden width of squeeze-and-excite and of Split-Attention is: that of the channels before the
// expansion (FBNetV3) or of those after it (FBNetV2).
enum class SqueezeFrom { input, middle };

// `kernel`, `expansion` and `stride` are the first block's; the remaining blocks have stride 1. Padding -1 is kernel
// / 2. A kernel of 0 leaves an mbconv out: such a block is a skip. `squeeze` is the number of splits: 0 none, 1
// squeeze-and-excite, 2 or 4 Split-Attention. `bias` is a conv's.
struct Row {
  BlockKind kind;
  Field kernel, kernel_rest, expansion, expansion_rest, channels, repeats, stride, squeeze, padding;
  SqueezeFrom squeeze_from;
  bool bias;

  bool is_convolution() const { return kind == BlockKind::conv || kind == BlockKind::mbconv; }
  bool is_pooled() const { return kind == BlockKind::mbpool || kind == BlockKind::fc; }  // to 1 x 1
};

class Space {
 public:
  Space(std::vector<Variable> variables, std::vector<Row> rows, Field resolution, std::int64_t input_channels);

  const std::vector<Variable>& variables() const { return variables_; }
  const std::vector<Row>& rows() const { return rows_; }
  const Field& resolution() const { return resolution_; }
  std::int64_t input_channels() const { return input_channels_; }

  std::size_t size() const { return variables_.size(); }
  int choices(std::size_t variable) const { return variables_[variable].choices(); }
  std::size_t architecture_variables() const { return architecture_variables_; }

  double value(const Field& field, const std::uint8_t* genome) const {
    return field.variable < 0 ? field.constant
                              : variables_[static_cast<std::size_t>(field.variable)].values[genome[field.variable]];
  }
  std::int64_t integer(const Field& field, const std::uint8_t* genome) const {
    return static_cast<std::int64_t>(value(field, genome));
  }
  // Every value the field can take.
  std::vector<double> values(const Field& field) const;

  // Refuses genomes, row-major (count, size()), with a gene that is not a choice of its variable.
  void check_genomes(const std::uint8_t* genomes, std::size_t count, const char* name) const;

 private:
  void check_variables() const;
  void check_row(std::size_t index) const;
  void check_field(const std::string& where, const Field& field, double low, double high, bool whole) const;

  std::vector<Variable> variables_;
  std::vector<Row> rows_;
  Field resolution_;
  std::int64_t input_channels_;
  std::size_t architecture_variables_ = 0;
};

}  // namespace pynas
