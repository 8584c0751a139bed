// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "moe/io/file/message.hpp"

namespace moe::inline MOE_ABI::detail {

/// The fields of a JSON object from a file, checked as they are asked for. A field that is null counts as missing.
/// Errors are std::runtime_error that name the file, the field and what was expected.
class JsonFields {
 public:
  JsonFields(std::string label, const nlohmann::json& object, std::optional<Index> layer = {})
      : label_(std::move(label)), object_(&object), layer_(layer) {
    if (!object.is_object()) fail_environment(label_, ": expected a JSON object");
  }

  const std::string& label() const { return label_; }

  bool has(const std::string& name) const {
    const auto found = object_->find(name);
    return found != object_->end() && !found->is_null();
  }

  /// Of all fields that are there.
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& [name, value] : object_->items())
      if (!value.is_null()) result.push_back(name);
    return result;
  }

  bool is_null(const std::string& name) const { return object_->contains(name) && !has(name); }

  /// A part of its own: "text_config".
  JsonFields part(const std::string& name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_object()) refuse(shown(name), value, "an object");
    return {label_ + ": " + shown(name), value, layer_};
  }

  Index integer(const std::string& name) const {
    const nlohmann::json& value = at(name);
    constexpr std::int64_t kMost = std::int64_t{1} << 31;  // above any size, and products of two fit an Index
    if (!value.is_number_integer() || value.get<double>() < 0 || value.get<double>() > static_cast<double>(kMost))
      refuse(name, value, "an integer of 0 to 2^31");
    return value.get<Index>();
  }
  Index integer(const std::string& name, Index otherwise) const { return has(name) ? integer(name) : otherwise; }

  /// A list of them; empty where there is none.
  std::vector<Index> integers(const std::string& name) const {
    std::vector<Index> result;
    if (!has(name)) return result;
    const nlohmann::json& value = at(name);
    if (!value.is_array()) refuse(name, value, "a list of integers");
    for (const nlohmann::json& entry : value) {
      const nlohmann::json one = {{name, entry}};
      result.push_back(JsonFields(label_, one).integer(name));
    }
    return result;
  }
  /// An integer above 0, or -1 for all there are, which gives 0.
  Index integer_or_all(const std::string& name) const {
    if (at(name) == nlohmann::json(-1)) return 0;
    const Index value = integer(name);
    if (value == 0) refuse(name, at(name), "-1, or an integer above 0");
    return value;
  }

  double number(const std::string& name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_number() || !std::isfinite(value.get<double>())) refuse(name, value, "a finite number");
    return value.get<double>();
  }
  double number(const std::string& name, double otherwise) const { return has(name) ? number(name) : otherwise; }

  bool flag(const std::string& name, bool otherwise) const {
    if (!has(name)) return otherwise;
    const nlohmann::json& value = at(name);
    if (!value.is_boolean()) refuse(name, value, "true or false");
    return value.get<bool>();
  }

  std::string text(const std::string& name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_string()) refuse(name, value, "a string");
    return value.get<std::string>();
  }
  std::string text(const std::string& name, const std::string& otherwise) const {
    return has(name) ? text(name) : otherwise;
  }

  /// A list of strings; empty where there is none.
  std::vector<std::string> texts(const std::string& name) const {
    std::vector<std::string> result;
    if (!has(name)) return result;
    const nlohmann::json& value = at(name);
    if (!value.is_array()) refuse(name, value, "a list of strings");
    for (const nlohmann::json& entry : value) {
      if (!entry.is_string()) refuse(name, value, "a list of strings");
      result.push_back(entry.get<std::string>());
    }
    return result;
  }

  /// A number, or that of the layer from a list with one for every layer; where no layer was asked for, a list of equal
  /// numbers.
  Index integer_of_layers(const std::string& name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_array()) return integer(name);
    const auto place = static_cast<std::size_t>(layer_.value_or(0));
    if (place >= value.size()) refuse(name, value, "a number, or one for every layer up to " + std::to_string(place));
    for (const nlohmann::json& entry : value)
      if (!layer_ && entry != value.front()) refuse(name, value, "the same number for all layers");
    const nlohmann::json one = {{name, value[place]}};
    return JsonFields(label_, one).integer(name);
  }

  /// Throws unless a field, if it is there, has this value: for what models of a family could ask and the library does
  /// not do.
  void require(const std::string& name, const std::string& value) const {
    if (text(name, value) != value) refuse(name, at(name), "'" + value + "'");
  }

  [[noreturn]] void refuse(const std::string& name, const nlohmann::json& value, const std::string& expected) const {
    fail_environment(label_, ": ", name, " is ",
                     shown(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)), ", expected ",
                     expected);
  }

 private:
  const nlohmann::json& at(const std::string& name) const {
    if (!has(name)) fail_environment(label_, ": ", name, " is missing");
    return *object_->find(name);
  }

  std::string label_;
  const nlohmann::json* object_;
  std::optional<Index> layer_;
};

}  // namespace moe::inline MOE_ABI::detail
