// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/file/gguf.hpp"

namespace moe::inline MOE_ABI::detail {

/// Most parts of a file: what five digits can number.
inline constexpr std::uint64_t kMostGgufParts = 99999;

/// Name of part `number` of `count`, from 1 on, as llama.cpp splits a file: "model-00001-of-00003.gguf".
inline std::string gguf_part_name(std::string_view stem, std::uint64_t number, std::uint64_t count) {
  const auto digits = [](std::uint64_t value) {
    const std::string text = std::to_string(value);
    return std::string(text.size() < 5 ? 5 - text.size() : 0, '0') + text;
  };
  return std::string(stem) + "-" + digits(number) + "-of-" + digits(count) + ".gguf";
}

/// An integer of the metadata of a part, if it is there. Throws naming key and value for what is none, or negative.
inline std::optional<std::uint64_t> gguf_count(const GgufReader& part, const char* key) {
  const std::optional<GgufValue> value = part.value(key);
  if (!value) return std::nullopt;
  const std::optional<std::int64_t> count = value->integer();
  if (!count || *count < 0)
    fail_environment(part.label(), ": ", key, " is ", value->shown(), ", expected an integer of at least 0");
  return static_cast<std::uint64_t>(*count);
}

/// How many parts there are, as part `number`, from 0 on, says. Throws where it says that it is another.
inline std::uint64_t count_gguf_parts(const GgufReader& part, std::uint64_t number) {
  const std::uint64_t found = gguf_count(part, "split.no").value_or(0);
  const std::uint64_t count = std::max<std::uint64_t>(1, gguf_count(part, "split.count").value_or(1));
  if (found != number || count > kMostGgufParts)
    fail_environment(part.label(), ": is part ", found, " (split.no) of ", count, ", expected part ", number,
                     " of at most ", kMostGgufParts, ", counted from 0");
  return count;
}

/// A file, or all parts of it by the name of the first. Throws std::runtime_error for parts that are missing, of
/// another number, or of a file of other parts, and for fewer or more tensors than the first says.
inline std::vector<GgufReader> open_gguf_parts(const std::filesystem::path& file, FileAccess access) {
  std::vector<GgufReader> parts;
  parts.emplace_back(file, access);
  const std::string label = parts.front().label(), name = file.filename().string();
  const std::uint64_t count = count_gguf_parts(parts.front(), 0);
  if (count == 1) return parts;
  const std::string ending = gguf_part_name("", 1, count);
  if (!name.ends_with(ending))
    fail_environment(label, ": is the first of ", count, " parts, expected a name that ends with '", ending, "'");
  const std::string_view stem = std::string_view(name).substr(0, name.size() - ending.size());
  std::uint64_t num_tensors = parts.front().tensors().size();
  for (std::uint64_t number = 1; number < count; ++number) {
    const GgufReader& part = parts.emplace_back(file.parent_path() / gguf_part_name(stem, number + 1, count), access);
    if (const std::uint64_t other = count_gguf_parts(part, number); other != count)
      fail_environment(part.label(), ": is one of ", other, " parts, expected ", count);
    num_tensors += part.tensors().size();
  }
  const auto total = gguf_count(parts.front(), "split.tensors.count");
  if (total && *total != num_tensors)
    fail_environment(label, ": split.tensors.count is ", *total, ", all parts have ", num_tensors, " tensors");
  return parts;
}

}  // namespace moe::inline MOE_ABI::detail
