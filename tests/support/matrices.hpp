// SPDX-License-Identifier: MIT
// Random matrices, poison and bitwise comparison for the tests of kernels, experts and layers.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>

#include "moe/core/aligned.hpp"
#include "moe/core/random.hpp"

namespace test {

using moe::Index;

template <class S>
inline constexpr S kNan = std::numeric_limits<S>::quiet_NaN();

/// `scale` times standard normal draws; the same numbers, rounded, in float and double.
template <class S>
moe::Matrix<S> random_matrix(Index rows, Index cols, std::uint64_t seed = 1, double scale = 1) {
  const moe::RandomField random(moe::Purpose::User, seed);
  moe::Matrix<S> result(rows, cols);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < cols; ++c) result(r, c) = static_cast<S>(scale * random.normal(r, c));
  return result;
}

template <class S>
moe::Matrix<S> nan_matrix(Index rows, Index cols) {
  return moe::Matrix<S>::Constant(rows, cols, kNan<S>);
}

/// A buffer that holds NaN wherever it has memory, and has enough of it for [rows, cols].
template <class S>
void poison(moe::RowBuffer<S>& buffer, Index rows = 0, Index cols = 0) {
  if (rows * cols != 0) buffer.resize(rows, cols);
  std::ranges::fill(buffer.storage(), kNan<S>);
}

template <std::floating_point S>
bool same_bits(S a, S b) {
  using Bits = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
  return std::bit_cast<Bits>(a) == std::bit_cast<Bits>(b);
}

template <class A, class B>
bool same_bits(const Eigen::MatrixBase<A>& a, const Eigen::MatrixBase<B>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return false;
  for (Index r = 0; r < a.rows(); ++r)
    for (Index c = 0; c < a.cols(); ++c)
      if (!same_bits(a(r, c), b(r, c))) return false;
  return true;
}

/// Whether every element is +0.
template <class A>
bool all_zero(const Eigen::MatrixBase<A>& a) {
  using S = typename A::Scalar;
  for (Index r = 0; r < a.rows(); ++r)
    for (Index c = 0; c < a.cols(); ++c)
      if (!same_bits(static_cast<S>(a(r, c)), S{0})) return false;
  return true;
}

/// Largest magnitude; NaN counts as infinite. By hand, as g++ 12 warns about Eigen's reductions with AVX-512.
template <class A>
double largest(const Eigen::MatrixBase<A>& a) {
  double result = 0;
  for (Index r = 0; r < a.rows(); ++r)
    for (Index c = 0; c < a.cols(); ++c) {
      const double magnitude = std::abs(static_cast<double>(a(r, c)));
      if (!(magnitude <= result)) result = std::isnan(magnitude) ? INFINITY : magnitude;
    }
  return result;
}

}  // namespace test
