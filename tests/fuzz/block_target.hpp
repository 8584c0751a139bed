// SPDX-License-Identifier: MIT
// A checkpoint described in a few lines, which a fuzzer can change without breaking offsets: a config.json, a blank
// line, then a line "name DTYPE extent extent ... [zero|inf|nan|mixed]" per tensor, or "name I64 extent =1,2,..", "-"
// begins the next shard. It is written to files, opened, and the MoE block of layer 0 is loaded and run.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/described_shards.hpp"
#include "fuzz/fuzz_directory.hpp"
#include "fuzz/layouts_target.hpp"
#include "fuzz/targets.hpp"
#include "moe/io/block/load_quantised_block.hpp"
#include "moe/io/block/quantise_block.hpp"

namespace test {

/// Writes all shards, and the index if they are many. Returns what to open, nothing for names that cannot be written.
inline std::filesystem::path write_described(const FuzzDirectory& directory, const std::vector<Shard>& shards) {
  nlohmann::json index = {{"weight_map", nlohmann::json::object()}};
  try {
    for (std::size_t s = 0; s < shards.size(); ++s) {
      const std::string file = "model-" + std::to_string(s) + ".safetensors";
      write_shard(directory / file, shards[s]);
      for (const auto& [name, info] : shards[s].header.tensors) index["weight_map"][name] = file;
    }
  } catch (const std::invalid_argument&) {
    return {};
  }
  if (shards.size() == 1) return directory / "model-0.safetensors";
  std::ofstream(directory / "index.json", std::ios::trunc) << index.dump();
  return directory / "index.json";
}

/// Reads every weight of the checkpoint in the layout that it is stored in, as is said of its module.
inline void read_weights(const moe::Checkpoint& checkpoint, const moe::Quantisation& stated) {
  for (const std::string& stored : checkpoint.names()) {
    touch(checkpoint.at(stored));
    std::string name = stored;
    for (const char* suffix : {"_blocks", ".blocks", "_packed"})
      if (name.ends_with(suffix)) name.resize(name.size() - 7);
    if (name.ends_with(".qweight")) name.erase(name.size() - 7, 1);
    try {
      require_one_weight(moe::WeightSource::find(checkpoint, name, stated.storage_of(name)));
    } catch (const std::runtime_error&) {
    }
  }
}

/// Where no number of the file is zero, no parameter is: all come from the file.
inline void require_filled(const moe::MoeBlock& block) {
  moe::visit_all(
      [](const std::string&, const auto& leaf) {
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        moe::read_parameter(leaf, std::span<double>(values));
        for (const double value : values) require(value != 0, "no weight is left at its initial value");
      },
      block);
}

/// The block with the few bits of the file, where it has any, holds the same weights.
inline void require_kept(const moe::Checkpoint& checkpoint, const moe::MoeConfig& config, const moe::MoeBlock& block) {
  std::optional<moe::MoeBlock> floats;
  try {
    floats.emplace(moe::dequantise(moe::load_quantised_block(checkpoint, config)));
  } catch (const std::invalid_argument&) {  // floats, scales that no format has so, or biases that are not finite
    return;
  } catch (const std::runtime_error&) {  // scales of 2^119 and more
    return;
  }
  moe::visit_all(
      [](const std::string&, const auto& kept, const auto& read) {
        const auto a = moe::parameter_span(kept), b = moe::parameter_span(read);
        for (std::size_t i = 0; i < a.size(); ++i)
          require(a[i] == b[i] || (a[i] != a[i] && b[i] != b[i]), "codes decode to the weights that are read");
      },
      *floats, block);
}

/// The block runs on tokens or says why not, whatever its numbers are.
inline void use_block(const moe::MoeBlock& block) {
  const moe::Matrix<float> tokens = moe::Matrix<float>::Constant(3, block.model_dim(), 0.5f);
  moe::Matrix<float> output(3, block.model_dim());
  moe::Workspace workspace;
  try {
    block.forward(tokens, moe::Step{}, output, workspace);
  } catch (const std::invalid_argument&) {  // logits that are not finite, or sequences that are needed
  }
}

inline bool fuzz_block(std::span<const std::byte> bytes) {
  static const FuzzDirectory directory("block");
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t blank = text.find("\n\n");
  if (blank == text.npos) return false;
  const auto shards = described_shards(text.substr(blank + 2));
  if (shards.empty()) return false;
  moe::SerialExecutor serial;  // one input is one thing that happens
  const moe::UseExecutor use(serial);
  try {
    const moe::MoeConfig config = moe::parse_moe_config("fuzz", std::string_view(text).substr(0, blank));
    const std::filesystem::path path = write_described(directory, shards);
    if (path.empty()) return false;
    const moe::Checkpoint checkpoint = moe::Checkpoint::open(path);
    read_weights(checkpoint, config.quantisation);
    const moe::MoeBlock block = moe::load_moe_block(checkpoint, config);
    const auto is_plain = [](const Shard& shard) { return shard.numbers.empty() && shard.integers.empty(); };
    if (std::all_of(shards.begin(), shards.end(), is_plain)) require_filled(block);
    require_kept(checkpoint, config, block);
    use_block(block);
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace test
