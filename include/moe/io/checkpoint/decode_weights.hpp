// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/tensor_group.hpp"
#include "moe/io/checkpoint/weight_source.hpp"

namespace moe::inline MOE_ABI {

/// All weights of a checkpoint that are stored as codes with scales, by name. `storage_of` says what shapes leave open
/// of a weight: storage_of(name) is a StatedStorage, or a reference to one that is good for the call. Throws as
/// WeightSource::find().
///   moe::coded_weights(checkpoint, [&](const std::string& name) -> const moe::StatedStorage& {
///     return config.quantisation.storage_of(name);
///   });
template <std::invocable<const std::string&> StorageOf>
std::vector<WeightSource> coded_weights(const Checkpoint& checkpoint, const StorageOf& storage_of) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kEnds{
      {{"_blocks", ""}, {".blocks", ""}, {"_packed", ""}, {".qweight", ".weight"}, {"", ""}}};
  std::set<std::string> names;
  for (const std::string& name : checkpoint.names())
    for (const auto& [end, whole] : kEnds) {
      if (!name.ends_with(end)) continue;
      const std::string weight = name.substr(0, name.size() - end.size()) + std::string(whole);
      const auto has = [&](const char* part) { return checkpoint.contains(weight + part); };
      if (!end.empty() || has("_scale") || has("_scale_inv")) names.insert(weight);
      break;
    }
  std::vector<WeightSource> result;
  for (const std::string& name : names) {
    if (!WeightSource::exists(checkpoint, name)) continue;
    WeightSource source = WeightSource::find(checkpoint, name, storage_of(name));
    if (source.has_scales()) result.push_back(std::move(source));
  }
  return result;
}

/// Where the same is stated of all.
inline std::vector<WeightSource> coded_weights(const Checkpoint& checkpoint, const StatedStorage& stated = {}) {
  return coded_weights(checkpoint, [&](const std::string&) -> const StatedStorage& { return stated; });
}

/// The weights as BF16 instead, rounded to nearest: tensors of their names and shapes. Memory: some MB.
inline TensorGroup decoded_weights(std::vector<WeightSource> weights) {
  TensorGroup group;
  for (const WeightSource& weight : weights) {
    for (std::string& name : weight.stored_names()) group.replaced.insert(std::move(name));
    group.tensors.emplace(weight.name(), TensorInfo{.dtype = Dtype::BF16, .shape = weight.shape()});
  }
  group.write = [weights = std::move(weights)](TensorSink& to) {
    constexpr Index kAtOnce = Index{1} << 20;
    std::vector<float> values;
    std::vector<std::byte> bytes;
    for (const WeightSource& weight : weights)
      for (Index first = 0; first < weight.size(); first += kAtOnce) {
        values.resize(static_cast<std::size_t>(std::min(kAtOnce, weight.size() - first)));
        bytes.resize(2 * values.size());
        weight.read_values(first, values);
        detail::encode(std::span<const float>(values), Dtype::BF16, bytes.data());
        to.write(weight.name(), 2 * static_cast<std::uint64_t>(first), bytes);
      }
  };
  return group;
}

}  // namespace moe::inline MOE_ABI
