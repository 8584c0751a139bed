// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <charconv>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/families/families.hpp"
#include "moe/io/families/gguf_formats.hpp"

namespace moe::inline MOE_ABI {

/// Numbers of the layers of a checkpoint that have the router of an MoE block of a family, ascending; of encoder and
/// decoder together. Empty for a family that is not in kFamilies. Reads names only.
inline std::vector<Index> moe_layers(const Checkpoint& checkpoint, std::string_view family) {
  std::set<Index> layers;
  const Family* const known = find_family(family);
  for (const FamilyFormat& format : known ? formats_of(checkpoint, *known) : std::span<const FamilyFormat>()) {
    const std::size_t place = format.prefix.find("{}");
    if (place == format.prefix.npos) continue;
    const std::string_view head = format.prefix.substr(0, place);
    const std::string tail = std::string(format.prefix.substr(place + 2)) + std::string(format.router);
    const auto& names = checkpoint.names();
    for (auto name = std::lower_bound(names.begin(), names.end(), head); name != names.end(); ++name) {
      if (!name->starts_with(head)) break;
      Index layer = -1;
      const auto [stop, error] = std::from_chars(name->data() + head.size(), name->data() + name->size(), layer);
      if (error == std::errc{} && layer >= 0 && std::string_view(stop, name->data() + name->size()) == tail)
        layers.insert(layer);
    }
  }
  return {layers.begin(), layers.end()};
}

}  // namespace moe::inline MOE_ABI
