// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/families/quantisation.hpp"
#include "moe/io/file/convert_blocks.hpp"
#include "moe/io/file/json_fields.hpp"

namespace moe::inline MOE_ABI::detail {

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

}  // namespace moe::inline MOE_ABI::detail
