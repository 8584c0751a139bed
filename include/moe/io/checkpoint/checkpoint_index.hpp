// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "moe/core/error.hpp"
#include "moe/io/file/json_text.hpp"
#include "moe/io/file/message.hpp"

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
class CheckpointIndexParser {
 public:
  using Json = nlohmann::json;

  explicit CheckpointIndexParser(std::string_view text) : text_(text) {}

  CheckpointIndex index;
  std::string problem;  ///< why the last event was refused
  bool has_map = false;

  bool start_object(std::size_t) {
    if (nesting_.depth() == 1 && key_ == "weight_map") in_map_ = has_map = true;
    if (nesting_.depth() == 2 && in_map_) return refuse("an object where a file name belongs");
    return accept(nesting_.open());
  }
  bool start_array(std::size_t) {
    if (nesting_.depth() == 0) return refuse("an array where an object belongs");
    if (is_map_value()) return refuse("an array where none belongs");
    return accept(nesting_.open());
  }
  bool key(std::string& text) {
    if (nesting_.depth() == 1) key_ = text;
    if (!is_entry()) return accept(nesting_.key(text));
    name_ = text;  // the map itself knows the names that it has had
    return !index.weight_map.contains(text) || refuse("tensor " + in_quotes(text) + " occurs twice");
  }
  bool string(std::string& text) {
    if (!is_entry()) return value("a string");
    if (!stays_below(text))
      return refuse("tensor " + in_quotes(name_) + ": " + in_quotes(text) + " is no file name within the directory");
    index.weight_map.emplace(name_, text);
    return true;
  }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool null() { return value("null"); }
  bool boolean(bool) { return value("a boolean"); }
  bool number_integer(std::int64_t) { return value("a number"); }
  bool number_unsigned(std::uint64_t) { return value("a number"); }
  bool number_float(double, const std::string&) { return value("a number"); }
  bool binary(Json::binary_t&) { return refuse("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) {
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
  if (!nlohmann::json::sax_parse(text, &parser)) fail_environment(label, ": ", parser.problem);
  if (!parser.has_map) fail_environment(label, ": has no object 'weight_map'");
  return std::move(parser.index);
}

}  // namespace moe::inline MOE_ABI
