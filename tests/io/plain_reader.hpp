// SPDX-License-Identifier: MIT
// A reader of safetensors files that has nothing of the library in it, written from the description of the format. It
// fails the test for a file that is not as described: holes, overlaps, sizes, alignment, names of types.
#pragma once

#include <cctype>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace test {

struct PlainTensor {
  std::string dtype;
  std::vector<std::size_t> shape;
  std::string bytes;
};
struct PlainFile {
  std::map<std::string, PlainTensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// Takes the header apart, character by character.
class PlainScanner {
 public:
  explicit PlainScanner(const std::string& text) : text_(text) {}

  bool accept(char c) {
    while (std::isspace(static_cast<unsigned char>(text_.at(at_)))) ++at_;
    return text_[at_] == c && ++at_;
  }
  void expect(char c) {
    CAPTURE(text_.substr(at_, 40));
    REQUIRE(accept(c));
  }
  std::string string() {
    const std::string escapes = "\"\"\\\\//b\bf\fn\nr\rt\t";  // pairs of a letter and what it stands for
    std::string result;
    for (expect('"'); text_.at(at_) != '"'; ++at_) {
      if (text_[at_] != '\\') {
        result += text_[at_];
      } else if (text_.at(++at_) == 'u') {
        result += static_cast<char>(std::stoi(text_.substr(at_ + 1, 4), nullptr, 16));  // below 0x80 only
        at_ += 4;
      } else {
        std::size_t pair = 0;
        while (escapes.at(pair) != text_[at_]) pair += 2;
        result += escapes[pair + 1];
      }
    }
    ++at_;
    return result;
  }
  std::vector<std::size_t> numbers() {
    std::vector<std::size_t> result;
    expect('[');
    while (!accept(']')) {
      if (!result.empty()) expect(',');
      std::size_t length = 0;
      result.push_back(std::stoull(text_.substr(at_, 20), &length));
      at_ += length;
    }
    return result;
  }
  /// Calls f(key) before every value of an object.
  template <class F>
  void object(const F& f) {
    expect('{');
    for (bool first = true; !accept('}'); first = false) {
      if (!first) expect(',');
      const std::string key = string();
      expect(':');
      f(key);
    }
  }
  std::string rest() const { return text_.substr(at_); }

 private:
  std::string text_;
  std::size_t at_ = 0;
};

inline PlainFile read_plainly(const std::string& file) {
  const std::map<std::string, std::size_t> sizes = {{"F64", 8},     {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1},
                                                    {"F8_E5M2", 1}, {"I64", 8}, {"I32", 4}, {"I16", 2},  {"I8", 1},
                                                    {"U64", 8},     {"U32", 4}, {"U16", 2}, {"U8", 1},   {"BOOL", 1}};
  std::size_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length * 256 + static_cast<unsigned char>(file.at(i));
  REQUIRE((8 + length) % 8 == 0);
  REQUIRE(8 + length <= file.size());
  REQUIRE(file.at(8) == '{');
  PlainFile result;
  std::map<std::size_t, std::size_t> spans;  // begin to end of the tensors that are not empty
  PlainScanner scanner(file.substr(8, length) + "\n");
  scanner.object([&](const std::string& name) {
    if (name == "__metadata__")
      return scanner.object([&](const std::string& key) { result.metadata[key] = scanner.string(); });
    REQUIRE(result.tensors.count(name) == 0);
    PlainTensor& tensor = result.tensors[name];
    std::vector<std::size_t> offsets;
    scanner.object([&](const std::string& field) {
      if (field == "dtype") tensor.dtype = scanner.string();
      if (field == "shape") tensor.shape = scanner.numbers();
      if (field == "data_offsets") offsets = scanner.numbers();
    });
    CAPTURE(name, tensor.dtype, tensor.shape, offsets);
    REQUIRE(sizes.count(tensor.dtype) == 1);
    std::size_t bytes = sizes.at(tensor.dtype);
    REQUIRE((8 + length + offsets.at(0)) % bytes == 0);  // aligned in the file
    for (const std::size_t extent : tensor.shape) bytes *= extent;
    REQUIRE(offsets.at(1) - offsets.at(0) == bytes);
    tensor.bytes = file.substr(8 + length + offsets[0], bytes);
    if (bytes != 0) REQUIRE(spans.emplace(offsets[0], offsets[1]).second);
  });
  REQUIRE(scanner.rest().find_first_not_of(" \n") == std::string::npos);
  std::size_t filled = 0;
  for (const auto& [begin, end] : spans) {
    REQUIRE(begin == filled);
    filled = end;
  }
  REQUIRE(8 + length + filled == file.size());
  return result;
}

}  // namespace test
