// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/file/dtype.hpp"
#include "moe/io/file/lfs_pointer.hpp"
#include "moe/io/file/mapped_file.hpp"
#include "moe/io/file/message.hpp"
#include "moe/io/file/output_file.hpp"
#include "moe/io/file/tensor.hpp"

// Long, as a header is written by the rules that it is read by.
namespace moe::inline MOE_ABI {

namespace detail {

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

}  // namespace detail

/// An array in an open .npy file: elements in the order of the file.
struct NpyArray {
  TensorView tensor = {};   ///< shape as Python sees it; `bytes` in row-major order only if not is_fortran
  bool is_fortran = false;  ///< the first index runs fastest
};

/// Checks the bytes of a whole .npy file, version 1.0, 2.0 or 3.0, of NumPy
/// (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): little-endian f2, f4, f8, i1 to i8, u1 to
/// u8 and b1, in either order. `label` opens the messages and must outlive the array. No element is read or copied.
/// Throws std::runtime_error for anything else: pickled objects, records, big-endian numbers, a shape that does not
/// fill the file.
inline NpyArray parse_npy(const std::string& label, std::span<const std::byte> bytes) {
  detail::refuse_lfs_pointer(label, bytes);
  const detail::NpyPrefix prefix = detail::parse_npy_prefix(label, bytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + prefix.begin, prefix.size);
  const detail::NpyHeader header = detail::NpyHeaderParser(label, text).parse();
  const std::span<const std::byte> data = bytes.subspan(prefix.begin + prefix.size);
  const auto size = detail::tensor_bytes(header.dtype, header.shape);
  if (!size || *size != data.size())
    fail_environment(label, ": ", data.size(), " bytes of data do not fill shape [", detail::join(header.shape, ", "),
                     "] of ", dtype_name(header.dtype));
  return {.tensor = {.label = label, .name = "array", .dtype = header.dtype, .shape = header.shape, .bytes = data},
          .is_fortran = header.is_fortran};
}

/// An array in memory, row by row.
template <class S>
struct NpyValues {
  std::vector<Index> shape = {};
  std::vector<S> values = {};
};

namespace detail {

/// values[row-major place] = given[column-major place].
template <class S>
std::vector<S> rows_first(const std::vector<Index>& shape, const std::vector<S>& given) {
  std::vector<S> values(given.size());
  std::vector<Index> place(shape.size());
  for (const S value : given) {
    Index at = 0;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) at = at * shape[axis] + place[axis];
    values[static_cast<std::size_t>(at)] = value;
    for (std::size_t axis = 0; axis < shape.size() && ++place[axis] == shape[axis]; ++axis) place[axis] = 0;
  }
  return values;
}

}  // namespace detail

/// Reads a .npy file as float, double or std::int64_t, row by row whatever its order. Same type: the same bits;
/// narrower floating-point types only if allowed, rounded to nearest. Throws std::runtime_error naming the file if it
/// cannot be read, is no array that parse_npy() takes, or of a type that S cannot hold. FileAccess::Read takes the
/// memory of the file once more, and does not mind one that shrinks meanwhile.
template <class S>
NpyValues<S> read_npy(const std::filesystem::path& path, Narrowing narrowing = Narrowing::Refuse,
                      FileAccess access = FileAccess::Map) {
  const MappedFile file("moe::read_npy: '" + path.string() + "'", path, access);
  const NpyArray array = parse_npy(file.label(), file.bytes());
  const Dtype stored = array.tensor.dtype;
  const bool may_round = std::is_floating_point_v<S> && narrowing == Narrowing::Allow;
  if (!is_exact(stored, dtype_of<S>()) && !may_round)
    fail_environment(file.label(), ": array is ", dtype_name(stored), ", which ", dtype_name(dtype_of<S>()),
                     " cannot hold exactly");
  NpyValues<S> result{.shape = array.tensor.shape,
                      .values = std::vector<S>(static_cast<std::size_t>(array.tensor.size()))};
  detail::decode(stored, array.tensor.bytes.data(), std::span<S>(result.values));
  if (array.is_fortran) result.values = detail::rows_first(result.shape, result.values);
  return result;
}

/// Writes an array row by row in its own type, as numpy.load() reads it: format 1.0, the same bytes as numpy.save()
/// since NumPy 1.24. The file appears whole or not at all.
/// Throws std::invalid_argument if the shape does not have as many elements as there are values, std::runtime_error if
/// the file cannot be written.
template <class S>
void write_npy(const std::filesystem::path& path, std::span<const S> values, const std::vector<Index>& shape) {
  const std::string label = "moe::write_npy: '" + path.string() + "'";
  const bool is_negative = std::any_of(shape.begin(), shape.end(), [](Index extent) { return extent < 0; });
  const auto bytes = detail::tensor_bytes(dtype_of<S>(), shape);
  if (is_negative || !bytes || *bytes != values.size_bytes())
    fail(label, ": ", values.size(), " values for shape [", detail::join(shape, ", "), "]");
  const std::string header = detail::format_npy_header(dtype_of<S>(), shape);
  detail::OutputFile file(label, path);
  file.write(header, "header");
  file.write(std::as_bytes(values));
  file.commit();
}

/// The same for a matrix.
template <class S>
void write_npy(const std::filesystem::path& path, const ConstMatrixRef<S>& values) {
  const Matrix<S> rows = values;  // without gaps between rows
  write_npy(path, std::span<const S>(rows.data(), static_cast<std::size_t>(rows.size())), {rows.rows(), rows.cols()});
}

}  // namespace moe::inline MOE_ABI
