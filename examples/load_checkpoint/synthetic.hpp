// SPDX-License-Identifier: MIT
// A small checkpoint as one would download it: a config.json, two shards in BF16 and their index.
#pragma once

#include <filesystem>
#include <fstream>
#include <moe/io.hpp>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

/// A directory of its own, which goes away with the object.
class SyntheticCheckpoint {
 public:
  SyntheticCheckpoint() {
    std::filesystem::create_directories(path_);
    const nlohmann::json config = {{"model_type", "olmoe"}, {"hidden_size", 256},          {"intermediate_size", 128},
                                   {"num_experts", 16},     {"num_experts_per_tok", 4},    {"norm_topk_prob", false},
                                   {"hidden_act", "silu"},  {"num_hidden_layers", kLayers}};
    write_json("config.json", config);
    nlohmann::json index = {{"metadata", nlohmann::json::object()}, {"weight_map", nlohmann::json::object()}};
    for (moe::Index layer = 0; layer < kLayers; ++layer) write_shard(layer, index["weight_map"]);
    write_json("model.safetensors.index.json", index);
  }
  ~SyntheticCheckpoint() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  SyntheticCheckpoint(const SyntheticCheckpoint&) = delete;
  SyntheticCheckpoint& operator=(const SyntheticCheckpoint&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  static constexpr moe::Index kLayers = 2;

  void write_json(const char* name, const nlohmann::json& json) const {
    std::ofstream stream(path_ / name);
    stream << json.dump(2) << '\n';
    if (!stream) moe::fail_environment("cannot write ", (path_ / name).string());
  }

  /// One layer of random weights, under the names of its family.
  void write_shard(moe::Index layer, nlohmann::json& weight_map) const {
    moe::MoeConfig config{.family = "olmoe", .model_dim = 256, .hidden_dim = 128, .num_experts = 16};
    config.gate = {.k = 4, .normalise = moe::Normalise::Off};
    moe::MoeBlock block(config);
    const moe::FamilyFormat& format = moe::find_family(config.family)->formats.front();
    const auto tensors = moe::bind_weights(block, {format, moe::numbered_name(format.prefix, layer)});
    const std::string shard = "model-0000" + std::to_string(layer + 1) + "-of-00002.safetensors";
    moe::SafetensorsHeader header;
    for (const moe::BoundTensor& tensor : tensors) {
      header.tensors[tensor.name] = {.dtype = moe::Dtype::BF16, .shape = tensor.shape};
      weight_map[tensor.name] = shard;
    }
    moe::SafetensorsWriter writer(path_ / shard, header);
    std::int64_t number = layer << 32;
    const moe::RandomField random(moe::Purpose::User, /*seed=*/1);
    for (const moe::BoundTensor& tensor : tensors) {
      std::vector<float> values(static_cast<std::size_t>(tensor.shape[0] * tensor.shape[1]));
      for (float& value : values) value = static_cast<float>(0.08 * random.normal(number++));
      writer.write(tensor.name, std::span<const float>(values), moe::Narrowing::Allow);
    }
    writer.commit();
  }

  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / ("moe_checkpoint_" + std::to_string(std::random_device{}()));
};
