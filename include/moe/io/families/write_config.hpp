// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/families/model_config.hpp"

// config.json written so that read_moe_config() gets the configurations that are meant. What a family cannot say shows
// when it is read again, and is refused.
namespace moe::inline MOE_ABI::detail {

/// What a layer is to be read as.
struct LayerConfig {
  Index layer = 0;
  MoeConfig config = {};
};

/// Names and values of what a configuration says about a block, always as many: "" for what another one decides. Values
/// of biases and how weights are stored are not among them.
class ConfigFacts {
 public:
  explicit ConfigFacts(const MoeConfig& config) {
    add("family", config.family);
    add("model_dim", config.model_dim);
    add("hidden_dim", config.hidden_dim);
    add("num_experts", config.num_experts);
    add("num_identity_experts", config.num_identity_experts);
    add("selection_bias", config.selection_bias);
    add("router_bias", config.router_bias);
    add_name("expert", config.expert, {"SiluGated", "ClampedGated", "GeluGated", "ReluPlain", "SquaredReluPlain"});
    add("expert_bias", config.expert_bias);
    add_name("weight_on", config.weight_on, {"Output", "Input"});
    add("shared_dim", config.shared_dim);
    add_if(config.shared_dim != 0, "shared_gate", config.shared_gate == SharedGate::Sigmoid ? "Sigmoid" : "Off");
    add("output_bias", config.output_bias);
    const bool is_clamped = config.expert == ExpertKind::ClampedGated;
    add_if(is_clamped, "clamp.limit", config.clamp.limit);
    add_if(is_clamped, "clamp.alpha", config.clamp.alpha);
    add_if(is_clamped, "clamp.up_offset", config.clamp.up_offset);
    add("sparse_mixer", config.sparse_mixer.has_value());
    add("sparse_mixer.jitter", config.sparse_mixer ? config.sparse_mixer->jitter : 0);
    add_gate(config.sparse_mixer ? TopKGate{} : config.gate);
    add("capacity", config.capacity.has_value());
    add_capacity(config.capacity.value_or(CapacityOptions{}));
  }

  friend bool operator==(const ConfigFacts&, const ConfigFacts&) = default;

  /// "num_experts = 4, <between> 6" of the first fact in which the other differs, or "".
  std::string difference(const ConfigFacts& other, const std::string& between) const {
    const auto [mine, theirs] = std::mismatch(facts_.begin(), facts_.end(), other.facts_.begin());
    if (mine == facts_.end()) return "";
    return mine->first + " = " + shown(mine->second) + ", " + between + " " + shown(theirs->second);
  }

 private:
  template <class T>
  void add(const std::string& name, const T& value) {
    std::ostringstream text;
    text.precision(15);  // all that a decimal number of a file is sure to keep
    text << std::boolalpha << value;
    facts_.emplace_back(name, text.str());
  }
  template <class T>
  void add_if(bool is_there, const std::string& name, const T& value) {
    if (is_there)
      add(name, value);
    else
      facts_.emplace_back(name, "");
  }
  template <class Enum>
  void add_name(const std::string& name, Enum value, std::vector<std::string_view> names) {
    add(name, names.at(static_cast<std::size_t>(value)));
  }

  void add_gate(const TopKGate& gate) {
    add("gate.k", gate.k);
    add_name("gate.score", gate.score, {"Softmax", "Sigmoid", "SqrtSoftplus"});
    add_name("gate.normalise", gate.normalise, {"Off", "Sum", "Euclidean", "PNorm"});
    add("gate.epsilon", gate.epsilon);
    add("gate.scale", gate.scale);
    add("gate.floor", gate.floor);
    add_if(gate.normalise == Normalise::PNorm, "gate.norm_p", gate.norm_p);
    add("gate.weight_bias.size()", gate.weight_bias.size());
    add("gate.groups.count", gate.groups.count);
    const bool has_groups = gate.groups.count > 1;
    add_if(has_groups, "gate.groups.kept", gate.groups.kept);
    add_if(has_groups, "gate.groups.best", gate.groups.best);
    add_if(has_groups, "gate.groups.rank", static_cast<int>(gate.groups.rank));
  }

  void add_capacity(const CapacityOptions& capacity) {
    add("capacity.factor", capacity.factor);
    add("capacity.evaluation_factor", capacity.evaluation_factor);
    add("capacity.min_capacity", capacity.min_capacity);
    add("capacity.evaluation_min_capacity", capacity.evaluation_min_capacity);
    add("capacity.order", static_cast<int>(capacity.order));
    add("capacity.weights", static_cast<int>(capacity.weights));
    add("capacity.scope", static_cast<int>(capacity.scope));
    add("capacity.load", static_cast<int>(capacity.load));
    add("capacity.rounding", static_cast<int>(capacity.rounding));
    add("capacity.multiple", capacity.multiple);
    add("capacity.evaluation_multiple", capacity.evaluation_multiple);
    add("capacity.floor", capacity.floor);
    add("capacity.evaluation_scale", capacity.evaluation_scale);
  }

  std::vector<std::pair<std::string, std::string>> facts_;
};

/// Why a reader of `json` would not get what is expected of a layer, or "".
inline std::string misread(const nlohmann::ordered_json& json, const std::vector<LayerConfig>& expected) {
  using Json = nlohmann::ordered_json;
  const nlohmann::json read = nlohmann::json::parse(json.dump(-1, ' ', false, Json::error_handler_t::replace));
  for (const auto& [layer, config] : expected) {
    try {
      const ConfigFacts meant(config);
      const std::string reason =
          meant.difference(ConfigFacts(parse_moe_config("config.json", read, layer)), "which would be read as");
      if (!reason.empty()) return "layer " + std::to_string(layer) + " has " + reason;
    } catch (const std::runtime_error& error) {
      return "layer " + std::to_string(layer) + " would be refused: " + error.what();
    }
  }
  return "";
}

/// Takes out what `json` has and `before` has not (or as null), where it says nothing that is not meant without it.
inline void take_out_needless(const nlohmann::ordered_json& root, nlohmann::ordered_json& json,
                              const nlohmann::ordered_json& before, const std::vector<LayerConfig>& expected) {
  std::vector<std::string> names;
  for (const auto& [name, value] : json.items()) names.push_back(name);
  for (const std::string& name : names) {
    const bool was_there = before.contains(name);
    if (was_there && !before[name].is_null()) {
      if (json[name].is_object() && before[name].is_object())
        take_out_needless(root, json[name], before[name], expected);
      continue;
    }
    nlohmann::ordered_json value = json[name];
    if (was_there)
      json[name] = nullptr;
    else
      json.erase(name);
    if (!misread(root, expected).empty()) json[name] = std::move(value);
  }
}

/// Where a config.json describes the MoE block; see parse_moe_config().
inline nlohmann::ordered_json& text_part(nlohmann::ordered_json& json) {
  return json.contains("text_config") && json["text_config"].is_object() ? json["text_config"] : json;
}

/// Changes the fields of a config.json so that its layers are read as `written` and `others` say; `others` are read so
/// already. Throws std::invalid_argument, opened with the function, where the family has no fields for that.
inline void write_config(const char* function, const Family& family, const std::vector<LayerConfig>& written,
                         const std::vector<LayerConfig>& others, nlohmann::ordered_json& json) {
  const bool is_same = std::all_of(written.begin(), written.end(), [&](const LayerConfig& layer) {
    return ConfigFacts(layer.config) == ConfigFacts(written.front().config);
  });
  for (const auto& [layer, config] : written) {
    std::optional<Index> which = layer;
    if (is_same && others.empty()) which.reset();
    ConfigFields fields(text_part(json), which);
    family.write(config, fields);
  }
  std::vector<LayerConfig> expected = written;
  expected.insert(expected.end(), others.begin(), others.end());
  if (const std::string reason = misread(json, expected); !reason.empty())
    fail(function, ": config.json of family '", family.name, "' cannot say it: ", reason,
         is_same && others.empty() ? "" : ". Most families have one number for all layers");
}

/// Other names of the number of experts that a config.json has beside the one that its family reads: what they say must
/// not become stale, as other programs may read them.
inline void follow_count(Index before, Index now, nlohmann::ordered_json& json) {
  for (const char* name : {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"})
    if (json.contains(name) && json[name].is_number() && json[name] == before) json[name] = now;
}

/// The same for fields beside those that stay as they are: none is added that the readers of the family do not need.
inline void change_config(const char* function, const Family& family, const std::vector<LayerConfig>& written,
                          const std::vector<LayerConfig>& others, nlohmann::ordered_json& json) {
  const nlohmann::ordered_json before = json;
  write_config(function, family, written, others, json);
  std::vector<LayerConfig> expected = written;
  expected.insert(expected.end(), others.begin(), others.end());
  take_out_needless(json, json, before, expected);
  const nlohmann::json source = nlohmann::json::parse(before.dump());
  const Index count = parse_moe_config(function, source, written.front().layer).num_experts;
  nlohmann::ordered_json followed = json;
  follow_count(count, written.front().config.num_experts, text_part(followed));
  if (misread(followed, expected).empty()) json = std::move(followed);
}

inline const char* torch_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::F64:
      return "float64";
    case Dtype::F16:
      return "float16";
    case Dtype::BF16:
      return "bfloat16";
    default:
      return "float32";
  }
}

/// What the config.json of a model with names of this prefix begins with. Models with images have the part about text
/// in a field of its own.
inline nlohmann::ordered_json new_config(const Family& family, std::string_view prefix, Dtype dtype) {
  const auto [whole, second] = family.model_types;
  const std::string name(whole), text(second.ends_with("_text") ? second : whole);
  nlohmann::ordered_json json = {{"model_type", text}};
  if (prefix.find("language_model.") != prefix.npos)
    json = {{"model_type", name}, {"text_config", nlohmann::ordered_json(json)}};
  json["torch_dtype"] = torch_name(dtype);
  return json;
}

}  // namespace moe::inline MOE_ABI::detail
