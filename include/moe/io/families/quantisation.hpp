// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/file/dtype.hpp"

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

}  // namespace moe::inline MOE_ABI
