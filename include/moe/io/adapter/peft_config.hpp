// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/families/module_pattern.hpp"
#include "moe/io/file/json_fields.hpp"
#include "moe/io/file/json_text.hpp"

// What adapter_config.json says of modules, matched with their names as PEFT matches them.
// Long, as each field that names modules has a way of its own to do it, and they are read together.
namespace moe::inline MOE_ABI::detail {

/// The keys of objects that are fields of a JSON text, in the order of the text: PEFT takes the first that matches.
class KeyOrder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  using Json = nlohmann::json;

  explicit KeyOrder(std::string_view text) { parse_events(text, *this); }
  const std::vector<std::string>& of(const std::string& field) { return keys_[field]; }

  bool start_object(std::size_t) override { return ++depth_, true; }
  bool start_array(std::size_t) override { return ++depth_, true; }
  bool end_object() override { return --depth_, true; }
  bool end_array() override { return --depth_, true; }
  bool key(std::string& text) override {
    if (depth_ == 1) field_ = text;
    if (depth_ == 2) keys_[field_].push_back(text);
    return true;
  }
  bool string(std::string&) override { return true; }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(std::int64_t) override { return true; }
  bool number_unsigned(std::uint64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool binary(Json::binary_t&) override { return false; }
  bool parse_error(std::size_t, const std::string&, const Json::exception&) override { return false; }

 private:
  std::map<std::string, std::vector<std::string>> keys_;
  std::string field_;
  int depth_ = 0;
};

/// Whether a name is another, or ends with a dot and the other.
inline bool ends_with_name(std::string_view name, std::string_view end) {
  return name.ends_with(end) && (name.size() == end.size() || name[name.size() - end.size() - 1] == '.');
}

/// A key of rank_pattern or alpha_pattern: a regular expression of the end of a module's name, behind a dot or all of
/// it. Most are names, which are compared and not compiled: there may be one for every module.
class PeftPattern {
 public:
  explicit PeftPattern(std::string text) : text_(std::move(text)) {
    const auto is_plain = [](char c) {
      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '.';
    };
    is_name_ = std::ranges::all_of(text_, is_plain);
    if (!is_name_) expression_ = ModulePattern::compile("(.*\\.)?(" + text_ + ")$");
  }

  bool is_name() const { return is_name_; }
  /// False for an expression that is not understood.
  bool is_known() const { return is_name_ || expression_; }
  const std::string& text() const { return text_; }
  bool matches(std::string_view module) const {
    if (!is_name_) return expression_->matches_begin(module);
    if (module.size() < text_.size()) return false;
    const std::string_view end = module.substr(module.size() - text_.size());
    return std::equal(text_.rbegin(), text_.rend(), end.rbegin(), [](char p, char c) { return p == '.' || p == c; }) &&
           (module.size() == text_.size() || module[module.size() - text_.size() - 1] == '.');
  }

 private:
  std::string text_;
  bool is_name_ = false;
  std::optional<ModulePattern> expression_;
};

/// target_modules or exclude_modules: names, of which a module's ends with one, or an expression of all of a name.
class PeftTargets {
 public:
  PeftTargets(const JsonFields& fields, const nlohmann::json& config, const std::string& field) {
    if (!fields.has(field)) return;
    is_given_ = true;
    if (!config[field].is_string()) {
      names_ = fields.texts(field);
      return;
    }
    std::string text = fields.text(field);
    expression_ = ModulePattern::compile("(?:" + text + ")$");
    std::ranges::transform(text, text.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; });
    is_all_ = text == "all-linear";
    is_unknown_ = !is_all_ && !expression_;
  }

  bool is_given() const { return is_given_; }
  /// Whether a list has the whole name of a module.
  bool lists(std::string_view module) const { return std::ranges::find(names_, module) != names_.end(); }
  /// `otherwise` for an expression that is not understood.
  bool matches(std::string_view module, bool otherwise) const {
    if (is_unknown_ || is_all_) return is_all_ || otherwise;
    if (expression_) return expression_->matches_begin(module);
    return std::ranges::any_of(names_, [&](const std::string& name) { return ends_with_name(module, name); });
  }

 private:
  bool is_given_ = false, is_all_ = false, is_unknown_ = false;
  std::vector<std::string> names_;
  std::optional<ModulePattern> expression_;
};

/// layers_to_transform and layers_pattern: of modules that target_modules, a list, names by their ends, those of some
/// layers; what it names whole is adapted in any. The layer is a number between dots with two parts before it or, where
/// layers_pattern names some, behind one of these: the first, before PEFT 0.20 the last, which is that of the expert
/// (https://github.com/huggingface/peft/pull/3318).
class PeftLayers {
 public:
  PeftLayers(const JsonFields& fields, const nlohmann::json& config) {
    for (const char* field : {"layers_to_transform", "layers_pattern"})
      if (fields.has(field) && fields.has("target_modules") && config["target_modules"].is_string())
        fields.refuse(field, config[field], "none beside an expression as target_modules");
    if (fields.has("layers_to_transform"))
      numbers_ = config["layers_to_transform"].is_array() ? fields.integers("layers_to_transform")
                                                          : std::vector<Index>{fields.integer("layers_to_transform")};
    if (!fields.has("layers_pattern")) return;
    names_ = config["layers_pattern"].is_string() ? std::vector<std::string>{fields.text("layers_pattern")}
                                                  : fields.texts("layers_pattern");
    std::erase(names_, "");
    if (!names_.empty() && !fields.has("layers_to_transform"))
      fields.refuse("layers_pattern", config["layers_pattern"], "layers_to_transform beside it");
    const auto is_name = [](const std::string& name) {
      return std::ranges::all_of(name, [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
      });
    };
    if (!std::ranges::all_of(names_, is_name))
      fields.refuse("layers_pattern", config["layers_pattern"], "names of letters, digits and '_'");
  }

  enum class Which { First, Last };
  bool takes(std::string_view module, Which which) const {
    if (numbers_.empty()) return true;
    if (names_.empty()) return has(layer_behind(module, {}, which));
    for (const std::string& name : names_)  // the first that a module has counts
      if (const auto layer = layer_behind(module, name, which)) return has(layer);
    return false;
  }

 private:
  bool has(std::optional<Index> layer) const { return layer && std::ranges::find(numbers_, *layer) != numbers_.end(); }
  /// A number, neither first nor last part, behind a part that is `name`, or any if it is empty, and not first.
  static std::optional<Index> layer_behind(std::string_view module, std::string_view name, Which which) {
    std::optional<Index> result;
    (void)take_part(module);
    for (std::string_view before = take_part(module); !module.empty();) {
      const std::string_view part = take_part(module);
      const bool is_number =
          !part.empty() && part.size() < 10 && std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
      if (is_number && !module.empty() && (name.empty() || before == name)) {
        Index number = 0;
        for (const char c : part) number = 10 * number + (c - '0');
        result = number;
        if (which == Which::First) return result;
      }
      before = part;
    }
    return result;
  }

  std::vector<Index> numbers_;
  std::vector<std::string> names_;
};

/// adapter_config.json, as far as it is about experts. Names of modules are whole:
/// "model.layers.0.mlp.experts.3.up_proj".
class PeftConfig {
 public:
  PeftConfig(const std::string& label, std::string_view text)
      : label_(label),
        json_(parse_json(label, text)),
        fields_(label_, json_),
        targets_(fields_, json_, "target_modules"),
        excluded_(fields_, json_, "exclude_modules"),
        layers_(fields_, json_) {
    if (fields_.text("peft_type") != "LORA") fields_.refuse("peft_type", json_["peft_type"], "'LORA'");
    require_low_rank();
    rank_ = require_rank(fields_, "r");
    alpha_ = fields_.number("lora_alpha");
    by_root_ = fields_.flag("use_rslora", false);
    parameters_ = fields_.texts("target_parameters");
    KeyOrder order(text);
    read_patterns(order, "rank_pattern", ranks_, require_rank);
    read_patterns(order, "alpha_pattern", alphas_,
                  [](const JsonFields& part, const std::string& key) { return part.number(key); });
  }
  PeftConfig(const PeftConfig&) = delete;
  PeftConfig& operator=(const PeftConfig&) = delete;

  /// Of a module's update.
  struct Numbers {
    Index rank;
    double scale;  ///< alpha / rank, or alpha / sqrt(rank)
  };
  /// Throws where the scale is not finite as a float, as which it is used.
  Numbers numbers(const std::string& module) const {
    const Index rank = of(ranks_, module, rank_);
    const double alpha = of(alphas_, module, alpha_), divisor = static_cast<double>(rank);
    const double scale = alpha / (by_root_ ? std::sqrt(divisor) : divisor);
    if (!(std::abs(scale) <= static_cast<double>(std::numeric_limits<float>::max())))
      fail_environment(label_, ": lora_alpha of ", in_quotes(module), " is ", alpha, " and makes a scale of ", scale,
                       ", expected one that is a finite float");
    return {rank, scale};
  }

  /// Throws where the configuration says that a module, of which there are tensors, is not adapted. Which modules a
  /// model has by default, without target_modules, is not looked up.
  void require_target(const std::string& module) const {
    const std::string expected = "to name " + in_quotes(module) + ", of which there are tensors";
    const bool none = !targets_.is_given() && !parameters_.empty();
    if (none || (targets_.is_given() && !targets_.matches(module, true)))
      fields_.refuse("target_modules", none ? nlohmann::json() : json_["target_modules"], expected);
    if (excluded_.is_given() && excluded_.matches(module, false))
      fields_.refuse("exclude_modules", json_["exclude_modules"], "not " + expected);
    if (!targets_.lists(module) && !is_of_layers(module))
      fields_.refuse("layers_to_transform", json_["layers_to_transform"],
                     "the layer of" + expected.substr(7) + " (peft_version is " + stated_version() +
                         "; before 0.20 the last number of a name is its layer)");
  }
  bool targets_parameter(const std::string& name) const {
    return std::ranges::any_of(parameters_, [&](const std::string& each) { return ends_with_name(name, each); });
  }
  [[noreturn]] void refuse_parameters(const std::string& expected) const {
    fields_.refuse("target_parameters", parameters_, expected);
  }

  /// Who wrote the file, if it says so: from 0.18 on.
  std::optional<std::vector<Index>> version() const {
    if (!fields_.has("peft_version")) return {};
    const std::string text = fields_.text("peft_version");
    std::vector<Index> numbers;
    for (std::string_view rest = text; !rest.empty() && numbers.size() < 3;) {
      Index number = 0;
      std::size_t digits = 0;
      for (; digits < rest.size() && digits < 6 && rest[digits] >= '0' && rest[digits] <= '9'; ++digits)
        number = 10 * number + (rest[digits] - '0');
      if (digits == 0) break;
      numbers.push_back(number);
      rest.remove_prefix(digits);
      if (rest.empty() || rest.front() != '.') break;
      rest.remove_prefix(1);
    }
    if (numbers.size() < 2) fields_.refuse("peft_version", text, "a version, as '0.18.0'");
    return numbers;
  }
  std::string stated_version() const {
    return fields_.has("peft_version") ? in_quotes(fields_.text("peft_version")) : std::string("missing");
  }

 private:
  template <class T>
  using Patterns = std::vector<std::pair<PeftPattern, T>>;  // in the order of the file

  /// Of a file that does not say who wrote it: by either way to find the layer.
  bool is_of_layers(std::string_view module) const {
    using enum PeftLayers::Which;
    const auto from = version();
    if (!from) return layers_.takes(module, First) || layers_.takes(module, Last);
    return layers_.takes(module, *from < std::vector<Index>{0, 20} ? Last : First);
  }

  /// Throws for all that makes more, or other things, of the tensors than W + scale * B A.
  void require_low_rank() const {
    for (const char* name : {"use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"})
      if (fields_.flag(name, false)) fields_.refuse(name, json_[name], "false");
    fields_.require("bias", "none");
    for (const char* name : {"modules_to_save", "alora_invocation_tokens", "layer_replication", "use_bdlora",
                             "kasa_config", "monteclora_config", "arrow_config"})
      if (fields_.has(name) && json_[name] != false && !json_[name].empty()) fields_.refuse(name, json_[name], "none");
    if (!fields_.has("init_lora_weights") || !json_["init_lora_weights"].is_string()) return;
    std::string start = fields_.text("init_lora_weights");
    for (char& c : start) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);  // as PEFT compares it
    for (const char* changes : {"pissa", "corda", "olora", "loftq", "lora_ga"})
      if (start.starts_with(changes))
        fields_.refuse("init_lora_weights", start, "a start that leaves the weights of the model as they are");
  }

  template <class T, class Read>
  void read_patterns(KeyOrder& order, const char* field, Patterns<T>& patterns, const Read& read) {
    constexpr std::size_t kMostCharacters = 2048;  // each module is matched with all of them
    if (!fields_.has(field)) return;
    const JsonFields part = fields_.part(field);
    std::size_t characters = 0;
    for (const std::string& key : order.of(field)) {
      PeftPattern pattern(key);
      if (!pattern.is_name()) characters += key.size();
      if (!pattern.is_known())
        fail_environment(label_, ": ", field, " has the key ", in_quotes(key),
                         ", expected the name of a module, or a regular expression of characters, classes, groups, "
                         "'|', '*', '+' and '?'");
      if (characters > kMostCharacters)
        fail_environment(label_, ": ", field, " has regular expressions of ", characters,
                         " characters and more, expected at most ", kMostCharacters);
      patterns.emplace_back(std::move(pattern), read(part, key));
    }
  }
  template <class T>
  static T of(const Patterns<T>& patterns, const std::string& module, T otherwise) {
    for (const auto& [pattern, value] : patterns)
      if (pattern.matches(module)) return value;
    return otherwise;
  }
  static Index require_rank(const JsonFields& fields, const std::string& name) {
    const Index rank = fields.integer(name);
    if (rank < 1) fields.refuse(name, rank, "an integer of at least 1");
    return rank;
  }

  std::string label_;
  nlohmann::json json_;
  JsonFields fields_;
  PeftTargets targets_, excluded_;
  PeftLayers layers_;
  Index rank_ = 0;
  double alpha_ = 0;
  bool by_root_ = false;
  Patterns<Index> ranks_;
  Patterns<double> alphas_;
  std::vector<std::string> parameters_;
};

}  // namespace moe::inline MOE_ABI::detail
