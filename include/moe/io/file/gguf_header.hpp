// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/file/gguf_blocks.hpp"
#include "moe/io/file/gguf_value.hpp"
#include "moe/io/file/safetensors_header.hpp"

namespace moe::inline MOE_ABI {

/// What a GGUF file says about itself before its data. Values point into the file.
struct GgufHeader {
  std::map<std::string, TensorInfo, std::less<>> tensors = {};  ///< types of ggml that are no Dtype as Other, by name
  std::map<std::string, GgufValue, std::less<>> metadata = {};
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;  ///< of the data section and of the tensors in it, in bytes
  std::uint64_t data_begin = 0;  ///< in the file
};

/// Longest key, and longest name of a tensor, in bytes; published ones are below 100.
inline constexpr std::uint64_t kMaxGgufName = 65535;
/// Most extents of a tensor, as in ggml.
inline constexpr std::uint32_t kMaxGgufExtents = 4;

namespace detail {

/// A type of tensors, by its number in a file; `values` fill `bytes`.
struct GgmlType {
  std::uint32_t id;
  std::string_view name;
  std::uint64_t values, bytes;
};

/// All whose size is known (ggml.h, ggml-common.h); numbers between them have been taken back.
inline constexpr std::array<GgmlType, 33> kGgmlTypes{
    {{0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},      {3, "Q4_1", 32, 20},
     {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},      {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},
     {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
     {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
     {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},   {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},
     {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
     {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},
     {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},   {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},
     {40, "NVFP4", 64, 36}}};

static_assert([] {
  for (const GgufBlockType& block : kGgufBlocks)
    if (std::none_of(kGgmlTypes.begin(), kGgmlTypes.end(), [&](const GgmlType& type) {
          return type.name == block.name && type.values == static_cast<std::uint64_t>(block.values) &&
                 type.bytes == static_cast<std::uint64_t>(block.bytes);
        }))
      return false;
  return true;
}());

/// Reads a header from end to end, once.
class GgufHeaderParser {
 public:
  GgufHeaderParser(const std::string& label, std::span<const std::byte> bytes)
      : label_(label), size_(bytes.size()), cursor_(label, bytes) {}

  GgufHeader parse() {
    read_version();
    const auto num_tensors = cursor_.take<std::uint64_t>("the number of tensors");
    const auto num_pairs = cursor_.take<std::uint64_t>("the number of metadata");
    constexpr std::uint64_t kLeastTensor = 8 + 4 + 4 + 8, kLeastPair = 8 + 4 + 1;
    cursor_.require_room(num_tensors, kLeastTensor, "tensors");
    cursor_.require_room(num_pairs, kLeastPair, "metadata");
    for (std::uint64_t i = 0; i < num_pairs; ++i) read_pair();
    read_alignment();
    for (std::uint64_t i = 0; i < num_tensors; ++i) read_tensor();
    const std::uint64_t end = cursor_.place(),
                        padding = (header_.alignment - end % header_.alignment) % header_.alignment;
    // A file without data may end where its padding begins.
    header_.data_begin = std::min<std::uint64_t>(end + padding, size_);
    check_places();
    return std::move(header_);
  }

 private:
  void read_version() {
    if (cursor_.take_bytes(4, "the letters GGUF") != "GGUF")
      fail_environment(label_, ": does not begin with the letters GGUF");
    header_.version = cursor_.take<std::uint32_t>("the version");
    if (header_.version % 65536 == 0 && header_.version != 0)
      fail_environment(label_, ": is big-endian, expected a little-endian file");
    if (header_.version != 2 && header_.version != 3)
      fail_environment(label_, ": version ", header_.version, ", expected 2 or 3");
  }

  std::string read_name(const char* what) {
    const std::string_view name = cursor_.take_text(what);
    if (name.empty() || name.size() > kMaxGgufName)
      cursor_.refuse(what, std::to_string(name.size()) + " bytes", "1 to " + std::to_string(kMaxGgufName));
    return std::string(name);
  }

  void read_pair() {
    std::string key = read_name("a key");
    cursor_.set_context("metadata " + in_quotes(key));
    const GgufValue value = cursor_.take_value();
    if (!header_.metadata.emplace(std::move(key), value).second) cursor_.refuse_twice();
    cursor_.set_context({});
  }

  void read_alignment() {
    const auto found = header_.metadata.find("general.alignment");
    if (found == header_.metadata.end()) return;
    const std::optional<std::int64_t> alignment = found->second.integer();
    if (found->second.type != GgufType::U32 || !alignment ||
        !std::has_single_bit(static_cast<std::uint64_t>(*alignment)))
      fail_environment(label_, ": general.alignment is ", found->second.shown(), ", expected a power of two as U32");
    header_.alignment = static_cast<std::uint64_t>(*alignment);
  }

  void read_tensor() {
    std::string name = read_name("the name of a tensor");
    cursor_.set_context("tensor " + in_quotes(name));
    TensorInfo info;
    const auto num_extents = cursor_.take<std::uint32_t>("the number of extents");
    if (num_extents > kMaxGgufExtents)
      cursor_.refuse("the number of extents", std::to_string(num_extents),
                     "at most " + std::to_string(kMaxGgufExtents));
    for (std::uint32_t i = 0; i < num_extents; ++i) {
      const auto extent = cursor_.take<std::uint64_t>("an extent");
      if (extent > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()))
        cursor_.refuse("an extent", std::to_string(extent), "less than 2^63");
      info.shape.push_back(static_cast<Index>(extent));
    }
    std::reverse(info.shape.begin(), info.shape.end());
    read_type(info);
    info.begin = cursor_.take<std::uint64_t>("the offset of its data");
    if (info.begin % header_.alignment != 0)
      cursor_.refuse("the offset of its data", std::to_string(info.begin),
                     "a multiple of " + std::to_string(header_.alignment));
    if (info.end > std::numeric_limits<std::uint64_t>::max() - info.begin)
      cursor_.refuse("the offset of its data", std::to_string(info.begin), "one inside of the file");
    info.end += info.begin;
    if (!header_.tensors.emplace(std::move(name), std::move(info)).second) cursor_.refuse_twice();
    cursor_.set_context({});
  }

  /// Type and, in `end`, the number of bytes.
  void read_type(TensorInfo& info) {
    const auto id = cursor_.take<std::uint32_t>("the type");
    const auto type =
        std::find_if(kGgmlTypes.begin(), kGgmlTypes.end(), [&](const GgmlType& known) { return known.id == id; });
    if (type == kGgmlTypes.end()) cursor_.refuse("the type", std::to_string(id), "the number of a type of ggml");
    info.dtype = find_dtype(type->name).value_or(Dtype::Other);
    if (info.dtype == Dtype::Other) info.other = type->name;
    const std::uint64_t row = info.shape.empty() ? 1 : static_cast<std::uint64_t>(info.shape.back());
    if (row % type->values != 0)
      cursor_.refuse(
          "the first extent", std::to_string(row),
          "a multiple of the " + std::to_string(type->values) + " values of a block " + std::string(type->name));
    const auto elements = tensor_bytes(Dtype::U8, info.shape);
    constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
    if (!elements || *elements / type->values > kMost / type->bytes)
      cursor_.refuse("the shape", "[" + join(info.shape, ", ") + "]", "a size that can be addressed");
    info.end = *elements / type->values * type->bytes;
  }

  /// Every tensor lies in the file, and shares no byte with another.
  void check_places() const {
    const std::uint64_t room = size_ - header_.data_begin;
    using Entry = std::pair<const std::string, TensorInfo>;
    std::vector<const Entry*> order;
    for (const Entry& entry : header_.tensors) {
      const TensorInfo& info = entry.second;
      if (info.end > room)
        fail_environment(label_, ": tensor ", in_quotes(entry.first), " fills bytes ", info.begin, " to ", info.end,
                         " of the data, which have ", room);
      if (info.begin != info.end) order.push_back(&entry);
    }
    std::sort(order.begin(), order.end(),
              [](const Entry* a, const Entry* b) { return a->second.begin < b->second.begin; });
    for (std::size_t i = 1; i < order.size(); ++i)
      if (order[i]->second.begin < order[i - 1]->second.end)
        fail_environment(label_, ": tensors ", in_quotes(order[i - 1]->first), " and ", in_quotes(order[i]->first),
                         " share bytes from ", order[i]->second.begin, " on");
  }

  const std::string& label_;
  std::uint64_t size_;
  GgufCursor cursor_;
  GgufHeader header_;
};

}  // namespace detail

/// Checks the header of a whole file in the format of llama.cpp (docs/gguf.md of ggml): the letters GGUF, version 2 or
/// 3, metadata, tensors, data, all little-endian. Afterwards keys and names are different and UTF-8, every tensor has
/// the bytes of its type and shape, lies inside of the data behind `data_begin` at a multiple of the alignment, and
/// shares none with another. Shapes are in the order of this library, the reverse of the file: the last extent, along
/// which blocks lie, is the first in the file. Values of the metadata and `bytes` must live as long as the header.
/// Reads nothing of the data, and allocates in proportion to the header; time O(header * log(entries)). Throws
/// std::runtime_error that opens with `label` and names the key or tensor, what was found and what was expected.
inline GgufHeader parse_gguf(const std::string& label, std::span<const std::byte> bytes) {
  return detail::GgufHeaderParser(label, bytes).parse();
}

}  // namespace moe::inline MOE_ABI
