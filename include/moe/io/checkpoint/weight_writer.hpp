// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/compress/round_to_nearest.hpp"
#include "moe/io/checkpoint/tensor_group.hpp"

namespace moe::inline MOE_ABI {

/// Some outputs of a matrix in few bits as they are stored, output by output: see PanelMatrix<Quantised>::rows().
struct CodeRows {
  WeightFormat format = {};
  Index outputs = 0, inputs = 0;
  PanelMatrix<Quantised>::Rows bytes = {};

  Index num_groups() const { return format.num_groups(inputs); }
  Index bytes_of_row() const { return (inputs * format.code_bits() + 7) / 8; }
  /// Those outputs of all rows of a matrix. Throws std::invalid_argument for one that is not there.
  CodeRows select(std::span<const Index> chosen) const {
    CodeRows part{.format = format, .outputs = std::ssize(chosen), .inputs = inputs};
    const auto copy = [&](const std::vector<std::byte>& from, std::vector<std::byte>& to) {
      const std::size_t each = outputs == 0 ? 0 : from.size() / static_cast<std::size_t>(outputs);
      for (const Index output : chosen) {
        if (output < 0 || output >= outputs)
          fail("moe::CodeRows::select: output ", output, ", expected one of ", outputs);
        const auto begin = from.begin() + output * static_cast<Index>(each);
        to.insert(to.end(), begin, begin + static_cast<Index>(each));
      }
    };
    copy(bytes.codes, part.bytes.codes);
    copy(bytes.scales, part.bytes.scales);
    copy(bytes.zeros, part.bytes.zeros);
    return part;
  }
  static CodeRows of(const PanelMatrix<Quantised>& matrix) {
    return {.format = matrix.format(), .outputs = matrix.outputs(), .inputs = matrix.inputs(), .bytes = matrix.rows()};
  }
};

/// Modules that a statement about quantised weights leaves out.
struct PlainModules {
  std::vector<std::string> modules = {};  ///< by their whole names: "lm_head", "model.layers.0.self_attn.q_proj"
  std::vector<std::string> parents = {};  ///< of which all that is below is meant, too: "model.layers.0.mlp.experts"
};

/// Whether a layout is for weights in tensors of their own, or for many matrices in one: of three extents and more.
enum class Stacks { Refused, Taken, Needed };

/// A layout in which weights in few bits are written to a checkpoint, so that WeightSource and other programs read
/// them: the other side of a layout in layout_*.hpp. One more is a class derived from this. Immutable, share freely.
class WeightWriter {
 public:
  struct Part {
    std::string name;  ///< of a tensor
    TensorInfo info;
  };

  virtual ~WeightWriter() = default;

  /// Of all matrices; of a layout that mixes formats, of the first.
  const WeightFormat& format() const { return format_; }
  /// Of a weight, by its name. Throws std::invalid_argument for one that the writer knows nothing of.
  virtual WeightFormat format_of(const std::string&) const { return format_; }
  /// Whether all weights have format().
  virtual bool is_uniform() const { return true; }
  /// In messages: "FP8 in blocks".
  virtual std::string name() const = 0;
  /// Whether a weight may have more than two extents, or experts must.
  virtual Stacks stacks() const { return Stacks::Refused; }
  /// The tensors of a weight [.., outputs, inputs]. Throws std::invalid_argument, naming it, for a shape that the
  /// layout does not have.
  virtual std::vector<Part> parts(const std::string& name, const std::vector<Index>& shape) const = 0;
  /// The bytes that one matrix of a weight has in each of parts(): matrices follow each other in all of them. Throws
  /// std::invalid_argument for rows of another format, and numbers that the layout cannot hold.
  virtual std::vector<std::vector<std::byte>> encode(const CodeRows& rows) const = 0;
  /// The statement of a config.json, its field quantization_config.
  virtual nlohmann::ordered_json statement(const PlainModules& plain) const = 0;
  /// The weights in the format of the layout, rounded to nearest as it asks for.
  virtual PanelMatrix<Quantised> round(const PanelMatrix<F32>& weights) const {
    return round_to_nearest(weights, format_);
  }

 protected:
  explicit WeightWriter(const WeightFormat& format) : format_(format) { format_.validate(); }

  [[noreturn]] void refuse(const std::string& what) const { fail("moe::WeightWriter: ", what); }
  void require_rows(const CodeRows& rows) const {
    if (rows.format != format_)
      refuse("codes are " + rows.format.name() + ", expected " + format_.name() + " of " + name());
  }
  /// Throws for a weight of fewer extents than two, or more where those are refused.
  void require_shape(const std::string& name, const std::vector<Index>& shape) const {
    if (shape.size() < 2 || (shape.size() > 2 && stacks() == Stacks::Refused))
      refuse("weight " + detail::in_quotes(name) + " has shape [" + detail::join(shape, ", ") + "], expected " +
             (stacks() == Stacks::Refused ? "two extents of " : "two extents or more of ") + this->name());
  }

 private:
  WeightFormat format_;
};

namespace detail {

/// A list with all that is left out, whose entries mean what is below them, too.
inline nlohmann::ordered_json modules_and_parents(const PlainModules& plain) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const std::string& module : plain.modules) list.push_back(module);
  for (const std::string& parent : plain.parents) list.push_back(parent);
  return list;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
