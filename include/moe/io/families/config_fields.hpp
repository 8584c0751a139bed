// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI::detail {

/// The fields of a JSON object that is being written: the other side of JsonFields. A field that holds the number
/// already stays as it is spelt. Keeps the object, which must outlive it.
class ConfigFields {
 public:
  /// `layer`: whose numbers are written, where there are lists with one for every layer; none: those of all layers.
  explicit ConfigFields(nlohmann::ordered_json& object, std::optional<Index> layer = {})
      : object_(&object), layer_(layer) {}

  /// Whether a field is there and not null.
  bool has(const std::string& name) const { return object_->contains(name) && !(*object_)[name].is_null(); }

  template <class T>
  void set(const std::string& name, const T& value) {
    put((*object_)[name], value);
  }
  /// Sets a field that nothing says yet.
  template <class T>
  void set_missing(const std::string& name, const T& value) {
    if (!has(name)) set(name, value);
  }
  /// Sets a field that is there, or the first of two if none is: models may have both, which say the same.
  template <class T>
  void set_either(const std::string& name, const std::string& other, const T& value) {
    if (has(other)) set(other, value);
    if (has(name) || !has(other)) set(name, value);
  }

  /// A part of its own, made where it is missing.
  ConfigFields part(const std::string& name) {
    if (!has(name)) (*object_)[name] = nlohmann::ordered_json::object();
    return ConfigFields((*object_)[name], layer_);
  }

  /// A number for all layers, or an entry of a list with one for every layer. A number that is another for one layer
  /// becomes such a list, where the object says how many layers there are.
  void set_of_layers(const std::string& name, Index value) {
    nlohmann::ordered_json& field = (*object_)[name];
    if (layer_ && field.is_number() && field != value && has("num_hidden_layers")) {
      constexpr std::size_t kMostLayers = 100'000;  // above any model
      const nlohmann::ordered_json& count = (*object_)["num_hidden_layers"];
      if (count.is_number_unsigned() && count.get<std::uint64_t>() <= kMostLayers)
        field = nlohmann::ordered_json::array_t(count.get<std::size_t>(), nlohmann::ordered_json(field));
    }
    if (!field.is_array()) return put(field, value);
    for (std::size_t i = 0; i < field.size(); ++i)
      if (!layer_ || *layer_ == static_cast<Index>(i)) put(field[i], value);
  }

 private:
  template <class T>
  static void put(nlohmann::ordered_json& field, const T& value) {
    nlohmann::ordered_json written = value;
    if (field.is_number() && written.is_number()) {
      constexpr double kDigits = 1e-15;  // what is left of 1 - (1 - x)
      const double a = field.get<double>(), b = written.get<double>();
      if (std::abs(a - b) <= kDigits * std::max(1.0, std::abs(b))) return;
    }
    field = std::move(written);
  }

  nlohmann::ordered_json* object_;
  std::optional<Index> layer_;
};

}  // namespace moe::inline MOE_ABI::detail
