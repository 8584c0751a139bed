// SPDX-License-Identifier: MIT
// GGUF files of a test, written as the format says, with nothing of the library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace test {

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
inline std::string gguf_string(const std::string& text) { return raw<std::uint64_t>(text.size()) + text; }

/// A type, and a value of it.
struct GgufEntry {
  std::uint32_t type;
  std::string bytes;
};
inline GgufEntry gguf_u32(std::uint32_t value) { return {4, raw(value)}; }
inline GgufEntry gguf_f32(float value) { return {6, raw(value)}; }
inline GgufEntry gguf_flag(bool value) { return {7, raw<std::uint8_t>(value ? 1 : 0)}; }
inline GgufEntry gguf_text(const std::string& text) { return {8, gguf_string(text)}; }
inline GgufEntry gguf_list(std::uint32_t type, const std::vector<std::string>& elements) {
  std::string bytes = raw(type) + raw<std::uint64_t>(elements.size());
  for (const std::string& element : elements) bytes += element;
  return {9, bytes};
}

struct GgufTensor {
  std::string name;
  std::uint32_t type;                 ///< number of ggml: 0 F32, 8 Q8_0, ...
  std::vector<std::int64_t> extents;  ///< in the order of the library; the file has the reverse
  std::string bytes;
};

struct GgufFile {
  std::vector<std::pair<std::string, GgufEntry>> metadata = {};
  std::vector<GgufTensor> tensors = {};
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;

  std::string header() const {
    std::string bytes =
        "GGUF" + raw(version) + raw<std::uint64_t>(tensors.size()) + raw<std::uint64_t>(metadata.size());
    for (const auto& [key, entry] : metadata) bytes += gguf_string(key) + raw(entry.type) + entry.bytes;
    std::uint64_t offset = 0;
    for (const GgufTensor& tensor : tensors) {
      bytes += gguf_string(tensor.name) + raw(static_cast<std::uint32_t>(tensor.extents.size()));
      for (auto extent = tensor.extents.rbegin(); extent != tensor.extents.rend(); ++extent) bytes += raw(*extent);
      bytes += raw(tensor.type) + raw(offset);
      offset += padded(tensor.bytes.size());
    }
    return bytes;
  }
  /// Nothing follows the last tensor.
  std::string bytes() const {
    std::string bytes = header();
    bytes.resize(padded(bytes.size()));
    std::size_t end = bytes.size();
    for (const GgufTensor& tensor : tensors) {
      bytes += tensor.bytes;
      end = bytes.size();
      bytes.resize(padded(bytes.size()));
    }
    return bytes.substr(0, end);
  }

 private:
  std::size_t padded(std::size_t size) const { return (size + alignment - 1) / alignment * alignment; }
};

}  // namespace test
