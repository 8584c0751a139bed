// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/io/checkpoint/gguf_parts.hpp"
#include "moe/io/file/json_text.hpp"
#include "moe/io/file/message.hpp"
#include "moe/io/file/safetensors.hpp"
#include "moe/io/file/text_file.hpp"

// Long, as an index, the files that it names and what it leaves out are checked against each other.
namespace moe::inline MOE_ABI {

/// Which file of a sharded checkpoint holds which tensor, as its `model.safetensors.index.json` says.
struct CheckpointIndex {
  std::map<std::string, std::string, std::less<>> weight_map = {};  ///< tensor to file, relative to the index
};

/// Longest index that is read, in bytes; the largest published ones are below 10 MB.
inline constexpr std::size_t kMaxCheckpointIndex = 100'000'000;

namespace detail {

/// Whether a path of an index names a file in its own directory or below, by the text alone (a symbolic link may lead
/// elsewhere: that is how the caches of model hubs are built).
inline bool stays_below(const std::string& text) {
  constexpr std::string_view kForbidden("\0\\:", 3);  // backslashes and colons are roots on other systems
  if (text.empty() || text.back() == '/' || text.find_first_of(kForbidden) != text.npos) return false;
  if (text.find("//") != text.npos) return false;  // another spelling of a name that may be there already
  const std::filesystem::path path(text);
  if (path.has_root_path()) return false;
  for (const std::filesystem::path& part : path)
    if (part == ".." || part == ".") return false;
  return true;
}

/// Builds an index from the events of a JSON parser; see SafetensorsHeaderParser.
class CheckpointIndexParser final : public nlohmann::json_sax<nlohmann::json> {
 public:
  using Json = nlohmann::json;

  explicit CheckpointIndexParser(std::string_view text) : text_(text) {}

  CheckpointIndex index;
  std::string problem;  ///< why the last event was refused
  bool has_map = false;

  bool start_object(std::size_t) override {
    if (nesting_.depth() == 1 && key_ == "weight_map") in_map_ = has_map = true;
    if (nesting_.depth() == 2 && in_map_) return refuse("an object where a file name belongs");
    return accept(nesting_.open());
  }
  bool start_array(std::size_t) override {
    if (nesting_.depth() == 0) return refuse("an array where an object belongs");
    if (is_map_value()) return refuse("an array where none belongs");
    return accept(nesting_.open());
  }
  bool key(std::string& text) override {
    if (nesting_.depth() == 1) key_ = text;
    if (!is_entry()) return accept(nesting_.key(text));
    name_ = text;  // the map itself knows the names that it has had
    return !index.weight_map.contains(text) || refuse("tensor " + in_quotes(text) + " occurs twice");
  }
  bool string(std::string& text) override {
    if (!is_entry()) return value("a string");
    if (!stays_below(text))
      return refuse("tensor " + in_quotes(name_) + ": " + in_quotes(text) + " is no file name within the directory");
    index.weight_map.emplace(name_, text);
    return true;
  }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool null() override { return value("null"); }
  bool boolean(bool) override { return value("a boolean"); }
  bool number_integer(std::int64_t) override { return value("a number"); }
  bool number_unsigned(std::uint64_t) override { return value("a number"); }
  bool number_float(double, const std::string&) override { return value("a number"); }
  bool binary(Json::binary_t&) override { return refuse("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) override {
    return refuse(json_problem(text_, position, error.what()));
  }

 private:
  bool is_entry() const { return nesting_.depth() == 2 && in_map_; }
  bool is_map_value() const { return in_map_ || (nesting_.depth() == 1 && key_ == "weight_map"); }
  bool value(const char* what) {
    if (nesting_.depth() == 0 || is_map_value()) return refuse(std::string(what) + " where none belongs");
    return true;
  }
  bool accept(const std::string& reason) { return reason.empty() || refuse(reason); }
  bool close() {
    nesting_.close();
    if (nesting_.depth() == 1) in_map_ = false;
    return true;
  }
  bool refuse(const std::string& reason) {
    problem = reason;
    return false;
  }

  std::string_view text_;
  JsonNesting nesting_;
  bool in_map_ = false;
  std::string key_, name_;
};

}  // namespace detail

/// Reads the JSON text of an index. Tensors are different, as are the keys of every object, and every file name stays
/// within the directory; anything else beside `weight_map` is skipped. Throws std::runtime_error that opens with
/// `label` otherwise.
inline CheckpointIndex parse_checkpoint_index(const std::string& label, std::string_view text) {
  if (text.size() > kMaxCheckpointIndex)
    fail_environment(label, ": has ", text.size(), " bytes, expected at most ", kMaxCheckpointIndex);
  detail::refuse_lfs_pointer(label, text);
  if (text.find('\0') != text.npos) fail_environment(label, ": holds a zero byte, expected JSON");
  detail::CheckpointIndexParser parser(text);
  if (!detail::parse_events(text, parser)) fail_environment(label, ": ", parser.problem);
  if (!parser.has_map) fail_environment(label, ": has no object 'weight_map'");
  return std::move(parser.index);
}

/// What lies beside a checkpoint, or in its files, and is not part of it.
struct IgnoredPart {
  std::string file = {};    ///< relative to the directory of the checkpoint
  std::string tensor = {};  ///< empty where the whole file is meant

  friend auto operator<=>(const IgnoredPart&, const IgnoredPart&) = default;
};

/// The files of a checkpoint: safetensors, or those of llama.cpp, which name and store the same weights otherwise.
enum class CheckpointFormat { Safetensors, Gguf };

/// The tensors of a model in one safetensors file or in many (shards), or in a GGUF file and its parts. Files are
/// mapped, so opening one of hundreds of GB takes as long as reading its headers. A handle: copies share the files,
/// which stay open until the last is gone. Immutable, share freely; see MappedFile for files that shrink meanwhile.
///   const auto checkpoint = moe::Checkpoint::open("OLMoE-1B-7B-0924");
///   moe::TensorView gate = checkpoint.at("model.layers.0.mlp.gate.weight");
class Checkpoint {
 public:
  /// `path` is a safetensors file, an index (.json), or a directory with `model.safetensors.index.json` or, where that
  /// is not there, `model.safetensors`. All shards are opened and checked against the index, which decides: what it
  /// does not name is not part of the checkpoint, and is in ignored(). Or it is a GGUF file (.gguf), of one in parts
  /// the first, "-00001-of-00003.gguf", with which the others are opened. Throws std::runtime_error for what is missing
  /// or broken: a shard that is not there, a tensor that is not in the shard that the index says, a file name that
  /// leads out of the directory, parts of different files or in another order, and all that SafetensorsReader and
  /// GgufReader refuse. FileAccess::Read takes the memory of all files, and does not mind files that shrink later.
  static Checkpoint open(const std::filesystem::path& path, FileAccess access = FileAccess::Map) {
    const std::filesystem::path file = locate(path);
    Contents contents;
    contents.path = path;
    contents.access = access;
    if (file.extension() == ".json")
      open_shards(file, contents);
    else if (file.extension() == ".gguf")
      open_parts(file, contents);
    else
      open_file(file, contents);
    for (const auto& [name, shard] : contents.shard_of) contents.names.push_back(name);
    // Whoever names one file wants that file; a directory or an index stands for all that is there.
    if (file != path || file.extension() == ".json") ignore_files(file, contents);
    std::sort(contents.ignored.begin(), contents.ignored.end());
    Checkpoint checkpoint;
    checkpoint.contents_ = std::make_shared<const Contents>(std::move(contents));
    return checkpoint;
  }

  bool contains(std::string_view name) const { return contents_->shard_of.contains(name); }

  /// Throws std::runtime_error naming checkpoint and tensor if it is missing or its file has become shorter.
  TensorView at(std::string_view name) const {
    const auto found = contents_->shard_of.find(name);
    if (found == contents_->shard_of.end()) fail_missing(name);
    return std::visit([&](const auto& shard) { return shard.view(name); }, contents_->shards[found->second]);
  }

  /// The file that holds a tensor, relative to the directory of the checkpoint. Throws as at().
  const std::string& file_of(std::string_view name) const {
    const auto found = contents_->shard_of.find(name);
    if (found == contents_->shard_of.end()) fail_missing(name);
    return contents_->shard_names[found->second];
  }

  /// Sorted.
  const std::vector<std::string>& names() const { return contents_->names; }
  CheckpointFormat format() const { return contents_->format; }
  /// Of all files together; where two disagree, of the first by name. Of GGUF the texts, see GgufReader for the rest.
  const Metadata& metadata() const { return contents_->metadata; }
  /// What an index leaves out of its shards (tensors that it does not name, or names in another shard), and the
  /// safetensors files and indexes beside the one that was opened. Sorted by file. Empty for a safetensors file that
  /// was opened by its name.
  const std::vector<IgnoredPart>& ignored() const { return contents_->ignored; }
  /// The file of a tensor that the index leaves out, or nothing.
  std::string_view left_out(std::string_view tensor) const {
    const auto found = contents_->left_out.find(tensor);
    return found == contents_->left_out.end() ? std::string_view() : found->second;
  }
  /// As it was given to open().
  const std::filesystem::path& path() const { return contents_->path; }

 private:
  struct Contents {
    std::filesystem::path path = {};
    FileAccess access = FileAccess::Map;
    CheckpointFormat format = CheckpointFormat::Safetensors;
    std::vector<std::variant<SafetensorsReader, GgufReader>> shards = {};
    std::vector<std::string> shard_names = {};
    std::map<std::string, std::size_t, std::less<>> shard_of = {};
    std::vector<std::string> names = {};
    std::vector<IgnoredPart> ignored = {};
    std::map<std::string, std::string, std::less<>> left_out = {};  // tensors of `ignored` that have no other place
    Metadata metadata = {};
  };

  Checkpoint() = default;

  [[noreturn]] void fail_missing(std::string_view name) const {
    const std::string elsewhere =
        left_out(name).empty() ? ""
                               : " (it is in '" + std::string(left_out(name)) + "', but the index does not say so)";
    fail_environment("moe::Checkpoint: '", contents_->path.string(), "': tensor ", detail::in_quotes(name),
                     " is missing", elsewhere);
  }

  static std::filesystem::path locate(const std::filesystem::path& path) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) return path;
    for (const char* name : {"model.safetensors.index.json", "model.safetensors"})
      if (std::filesystem::exists(path / name, error)) return path / name;
    fail_environment(
        "moe::Checkpoint: directory '", path.string(),
        "' has neither model.safetensors nor model.safetensors.index.json; GGUF files are opened by their names");
  }

  static const SafetensorsReader& add_shard(const std::filesystem::path& file, std::string name, Contents& contents) {
    contents.shards.emplace_back(std::in_place_type<SafetensorsReader>, file, contents.access);
    const auto& reader = std::get<SafetensorsReader>(contents.shards.back());
    contents.shard_names.push_back(std::move(name));
    contents.metadata.insert(reader.metadata().begin(), reader.metadata().end());
    return reader;
  }

  static void open_file(const std::filesystem::path& file, Contents& contents) {
    for (const auto& [name, info] : add_shard(file, file.filename().string(), contents).tensors())
      contents.shard_of.emplace(name, 0);
  }

  static void open_shards(const std::filesystem::path& file, Contents& contents) {
    const std::string label = "moe::Checkpoint: '" + file.string() + "'";
    const CheckpointIndex index =
        parse_checkpoint_index(label, detail::TextFile(label, file, kMaxCheckpointIndex).text());
    std::map<std::string, std::size_t> number;  // of the shards, by name
    for (const auto& [name, shard] : index.weight_map) number.emplace(shard, 0);
    for (auto& [shard, place] : number) {
      place = contents.shards.size();
      for (const auto& [name, info] : add_shard(file.parent_path() / shard, shard, contents).tensors()) {
        const auto entry = index.weight_map.find(name);
        if (entry == index.weight_map.end()) contents.left_out.emplace(name, shard);
        if (entry == index.weight_map.end() || entry->second != shard) contents.ignored.push_back({shard, name});
      }
    }
    for (const auto& [name, shard] : index.weight_map) {
      if (!std::get<SafetensorsReader>(contents.shards[number.at(shard)]).tensors().contains(name))
        fail_environment(label, ": tensor ", detail::in_quotes(name), " is not in '", shard, "' as the index says");
      contents.shard_of.emplace(name, number.at(shard));
    }
  }

  static void open_parts(const std::filesystem::path& file, Contents& contents) {
    contents.format = CheckpointFormat::Gguf;
    for (GgufReader& part : detail::open_gguf_parts(file, contents.access)) {
      for (const auto& [key, value] : part.metadata())
        if (const auto text = value.text()) contents.metadata.emplace(key, std::string(*text));
      for (const auto& [name, info] : part.tensors())
        if (!contents.shard_of.emplace(name, contents.shards.size()).second)
          fail_environment(part.label(), ": tensor ", detail::in_quotes(name), " is in a part before, too");
      contents.shards.emplace_back(std::move(part));
    }
  }

  /// Names the files beside `file` that could be taken for the checkpoint. A directory that cannot be listed does not
  /// keep its files from being read.
  static void ignore_files(const std::filesystem::path& file, Contents& contents) {
    const std::set<std::string> used(contents.shard_names.begin(), contents.shard_names.end());
    const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
    std::error_code error;
    for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      const bool is_checkpoint = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
      if (is_checkpoint && name != file.filename() && !used.contains(name)) contents.ignored.push_back({name, {}});
    }
  }

  std::shared_ptr<const Contents> contents_;
};

}  // namespace moe::inline MOE_ABI
