// SPDX-License-Identifier: MIT
// Checkpoints of a test: safetensors files from a list of tensors, encoded with nothing of the library but the writer.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "moe/io/file/safetensors.hpp"
#include "support/files.hpp"

namespace test {

struct Tensor {
  std::string name;
  moe::Dtype dtype;
  std::vector<moe::Index> shape;
  std::string bytes;
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return values.empty() ? std::string()
                        : std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

inline void write_tensors(const std::filesystem::path& path, const std::vector<Tensor>& tensors,
                          const moe::Metadata& metadata = {}) {
  moe::SafetensorsHeader header{.metadata = metadata};
  for (const Tensor& tensor : tensors) header.tensors[tensor.name] = {.dtype = tensor.dtype, .shape = tensor.shape};
  moe::SafetensorsWriter writer(path, header);
  for (const Tensor& tensor : tensors) writer.write_bytes(tensor.name, std::as_bytes(std::span(tensor.bytes)));
  writer.commit();
}

/// Small integers, which BF16 holds exactly: value i is (i * 37 + 11) % 251 - 125.
inline std::vector<float> numbered(moe::Index size) {
  std::vector<float> values(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((i * 37 + 11) % 251) - 125;
  return values;
}

/// Floats that BF16 holds exactly, as BF16: their upper halves.
inline std::string bf16_bytes(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) bytes.append(reinterpret_cast<const char*>(&value) + 2, 2);
  return bytes;
}

}  // namespace test
