// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/checkpoint_index.hpp"
#include "moe/io/safetensors.hpp"

namespace moe::inline MOE_ABI {

/// The tensors of a model in one safetensors file or in many (shards). Files are mapped, so opening one of hundreds of
/// GB takes as long as reading its headers. A handle: copies share the files, which stay open until the last is gone.
/// Immutable, share freely; see MappedFile for files that shrink meanwhile.
///   const auto checkpoint = moe::Checkpoint::open("OLMoE-1B-7B-0924");
///   moe::TensorView gate = checkpoint.at("model.layers.0.mlp.gate.weight");
class Checkpoint {
 public:
  /// `path` is a safetensors file, an index (.json), or a directory with `model.safetensors` or, where that is not
  /// there, `model.safetensors.index.json`. All shards are opened and checked against the index.
  /// Throws std::runtime_error for what is missing or broken: a shard that is not there, a tensor that is not in its
  /// shard or is in two, a file name that leads out of the directory, and all that SafetensorsReader refuses.
  static Checkpoint open(const std::filesystem::path& path) {
    const std::filesystem::path file = locate(path);
    Contents contents;
    contents.path = path;
    if (file.extension() == ".json")
      open_shards(file, contents);
    else
      add_shard(file, contents);
    for (const auto& [name, shard] : contents.shard_of) contents.names.push_back(name);
    Checkpoint checkpoint;
    checkpoint.contents_ = std::make_shared<const Contents>(std::move(contents));
    return checkpoint;
  }

  bool contains(std::string_view name) const { return contents_->shard_of.contains(name); }

  /// Throws std::runtime_error naming checkpoint and tensor if it is missing or its file has become shorter.
  TensorView at(std::string_view name) const {
    const auto found = contents_->shard_of.find(name);
    if (found == contents_->shard_of.end())
      fail_environment("moe::Checkpoint: '", contents_->path.string(), "': tensor ", detail::in_quotes(name),
                       " is missing");
    return contents_->shards[found->second].view(name);
  }

  /// Sorted.
  const std::vector<std::string>& names() const { return contents_->names; }
  /// Of all files together; where two disagree, of the first by name.
  const Metadata& metadata() const { return contents_->metadata; }
  /// As it was given to open().
  const std::filesystem::path& path() const { return contents_->path; }

 private:
  struct Contents {
    std::filesystem::path path = {};
    std::vector<SafetensorsReader> shards = {};
    std::vector<std::string> shard_names = {};
    std::map<std::string, std::size_t, std::less<>> shard_of = {};
    std::vector<std::string> names = {};
    Metadata metadata = {};
  };

  Checkpoint() = default;

  static std::filesystem::path locate(const std::filesystem::path& path) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) return path;
    for (const char* name : {"model.safetensors", "model.safetensors.index.json"})
      if (std::filesystem::exists(path / name, error)) return path / name;
    fail_environment("moe::Checkpoint: directory '", path.string(),
                     "' has neither model.safetensors nor model.safetensors.index.json");
  }

  static void add_shard(const std::filesystem::path& file, Contents& contents) {
    const SafetensorsReader& reader = contents.shards.emplace_back(file);
    contents.shard_names.push_back(file.filename().string());
    for (const auto& [name, info] : reader.tensors()) {
      const auto [entry, is_new] = contents.shard_of.emplace(name, contents.shards.size() - 1);
      if (!is_new)
        fail_environment("moe::Checkpoint: '", contents.path.string(), "': tensor ", detail::in_quotes(name),
                         " is in two files, '", contents.shard_names[entry->second], "' and '",
                         contents.shard_names.back(), "'");
    }
    contents.metadata.insert(reader.metadata().begin(), reader.metadata().end());
  }

  static void open_shards(const std::filesystem::path& file, Contents& contents) {
    const std::string label = "moe::Checkpoint: '" + file.string() + "'";
    const MappedFile text(label, file);
    const CheckpointIndex index =
        parse_checkpoint_index(label, {reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()});
    std::map<std::string, std::size_t> number;  // of the shards, by name
    for (const auto& [name, shard] : index.weight_map) number.emplace(shard, 0);
    for (auto& [shard, place] : number) {
      place = contents.shards.size();
      add_shard(file.parent_path() / shard, contents);
    }
    for (const auto& [name, shard] : index.weight_map) {
      const auto found = contents.shard_of.find(name);
      if (found == contents.shard_of.end() || found->second != number.at(shard))
        fail_environment(label, ": tensor ", detail::in_quotes(name), " is not in '", shard, "' as the index says");
    }
  }

  std::shared_ptr<const Contents> contents_;
};

}  // namespace moe::inline MOE_ABI
