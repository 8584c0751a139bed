// SPDX-License-Identifier: MIT
// Files of tensors described in lines that a fuzzer can change without breaking offsets, "name DTYPE extent extent ...
// [zero|inf|nan|mixed]" per tensor, or "name I64 extent =1,2,.." with its numbers; "-" begins the next shard.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "moe/io/file/safetensors.hpp"

namespace test {

/// What the numbers of a tensor are.
enum class Numbers { Plain, Zero, Infinite, Nan, Mixed };

/// A file in the making.
struct Shard {
  moe::SafetensorsHeader header = {};
  std::map<std::string, Numbers> numbers = {};  // that are not plain
  std::map<std::string, std::vector<std::int64_t>> integers = {};
};

inline Numbers numbers_of(const std::string& word) {
  if (word == "zero") return Numbers::Zero;
  if (word == "inf") return Numbers::Infinite;
  if (word == "nan") return Numbers::Nan;
  return word == "mixed" ? Numbers::Mixed : Numbers::Plain;
}

/// Of "=1,2".
inline std::vector<std::int64_t> integers_of(const std::string& word) {
  std::istringstream stream(word.substr(1));
  std::vector<std::int64_t> integers;
  for (std::int64_t each = 0; stream >> each; stream.ignore()) integers.push_back(each);
  return integers;
}

/// The shards that the lines describe; none if a line is no tensor of moderate size.
inline std::vector<Shard> described_shards(const std::string& text) {
  constexpr std::uint64_t kMostBytes = 1 << 16;
  std::vector<Shard> shards(1);
  std::uint64_t total = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line == "-") {
      shards.emplace_back();
      continue;
    }
    std::istringstream words(line);
    std::string name, type;
    words >> name >> type;
    const auto dtype = moe::find_dtype(type);
    if (!dtype) return {};
    moe::TensorInfo info{.dtype = *dtype};
    for (moe::Index extent = 0; words >> extent;) info.shape.push_back(std::max<moe::Index>(extent, 0));
    words.clear();
    std::string numbers;
    words >> numbers;
    const auto bytes = moe::detail::tensor_bytes(info.dtype, info.shape);
    if (!bytes || *bytes > kMostBytes || (total += *bytes) > kMostBytes) return {};
    shards.back().header.tensors[name] = info;
    shards.back().numbers.erase(name);
    shards.back().integers.erase(name);
    if (numbers.starts_with('=') && *dtype == moe::Dtype::I64) shards.back().integers[name] = integers_of(numbers);
    if (numbers_of(numbers) != Numbers::Plain) shards.back().numbers[name] = numbers_of(numbers);
  }
  return shards.size() <= 8 ? shards : std::vector<Shard>{};
}

/// Sets one number: of floating-point types what is asked for (in F8_E4M3, which has no infinity, NaN), of others
/// bytes that mean the like as codes and scales of MXFP4.
inline void set_number(Numbers numbers, moe::Dtype dtype, std::span<std::byte> bytes) {
  const double value = numbers == Numbers::Infinite ? -std::numeric_limits<double>::infinity()
                       : numbers == Numbers::Nan    ? std::numeric_limits<double>::quiet_NaN()
                                                    : 0;
  if (moe::is_floating(dtype)) return moe::detail::encode(std::span(&value, 1), dtype, bytes.data());
  const std::byte code{static_cast<unsigned char>(numbers == Numbers::Zero ? 0 : 0xFF)};
  std::fill(bytes.begin(), bytes.end(), code);
}

/// Writes a shard. Plain bytes are such that no number of any type is zero, infinite or NaN.
inline void write_shard(const std::filesystem::path& path, const Shard& shard) {
  constexpr std::array<unsigned char, 7> kBytes{0x3C, 0x3D, 0x3B, 0xBC, 0x3B, 0xBD, 0x3C};
  moe::SafetensorsWriter writer(path, shard.header);
  for (const auto& [name, info] : shard.header.tensors) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(*moe::detail::tensor_bytes(info.dtype, info.shape)));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte{kBytes[(i + name.size()) % kBytes.size()]};
    const auto found = shard.numbers.find(name);
    const Numbers numbers = found == shard.numbers.end() ? Numbers::Plain : found->second;
    const std::size_t size = moe::dtype_size(info.dtype);
    for (std::size_t i = 0; numbers != Numbers::Plain && i + size <= bytes.size(); i += size) {
      const auto nth = static_cast<Numbers>(i / size % 4);  // plain, zero, infinite, NaN
      if (numbers != Numbers::Mixed)
        set_number(numbers, info.dtype, std::span(bytes).subspan(i, size));
      else if (nth != Numbers::Plain)
        set_number(nth, info.dtype, std::span(bytes).subspan(i, size));
    }
    if (const auto integers = shard.integers.find(name); integers != shard.integers.end()) {
      const auto given = std::as_bytes(std::span(integers->second));
      std::copy_n(given.begin(), std::min(given.size(), bytes.size()), bytes.begin());
    }
    writer.write_bytes(name, bytes);
  }
  writer.commit();
}

}  // namespace test
