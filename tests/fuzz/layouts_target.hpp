// SPDX-License-Identifier: MIT
// One weight of a checkpoint in any layout, described in a few lines that a fuzzer can change: what a configuration
// says (outputs and inputs of a block, group or -1, bits or 0, whether zero points are less one), then a line
// "name DTYPE extent extent ... [: value value ...]" per tensor. The weight is "m.weight".
#pragma once

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/fuzz_directory.hpp"
#include "fuzz/targets.hpp"
#include "moe/io/checkpoint/weight_source.hpp"
#include "moe/kernel/weight_rounding.hpp"
#include "support/files.hpp"

namespace test {

/// Whatever way a weight is asked for its values, they are the same, and codes and scales of a kept format are them.
inline void require_one_weight(const moe::WeightSource& source) {
  const auto size = static_cast<std::size_t>(source.size());
  const auto same = [](float a, float b) {
    return (std::isnan(a) && std::isnan(b)) || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
  };
  std::vector<float> values(size), part(size);
  source.read_values(0, values);
  for (std::size_t first = 1; first < size; first += 1 + first) {
    const std::size_t count = std::min<std::size_t>(size - first, 1 + first % 77);
    source.read_values(static_cast<moe::Index>(first), std::span(part).first(count));
    for (std::size_t i = 0; i < count; ++i)
      require(same(part[i], values[first + i]), "a part of the values is part of all of them");
  }
  const std::optional<moe::WeightFormat> kept = source.kept_format();
  if (!kept) return;
  kept->validate();
  std::vector<std::uint32_t> codes(size);
  const auto columns = static_cast<std::size_t>(source.shape().empty() ? 1 : source.shape().back());
  for (std::size_t first = 0; first < size; first += columns)
    source.stored_codes(static_cast<moe::Index>(first), std::span(codes).subspan(first, columns));
  for (std::size_t i = 0; i < size; i += 1 + i / 512) {
    const moe::StoredWeight weight = source.stored(static_cast<moe::Index>(i));
    require(weight.code == codes[i], "many codes are those of one value each");
    require(weight.code >> kept->code_bits() == 0, "a code has the bits of its format");
    require(weight.zero == 0 || kept->has_zero_points, "zero points are part of the format");
    require(same(weight.scale, moe::detail::stored_scale(kept->scale, static_cast<double>(weight.scale))),
            "a scale is one of the format");
    const float scale = weight.scale * source.matrix_scale();
    require(same((moe::detail::value_of_code(*kept, weight.code) - weight.zero) * scale, values[i]),
            "a value is its code, zero point and scale");
  }
}

/// The file that lines describe; none where one of them is no tensor of moderate size.
inline std::optional<std::string> described_tensors(std::istringstream& lines) {
  constexpr std::uint64_t kMostBytes = 1 << 16;
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name, type;
    words >> name >> type;
    const moe::Dtype dtype = type == "F8_E8M0" ? moe::Dtype::U8 : moe::find_dtype(type).value_or(moe::Dtype::Other);
    if (dtype == moe::Dtype::Other || header.contains(name)) return {};
    std::vector<moe::Index> shape;
    for (moe::Index extent = 0; words >> extent;) shape.push_back(std::max<moe::Index>(extent, 0));
    words.clear();
    std::vector<std::int64_t> values;
    if (char colon = 0; words >> colon && colon == ':')
      for (std::int64_t value = 0; words >> value;) values.push_back(value);
    const auto bytes = moe::detail::tensor_bytes(dtype, shape);
    if (!bytes || data.size() + *bytes > kMostBytes) return {};
    const std::size_t begin = data.size(), size = moe::dtype_size(dtype);
    data.resize(begin + static_cast<std::size_t>(*bytes));
    for (std::size_t i = 0; begin + i < data.size(); ++i)
      data[begin + i] = values.empty() ? static_cast<char>(i * 167 + i / 256 * 31 + name.size())
                                       : static_cast<char>(values[i / size % values.size()] >> (8 * (i % size)));
    try {
      header[name] = {{"dtype", type}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
      (void)header[name].dump();
      (void)nlohmann::json(name).dump();
    } catch (const nlohmann::json::exception&) {  // a name that is no UTF-8
      return {};
    }
  }
  return safetensors_bytes(header.dump(), data);
}

inline bool fuzz_layouts(std::span<const std::byte> bytes) {
  static const FuzzDirectory directory("layouts");
  std::istringstream lines(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  std::string first;
  std::getline(lines, first);
  std::istringstream numbers(first);
  moe::StatedStorage stated;
  moe::Index group = -1;
  int bits = 0;
  numbers >> stated.block_outputs >> stated.block_inputs >> group >> bits >> stated.zeros_less_one;
  if (group >= 0) stated.group = group;
  if (bits != 0) stated.bits = bits;
  if (stated.block_outputs < 1 || stated.block_inputs < 1) return false;
  const std::optional<std::string> file = described_tensors(lines);
  if (!file) return false;
  write_bytes(directory / "x.safetensors", *file);
  try {
    const moe::Checkpoint checkpoint = moe::Checkpoint::open(directory / "x.safetensors");
    require_one_weight(moe::WeightSource::find(checkpoint, "m.weight", stated));
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace test
