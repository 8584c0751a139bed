// SPDX-License-Identifier: MIT
// Any bytes as a GGUF file: refused with a runtime_error, or all that it holds can be read, as a checkpoint, too.
#pragma once

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "fuzz/fuzz_directory.hpp"
#include "fuzz/layouts_target.hpp"
#include "fuzz/targets.hpp"
#include "moe/io/families/model_config.hpp"
#include "moe/io/file/gguf.hpp"
#include "support/files.hpp"

namespace test {

/// Every value is inside of the bytes, and lists have as many elements as they say.
inline void touch(const moe::GgufValue& value, std::span<const std::byte> bytes) {
  require(value.bytes.empty() || (value.bytes.data() >= bytes.data() &&
                                  value.bytes.data() + value.bytes.size() <= bytes.data() + bytes.size()),
          "a value lies in the file");
  const int kinds = int{value.integer().has_value()} + int{value.number().has_value()} + int{value.flag().has_value()} +
                    int{value.text().has_value()};
  require(kinds <= 1, "a value is of one type");
  require(!value.shown().empty(), "a value can be shown");
  if (const auto text = value.text()) require(moe::detail::is_utf8(*text), "a text is UTF-8");
  std::uint64_t count = 0;
  value.for_each([&](const moe::GgufValue& element) {
    touch(element, bytes);
    ++count;
  });
  require(count == value.size(), "a list has the elements that it says");
}

/// Weights of a file that was accepted as one of a checkpoint, and what its metadata say of its blocks.
inline void touch_checkpoint(std::span<const std::byte> bytes) {
  static const FuzzDirectory directory("gguf");
  const auto path = directory / "x.gguf";
  write_bytes(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  std::optional<moe::Checkpoint> checkpoint;
  try {
    checkpoint = moe::Checkpoint::open(path);
  } catch (const std::runtime_error&) {  // parts that are not there
    return;
  }
  for (const std::string& name : checkpoint->names()) {
    std::optional<moe::WeightSource> source;
    try {
      source = moe::WeightSource::find(*checkpoint, name);
    } catch (const std::runtime_error&) {  // of a type that is not read
      continue;
    }
    require_one_weight(*source);
  }
  try {
    moe::read_moe_config(path).validate();
  } catch (const std::runtime_error&) {
  }
}

inline bool fuzz_gguf(std::span<const std::byte> bytes) {
  const std::string label = "fuzz";
  try {
    const moe::GgufHeader header = moe::parse_gguf(label, bytes);
    std::size_t said = 0;
    for (const auto& [key, value] : header.metadata) {
      said += key.size() + value.bytes.size();
      touch(value, bytes);
    }
    std::uint64_t used = 0;
    for (const auto& [name, info] : header.tensors) {
      said += name.size() + info.shape.size() * sizeof(moe::Index);
      require(info.begin <= info.end && header.data_begin + info.end <= bytes.size(), "a tensor lies in the file");
      require(info.begin % header.alignment == 0, "a tensor is aligned");
      used += info.end - info.begin;
    }
    require(said + used <= bytes.size(), "a header holds no more than its bytes, and tensors share none");
    touch_checkpoint(bytes);
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace test
