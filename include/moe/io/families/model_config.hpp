// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "moe/io/families/families.hpp"
#include "moe/io/families/quantisation_statement.hpp"
#include "moe/io/file/json_text.hpp"
#include "moe/io/file/text_file.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// The family of a config.json.
inline const Family& family_of(const JsonFields& top) {
  if (!top.has("model_type"))
    for (const Family& family : kFamilies)
      if (family.is_meant && family.is_meant(top)) return family;
  const std::string model_type = top.text("model_type");
  std::string known;
  for (const Family& family : kFamilies)
    for (const std::string_view type : family.model_types) {
      if (type.empty()) continue;
      if (type == model_type) return family;
      known += " " + std::string(type);
    }
  fail_environment(top.label(), ": model_type is ", in_quotes(model_type), ", expected one of", known);
}

inline nlohmann::json parse_config(const std::string& label, std::string_view text) {
  if (text.size() > kMostConfigBytes)
    fail_environment(label, ": has ", text.size(), " bytes, expected at most ", kMostConfigBytes);
  return parse_json(label, text);
}

/// What a config.json holds.
inline nlohmann::json read_json(const std::string& label, const std::filesystem::path& path) {
  return parse_config(label, TextFile(label, path, kMostConfigBytes).text());
}

}  // namespace detail

/// The MoE block that a config.json of Hugging Face describes. A multimodal model has it in text_config (Llama 4,
/// Aria). `label` opens the messages; `layer` picks from lists with a number for every layer (HunYuan), which must be
/// equal without it. OpenAI's own config.json of GPT-OSS, which has no model_type, is known by its fields. Throws
/// std::runtime_error that names the field for one that is missing, of another type, out of range, or asks for what the
/// library does not do, such as a quantisation that it does not read; and the model type if no family has it.
inline MoeConfig parse_moe_config(const std::string& label, const nlohmann::json& json,
                                  std::optional<Index> layer = {}) {
  if (layer && *layer < 0) fail("moe::parse_moe_config: layer is ", *layer, ", expected at least 0");
  const detail::JsonFields top(label, json, layer);
  const Family& family = detail::family_of(top);
  MoeConfig config{.family = std::string(family.name)};
  family.read(top.has("text_config") ? top.part("text_config") : top, config);
  config.quantisation = detail::read_quantisation(top);
  try {
    config.validate();
  } catch (const std::invalid_argument& error) {
    fail_environment(label, ": ", error.what());
  }
  return config;
}

/// The same from text. Throws std::runtime_error for what is not JSON, deeper than 64 levels, longer than 16 MiB, or
/// has a key twice in an object. Time grows in proportion to the text.
inline MoeConfig parse_moe_config(const std::string& label, std::string_view text, std::optional<Index> layer = {}) {
  return parse_moe_config(label, detail::parse_config(label, text), layer);
}

/// The same from a file. Throws std::runtime_error if it cannot be read.
inline MoeConfig read_moe_config(const std::filesystem::path& path, std::optional<Index> layer = {}) {
  const std::string label = "moe::read_moe_config: '" + path.string() + "'";
  return parse_moe_config(label, detail::read_json(label, path), layer);
}

/// The family alone of a config.json, as moe_layers() asks for it before a layer is chosen.
inline std::string read_moe_family(const std::filesystem::path& path) {
  const std::string label = "moe::read_moe_family: '" + path.string() + "'";
  const nlohmann::json json = detail::read_json(label, path);
  return std::string(detail::family_of(detail::JsonFields(label, json)).name);
}

}  // namespace moe::inline MOE_ABI
