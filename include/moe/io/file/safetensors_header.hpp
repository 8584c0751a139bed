// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/file/dtype.hpp"
#include "moe/io/file/json_text.hpp"
#include "moe/io/file/message.hpp"

namespace moe::inline MOE_ABI {

/// A tensor of a file: type, shape ({} for a number) and the bytes [begin, end) of the data section that it fills.
struct TensorInfo {
  Dtype dtype = Dtype::F32;
  std::vector<Index> shape = {};
  std::uint64_t begin = 0, end = 0;
  std::string other = {};  ///< name of a type that is Dtype::Other

  /// As the file spells the type.
  std::string_view type() const { return dtype == Dtype::Other ? other : dtype_name(dtype); }
};

/// Free text that travels with the tensors.
using Metadata = std::map<std::string, std::string>;

/// What a safetensors file says about itself before its data.
struct SafetensorsHeader {
  std::map<std::string, TensorInfo, std::less<>> tensors = {};
  Metadata metadata = {};
};

/// Longest header that is read or written, in bytes, as in the reference implementation.
inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;
/// Most extents of a tensor that is read or written, as in NumPy and PyTorch: an extent of one digit takes eight bytes.
inline constexpr std::size_t kMaxSafetensorsExtents = 64;

namespace detail {

/// Builds a header from the events of a JSON parser. Nothing is kept that has no place in a header, so memory stays
/// proportional to the text; names that occur twice are seen, which a parsed object would hide.
class SafetensorsHeaderParser final : public nlohmann::json_sax<nlohmann::json> {
 public:
  using Json = nlohmann::json;

  explicit SafetensorsHeaderParser(std::string_view text) : text_(text) {}

  SafetensorsHeader header;
  std::string problem;  ///< why the last event was refused

  bool start_object(std::size_t) override {
    if (place_ == Place::Start) return go(Place::Top);
    if (place_ != Place::Top) return refuse("an object where none belongs");
    return go(name_ == "__metadata__" ? Place::Metadata : Place::Tensor);
  }
  bool key(std::string& text) override {
    if (place_ == Place::Top) return open_entry(text);
    key_ = text;
    if (place_ == Place::Metadata)
      return header.metadata.emplace(key_, "").second || refuse("key " + in_quotes(key_) + " occurs twice");
    const auto field = std::find(kFields.begin(), kFields.end(), key_);
    if (field == kFields.end()) return refuse("unknown field " + in_quotes(key_));
    bool& seen = seen_[static_cast<std::size_t>(field - kFields.begin())];
    return !std::exchange(seen, true) || refuse("field " + in_quotes(key_) + " occurs twice");
  }
  bool string(std::string& text) override {
    if (place_ == Place::Metadata) {
      header.metadata[key_] = text;
      return true;
    }
    if (place_ != Place::Tensor || key_ != "dtype") return refuse("a string where none belongs");
    tensor_->dtype = find_dtype(text).value_or(Dtype::Other);
    if (tensor_->dtype == Dtype::Other) tensor_->other = text;
    return !text.empty() || refuse("dtype '' is no type");
  }
  bool start_array(std::size_t) override {
    if (place_ != Place::Tensor || key_ == "dtype") return refuse("an array where none belongs");
    return go(Place::Array);
  }
  bool number_unsigned(std::uint64_t value) override {
    if (place_ != Place::Array) return refuse("a number where none belongs");
    if (key_ == "shape") {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<Index>::max())) return refuse("extent too large");
      if (tensor_->shape.size() == kMaxSafetensorsExtents)
        return refuse("more than " + std::to_string(kMaxSafetensorsExtents) + " extents");
      tensor_->shape.push_back(static_cast<Index>(value));
      return true;
    }
    if (num_offsets_ == 2) return refuse("more than two data_offsets");
    (num_offsets_++ == 0 ? tensor_->begin : tensor_->end) = value;
    return true;
  }
  bool end_array() override { return go(Place::Tensor); }
  bool end_object() override {
    if (place_ == Place::Top) return go(Place::Start);
    if (place_ == Place::Tensor && (seen_ != std::array{true, true, true} || num_offsets_ != 2))
      return refuse("dtype, shape and two data_offsets are needed");
    return go(Place::Top);
  }

  bool null() override { return refuse("null where none belongs"); }
  bool boolean(bool) override { return refuse("a boolean where none belongs"); }
  bool number_integer(std::int64_t) override { return refuse("a negative number"); }
  bool number_float(double, const std::string& text) override {
    return refuse("number " + shown(text) + " is not an integer in range");
  }
  bool binary(Json::binary_t&) override { return refuse("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) override {
    name_.clear();
    return refuse(json_problem(text_, position, error.what()));
  }

 private:
  enum class Place { Start, Top, Metadata, Tensor, Array };
  static constexpr std::array<std::string_view, 3> kFields{"dtype", "shape", "data_offsets"};

  bool go(Place place) {
    place_ = place;
    return true;
  }
  bool refuse(const std::string& reason) {
    problem = (name_.empty() ? "header: " : "tensor " + in_quotes(name_) + ": ") + reason;
    return false;
  }
  bool open_entry(const std::string& name) {
    name_ = name;
    seen_ = {};
    num_offsets_ = 0;
    if (name == "__metadata__") return !std::exchange(has_metadata_, true) || refuse("occurs twice");
    const auto [entry, is_new] = header.tensors.try_emplace(name);
    tensor_ = &entry->second;
    return is_new || refuse("occurs twice");
  }

  std::string_view text_;
  Place place_ = Place::Start;
  std::string name_, key_;
  TensorInfo* tensor_ = nullptr;
  std::array<bool, 3> seen_{};
  int num_offsets_ = 0;
  bool has_metadata_ = false;
};

/// Throws unless every tensor has the bytes of its shape, and together they fill the data section without hole or
/// overlap.
inline void check_layout(const std::string& file, const SafetensorsHeader& header, std::uint64_t data_size) {
  std::vector<std::pair<const std::string*, const TensorInfo*>> order;
  for (const auto& [name, info] : header.tensors) {
    const bool is_other = info.dtype == Dtype::Other;
    const auto bytes = tensor_bytes(is_other ? Dtype::U8 : info.dtype, info.shape);
    if (!bytes)
      fail_environment(file, ": tensor ", in_quotes(name), ": its shape needs more bytes than can be addressed");
    const std::uint64_t span = info.end - info.begin;
    if (info.begin > info.end || !(is_other ? can_fill(span, info.other, info.shape) : span == *bytes))
      fail_environment(file, ": tensor ", in_quotes(name), ": data_offsets [", info.begin, ", ", info.end,
                       "] do not span the ", *bytes, is_other ? " elements" : " bytes", " of its shape",
                       is_other ? " of type " + in_quotes(info.other) : "");
    order.emplace_back(&name, &info);
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  std::uint64_t filled = 0;
  for (const auto& [name, info] : order) {
    if (info->begin != filled)
      fail_environment(file, ": tensor ", in_quotes(*name), ": data starts at byte ", info->begin, ", expected ",
                       filled);
    filled = info->end;
  }
  if (filled != data_size)
    fail_environment(file, ": the data section has ", data_size, " bytes, expected ", filled, " as the tensors say");
}

}  // namespace detail

/// Reads and checks the JSON text of a header whose file has `data_size` bytes behind it. After it, every tensor lies
/// inside the data section, has the bytes that its shape needs, and shares none with another. Tensors of types that are
/// not known are kept as Dtype::Other.
/// Throws std::runtime_error that names the file and, where there is one, the tensor.
inline SafetensorsHeader parse_safetensors_header(const std::string& file, std::string_view text,
                                                  std::uint64_t data_size) {
  const auto refuse = [&](const std::string& reason) { fail_environment(file, ": ", reason); };
  if (text.empty() || text.front() != '{') refuse("header: expected '{' as the first byte");
  if (text.find('\0') != text.npos) refuse("header: holds a zero byte");  // the parser would take it for the end
  detail::SafetensorsHeaderParser parser(text);
  if (!detail::parse_events(text, parser)) refuse(parser.problem);
  detail::check_layout(file, parser.header, data_size);
  return std::move(parser.header);
}

/// Gives every tensor its place in the data section: wide types first, so that each lies aligned, then by name.
/// Throws std::invalid_argument for a negative extent, more than 64 of them, more bytes than can be addressed, or a
/// type that is not known, whose elements have no size: of Dtype::Other there are F4, F6_E2M3, F6_E3M2, F8_E8M0,
/// F8_E4M3FNUZ, F8_E5M2FNUZ and C64.
inline std::uint64_t assign_offsets(SafetensorsHeader& header) {
  struct Entry {
    std::size_t align;
    std::uint64_t bytes;
    TensorInfo* info;
  };
  std::vector<Entry> order;
  for (auto& [name, info] : header.tensors) {
    const bool is_other = info.dtype == Dtype::Other;
    if (is_other && !detail::other_bytes(info.other, {}) && !detail::other_bytes(info.other, {4}))
      fail("moe::assign_offsets: tensor ", detail::in_quotes(name), " is ", detail::in_quotes(info.other),
           ", expected a type of moe::Dtype, or another whose size is known");
    const bool is_negative = std::any_of(info.shape.begin(), info.shape.end(), [](Index n) { return n < 0; });
    const std::optional<std::uint64_t> bytes = is_negative ? std::nullopt
                                                           : (is_other ? detail::other_bytes(info.other, info.shape)
                                                                       : detail::tensor_bytes(info.dtype, info.shape));
    if (info.shape.size() > kMaxSafetensorsExtents || !bytes)
      fail("moe::assign_offsets: tensor ", detail::in_quotes(name), " has shape [", detail::join(info.shape, ", "),
           "], expected at most ", kMaxSafetensorsExtents,
           " extents, none negative, and a size of whole bytes that can be addressed");
    order.push_back({is_other ? 1 : dtype_size(info.dtype), *bytes, &info});
  }
  std::stable_sort(order.begin(), order.end(), [](const Entry& a, const Entry& b) { return a.align > b.align; });
  std::uint64_t filled = 0;
  for (const Entry& entry : order) {
    entry.info->begin = filled;
    filled = entry.info->end = filled + entry.bytes;
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
