// SPDX-License-Identifier: MIT
// Files of variants of other code bases, to be changed and given to the checker.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "conformance/file.hpp"
#include "support/files.hpp"

namespace test {

/// A file of vectors, by its name.
inline std::filesystem::path golden(const std::string& name) {
  const std::filesystem::path file = std::filesystem::path(MOE_TEST_DATA) / "golden" / (name + ".safetensors");
  return std::filesystem::exists(file) ? file : file.parent_path().parent_path() / "variants" / file.filename();
}

struct VariantTensor {
  std::string dtype;
  std::vector<moe::Index> shape;
  std::string bytes;
};

/// A file of variants that can be changed and checked.
struct VariantFile {
  std::map<std::string, std::string> metadata;
  std::map<std::string, VariantTensor> tensors;

  VariantFile() = default;
  explicit VariantFile(const std::string& name) {
    const auto file = moe::Checkpoint::open(golden(name));
    metadata.insert(file.metadata().begin(), file.metadata().end());
    for (const std::string& tensor : file.names()) {
      const auto view = file.at(tensor);
      tensors[tensor] = {std::string(moe::dtype_name(view.dtype)),
                         view.shape,
                         {reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size()}};
    }
  }

  std::string bytes() const {
    nlohmann::json header = {{"__metadata__", metadata}};
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      header[name] = {{"dtype", tensor.dtype},
                      {"shape", tensor.shape},
                      {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    return test::safetensors_bytes(header.dump(), data);
  }

  check::Report check() const {
    const test::TemporaryDirectory directory;
    test::write_bytes(directory / "case.safetensors", bytes());
    return check::check_file(moe::Checkpoint::open(directory / "case.safetensors"));
  }
};

/// The line of a variant, or that of all if there is none.
inline std::string line_of(const check::Report& report, const std::string& variant) {
  const nlohmann::json json = report.json();
  for (const auto& line : json["lines"]) {
    const auto name = line["name"].get<std::string>();
    if (name.starts_with(variant)) return name;
  }
  return report.json().dump();
}

/// Adds 1 % of the largest value, or 1, to an element.
inline void change(VariantTensor& tensor, std::size_t index) {
  if (tensor.dtype == "F32") {
    std::vector<float> values(tensor.bytes.size() / 4);
    std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
    float most = 0;
    for (const float value : values) most = std::max(most, std::abs(value));
    values[index] += most > 0 ? most / 100 : 1.0F;
    std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  } else {
    const std::size_t size = tensor.dtype == "I64" ? 8 : tensor.dtype == "I32" ? 4 : 1;
    tensor.bytes[index * size] = static_cast<char>(tensor.bytes[index * size] ^ 1);
  }
}

}  // namespace test
