// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <charconv>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/families/families.hpp"
#include "moe/io/families/gguf_formats.hpp"
#include "moe/io/file/message.hpp"

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

/// A block of a checkpoint: of encoder and decoder a layer may have two, at different places.
struct BlockPlace {
  Index layer = 0;
  std::string prefix = {};  ///< of the names of its tensors
};

namespace detail {

/// Places of all blocks of a layer.
inline std::vector<std::string> block_prefixes(const Checkpoint& checkpoint, const Family& family, Index layer) {
  std::vector<std::string> prefixes;
  for (const FamilyFormat& format : formats_of(checkpoint, family)) {
    const std::string prefix = numbered_name(format.prefix, layer);
    const bool is_new = std::find(prefixes.begin(), prefixes.end(), prefix) == prefixes.end();
    if (is_new && checkpoint.contains(prefix + std::string(format.router))) prefixes.push_back(prefix);
  }
  return prefixes;
}

/// moe_blocks() in the name of a function.
inline std::vector<BlockPlace> chosen_blocks(const char* function, const Checkpoint& checkpoint, const Family& family,
                                             std::span<const Index> layers) {
  const std::vector<Index> there = moe_layers(checkpoint, family.name);
  const std::set<Index> chosen =
      layers.empty() ? std::set<Index>(there.begin(), there.end()) : std::set<Index>(layers.begin(), layers.end());
  std::vector<BlockPlace> places;
  for (const Index layer : chosen) {
    if (std::find(there.begin(), there.end(), layer) == there.end())
      fail(function, ": layer ", layer, " has no MoE block, expected layers of [", join(there, ", "), "]");
    for (std::string& prefix : block_prefixes(checkpoint, family, layer)) places.push_back({layer, std::move(prefix)});
  }
  if (places.empty())
    fail_environment(function, ": '", checkpoint.path().string(), "' has no MoE layer of family '", family.name, "'");
  return places;
}

}  // namespace detail

/// The blocks of these layers of a checkpoint, of all MoE layers where none are given, in their order. Reads names
/// only. Throws std::invalid_argument for a family that is not in kFamilies and a layer without an MoE block,
/// std::runtime_error where there is none at all.
inline std::vector<BlockPlace> moe_blocks(const Checkpoint& checkpoint, std::string_view family,
                                          std::span<const Index> layers = {}) {
  const Family* const known = find_family(family);
  if (!known) fail("moe::moe_blocks: family '", family, "' is not known");
  return detail::chosen_blocks("moe::moe_blocks", checkpoint, *known, layers);
}

}  // namespace moe::inline MOE_ABI
