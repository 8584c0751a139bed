// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/io/file/convert.hpp"
#include "moe/io/file/message.hpp"

namespace moe::inline MOE_ABI {

/// A tensor in a file that is open: its bytes are not copied, and are valid as long as the file. A plain value.
struct TensorView {
  std::string_view label;  ///< who found it and in which file; opens the messages
  std::string_view name;
  Dtype dtype = Dtype::F32;
  std::vector<Index> shape = {};          ///< {} for a number
  std::span<const std::byte> bytes = {};  ///< row-major, little-endian, anywhere aligned
  std::string_view other = {};            ///< name of a type that is Dtype::Other

  /// Number of elements.
  Index size() const {
    if (dtype != Dtype::Other) return static_cast<Index>(bytes.size() / dtype_size(dtype));
    Index count = 1;
    for (const Index extent : shape) count *= extent;
    return count;
  }
  /// As the file spells the type.
  std::string_view type() const { return dtype == Dtype::Other ? other : dtype_name(dtype); }
};

namespace detail {

/// Throws std::runtime_error for a tensor of which nothing but its bytes is known.
inline void require_known(const TensorView& tensor) {
  if (tensor.dtype == Dtype::Other)
    fail_environment(tensor.label, ": tensor ", in_quotes(tensor.name), " is ", shown(tensor.other),
                     ", a type of which moe reads no values");
}

/// The bytes of `count` elements from `first` on. Throws std::invalid_argument where the tensor has fewer.
inline const std::byte* elements(const char* function, const TensorView& tensor, Index first, std::size_t count) {
  require_known(tensor);
  const Index size = tensor.size();
  if (first < 0 || first > size || count > static_cast<std::size_t>(size - first))
    fail(function, ": elements [", first, ", ", first, " + ", count, ") of tensor ", detail::in_quotes(tensor.name),
         " with ", size, " elements");
  return tensor.bytes.data() + static_cast<std::size_t>(first) * dtype_size(tensor.dtype);
}

}  // namespace detail

/// Elements [first, first + values.size()) in row-major order as float or double; rounded to nearest where the tensor
/// holds more digits. Throws std::runtime_error that names file and tensor for integers, std::invalid_argument for
/// elements that it does not have. No allocation; about memory speed for BF16, F16 and the types themselves.
template <class S>
  requires std::is_floating_point_v<S>
void read_values(const TensorView& tensor, Index first, std::span<S> values) {
  const std::byte* const bytes = detail::elements("moe::read_values", tensor, first, values.size());
  if (!is_floating(tensor.dtype))
    fail_environment(tensor.label, ": tensor ", detail::in_quotes(tensor.name), " is ", dtype_name(tensor.dtype),
                     ", expected a floating-point type");
  detail::decode(tensor.dtype, bytes, values);
}

/// Elements [first, first + values.size()) of a tensor of integers or BOOL. Throws as read_values() does, and
/// std::runtime_error for a U64 that is too large.
inline void read_integers(const TensorView& tensor, Index first, std::span<std::int64_t> values) {
  const std::byte* const bytes = detail::elements("moe::read_integers", tensor, first, values.size());
  if (is_floating(tensor.dtype))
    fail_environment(tensor.label, ": tensor ", detail::in_quotes(tensor.name), " is ", dtype_name(tensor.dtype),
                     ", expected integers");
  detail::decode(tensor.dtype, bytes, values);
  if (tensor.dtype != Dtype::U64) return;
  for (const std::int64_t value : values)
    if (value < 0)
      fail_environment(tensor.label, ": tensor ", detail::in_quotes(tensor.name), " holds ",
                       static_cast<std::uint64_t>(value), ", expected at most ",
                       std::numeric_limits<std::int64_t>::max());
}

/// All elements, row by row.
template <class S>
std::vector<S> read_all(const TensorView& tensor) {
  detail::require_known(tensor);
  std::vector<S> values(static_cast<std::size_t>(tensor.size()));
  if constexpr (std::is_floating_point_v<S>)
    read_values(tensor, 0, std::span<S>(values));
  else
    read_integers(tensor, 0, std::span<std::int64_t>(values));
  return values;
}

}  // namespace moe::inline MOE_ABI
