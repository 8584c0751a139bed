// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/file/safetensors_header.hpp"

// How a header that is to be written is laid out and spelled.
namespace moe::inline MOE_ABI {

/// Gives every tensor its place in the data section: wide types first, so that each lies aligned, then by name.
/// Throws std::invalid_argument for a negative extent, more than 64 of them, more bytes than can be addressed, or
/// Dtype::Other, whose elements have no size.
inline std::uint64_t assign_offsets(SafetensorsHeader& header) {
  std::vector<std::pair<std::size_t, TensorInfo*>> order;
  for (auto& [name, info] : header.tensors) {
    if (info.dtype == Dtype::Other)
      fail("moe::assign_offsets: tensor ", detail::in_quotes(name), " is ", detail::in_quotes(info.other),
           ", expected a type of moe::Dtype other than Other");
    const bool is_negative = std::any_of(info.shape.begin(), info.shape.end(), [](Index n) { return n < 0; });
    if (info.shape.size() > kMaxSafetensorsExtents || is_negative || !detail::tensor_bytes(info.dtype, info.shape))
      fail("moe::assign_offsets: tensor ", detail::in_quotes(name), " has shape [", detail::join(info.shape, ", "),
           "], expected at most ", kMaxSafetensorsExtents, " extents, none negative, and a size that can be addressed");
    order.emplace_back(dtype_size(info.dtype), &info);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::uint64_t filled = 0;
  for (const auto& [size, info] : order) {
    info->begin = filled;
    filled = info->end = filled + *detail::tensor_bytes(info->dtype, info->shape);
    if (filled > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()))
      fail("moe::assign_offsets: more bytes than can be addressed");
  }
  return filled;
}

/// The JSON text of a header, padded with spaces so that the data behind it and the length before it starts at a
/// multiple of 8 bytes. The same header gives the same text. Throws std::invalid_argument for text that is not UTF-8.
inline std::string format_safetensors_header(const SafetensorsHeader& header) {
  const auto json = [](const std::string& text) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      fail("moe::format_safetensors_header: ", detail::in_quotes(text), " is not UTF-8");
    }
  };
  std::string text = "{", separator;
  if (!header.metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : header.metadata) {
      text += std::exchange(separator, ",") + json(key) + ":" + json(value);
    }
    text += "}";
  }
  for (const auto& [name, info] : header.tensors) {
    text += std::exchange(separator, ",") + json(name) + ":{\"dtype\":" + json(std::string(info.type())) +
            ",\"shape\":[" + detail::join(info.shape, ",") + "],\"data_offsets\":[" + std::to_string(info.begin) + "," +
            std::to_string(info.end) + "]}";
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace moe::inline MOE_ABI
