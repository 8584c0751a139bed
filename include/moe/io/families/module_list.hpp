// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/families/module_pattern.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

inline constexpr std::string_view kExpression = "re:";

/// The module of a weight: "mlp.up_proj" of "mlp.up_proj.weight".
inline std::string_view module_of_weight(std::string_view tensor) {
  constexpr std::string_view kWeight = ".weight";
  return tensor.substr(0, tensor.size() - (tensor.ends_with(kWeight) ? kWeight.size() : 0));
}

}  // namespace detail

/// Modules as configurations list them: dotted names, `*` stands for any characters of a part; or "re:" and an
/// expression as Python's re.match takes it, see detail::ModulePattern; one that is not understood names nothing.
/// Names without `*` are sorted once, as there may be one for every matrix, and expressions compiled. A value that does
/// not change; copies share it.
class ModuleList {
 public:
  ModuleList() = default;
  ModuleList(std::initializer_list<std::string> entries) : ModuleList(std::vector<std::string>(entries)) {}
  ModuleList(std::vector<std::string> entries) {
    if (entries.empty()) return;
    const auto sorted = std::make_shared<Sorted>();
    sorted->entries = std::move(entries);
    for (const std::string_view entry : sorted->entries) sorted->add(entry);
    std::ranges::sort(sorted->names);
    sorted_ = sorted;
  }

  bool empty() const { return size() == 0; }
  std::size_t size() const { return entries().size(); }
  auto begin() const { return entries().begin(); }
  auto end() const { return entries().end(); }
  friend bool operator==(const ModuleList& a, const ModuleList& b) { return a.entries() == b.entries(); }

  /// Whether the whole name of the module of a tensor is listed. O(log n).
  bool has_whole_name_of(std::string_view tensor) const {
    return sorted_ && std::ranges::binary_search(sorted_->names, detail::module_of_weight(tensor));
  }
  /// Whether an entry is about a tensor: its expression matches the begin of the module's name, or its parts, between
  /// dots, are parts of the tensor's name, one after the other. O(parts of the name * log n) for names, and for others
  /// O(their characters * length of the name).
  bool names_module_of(std::string_view tensor) const {
    if (!sorted_) return false;
    if (has_whole_name_of(tensor) || has_parts_of(tensor)) return true;
    const std::string_view module = detail::module_of_weight(tensor);
    return std::ranges::any_of(sorted_->expressions, [&](const auto& each) { return each.matches_begin(module); }) ||
           std::ranges::any_of(sorted_->wildcards, [&](std::string_view each) { return is_in(each, tensor); });
  }

 private:
  /// Views are of `entries`.
  struct Sorted {
    static constexpr std::ptrdiff_t kMostParts = 32;  // of a name that is looked up by its parts

    void add(std::string_view entry) {
      if (entry.starts_with(detail::kExpression)) {
        if (auto pattern = detail::ModulePattern::compile(entry.substr(detail::kExpression.size())))
          expressions.push_back(std::move(*pattern));
      } else if (entry.find('*') != entry.npos || std::ranges::count(entry, '.') >= kMostParts) {
        wildcards.push_back(entry);
      } else if (!entry.empty()) {
        names.push_back(entry.ends_with('.') ? entry.substr(0, entry.size() - 1) : entry);
      }
    }

    std::vector<std::string> entries;
    std::vector<std::string_view> names, wildcards;
    std::vector<detail::ModulePattern> expressions;
  };

  const std::vector<std::string>& entries() const {
    static const std::vector<std::string> empty;
    return sorted_ ? sorted_->entries : empty;
  }
  bool has_parts_of(std::string_view tensor) const {
    if (sorted_->names.empty()) return false;
    for (std::string_view rest = tensor; !rest.empty(); detail::take_part(rest)) {
      std::size_t end = 0;
      for (std::ptrdiff_t parts = 0; parts < Sorted::kMostParts; ++parts) {
        end = std::min(rest.find('.', parts == 0 ? 0 : end + 1), rest.size());
        if (std::ranges::binary_search(sorted_->names, rest.substr(0, end))) return true;
        if (end == rest.size()) break;
      }
    }
    return false;
  }
  static bool is_in(std::string_view entry, std::string_view tensor) {
    for (std::string_view rest = tensor; !rest.empty(); detail::take_part(rest))
      if (detail::begins_with_parts(rest, entry)) return true;
    return false;
  }

  std::shared_ptr<const Sorted> sorted_;
};

}  // namespace moe::inline MOE_ABI
