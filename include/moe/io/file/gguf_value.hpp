// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "moe/io/file/message.hpp"
#include "moe/io/file/utf8.hpp"

namespace moe::inline MOE_ABI {

/// Types of metadata in a GGUF file, by their numbers there.
enum class GgufType : std::uint32_t { U8, I8, U16, I16, U32, I32, F32, Flag, Text, List, U64, I64, F64 };

/// A value of the metadata: its type and bytes in the file, which must live as long. Checked when the file was opened,
/// so that reading it cannot fail. A plain value.
struct GgufValue {
  GgufType type = GgufType::U8;
  std::span<const std::byte> bytes = {};  ///< little-endian; of texts the characters, of lists type, count, elements

  /// Of any type of integers; nothing for other types, and above 2^63 - 1.
  std::optional<std::int64_t> integer() const {
    switch (type) {
      case GgufType::U8:
        return load<std::uint8_t>();
      case GgufType::I8:
        return load<std::int8_t>();
      case GgufType::U16:
        return load<std::uint16_t>();
      case GgufType::I16:
        return load<std::int16_t>();
      case GgufType::U32:
        return load<std::uint32_t>();
      case GgufType::I32:
        return load<std::int32_t>();
      case GgufType::I64:
        return load<std::int64_t>();
      case GgufType::U64: {
        const auto value = load<std::uint64_t>();
        if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return std::nullopt;
        return static_cast<std::int64_t>(value);
      }
      default:
        return std::nullopt;
    }
  }
  /// Of F32 and F64.
  std::optional<double> number() const {
    if (type == GgufType::F32) return static_cast<double>(load<float>());
    if (type == GgufType::F64) return load<double>();
    return std::nullopt;
  }
  std::optional<bool> flag() const {
    if (type != GgufType::Flag) return std::nullopt;
    return load<std::uint8_t>() != 0;
  }
  /// UTF-8.
  std::optional<std::string_view> text() const {
    if (type != GgufType::Text) return std::nullopt;
    return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  /// Number of elements of a list; 0 for other types.
  std::uint64_t size() const { return type == GgufType::List ? load<std::uint64_t>(4) : 0; }
  /// Calls each(element) for those of a list, which may be lists; for none of other types. Linear in the bytes.
  template <class Each>
  void for_each(const Each& each) const;

  /// In words, as messages have it: the number, the text in quotes, "a list of 3".
  std::string shown() const {
    if (const auto found = integer()) return std::to_string(*found);
    if (const auto found = number()) return std::to_string(*found);
    if (const auto found = flag()) return *found ? "true" : "false";
    if (const auto found = text()) return detail::in_quotes(*found);
    if (type == GgufType::List) return "a list of " + std::to_string(size());
    return std::to_string(load<std::uint64_t>());
  }

  template <class T>
  T load(std::size_t place = 0) const {
    T value{};
    std::memcpy(&value, bytes.data() + place, sizeof value);
    return value;
  }
};

/// Deepest lists of lists that are read.
inline constexpr int kMaxGgufNesting = 16;

namespace detail {

/// Bytes of a type, 0 for texts and lists; and nothing where there is no such type.
constexpr std::optional<std::uint64_t> gguf_type_size(std::uint32_t type) {
  constexpr std::array<std::uint64_t, 13> kSizes{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  if (type >= kSizes.size()) return std::nullopt;
  return kSizes[type];
}

/// Takes what a file holds from its bytes, one after the other, and knows where it is, for its messages.
class GgufCursor {
 public:
  GgufCursor(std::string_view label, std::span<const std::byte> bytes) : label_(label), bytes_(bytes) {}

  std::uint64_t place() const { return place_; }
  std::uint64_t room() const { return bytes_.size() - place_; }
  /// What messages name beside the place: "tensor 'x'".
  void set_context(std::string context) { context_ = std::move(context); }

  [[noreturn]] void refuse(std::string_view what, const std::string& found, const std::string& expected) const {
    fail_environment(label_, ": byte ", place_, context_.empty() ? "" : ", ", context_, ": ", what, " is ", found,
                     ", expected ", expected);
  }
  [[noreturn]] void refuse_twice() const { fail_environment(label_, ": ", context_, " occurs twice"); }

  /// Throws unless so many parts of at least so many bytes can follow.
  void require_room(std::uint64_t count, std::uint64_t least, const char* what) const {
    if (count > room() / least)
      fail_environment(label_, ": byte ", place_, context_.empty() ? "" : ", ", context_, ": ", count, " ", what,
                       " in the ", room(), " bytes that follow, expected at most ", room() / least);
  }

  std::span<const std::byte> take_span(std::uint64_t count, std::string_view what) {
    if (count > room())
      fail_environment(label_, ": byte ", place_, context_.empty() ? "" : ", ", context_, ": ", what, " takes ", count,
                       " bytes, the file ends after ", room());
    const auto part = bytes_.subspan(static_cast<std::size_t>(place_), static_cast<std::size_t>(count));
    place_ += count;
    return part;
  }
  std::string_view take_bytes(std::uint64_t count, std::string_view what) {
    const auto part = take_span(count, what);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  template <class T>
  T take(std::string_view what) {
    return GgufValue{.bytes = take_span(sizeof(T), what)}.load<T>();
  }
  std::string_view take_text(std::string_view what) {
    const auto length = take<std::uint64_t>(what);
    const std::string_view text = take_bytes(length, what);
    if (!is_utf8(text)) refuse(what, in_quotes(text), "UTF-8");
    return text;
  }
  /// A type, and a value of it.
  GgufValue take_value() { return take_value(take_type(), 0); }

  /// The next element of a list that was checked before.
  GgufValue take_element(GgufType type) { return take_value(type, 0); }
  GgufType take_type() {
    const auto type = take<std::uint32_t>("the type of a value");
    if (!gguf_type_size(type)) refuse("the type of a value", std::to_string(type), "0 to 12");
    return static_cast<GgufType>(type);
  }

 private:
  GgufValue take_value(GgufType type, int depth) {
    if (type == GgufType::Text) return {type, std::as_bytes(std::span(take_text("a text")))};
    if (type == GgufType::List) return take_list(depth + 1);
    const GgufValue value{type, take_span(*gguf_type_size(static_cast<std::uint32_t>(type)), "a value")};
    if (type == GgufType::Flag) require_flags(value.bytes);
    return value;
  }
  void require_flags(std::span<const std::byte> flags) const {
    const auto bad = std::find_if(flags.begin(), flags.end(), [](std::byte flag) { return flag > std::byte{1}; });
    if (bad != flags.end()) refuse("a flag", std::to_string(std::to_integer<int>(*bad)), "0 or 1");
  }
  GgufValue take_list(int depth) {
    if (depth > kMaxGgufNesting)
      refuse("a list in lists", std::to_string(depth) + " deep",
             "at most " + std::to_string(kMaxGgufNesting) + " of them");
    const std::uint64_t begin = place_;
    const GgufType type = take_type();
    const auto count = take<std::uint64_t>("the number of elements");
    const std::uint64_t size = *gguf_type_size(static_cast<std::uint32_t>(type));
    require_room(count, size != 0 ? size : type == GgufType::Text ? 8 : 12, "elements");
    if (size != 0) {
      const auto elements = take_span(count * size, "a list");
      if (type == GgufType::Flag) require_flags(elements);
    } else {
      for (std::uint64_t i = 0; i < count; ++i) take_value(type, depth);
    }
    return {GgufType::List, bytes_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(place_ - begin))};
  }

  std::string_view label_;
  std::span<const std::byte> bytes_;
  std::uint64_t place_ = 0;
  std::string context_;
};

}  // namespace detail

template <class Each>
void GgufValue::for_each(const Each& each) const {
  if (type != GgufType::List) return;
  detail::GgufCursor cursor("moe::GgufValue", bytes);
  const GgufType of_elements = cursor.take_type();
  const auto count = cursor.take<std::uint64_t>("the number of elements");
  for (std::uint64_t i = 0; i < count; ++i) each(cursor.take_element(of_elements));
}

}  // namespace moe::inline MOE_ABI
