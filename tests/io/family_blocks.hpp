// SPDX-License-Identifier: MIT
// Blocks of published families with random weights, and files of them.
#pragma once

#include <string>
#include <vector>

#include "moe/io/block/load_block.hpp"
#include "support/experts.hpp"
#include "support/family_configs.hpp"
#include "support/files.hpp"

namespace test {

/// A block with all weights random.
inline moe::MoeBlock random_block(const moe::MoeConfig& config, std::uint64_t seed = 1) {
  moe::MoeBlock block(config);
  randomise(block, seed);
  moe::visit_all(
      [](const std::string& name, auto& leaf) {
        if (!name.ends_with("selection_bias")) return;
        for (auto& value : moe::parameter_span(leaf)) value = static_cast<float>(value);  // as it will be stored
      },
      block);
  return block;
}

/// What to do wrong when a block is saved.
struct Damage {
  std::string leave_out = {}, add = {}, reshape = {};
};

/// Saves a block in one format of its family as layer `layer`, and returns the names of its tensors.
inline std::vector<std::string> save_block(const std::filesystem::path& path, moe::MoeBlock& block,
                                           const moe::FamilyFormat& format, moe::Index layer,
                                           const Damage& damage = {}) {
  const auto tensors = moe::bind_weights(block, {format, moe::numbered_name(format.prefix, layer)});
  moe::SafetensorsHeader header;
  std::vector<std::string> names;
  for (const moe::BoundTensor& tensor : tensors) {
    names.push_back(tensor.name);
    std::vector<moe::Index> shape = tensor.shape;
    if (tensor.name == damage.reshape) shape.insert(shape.begin() + 1, 1);
    if (tensor.name != damage.leave_out) header.tensors[tensor.name] = {.dtype = moe::Dtype::F32, .shape = shape};
  }
  if (!damage.add.empty()) header.tensors[damage.add] = {.dtype = moe::Dtype::F32, .shape = {2}};
  moe::SafetensorsWriter writer(path, header);
  for (const moe::BoundTensor& tensor : tensors) {
    if (tensor.name == damage.leave_out) continue;
    std::size_t size = 1;
    for (const moe::Index extent : tensor.shape) size *= static_cast<std::size_t>(extent);
    std::vector<float> values(size, kNan<float>);
    moe::read_bound(tensor, values);
    writer.write(tensor.name, std::span<const float>(values));
  }
  if (!damage.add.empty()) writer.write(damage.add, std::span<const float>(std::vector<float>{1, 2}));
  writer.commit();
  return names;
}

}  // namespace test
