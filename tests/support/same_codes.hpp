// SPDX-License-Identifier: MIT
#pragma once

#include "moe/kernel/quantised_matrix.hpp"
#include "support/matrices.hpp"

namespace test {

/// Whether two matrices are of one shape and format, and all of their codes, scales and zero points are equal.
inline bool same_codes(const moe::PanelMatrix<moe::Quantised>& a, const moe::PanelMatrix<moe::Quantised>& b) {
  if (!a.is_shaped_as(b) || a.format() != b.format() || !same_bits(a.matrix_scale(), b.matrix_scale())) return false;
  const auto x = a.rows(), y = b.rows();
  return x.codes == y.codes && x.scales == y.scales && x.zeros == y.zeros;
}

}  // namespace test
