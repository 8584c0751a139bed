// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <bit>

#include "moe/io/checkpoint/scale_grid.hpp"

namespace moe::inline MOE_ABI::detail {

/// Integers of a matrix, several in a word I32 along its rows or columns, or one in a byte I8.
struct PackedInts {
  enum class Along { Rows, Columns };

  TensorView words = {};
  int bits = 4;
  /// Of bits that do not divide 32: one value behind the other, across words, or as many in each as fit.
  bool is_dense = true;
  Along along = Along::Columns;
  Index row_stride = 0, column_stride = 0;  ///< from a word to that of the next row, column, or word of them
  std::array<std::uint8_t, 8> place_in_word{0, 1, 2, 3, 4, 5, 6, 7};

  std::uint32_t mask() const { return (1u << bits) - 1; }
  /// The value that stands for 0 where no zero point says otherwise.
  int middle() const { return 1 << (bits - 1); }

  /// From 0 to 2^bits - 1: less 2^(bits - 1), it is the integer.
  std::uint32_t at(Index row, Index column) const {
    if (words.dtype == Dtype::I8)
      return std::to_integer<std::uint32_t>(words.bytes[static_cast<std::size_t>(row * row_stride + column)]) ^ 128u;
    const Index packed = along == Along::Rows ? row : column,
                stride = along == Along::Rows ? row_stride : column_stride;
    const Index first = along == Along::Rows ? column * column_stride : row * row_stride;
    if (32 % bits == 0) return load(first + (packed >> shift_of_words()) * stride) >> shift_in_word(packed) & mask();
    const Index each = 32 / bits, bit = is_dense ? packed * bits : packed / each * 32 + packed % each * bits;
    const Index word = first + bit / 32 * stride;
    std::uint64_t found = load(word);
    if (bit % 32 + bits > 32) found |= std::uint64_t{load(word + stride)} << 32;
    return static_cast<std::uint32_t>(found >> bit % 32) & mask();
  }

  /// Calls each(i, integer), as at() gives it, for `count` values of a row from a column on.
  template <class Each>
  void for_each(Index row, Index column, Index count, const Each& each) const {
    if (words.dtype != Dtype::I8 && 32 % bits != 0) {
      for (Index i = 0; i < count; ++i) each(i, at(row, column + i));
    } else if (words.dtype == Dtype::I8) {
      const std::byte* const bytes = words.bytes.data() + row * row_stride + column;
      for (Index i = 0; i < count; ++i) each(i, std::to_integer<std::uint32_t>(bytes[i]) ^ 128u);
    } else if (along == Along::Rows) {
      const int in_word = shift_in_word(row);
      const Index first = (row >> shift_of_words()) * row_stride + column * column_stride;
      for (Index i = 0; i < count; ++i) each(i, load(first + i * column_stride) >> in_word & mask());
    } else if (bits == 4) {
      for_each_in_words<4>(row, column, count, each);
    } else if (bits == 8) {
      for_each_in_words<8>(row, column, count, each);
    } else if (bits == 2) {
      for_each_in_words<2>(row, column, count, each);
    } else {
      for_each_in_words<1>(row, column, count, each);
    }
  }

 private:
  /// Logarithm of how many are in a word, of bits that divide it.
  int shift_of_words() const { return std::countr_zero(32u / static_cast<unsigned>(bits)); }
  int shift_in_word(Index packed) const {
    const auto lane = static_cast<std::size_t>(packed & ((Index{1} << shift_of_words()) - 1));
    return bits * (bits < 4 ? static_cast<int>(lane) : place_in_word[lane]);
  }
  std::uint32_t load(Index word) const {
    std::uint32_t loaded = 0;
    std::memcpy(&loaded, words.bytes.data() + 4 * word, sizeof loaded);
    return loaded;
  }

  /// Whole words at once, of values in their order.
  template <int kBits, class Each>
  void for_each_in_words(Index row, Index column, Index count, const Each& each) const {
    constexpr Index kEach = 32 / kBits;
    Index i = 0;
    for (; i < count && (column + i) % kEach != 0; ++i) each(i, at(row, column + i));
    for (; i + kEach <= count; i += kEach) {
      const std::uint32_t word = load(row * row_stride + (column + i) / kEach * column_stride);
      for (int k = 0; k < kEach; ++k) each(i + k, word >> (kBits * k) & ((1u << kBits) - 1));
    }
    for (; i < count; ++i) each(i, at(row, column + i));
  }
};

/// Integers [out, in] with a scale and perhaps a zero point per output and group of inputs: all layouts that store
/// such.
class IntStorage final : public WeightStorage {
 public:
  struct Parts {
    QuantMethod method = QuantMethod::Unstated;
    std::string name = {};  ///< of the method in reports, before the bits
    Index outputs = 0, inputs = 0, group = 1;
    PackedInts codes = {};
    ScaleGrid scales = {};
    PackedInts zeros = {};           ///< [outputs, groups]; none without words
    std::uint32_t add_to_zeros = 0;  ///< modulo 2^bits
  };

  explicit IntStorage(Parts parts) : parts_(std::move(parts)) {
    method = parts_.method;
    codes = parts_.codes.words;
    shape = {parts_.outputs, parts_.inputs};
    has_scales = true;
    format = parts_.name + "INT" + std::to_string(parts_.codes.bits) + " x " +
             (is_one_group() ? std::string("output") : std::to_string(parts_.group));
  }

  std::optional<WeightFormat> kept_format() const override {
    if (!is_one_group() && parts_.group % 8 != 0) return std::nullopt;
    WeightFormat kept =
        WeightFormat::integers(parts_.codes.bits, is_one_group() ? 0 : parts_.group, scale_type(parts_.scales.scales));
    kept.has_zero_points = has_zero_points();
    return kept;
  }
  std::uint32_t code(Index row, Index column) const override { return code_of(parts_.codes.at(row, column)); }
  void read_codes(Index row, Index column, std::span<std::uint32_t> to) const override {
    parts_.codes.for_each(row, column, std::ssize(to),
                          [&](Index i, std::uint32_t integer) { to[static_cast<std::size_t>(i)] = code_of(integer); });
  }
  GroupNumbers numbers(Index row, Index column) const override {
    return {.scale = parts_.scales.at(row, column), .zero = zero(row, column / parts_.group)};
  }
  void read_row(Index row, Index column, std::span<float> values) const override {
    const auto run = [&](Index begin, Index count, Index group, float scale) {
      // An integer of less than 10 bits.
      const float middle = static_cast<float>(parts_.codes.middle()) + zero(row, group);
      float* const to = values.data() + (begin - column);
      parts_.codes.for_each(row, begin, count, [&](Index i, std::uint32_t integer) {
        to[i] = (static_cast<float>(static_cast<int>(integer)) - middle) * scale;
      });
    };
    parts_.scales.for_each_run(row, column, std::ssize(values), run);
  }

 private:
  bool is_one_group() const { return parts_.group >= parts_.inputs; }
  /// In two's complement of the code that holds it: 4 bits or a byte.
  std::uint32_t code_of(std::uint32_t integer) const {
    return (integer - static_cast<std::uint32_t>(parts_.codes.middle())) & (parts_.codes.bits == 4 ? 15u : 255u);
  }
  float zero(Index row, Index group) const {
    const PackedInts& zeros = parts_.zeros;
    if (zeros.words.shape.empty()) return 0;
    const std::uint32_t stored = (zeros.at(row, group) + parts_.add_to_zeros) & zeros.mask();
    return static_cast<float>(static_cast<int>(stored) - zeros.middle());
  }
  bool has_zero_points() const {
    const Index groups = num_parts(parts_.inputs, parts_.group);
    if (parts_.zeros.words.shape.empty() || groups == 0) return false;
    for (Index row = 0; row < parts_.outputs; ++row)
      for (Index group = 0; group < groups; ++group)
        if (zero(row, group) != 0) return true;
    return false;
  }

  Parts parts_;
};

/// Inputs that share a scale, where there are so many groups of them: as it is stated, else evenly. Throws naming the
/// tensor of scales.
inline Index group_size(const StoredParts& parts, const TensorView& scales, Index groups, Index inputs) {
  const std::optional<Index> stated = parts.stated().group;
  if (stated) {
    const Index group = *stated == 0 ? std::max<Index>(1, inputs) : *stated;
    if (num_parts(inputs, group) != groups)
      refuse_stored_shape(scales, std::to_string(num_parts(inputs, group)) + " groups of " + std::to_string(group) +
                                      " for " + std::to_string(inputs) + " inputs");
    return group;
  }
  if (inputs == 0 && groups == 0) return 1;
  if (groups <= 0 || inputs % groups != 0)
    refuse_stored_shape(scales, "a number of groups that divides " + std::to_string(inputs) +
                                    " inputs, or group_size in the configuration");
  return std::max<Index>(1, inputs / groups);
}

/// Throws unless input i is of group i / group: others are in the order of their activations, which is not read.
inline void require_ordered(const TensorView& g_idx, Index inputs, Index group) {
  require_stored_type(g_idx, g_idx.dtype == Dtype::I32 || g_idx.dtype == Dtype::I64, "I32");
  require_stored_shape(g_idx, {inputs});
  for (Index i = 0; i < inputs; ++i) {
    std::int64_t found = 0;
    read_integers(g_idx, i, std::span(&found, 1));
    if (found != i / group)
      fail_environment(g_idx.label, ": tensor ", in_quotes(g_idx.name), " puts input ", i, " into group ", found,
                       ", expected ", i / group,
                       ": groups in the order of activations (desc_act, actorder) are not read");
  }
}

inline void require_bits(const StoredParts& parts, const TensorView& codes, int bits) {
  const std::optional<int> stated = parts.stated().bits;
  if (stated && *stated != bits)
    fail_environment(codes.label, ": tensor ", in_quotes(codes.name), " holds integers of ", bits,
                     " bits, but the configuration says ", *stated);
}

}  // namespace moe::inline MOE_ABI::detail
