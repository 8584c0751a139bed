// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/file/dtype.hpp"
#include "moe/io/file/message.hpp"

namespace moe::inline MOE_ABI::detail {

/// What stands in a .npy file before its data.
struct NpyHeader {
  Dtype dtype = Dtype::F32;
  std::vector<Index> shape = {};
  bool is_fortran = false;
};

/// Where the header's text lies in the file.
struct NpyPrefix {
  std::size_t begin = 0, size = 0;
};

/// NumPy itself has at most 32 axes (64 from version 2 on), and refuses longer headers than this by default.
inline constexpr std::size_t kMaxNpyAxes = 64, kMaxNpyHeader = 10000;

/// Spelling of the types that .npy and safetensors share; NumPy has no BF16 or FP8.
struct NpyDescr {
  std::string_view text;
  Dtype dtype;
};
inline constexpr std::array<NpyDescr, 12> kNpyDescrs{{{"<f8", Dtype::F64},
                                                      {"<f4", Dtype::F32},
                                                      {"<f2", Dtype::F16},
                                                      {"<i8", Dtype::I64},
                                                      {"<i4", Dtype::I32},
                                                      {"<i2", Dtype::I16},
                                                      {"|i1", Dtype::I8},
                                                      {"<u8", Dtype::U64},
                                                      {"<u4", Dtype::U32},
                                                      {"<u2", Dtype::U16},
                                                      {"|u1", Dtype::U8},
                                                      {"|b1", Dtype::BOOL}}};

inline constexpr std::string_view kNpyMagic = "\x93NUMPY";

inline NpyPrefix parse_npy_prefix(const std::string& label, std::span<const std::byte> bytes) {
  const auto byte = [&](std::size_t i) { return std::to_integer<std::size_t>(bytes[i]); };
  const std::size_t magic = kNpyMagic.size(), version_end = magic + 2;
  for (std::size_t i = 0; i < magic; ++i)
    if (i >= bytes.size() || byte(i) != static_cast<unsigned char>(kNpyMagic[i]))
      fail_environment(label, ": does not begin as a .npy file");
  if (bytes.size() < version_end) fail_environment(label, ": ends after ", bytes.size(), " bytes");
  const std::size_t major = byte(magic), minor = byte(magic + 1);
  if (major < 1 || major > 3 || minor != 0)
    fail_environment(label, ": has format ", major, ".", minor, ", expected 1.0, 2.0 or 3.0");
  const std::size_t width = major == 1 ? 2 : 4, begin = version_end + width;
  if (bytes.size() < begin) fail_environment(label, ": ends after ", bytes.size(), " bytes");
  std::size_t size = 0;
  for (std::size_t i = 0; i < width; ++i) size |= byte(version_end + i) << (8 * i);
  if (size > kMaxNpyHeader) fail_environment(label, ": header of ", size, " bytes, expected at most ", kMaxNpyHeader);
  if (size > bytes.size() - begin)
    fail_environment(label, ": header of ", size, " bytes in a file of ", bytes.size(), " bytes");
  return {begin, size};
}

/// Reads the one kind of text that a header may be: a Python dictionary with the keys 'descr' (a string),
/// 'fortran_order' (True or False) and 'shape' (a tuple of integers), each once, in any order, blanks in between.
class NpyHeaderParser {
 public:
  NpyHeaderParser(const std::string& label, std::string_view text) : label_(label), text_(text) {}

  NpyHeader parse() {
    expect("{");
    while (!accept("}")) {
      const std::string_view key = string();
      expect(":");
      if (key == "descr") {
        once(key, 0);
        header_.dtype = dtype();
      } else if (key == "fortran_order") {
        once(key, 1);
        header_.is_fortran = boolean();
      } else if (key == "shape") {
        once(key, 2);
        header_.shape = shape();
      } else {
        refuse("unknown key " + in_quotes(key));
      }
      if (!accept(",")) {
        expect("}");
        break;
      }
    }
    skip_blanks();
    if (!text_.empty()) refuse("text after the dictionary");
    if (seen_ != std::array{true, true, true}) refuse("'descr', 'fortran_order' and 'shape' are needed");
    return std::move(header_);
  }

 private:
  [[noreturn]] void refuse(const std::string& reason) const { fail_environment(label_, ": header: ", reason); }
  void skip_blanks() { text_.remove_prefix(std::min(text_.find_first_not_of(" \t\r\n"), text_.size())); }
  bool accept(std::string_view token) {
    skip_blanks();
    if (!text_.starts_with(token)) return false;
    text_.remove_prefix(token.size());
    return true;
  }
  void expect(std::string_view token) {
    if (!accept(token)) refuse("found " + in_quotes(text_.substr(0, 20)) + ", expected " + in_quotes(token));
  }
  void once(std::string_view key, std::size_t place) {
    if (std::exchange(seen_[place], true)) refuse(in_quotes(key) + " occurs twice");
  }

  std::string_view string() {
    skip_blanks();
    const char quote = text_.empty() ? '\0' : text_.front();
    if (quote != '\'' && quote != '"') refuse("found " + in_quotes(text_.substr(0, 20)) + ", expected a string");
    const std::size_t end = text_.find(quote, 1);
    if (end == text_.npos) refuse("a string without end");
    const std::string_view content = text_.substr(1, end - 1);
    text_.remove_prefix(end + 1);
    return content;
  }
  Dtype dtype() {
    const std::string_view text = string();
    for (const NpyDescr& descr : kNpyDescrs)
      if (descr.text == text || (descr.text[0] == '|' && text == "<" + std::string(descr.text.substr(1))))
        return descr.dtype;
    refuse("type " + in_quotes(text) + " is not supported");
  }
  bool boolean() {
    if (accept("True")) return true;
    expect("False");
    return false;
  }
  std::vector<Index> shape() {
    std::vector<Index> extents;
    expect("(");
    while (!accept(")")) {
      if (extents.size() == kMaxNpyAxes) refuse("more than " + std::to_string(kMaxNpyAxes) + " axes");
      extents.push_back(integer());
      if (!accept(",")) {
        expect(")");
        if (extents.size() == 1) refuse("shape is a number, expected a tuple");
        break;
      }
    }
    return extents;
  }
  Index integer() {
    skip_blanks();
    std::size_t digits = 0;
    Index value = 0;
    for (; digits < text_.size() && text_[digits] >= '0' && text_[digits] <= '9'; ++digits) {
      const Index digit = text_[digits] - '0';
      if (value > (std::numeric_limits<Index>::max() - digit) / 10) refuse("extent too large");
      value = 10 * value + digit;
    }
    if (digits == 0) refuse("found " + in_quotes(text_.substr(0, 20)) + ", expected an extent");
    text_.remove_prefix(digits);
    return value;
  }

  const std::string& label_;
  std::string_view text_;
  NpyHeader header_;
  std::array<bool, 3> seen_{};
};

/// Magic, version 1.0, length and text, byte for byte as numpy.save() writes it: room for the first extent to grow to
/// 21 digits, then blanks so that the data start at a multiple of 64 bytes.
inline std::string format_npy_header(Dtype dtype, const std::vector<Index>& shape) {
  constexpr std::size_t kGrowth = 21, kAlign = 64;
  if (shape.size() > kMaxNpyAxes) fail("moe::write_npy: ", shape.size(), " axes, expected at most ", kMaxNpyAxes);
  const auto* const descr =
      std::find_if(kNpyDescrs.begin(), kNpyDescrs.end(), [&](const NpyDescr& d) { return d.dtype == dtype; });
  std::string text = "{'descr': '" + std::string(descr->text) + "', 'fortran_order': False, 'shape': (";
  text += join(shape, ", ") + (shape.size() == 1 ? ",), }" : "), }");
  if (!shape.empty()) text.append(kGrowth - std::to_string(shape.front()).size(), ' ');
  const std::size_t begin = kNpyMagic.size() + 4, end = begin + text.size() + 1;
  text.append(kAlign - end % kAlign, ' ') += '\n';
  std::string result(kNpyMagic);
  result += {'\x01', '\0', static_cast<char>(text.size() & 0xFF), static_cast<char>(text.size() >> 8)};
  return result + text;
}

}  // namespace moe::inline MOE_ABI::detail
