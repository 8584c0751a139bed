// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/file/lfs_pointer.hpp"
#include "moe/io/file/mapped_file.hpp"
#include "moe/io/file/npy_header.hpp"
#include "moe/io/file/output_file.hpp"
#include "moe/io/file/tensor.hpp"

namespace moe::inline MOE_ABI {

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
