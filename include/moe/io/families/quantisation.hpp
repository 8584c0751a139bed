// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/file/convert_blocks.hpp"
#include "moe/io/file/dtype.hpp"
#include "moe/io/file/json_fields.hpp"

namespace moe::inline MOE_ABI {

/// How expert weights are stored, as far as a configuration says.
enum class QuantMethod {
  Unstated,   ///< nothing is said
  Fp8Blocks,  ///< F8_E4M3 or F8_E5M2 with a scale per 128 x 128: "fp8" with weight_block_size [128, 128]
  Mxfp4,      ///< blocks of 32 with a scale each: "mxfp4"
};

/// What a configuration says about the storage of weights. load_moe_block() compares it with the file: matrices of
/// experts are stored as it says, or plainly where not_converted names them. A plain value.
struct Quantisation {
  QuantMethod method = QuantMethod::Unstated;
  std::optional<Dtype> codes = {};              ///< of Fp8Blocks, where it is said
  std::vector<std::string> not_converted = {};  ///< modules stored plainly: dotted names, `*` stands for any characters

  /// Whether a tensor belongs to a module that is stored plainly: the parts of a listed name, between its dots, are
  /// parts of the tensor's name, one after the other. So "gate" is "model.layers.0.mlp.gate.weight", and no
  /// "gate_proj". O(length of the list * length of the name), no allocation.
  bool leaves_out(std::string_view tensor) const;

  friend bool operator==(const Quantisation&, const Quantisation&) = default;
};

namespace detail {

/// Whether `text` is `pattern`, in which `*` stands for any characters.
constexpr bool matches(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = pattern.npos, from = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++, from = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p, ++t;
    } else if (star != pattern.npos) {
      p = star + 1, t = ++from;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == pattern.npos;
}

/// Takes the part before the first dot.
constexpr std::string_view take_part(std::string_view& name) {
  const std::size_t dot = std::min(name.find('.'), name.size());
  const std::string_view part = name.substr(0, dot);
  name.remove_prefix(std::min(dot + 1, name.size()));
  return part;
}

/// Whether `name` begins with the parts of `pattern`.
constexpr bool begins_with_parts(std::string_view name, std::string_view pattern) {
  while (!pattern.empty()) {
    if (name.empty()) return false;
    if (!matches(take_part(pattern), take_part(name))) return false;
  }
  return true;
}

}  // namespace detail

inline bool Quantisation::leaves_out(std::string_view tensor) const {
  return std::any_of(not_converted.begin(), not_converted.end(), [&](const std::string& module) {
    if (module.empty()) return false;
    for (std::string_view rest = tensor; !rest.empty(); detail::take_part(rest))
      if (detail::begins_with_parts(rest, module)) return true;
    return false;
  });
}

namespace detail {

/// Blocks of 128 x 128 are what WeightSource reads; scales per tensor or per row have no blocks.
inline Quantisation read_fp8(const JsonFields& fields) {
  fields.require_integers("weight_block_size", {kScaleBlock, kScaleBlock});
  Quantisation result{.method = QuantMethod::Fp8Blocks};
  if (!fields.has("fmt")) return result;
  const std::string format = fields.text("fmt");  // "e4m3", "float8_e4m3fn"
  if (format.find("e4m3") != format.npos)
    result.codes = Dtype::F8_E4M3;
  else if (format.find("e5m2") != format.npos)
    result.codes = Dtype::F8_E5M2;
  else
    fields.refuse("fmt", format, "e4m3 or e5m2");
  return result;
}

inline Quantisation read_statement(const JsonFields& fields) {
  const std::string method = fields.text("quant_method");
  Quantisation result;
  if (method == "fp8")
    result = read_fp8(fields);
  else if (method == "mxfp4")
    result.method = QuantMethod::Mxfp4;
  else
    fields.refuse("quant_method", method, "'fp8' in blocks of 128 x 128, 'mxfp4', or no such field");
  for (const char* list : {"modules_to_not_convert", "ignored_layers"})
    for (std::string& module : fields.texts(list)) result.not_converted.push_back(std::move(module));
  constexpr std::size_t kMostModules = std::size_t{1}
                                       << 16;  // each is compared with every tensor; models have thousands
  if (result.not_converted.size() > kMostModules)
    fail_environment(fields.label(), ": ", result.not_converted.size(), " modules are not converted, expected at most ",
                     kMostModules);
  return result;
}

/// All that a config.json says about quantised weights, in any of the fields that are in use, on top or in text_config.
/// (torch_dtype is about computing, not about files.) Throws std::runtime_error naming the field for a method that is
/// not read, and where two statements differ.
inline Quantisation read_quantisation(const JsonFields& top) {
  std::optional<std::pair<std::string, Quantisation>> first;
  const auto read = [&](const JsonFields& fields) {
    for (const char* name : {"quantization_config", "compression_config", "quantization"}) {
      if (!fields.has(name)) continue;
      const JsonFields statement = fields.part(name);
      Quantisation found = read_statement(statement);
      if (!first)
        first.emplace(statement.label(), std::move(found));
      else if (first->second != found)
        fail_environment(statement.label(), " says something else about quantised weights than ", first->first);
    }
  };
  read(top);
  if (top.has("text_config")) read(top.part("text_config"));
  return first ? std::move(first->second) : Quantisation{};
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
