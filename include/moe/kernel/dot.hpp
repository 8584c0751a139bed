// SPDX-License-Identifier: MIT
#pragma once

#include "moe/kernel/bfloat_product.hpp"
#include "moe/kernel/integer_product.hpp"

// Products of rows that are rounded, too: to integers of 8 bits, or to BF16. Rows are converted once for all panels;
// codes become bytes, block by block, in L1, and then one tile serves all formats: of registers of AVX2 or AVX-512, or
// for many rows of AMX. What is computed for a row depends on the row and the weights alone.
namespace moe::inline MOE_ABI {

/// What rows are rounded to before they are multiplied with weights in few bits.
enum class Dot : std::uint8_t {
  Exact,  ///< nothing
  /// Integers of 8 bits, with a scale per row and group of the weights: max |x| / 127. Of Int8, Int4 and E2M1 without
  /// zero points.
  Int8,
  /// BF16, by the instruction VDPBF16PS (AVX512-BF16). Of Bf16.
  Bf16,
};

namespace kernel {

namespace detail {

/// Most inputs of a matrix; no model has more.
inline constexpr Index kMostDotInputs = Index{32} << 10;

template <class Bytes, class S>
inline constexpr ConvertedProduct<S> kIntegerProduct{.bytes_of_row = &IntegerRows::bytes_of_row,
                                                     .convert = &convert_to_integers<Bytes>,
                                                     .multiply = &multiply_integers<Bytes>};
template <class S>
inline constexpr ConvertedProduct<S> kBfloatProduct{
    .bytes_of_row = &bytes_of_bfloats, .convert = &convert_to_bfloats, .multiply = &multiply_bfloats};

template <class S>
constexpr PanelDecoder<S> with_product(PanelDecoder<S> exact, const ConvertedProduct<S>& product) {
  exact.product = &product;
  return exact;
}
template <class Codes, class Bytes, class S>
inline constexpr PanelDecoder<S> kIntegerDot = with_product(kDecoderOf<Codes, S>, kIntegerProduct<Bytes, S>);
template <class S>
inline constexpr PanelDecoder<S> kBfloatDot = with_product(kDecoderOf<Bf16Codes, S>, kBfloatProduct<S>);

}  // namespace detail

/// Whether a matrix of this format and so many inputs can be multiplied with rounded rows, on this machine.
inline bool can_dot(const WeightFormat& format, Index inputs, Dot dot) {
  if (dot == Dot::Exact) return true;
  if (inputs > detail::kMostDotInputs) return false;
  if (dot == Dot::Bf16) return format.code == WeightCode::Bf16 && simd::kMultipliesBfloats;
  const bool is_known =
      format.code == WeightCode::Int8 || format.code == WeightCode::Int4 || format.code == WeightCode::E2M1;
  return is_known && !format.has_zero_points;
}

/// How a matrix for which can_dot() holds is read.
template <class S = float>
const PanelDecoder<S>& dot_decoder_of(const WeightFormat& format, Dot dot) {
  using namespace detail;
  if (dot == Dot::Bf16) return kBfloatDot<S>;
  if (format.code == WeightCode::Int8) return kIntegerDot<Int8Codes<false>, Int8Bytes, S>;
  return format.code == WeightCode::Int4 ? kIntegerDot<Int4Codes<false>, Int4Bytes, S>
                                         : kIntegerDot<E2M1Codes, E2M1Bytes, S>;
}

}  // namespace kernel

}  // namespace moe::inline MOE_ABI
