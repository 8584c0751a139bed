// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/kernel/quantised_matrix.hpp"

namespace moe::inline MOE_ABI::detail {

/// A group of weights of an output, and how it is stored.
struct WeightGroup {
  const WeightFormat& format;
  float matrix_scale;
  Index first_input;
  std::span<const float> weights;

  GroupRounding rounding(const GroupParameters& parameters) const { return {format, matrix_scale, parameters}; }
};

/// `rounded`, which round_to_nearest() has made of `weights`, with the scales and zero points of all groups replaced by
/// choose(group, those that it has), where these can be stored, and codes to match. In parallel, the same bits for any
/// number of threads.
template <class Choose>
PanelMatrix<Quantised> round_groups(const PanelMatrix<F32>& weights, const PanelMatrix<Quantised>& rounded,
                                    const Choose& choose) {
  const WeightFormat format = rounded.format();
  if (rounded.num_groups() == 0) return rounded;
  PanelMatrix<Quantised> result(weights.outputs(), weights.inputs(), weights.order(), format);
  result.set_matrix_scale(rounded.matrix_scale());
  const Index inputs = weights.inputs(), size = format.group_of(inputs);
  constexpr Index kOutputs = 16;
  parallel_ranges(weights.outputs(), kOutputs, [&](Index begin, Index end, Index) {
    std::vector<float> row(static_cast<std::size_t>(inputs));
    std::vector<std::uint32_t> codes(row.size());
    for (Index o = begin; o < end; ++o) {
      for (Index i = 0; i < inputs; ++i) row[static_cast<std::size_t>(i)] = weights(o, i);
      for (Index first = 0; first < inputs; first += size) {
        const auto from = static_cast<std::size_t>(first),
                   count = static_cast<std::size_t>(std::min(size, inputs - first));
        const Index g = first / size;
        const WeightGroup group{format, rounded.matrix_scale(), first, std::span(row).subspan(from, count)};
        GroupParameters parameters{rounded.scale(o, g), format.has_zero_points ? rounded.zero_point(o, g) : 0};
        if (const GroupParameters chosen = choose(group, parameters); group.rounding(chosen).is_finite())
          parameters = chosen;
        result.set_scale(o, g, parameters.scale);
        if (format.has_zero_points) result.set_zero_point(o, g, parameters.zero);
        const GroupRounding rounding = group.rounding(parameters);
        for (std::size_t i = from; i < from + count; ++i) codes[i] = rounding.code(static_cast<double>(row[i]));
      }
      result.set_codes(o, 0, codes);
    }
  });
  return result;
}

}  // namespace moe::inline MOE_ABI::detail
