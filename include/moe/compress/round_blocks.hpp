// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/kernel/quantised_matrix.hpp"

namespace moe::inline MOE_ABI {

/// Rounds to nearest with one scale for a whole block of weights, as FP8 checkpoints have it (DeepSeek-V3,
/// arXiv:2412.19437, section 3.3): that of `outputs` consecutive outputs and the format's group of inputs. The scale is
/// that of round_to_nearest() for all weights of the block together, and stored for each output. Blocks begin anew
/// where the ups of a paired matrix (GLU) do, as gates and ups are matrices of their own in a checkpoint. A Quantiser.
///   const auto small = moe::quantise(layer, moe::WeightFormat::fp8(), moe::RoundBlocks{});
/// Throws std::invalid_argument for outputs < 1, a format without scales or with those of a matrix beside them (NVFP4),
/// weights that are not finite, and scales that the format cannot store. O(weights), one thread; memory: a block of
/// floats.
struct RoundBlocks {
  Index outputs = 128;

  PanelMatrix<Quantised> operator()(const PanelMatrix<F32>& weights, const WeightFormat& format) const {
    constexpr const char* kFunction = "moe::RoundBlocks";
    if (outputs < 1) fail(kFunction, ": outputs is ", outputs, ", expected at least 1");
    if (format.scale == ScaleType::Unscaled || format.scale == ScaleType::E4M3)
      fail(kFunction, ": format is ", format.name(), ", expected one whose groups have a scale of their own alone");
    PanelMatrix<Quantised> result(weights.outputs(), weights.inputs(), weights.order(), format);
    const Index parts = weights.order() == PanelOrder::Paired ? 2 : 1, rows = weights.outputs() / parts;
    const Index group = format.group_of(weights.inputs()), step = std::min(outputs, rows);
    for (Index first = 0; first < weights.outputs(); first += rows)
      for (Index o = first; o < first + rows; o += step)
        for (Index i = 0; i < weights.inputs(); i += group)
          round({o, i, std::min(step, first + rows - o), std::min(group, weights.inputs() - i)}, weights, result);
    return result;
  }

 private:
  struct Block {
    Index output, input, outputs, inputs;
  };

  static void round(const Block& block, const PanelMatrix<F32>& weights, PanelMatrix<Quantised>& to) {
    const WeightFormat format = to.format();
    std::vector<float> values(static_cast<std::size_t>(block.outputs * block.inputs));
    auto value = values.begin();
    for (Index o = block.output; o < block.output + block.outputs; ++o)
      for (Index i = block.input; i < block.input + block.inputs; ++i) {
        *value = weights(o, i);
        if (!std::isfinite(*value++))
          fail("moe::RoundBlocks: weight of output ", o, ", input ", i, " is ", weights(o, i), ", expected one that ",
               format.name(), " can hold");
      }
    const detail::GroupFit fit(format, 1, values);
    const detail::GroupParameters parameters = fit.best();
    if (!std::isfinite(parameters.scale) || !std::isfinite(parameters.zero))
      fail("moe::RoundBlocks: output ", block.output, " has weights from input ", block.input, " on whose scale ",
           format.name(), " cannot store");
    std::vector<std::uint32_t> codes(values.size());
    fit.codes(parameters, codes.data());
    const Index group = block.input / format.group_of(to.inputs());
    for (Index r = 0; r < block.outputs; ++r) {
      const Index output = block.output + r;
      to.set_scale(output, group, parameters.scale);
      if (format.has_zero_points) to.set_zero_point(output, group, parameters.zero);
      to.set_codes(output, block.input,
                   std::span<const std::uint32_t>(codes).subspan(static_cast<std::size_t>(r * block.inputs),
                                                                 static_cast<std::size_t>(block.inputs)));
    }
  }
};

}  // namespace moe::inline MOE_ABI
