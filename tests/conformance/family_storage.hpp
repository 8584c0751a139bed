// SPDX-License-Identifier: MIT
// How published checkpoints store weights, written from the formats' descriptions.
#pragma once

#include <bit>
#include <cstring>
#include <string>

#include "support/family_oracle.hpp"
#include "support/files.hpp"

namespace oracle {

/// A safetensors file in the making.
class FileText {
 public:
  void add(const std::string& name, const std::string& dtype, const std::vector<Size>& shape,
           const std::string& bytes) {
    std::string extents;
    for (const Size extent : shape) extents += (extents.empty() ? "" : ",") + std::to_string(extent);
    tensors_ += ",\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + extents + "],\"data_offsets\":[" +
                std::to_string(data_.size()) + "," + std::to_string(data_.size() + bytes.size()) + "]}";
    data_ += bytes;
  }
  void add(const std::string& name, const std::vector<Size>& shape, const Vector& values) {
    std::string bytes;
    for (const double value : values) append(static_cast<float>(value), bytes);
    add(name, "F32", shape, bytes);
  }
  void add_f64(const std::string& name, const std::vector<Size>& shape, const Vector& values) {
    std::string bytes;
    for (const double value : values) append(value, bytes);
    add(name, "F64", shape, bytes);
  }
  void add_u8(const std::string& name, const std::vector<Size>& shape, const std::vector<Size>& values) {
    std::string bytes;
    for (const Size value : values) bytes += static_cast<char>(value);
    add(name, "U8", shape, bytes);
  }
  void add(const std::string& name, const std::vector<Size>& shape, const std::vector<Size>& values) {
    std::string bytes;
    for (const Size value : values) append(static_cast<std::int64_t>(value), bytes);
    add(name, "I64", shape, bytes);
  }
  void save(const std::filesystem::path& path, const std::map<std::string, std::string>& facts) const {
    std::string metadata;
    for (const auto& [key, value] : facts) metadata += (metadata.empty() ? "\"" : ",\"") + key + "\":\"" + value + "\"";
    test::write_bytes(path, test::safetensors_bytes("{\"__metadata__\":{" + metadata + "}" + tensors_ + "}", data_));
  }

  template <class T>
  static void append(T value, std::string& bytes) {
    bytes.append(sizeof value, '\0');
    std::memcpy(bytes.data() + bytes.size() - sizeof value, &value, sizeof value);
  }

 private:
  std::string tensors_, data_;
};

/// The value of an E4M3 code: sign, 4 bits of exponent with bias 7, 3 of fraction.
inline double e4m3(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15), fraction = static_cast<int>(code & 7);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return code & 128 ? -magnitude : magnitude;
}
inline double e2m1(unsigned code) {
  const double magnitude[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -magnitude[code & 7] : magnitude[code & 7];
}

/// Stores a weight in BF16; its values become what is stored.
inline void add_bf16(FileText& file, const std::string& name, Tensor& tensor) {
  std::string bytes;
  for (double& value : tensor.values) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(static_cast<float>(value)) & 0xFFFF0000u;
    value = static_cast<double>(std::bit_cast<float>(bits));
    FileText::append(static_cast<std::uint16_t>(bits >> 16), bytes);
  }
  file.add(name, "BF16", tensor.shape, bytes);
}

/// Stores random codes in blocks of 128 x 128 with random scales; the values become what the codes mean.
inline void add_fp8(FileText& file, const std::string& name, Tensor& tensor, std::mt19937& engine) {
  const Size rows = tensor.shape[0], columns = tensor.shape[1];
  const Size blocks = (columns + 127) / 128, block_rows = (rows + 127) / 128;
  Vector scales(block_rows * blocks);
  for (double& scale : scales) scale = static_cast<float>(0.002 + 0.001 * static_cast<double>(engine() % 1000) / 1000);
  std::string bytes;
  for (Size r = 0; r < rows; ++r)
    for (Size c = 0; c < columns; ++c) {
      const unsigned code = (engine() % 2 ? 128u : 0u) + static_cast<unsigned>(engine() % 0x70);
      tensor.values[r * columns + c] = e4m3(code) * scales[r / 128 * blocks + c / 128];
      bytes += static_cast<char>(code);
    }
  file.add(name, "F8_E4M3", tensor.shape, bytes);
  file.add(name + "_scale_inv", {block_rows, blocks}, scales);
}

/// Stores [E, in, out] as random MXFP4 codes [E, out, in / 32, 16], with exponents [E, out, in / 32].
inline void add_mxfp4(FileText& file, const std::string& name, Tensor& tensor, std::mt19937& engine) {
  const Size experts = tensor.shape[0], inputs = tensor.shape[1], outputs = tensor.shape[2];
  std::string blocks, scales;
  for (Size e = 0; e < experts; ++e)
    for (Size o = 0; o < outputs; ++o)
      for (Size block = 0; block < inputs / 32; ++block) {
        const int exponent = 122 + static_cast<int>(engine() % 3);
        scales += static_cast<char>(exponent);
        for (Size i = 0; i < 32; i += 2) {
          const unsigned low = engine() % 16, high = engine() % 16;
          const Size at = (e * inputs + block * 32 + i) * outputs + o;
          tensor.values[at] = std::ldexp(e2m1(low), exponent - 127);
          tensor.values[at + outputs] = std::ldexp(e2m1(high), exponent - 127);
          blocks += static_cast<char>(low | high << 4);
        }
      }
  file.add(name + "_blocks", "U8", {experts, outputs, inputs / 32, 16}, blocks);
  file.add(name + "_scales", "U8", {experts, outputs, inputs / 32}, scales);
}

enum class Storage { F32, BF16, Fp8, Mxfp4 };

inline void add_weight(FileText& file, const std::string& name, Tensor& tensor, Storage storage, std::mt19937& engine) {
  const bool is_bias = name.find("e_score_correction_bias") != name.npos;
  const bool is_expert = name.find("experts.") != name.npos && name.find("bias") == name.npos;
  if (storage == Storage::F32 || is_bias) return file.add(name, tensor.shape, tensor.values);
  if (storage == Storage::Fp8 && is_expert) return add_fp8(file, name, tensor, engine);
  if (storage == Storage::Mxfp4 && is_expert) return add_mxfp4(file, name, tensor, engine);
  add_bf16(file, name, tensor);
}

}  // namespace oracle
