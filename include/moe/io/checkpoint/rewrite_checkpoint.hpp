// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/checkpoint/tensor_group.hpp"
#include "moe/io/file/output_directory.hpp"

namespace moe::inline MOE_ABI {

/// What changes between a checkpoint and the one that is written from it.
struct CheckpointEdit {
  std::vector<TensorGroup> groups = {};                      ///< written in this order; other tensors stay
  std::function<void(nlohmann::ordered_json&)> config = {};  ///< changes the fields of config.json; none: no change
  std::set<std::string> without = {};                        ///< other files that are not copied
};

/// What becomes of the files of a model's directory that are no weights: tokenizer, generation settings, code.
enum class OtherFiles { Copy, Leave };

struct RewriteOptions {
  std::uint64_t shard_bytes = 5'000'000'000;  ///< of a new file, at most, but for a tensor that is larger
  OtherFiles other_files = OtherFiles::Copy;
  LoadProgress progress = {};  ///< bytes of tensors that are written
};

/// What a rewritten directory holds.
struct RewrittenCheckpoint {
  std::uint64_t total_size = 0;            ///< bytes of all tensors
  std::vector<std::string> files = {};     ///< sorted
  std::vector<std::string> left_out = {};  ///< of the source: other directories, weights in other formats, what its
                                           ///< index does not name, CheckpointEdit::without; sorted
};

namespace detail {

/// rewrite_checkpoint() in its steps. One per thread.
class CheckpointRewriter {
 public:
  CheckpointRewriter(const Checkpoint& checkpoint, const std::filesystem::path& to, const CheckpointEdit& edit,
                     const RewriteOptions& options)
      : checkpoint_(checkpoint), from_(checkpoint.path()), to_(to), edit_(edit), options_(options) {
    require_apart();
    plan();
  }

  RewrittenCheckpoint run() {
    OutputDirectory directory(label(), to_);
    out_ = directory.path();
    ProgressMeter meter(options_.progress, result_.total_size);
    std::size_t number = 0;
    const auto next_file = [&] { return shard_name(++number, num_shards()); };
    for (const auto& [shard, names] : kept_) copy_shard(next_file(), names, meter);
    for (std::size_t g = 0; g < edit_.groups.size(); ++g) {
      TensorSink sink(meter);
      for (const TensorSink::Tensors& tensors : new_[g]) {
        const std::string file = next_file();
        sink.open_file(out_ / file, tensors, metadata_);
        for (const auto& [name, info] : tensors) index_[name] = file;
        result_.files.push_back(file);
      }
      if (edit_.groups[g].write) edit_.groups[g].write(sink);
      sink.commit();
    }
    copy_others();
    write_index();
    write_config();
    std::sort(result_.files.begin(), result_.files.end());
    std::sort(result_.left_out.begin(), result_.left_out.end());
    directory.commit();
    return std::move(result_);
  }

 private:
  static constexpr const char* kIndex = "model.safetensors.index.json";
  static constexpr const char* kConfig = "config.json";

  std::string label() const { return "moe::rewrite_checkpoint: '" + to_.string() + "'"; }
  std::size_t num_shards() const {
    std::size_t count = kept_.size();
    for (const auto& shards : new_) count += shards.size();
    return count;
  }
  static std::string shard_name(std::size_t number, std::size_t count) {
    char text[64];
    std::snprintf(text, sizeof text, "model-%05zu-of-%05zu.safetensors", number, count);
    return text;
  }

  std::filesystem::path canonical(const std::filesystem::path& path) const {
    std::error_code error;
    const std::filesystem::path whole = std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
    if (error) fail_environment(label(), ": cannot resolve '", path.string(), "': ", error.message());
    return whole.has_filename() ? whole : whole.parent_path();
  }

  /// Neither directory may be in the other, whatever links say.
  void require_apart() const {
    std::error_code error;
    if (!std::filesystem::is_directory(from_, error))
      fail("moe::rewrite_checkpoint: the checkpoint was opened as '", from_.string(),
           "', expected the directory of a model");
    const std::filesystem::path from = canonical(from_), to = canonical(to_);
    const auto is_below = [](const std::filesystem::path& inner, const std::filesystem::path& outer) {
      return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
    };
    if (is_below(to, from) || is_below(from, to))
      fail("moe::rewrite_checkpoint: '", to_.string(), "' is in, or holds, the source '", from_.string(),
           "', expected a directory apart from it");
  }

  void plan() {
    constexpr const char* kFunction = "moe::rewrite_checkpoint";
    std::set<std::string> replaced, added;
    for (const TensorGroup& group : edit_.groups)
      for (const std::string& name : group.replaced) {
        (void)checkpoint_.at(name);
        if (!replaced.insert(name).second) fail(kFunction, ": tensor ", in_quotes(name), " is replaced twice");
      }
    for (const TensorGroup& group : edit_.groups) {
      auto& shards = new_.emplace_back();
      std::uint64_t filled = 0;
      for (const auto& [name, info] : group.tensors) {
        if (!added.insert(name).second || (checkpoint_.contains(name) && !replaced.contains(name)))
          fail(kFunction, ": tensor ", in_quotes(name), " is there already");
        const std::uint64_t bytes = announced_bytes(name, info);
        if (shards.empty() || bytes > options_.shard_bytes || filled > options_.shard_bytes - bytes)
          shards.emplace_back(), filled = 0;
        shards.back().emplace(name, info);
        filled += bytes;
        result_.total_size += bytes;
      }
    }
    for (const std::string& name : checkpoint_.names()) {
      if (replaced.contains(name)) continue;
      kept_[checkpoint_.file_of(name)].push_back(name);
      result_.total_size += checkpoint_.at(name).bytes.size();
    }
    metadata_ = checkpoint_.metadata();
    metadata_.emplace("format", "pt");  // without which transformers refuses a file
  }

  void copy_shard(const std::string& file, const std::vector<std::string>& names, ProgressMeter& meter) {
    SafetensorsHeader header{.metadata = metadata_};
    for (const std::string& name : names) header.tensors.emplace(name, info_of(checkpoint_.at(name)));
    SafetensorsWriter writer(out_ / file, std::move(header));
    for (const std::string& name : names) {
      const TensorView tensor = checkpoint_.at(name);
      writer.write_bytes(name, tensor.bytes);
      meter.add(tensor.bytes.size());
      index_[name] = file;
    }
    writer.commit();
    result_.files.push_back(file);
  }

  void write_text(const char* file, const nlohmann::ordered_json& json) {
    OutputFile output(label() + ": " + file, out_ / file);
    output.write(json.dump(2) + "\n");
    output.commit();
    result_.files.emplace_back(file);
  }
  void write_index() {
    nlohmann::ordered_json map = nlohmann::ordered_json::object();
    for (const auto& [name, file] : index_) map[name] = file;
    write_text(kIndex, {{"metadata", {{"total_size", result_.total_size}}}, {"weight_map", std::move(map)}});
  }
  /// Last, as a directory without it is no model.
  void write_config() {
    const std::filesystem::path file = from_ / kConfig;
    std::error_code error;
    if (!edit_.config && !std::filesystem::exists(file, error)) return;
    const std::string source = "moe::rewrite_checkpoint: '" + file.string() + "'";
    const TextFile text(source, file, kMostConfigBytes);
    (void)parse_json(source, text.text());  // which refuses what is not JSON
    nlohmann::ordered_json json = nlohmann::ordered_json::parse(text.text());
    if (edit_.config) edit_.config(json);
    write_text(kConfig, json);
  }

  /// Files that hold the weights in another format: a reader could take them for those of the new directory.
  static bool is_weights(const std::string& name) {
    constexpr std::array<std::string_view, 12> kEnds{".safetensors", ".index.json", ".bin",       ".pt",
                                                     ".pth",         ".ckpt",       ".h5",        ".msgpack",
                                                     ".gguf",        ".onnx",       ".onnx_data", ".tflite"};
    return std::any_of(kEnds.begin(), kEnds.end(), [&](std::string_view end) { return name.ends_with(end); });
  }
  void copy_others() {
    for (const IgnoredPart& part : checkpoint_.ignored())
      result_.left_out.push_back(part.tensor.empty() ? part.file : part.file + ": " + part.tensor);
    std::error_code error;
    for (std::filesystem::directory_iterator entry(from_, error), end; !error && entry != end; entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      if (name == kConfig || name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")) continue;
      std::error_code of_file;
      const bool is_file = std::filesystem::is_regular_file(entry->path(), of_file);
      if (options_.other_files == OtherFiles::Leave || !is_file || is_weights(name) || edit_.without.contains(name)) {
        result_.left_out.push_back(name);
        continue;
      }
      std::filesystem::copy_file(entry->path(), out_ / name, of_file);
      if (of_file) fail_environment(label(), ": cannot copy '", entry->path().string(), "': ", of_file.message());
      result_.files.push_back(name);
    }
    if (error) fail_environment(label(), ": cannot list '", from_.string(), "': ", error.message());
  }

  const Checkpoint& checkpoint_;
  std::filesystem::path from_, to_, out_;
  const CheckpointEdit& edit_;
  const RewriteOptions& options_;
  std::map<std::string, std::vector<std::string>> kept_;  ///< tensors by the file that they were in
  std::vector<std::vector<TensorSink::Tensors>> new_;     ///< of every group, those of every file
  std::map<std::string, std::string> index_;
  Metadata metadata_;
  RewrittenCheckpoint result_;
};

}  // namespace detail

/// Writes the directory of a model anew at `to`, with some tensors replaced and fields of config.json changed:
///   moe::rewrite_checkpoint(checkpoint, "smaller", {.groups = groups, .config = [](auto& json) { json["k"] = 2; }});
/// Tensors that no group replaces keep their bytes, file by file; the others come from the groups, in files of their
/// own; model.safetensors.index.json names all. Other files of the directory are copied, but for weights in other
/// formats and directories, which the result lists. The directory appears whole, or not at all if anything throws.
/// Memory: headers, and what the groups take; tensors that stay are written from where the source is mapped.
/// Throws std::invalid_argument where one directory is in the other, for a checkpoint that was not opened as a
/// directory, and for groups that replace a tensor twice, announce one that is there, or do not write all of it;
/// std::runtime_error for a tensor that is missing, a directory that is not empty, and what the system refuses.
inline RewrittenCheckpoint rewrite_checkpoint(const Checkpoint& checkpoint, const std::filesystem::path& to,
                                              const CheckpointEdit& edit, const RewriteOptions& options = {}) {
  return detail::CheckpointRewriter(checkpoint, to, edit, options).run();
}

}  // namespace moe::inline MOE_ABI
