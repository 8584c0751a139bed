// SPDX-License-Identifier: MIT
#pragma once

#include "moe/kernel/quantised_matrix.hpp"

namespace moe::inline MOE_ABI {

/// The weights in a format, each rounded to the nearest that the scale of its group allows. Scales are those of the
/// range of a group, for b bits:
///   integers           max |w| / (2^(b-1) - 1), or the largest weight / -2^(b-1): what errs less, in squares
///   with zero points   (max - min) / (2^b - 1), where the range holds 0
///   Planes             the same around (max + min) / 2; of 1 bit mean +- mean |w - mean|
///   E4M3, E5M2, E2M1   max |w| / 448, 57344 or 6
/// and of scales E8M0 the power of two around it that errs less. A weight inside the range is off by half a step, and
/// by what the rounding of its scale and offset adds. WeightFormat::none() makes all weights 0. Throws
/// std::invalid_argument naming a weight that the format cannot hold, as PanelMatrix<Quantised>::round(), and for an
/// invalid format. O(outputs * inputs), one thread.
inline PanelMatrix<Quantised> round_to_nearest(const PanelMatrix<F32>& weights, const WeightFormat& format) {
  PanelMatrix<Quantised> result(weights.outputs(), weights.inputs(), weights.order(), format);
  if (format.code != WeightCode::Zeros) result.round(weights);
  return result;
}

}  // namespace moe::inline MOE_ABI
