// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/io/file/lfs_pointer.hpp"
#include "moe/io/file/message.hpp"

// What all readers of JSON share. Each is one pass over the events of a parser: building an object under a callback of
// nlohmann-json searches the parent at every closing brace, which is quadratic.
namespace moe::inline MOE_ABI::detail {

/// Deepest nesting that is read: files of models have ten levels.
inline constexpr std::size_t kMostJsonDepth = 64;
/// Longest config.json that is read.
inline constexpr std::size_t kMostConfigBytes = std::size_t{16} << 20;

/// Where a parser is: how many objects and arrays are open, and which keys each open object has had.
class JsonNesting {
 public:
  explicit JsonNesting(std::size_t most_depth = kMostJsonDepth) : most_depth_(most_depth) {}

  std::size_t depth() const { return levels_.size(); }

  /// Empty, or why the event is refused.
  std::string open() {
    if (depth() == most_depth_) return "nested more than " + std::to_string(most_depth_) + " levels deep";
    levels_.emplace_back();
    return "";
  }
  std::string key(const std::string& text) {
    levels_.back().key = text;
    return levels_.back().keys.insert(text).second ? "" : "key " + in_quotes(path()) + " occurs twice";
  }
  void close() { levels_.pop_back(); }

 private:
  struct Level {
    std::string key = {};  ///< whose value is being read; none in an array
    std::set<std::string> keys = {};
  };

  std::string path() const {
    std::string text;
    for (const Level& level : levels_)
      if (!level.key.empty()) text += (text.empty() ? "" : ".") + level.key;
    return text;
  }

  std::size_t most_depth_;
  std::vector<Level> levels_;
};

/// Why `text` is not JSON, with the place where the parser stopped. Python writes numbers that JSON does not have.
inline std::string json_problem(std::string_view text, std::size_t position, const char* reason) {
  std::size_t place = std::min(std::max<std::size_t>(position, 1) - 1, text.size());
  if (place > 0 && text[place - 1] == '-') --place;
  std::string problem = reason;
  for (const std::string_view word : {"Infinity", "-Infinity", "NaN"})
    if (text.substr(place).starts_with(word)) problem = "found " + std::string(word) + ", which JSON does not have";
  const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(place), '\n');
  return "not JSON at line " + std::to_string(line) + ", byte " + std::to_string(place + 1) + ": " + shown(problem);
}

/// Tells a parser of events what is in a text; false where it refused something. One parser for all of them: a type of
/// events of its own would compile it again, and that of each binary format of nlohmann-json.
inline bool parse_events(std::string_view text, nlohmann::json_sax<nlohmann::json>& events) {
  return nlohmann::json::sax_parse(text, &events);
}

/// Accepts any JSON that is not too deep and has no key twice in an object, and keeps none of it.
class JsonCheck final : public nlohmann::json_sax<nlohmann::json> {
 public:
  using Json = nlohmann::json;

  JsonCheck(std::string_view text, std::size_t most_depth) : text_(text), nesting_(most_depth) {}

  std::string problem;  ///< why the last event was refused

  bool start_object(std::size_t) override { return accept(nesting_.open()); }
  bool start_array(std::size_t) override { return accept(nesting_.open()); }
  bool key(std::string& text) override { return accept(nesting_.key(text)); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool string(std::string&) override { return true; }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(std::int64_t) override { return true; }
  bool number_unsigned(std::uint64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool binary(Json::binary_t&) override { return accept("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) override {
    return accept(json_problem(text_, position, error.what()));
  }

 private:
  bool accept(std::string reason) {
    problem = std::move(reason);
    return problem.empty();
  }
  bool close() {
    nesting_.close();
    return true;
  }

  std::string_view text_;
  JsonNesting nesting_;
};

/// What a JSON text holds. Throws std::runtime_error with the label for what is not JSON, deeper than `most_depth`
/// levels, or has a key twice in an object. Two passes over the text.
inline nlohmann::json parse_json(const std::string& label, std::string_view text,
                                 std::size_t most_depth = kMostJsonDepth) {
  refuse_lfs_pointer(label, text);
  // The parser takes a zero byte for the end.
  if (text.find('\0') != text.npos) fail_environment(label, ": not JSON: it has a byte of value 0");
  JsonCheck check(text, most_depth);
  if (!parse_events(text, check)) fail_environment(label, ": ", check.problem);
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace moe::inline MOE_ABI::detail
