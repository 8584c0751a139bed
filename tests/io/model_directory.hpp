// SPDX-License-Identifier: MIT
// The directory of a small model, as one would download it, and what a directory holds, read with nothing of the
// library.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/plain_reader.hpp"
#include "io/stored_block.hpp"

namespace test {

/// Two MoE layers of 6 experts in BF16 and some other tensors, dealt to three files so that every layer is in all.
class ModelDirectory {
 public:
  struct Sizes {
    moe::Index model_dim = 64, hidden_dim = 32;
  };

  explicit ModelDirectory(const std::string& model_type, Sizes sizes = {64, 32}, std::size_t format = 0)
      : json_(nlohmann::json::parse(config_text(model_type))) {
    json_["hidden_size"] = sizes.model_dim;
    json_[json_.contains("moe_intermediate_size") ? "moe_intermediate_size" : "intermediate_size"] = sizes.hidden_dim;
    if (json_.contains("shared_expert_intermediate_size")) json_["shared_expert_intermediate_size"] = sizes.hidden_dim;
    json_["rms_norm_eps"] = 1e-6;
    json_["architectures"] = {"SomeModel"};
    config_ = moe::parse_moe_config("test", json_);
    format_ = moe::find_family(config_.family)->formats[format];
    const moe::Index dim = sizes.model_dim;
    add("model.embed_tokens.weight", moe::Dtype::BF16, {9, dim});
    for (const moe::Index layer : {0, 1}) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      add(prefix + "input_layernorm.weight", moe::Dtype::F32, {dim});
      add(prefix + "self_attn.q_proj.weight", moe::Dtype::BF16, {dim, dim});
      moe::MoeBlock block(config_);
      for (const moe::BoundTensor& tensor :
           moe::bind_weights(block, {format_, moe::numbered_name(format_.prefix, layer)}))
        add(tensor.name, tensor.numbers ? moe::Dtype::F32 : moe::Dtype::BF16, tensor.shape);
    }
    add("lm_head.weight", moe::Dtype::BF16, {9, dim});
    write();
  }

  const std::filesystem::path& path() const { return path_; }
  const moe::MoeConfig& config() const { return config_; }
  const moe::FamilyFormat& format() const { return format_; }
  nlohmann::json& json() { return json_; }
  std::vector<Tensor>& tensors() { return tensors_; }
  /// A place for another directory, which goes away with this.
  std::filesystem::path other(const std::string& name) const { return directory_ / name; }

  void write() const {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directory(path_);
    std::map<std::string, std::vector<Tensor>> shards;
    std::size_t total = 0;
    nlohmann::json index = {{"weight_map", nlohmann::json::object()}};
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
      const std::string shard = "model-0000" + std::to_string(t % 3 + 1) + "-of-00003.safetensors";
      shards[shard].push_back(tensors_[t]);
      index["weight_map"][tensors_[t].name] = shard;
      total += tensors_[t].bytes.size();
    }
    index["metadata"]["total_size"] = total;
    for (const auto& [shard, tensors] : shards) write_tensors(path_ / shard, tensors, {{"format", "pt"}});
    write_bytes(path_ / "model.safetensors.index.json", index.dump());
    write_bytes(path_ / "config.json", json_.dump());
    write_bytes(path_ / "tokenizer.json", "{\"tokens\": []}");
    write_bytes(path_ / "pytorch_model.bin", "old");
    std::filesystem::create_directory(path_ / "original");
  }

 private:
  void add(const std::string& name, moe::Dtype dtype, const std::vector<moe::Index>& shape) {
    const auto bytes = static_cast<moe::Index>(*moe::detail::tensor_bytes(dtype, shape));
    tensors_.push_back(
        {name, dtype, shape, random_codes(dtype, bytes / static_cast<moe::Index>(moe::dtype_size(dtype)), engine_)});
  }

  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "source";
  std::mt19937 engine_{11};
  nlohmann::json json_;
  moe::MoeConfig config_;
  moe::FamilyFormat format_;
  std::vector<Tensor> tensors_;
};

/// All tensors of a directory and its config.json. Fails the test where the index is wrong.
struct PlainDirectory {
  std::map<std::string, PlainTensor> tensors;
  nlohmann::json config;
  std::map<std::string, std::string> files;  ///< by name, with their bytes

  explicit PlainDirectory(const std::filesystem::path& path) {
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.is_regular_file()) files[entry.path().filename().string()] = read_bytes(entry.path());
    std::size_t total = 0, tensors_in_files = 0;
    const auto index = nlohmann::json::parse(files.at("model.safetensors.index.json"));
    std::map<std::string, PlainFile> parsed;
    for (const auto& [name, bytes] : files)
      if (name.ends_with(".safetensors")) {
        parsed[name] = read_plainly(bytes);
        REQUIRE(parsed[name].metadata.at("format") == "pt");
        tensors_in_files += parsed[name].tensors.size();
      }
    for (const auto& [name, file] : index.at("weight_map").items()) {
      tensors[name] = parsed.at(file.get<std::string>()).tensors.at(name);
      total += tensors[name].bytes.size();
    }
    REQUIRE(tensors.size() == tensors_in_files);
    REQUIRE(index.at("metadata").at("total_size").get<std::size_t>() == total);
    config = nlohmann::json::parse(files.at("config.json"));
  }

  bool has(const std::string& name) const { return tensors.count(name) != 0; }
  unsigned byte(const std::string& name, std::size_t i) const {
    return static_cast<unsigned char>(tensors.at(name).bytes.at(i));
  }
  unsigned word(const std::string& name, std::size_t i) const {
    return byte(name, 4 * i) | byte(name, 4 * i + 1) << 8 | byte(name, 4 * i + 2) << 16 | byte(name, 4 * i + 3) << 24;
  }
  /// A small float with so many bits of exponent and fraction.
  static double small_float(unsigned code, int exponent_bits, int fraction_bits) {
    const int exponent = static_cast<int>(code >> fraction_bits) & ((1 << exponent_bits) - 1);
    const int fraction = static_cast<int>(code) & ((1 << fraction_bits) - 1), bias = (1 << (exponent_bits - 1)) - 1;
    const double magnitude = exponent == 0
                                 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                                 : std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
    return (code >> (exponent_bits + fraction_bits) & 1) != 0 ? -magnitude : magnitude;
  }
  /// A number of F32, F16, BF16 or F8_E4M3.
  double number(const std::string& name, std::size_t i) const {
    const std::string& type = tensors.at(name).dtype;
    if (type == "F8_E4M3") return small_float(byte(name, i), 4, 3);
    if (type == "F32") return small_float(word(name, i), 8, 23);
    return small_float(byte(name, 2 * i) | byte(name, 2 * i + 1) << 8, type == "F16" ? 5 : 8, type == "F16" ? 10 : 7);
  }
  std::size_t extent(const std::string& name, std::size_t axis) const { return tensors.at(name).shape.at(axis); }

  /// Weight (row, column) of a matrix [rows, columns], or of a stack of such, as the published layouts say it, each
  /// product rounded to float.
  float weight(const std::string& name, std::size_t row, std::size_t rows, std::size_t column,
               std::size_t columns) const {
    if (has(name + "_shape")) return integer(name, row, column, columns);
    if (has(name + "_blocks") || has(name + "_packed")) return e2m1(name, row, column, columns);
    const double code = number(name, row * columns + column);
    if (has(name + "_scale_inv")) {
      const std::size_t across = (columns + 127) / 128, down = (rows + 127) / 128;
      return static_cast<float>(
          code * number(name + "_scale_inv", (row / rows * down + row % rows / 128) * across + column / 128));
    }
    return static_cast<float>(has(name + "_scale") ? code * number(name + "_scale", row) : code);
  }

 private:
  float integer(const std::string& name, std::size_t row, std::size_t column, std::size_t columns) const {
    const std::size_t words = extent(name + "_packed", 1), groups = extent(name + "_scale", 1);
    const nlohmann::json& weights = weights_of(name);
    const auto bits = weights.at("num_bits").get<std::size_t>();
    const bool has_zeros = has(name + "_zero_point");
    if (words != (columns * bits + 31) / 32 || has_zeros == weights.at("symmetric").get<bool>())
      FAIL(name << " is not stored as its config group says");  // no REQUIRE, of which there would be millions
    const auto code = [&](const std::string& tensor, std::size_t first, std::size_t stride, std::size_t place) {
      const std::size_t bit = place * bits, at = first + bit / 32 * stride;
      std::uint64_t found = word(tensor, at);
      if (bit % 32 + bits > 32) found |= std::uint64_t{word(tensor, at + stride)} << 32;
      return static_cast<int>(found >> bit % 32 & ((1u << bits) - 1)) - (1 << (bits - 1));
    };
    const std::size_t size = weights.at("group_size").is_null() ? columns : weights.at("group_size").get<std::size_t>();
    const std::size_t group = column / size;
    int value = code(name + "_packed", row * words, 1, column);
    if (has_zeros) value -= code(name + "_zero_point", group, groups, row);
    return static_cast<float>(value * number(name + "_scale", row * groups + group));
  }
  /// The one config group that targets a module, or that of all linear ones.
  const nlohmann::json& weights_of(const std::string& name) const {
    const nlohmann::json*& found = weights_[name];
    if (found != nullptr) return *found;
    const std::string module = name.substr(0, name.size() - std::string(".weight").size());
    for (const auto& [key, group] : config.at("quantization_config").at("config_groups").items())
      for (const nlohmann::json& target : group.at("targets"))
        if (target == module || target == "Linear") {
          REQUIRE(found == nullptr);
          found = &group.at("weights");
        }
    REQUIRE(found != nullptr);
    return *found;
  }
  float e2m1(const std::string& name, std::size_t row, std::size_t column, std::size_t columns) const {
    constexpr double kValues[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    const bool is_blocks = has(name + "_blocks");
    const std::string codes = name + (is_blocks ? "_blocks" : "_packed"),
                      scales = name + (is_blocks ? "_scales" : "_scale");
    const unsigned code = byte(codes, (row * columns + column) / 2) >> (column % 2 * 4) & 15u;
    const int exponent = static_cast<int>(byte(scales, (row * columns + column) / 32)) - 127;
    return static_cast<float>(std::ldexp((code & 8u) != 0 ? -kValues[code & 7u] : kValues[code & 7u], exponent));
  }

  mutable std::map<std::string, const nlohmann::json*> weights_ = {};  ///< by name, once they are found
};

}  // namespace test
