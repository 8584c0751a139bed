// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/checkpoint/stated_storage.hpp"
#include "moe/io/file/convert_blocks.hpp"
#include "moe/kernel/weight_format.hpp"

namespace moe::inline MOE_ABI {

/// A weight as a file has it, in the terms of WeightFormat: (code - zero) * scale. A plain value.
struct StoredWeight {
  std::uint32_t code;  ///< in the lowest bits, of integers two's complement
  float scale = 1;     ///< of its group, without that of the matrix; 1 where there is none
  float zero = 0;      ///< as the codes count

  friend bool operator==(const StoredWeight&, const StoredWeight&) = default;
};

namespace detail {

/// What the codes of a group are read with: (code - zero) * scale.
struct GroupNumbers {
  float scale = 1, zero = 0;
};

/// The values of one weight in a file. A layout is a class that knows where codes and scales lie; rows are counted over
/// all extents but the last, along which groups lie. Immutable.
class WeightStorage {
 public:
  QuantMethod method = QuantMethod::Unstated;
  std::string format = {};        ///< in reports
  TensorView codes = {};          ///< of the file
  std::vector<Index> shape = {};  ///< of the values
  bool has_scales = false;
  float matrix_scale = 1;

  virtual ~WeightStorage() = default;

  Index size() const {
    Index count = 1;
    for (const Index extent : shape) count *= extent;
    return count;
  }
  Index columns() const { return shape.empty() ? 1 : shape.back(); }

  /// See WeightSource::kept_format().
  virtual std::optional<WeightFormat> kept_format() const = 0;
  virtual std::uint32_t code(Index row, Index column) const = 0;
  /// Codes of a row from a column on.
  virtual void read_codes(Index row, Index column, std::span<std::uint32_t> to) const = 0;
  /// Of the group of a value, without the scale of the matrix.
  virtual GroupNumbers numbers(Index row, Index column) const = 0;
  /// Values of a row from a column on.
  virtual void read_row(Index row, Index column, std::span<float> values) const = 0;

  /// Values in row-major order.
  virtual void read(Index first, std::span<float> values) const {
    while (!values.empty()) {
      const Index row = first / columns(), column = first % columns();
      const std::span<float> part =
          values.first(static_cast<std::size_t>(std::min(columns() - column, std::ssize(values))));
      read_row(row, column, part);
      first += std::ssize(part);
      values = values.subspan(part.size());
    }
  }
};

[[noreturn]] inline void refuse_stored_shape(const TensorView& tensor, const std::string& expected) {
  fail_environment(tensor.label, ": tensor ", in_quotes(tensor.name), " has shape [", join(tensor.shape, ", "),
                   "], expected ", expected);
}
inline void require_stored_type(const TensorView& tensor, bool is_right, const char* expected) {
  if (!is_right)
    fail_environment(tensor.label, ": tensor ", in_quotes(tensor.name), " is ", shown(tensor.type()), ", expected ",
                     expected);
}
inline void require_stored_shape(const TensorView& tensor, const std::vector<Index>& shape) {
  if (tensor.shape != shape) refuse_stored_shape(tensor, "[" + join(shape, ", ") + "]");
}

/// extent / part, rounded up.
constexpr Index num_parts(Index extent, Index part) { return extent / part + (extent % part != 0); }

/// An extent that stands for `factor` values each. Throws where the product is out of range: of a tensor without
/// elements, extents may be any.
inline Index times_extent(const TensorView& tensor, Index extent, Index factor) {
  if (extent > std::numeric_limits<Index>::max() / factor)
    refuse_stored_shape(tensor, "extents of at most " + std::to_string(std::numeric_limits<Index>::max() / factor));
  return extent * factor;
}

/// The tensors of one weight, noted as they are looked up: what is left over belongs to another layout.
class StoredParts {
 public:
  StoredParts(const Checkpoint& checkpoint, std::string name, const StatedStorage& stated)
      : checkpoint_(checkpoint), name_(std::move(name)), stated_(stated) {}

  const std::string& name() const { return name_; }
  CheckpointFormat format() const { return checkpoint_.format(); }
  const StatedStorage& stated() const { return stated_; }
  /// The module of a weight, with which GPTQ and AWQ begin their names: "up_proj." of "up_proj.weight".
  static std::string module_of(const std::string& name) {
    constexpr std::string_view kWeight = "weight";
    return name.ends_with(".weight") ? name.substr(0, name.size() - kWeight.size()) : name + ".";
  }
  std::string module() const { return module_of(name_); }

  bool has(const std::string& tensor) const { return checkpoint_.contains(tensor); }
  /// Without noting it. Throws if it is missing.
  TensorView look_at(const std::string& tensor) const { return checkpoint_.at(tensor); }
  TensorView take(const std::string& tensor) {
    used_.insert(tensor);
    return checkpoint_.at(tensor);
  }
  const std::set<std::string>& used() const { return used_; }

  /// Names that tensors of some layout beside the codes have.
  std::vector<std::string> companions() const {
    std::vector<std::string> names;
    for (const char* suffix :
         {"_scale", "_scale_inv", "_scale_2", "_global_scale", "_zero_point", "_shape", "_g_idx", "_scales", ".scales"})
      names.push_back(name_ + suffix);
    for (const char* part : {"scales", "qzeros", "g_idx"}) names.push_back(module() + part);
    return names;
  }
  /// Tensors of the module that are about tokens, not weights.
  std::vector<std::string> of_activations() const {
    std::vector<std::string> names;
    if (name_.ends_with(".weight"))
      for (const char* part : {"input_scale", "input_global_scale", "input_zero_point", "activation_scale"})
        if (has(module() + part)) names.push_back(module() + part);
    return names;
  }
  /// Throws naming the first scale that an index has lost, or that nobody has asked for.
  void require_all_used(const TensorView& codes) const {
    for (const std::string& name : companions()) {
      if (!checkpoint_.left_out(name).empty())
        fail_environment(codes.label, ": ", in_quotes(name), " is in '", checkpoint_.left_out(name),
                         "', but the index does not say so, without which ", in_quotes(name_),
                         " would be wrong by its scale");
      if (has(name) && !used_.contains(name))
        fail_environment(codes.label, ": ", in_quotes(name), " is no part of the format of ", in_quotes(codes.name),
                         ", which is ", shown(codes.type()), ", expected no such tensor");
    }
  }

 private:
  const Checkpoint& checkpoint_;
  std::string name_;
  const StatedStorage& stated_;
  std::set<std::string> used_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
