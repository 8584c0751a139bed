// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "moe/compress/round_blocks.hpp"
#include "moe/io/checkpoint/weight_writer.hpp"

namespace moe::inline MOE_ABI {

/// FP8 with a scale per 128 x 128 weights, as DeepSeek-V3 is published (arXiv:2412.19437, section 3.3): E4M3, group
/// 128, scales F32: `name` [.., out, in] and `name_scale_inv` F32 [.., ceil(out / 128), ceil(in / 128)], which
/// multiplies. Matrices come from RoundBlocks, or other scales that are equal for 128 outputs.
class Fp8BlocksWriter final : public WeightWriter {
 public:
  Fp8BlocksWriter() : WeightWriter(WeightFormat::fp8()) {}

  std::string name() const override { return "FP8 in blocks"; }
  Stacks stacks() const override { return Stacks::Taken; }
  std::vector<Part> parts(const std::string& name, const std::vector<Index>& shape) const override {
    require_shape(name, shape);
    std::vector<Index> blocks = shape;
    for (Index& extent : std::span(blocks).last(2)) extent = num_blocks(extent);
    return {{name, {.dtype = Dtype::F8_E4M3, .shape = shape}},
            {name + "_scale_inv", {.dtype = Dtype::F32, .shape = std::move(blocks)}}};
  }
  std::vector<std::vector<std::byte>> encode(const CodeRows& rows) const override {
    require_rows(rows);
    const std::size_t across = static_cast<std::size_t>(rows.num_groups()) * sizeof(float);
    const auto row = [&](Index output) { return rows.bytes.scales.data() + static_cast<std::size_t>(output) * across; };
    std::vector<std::byte> scales;
    for (Index block = 0; block < rows.outputs; block += kBlock) {
      for (Index o = block; o < std::min(block + kBlock, rows.outputs); ++o)
        if (std::memcmp(row(o), row(block), across) != 0)
          refuse("scales of outputs " + std::to_string(block) + " and " + std::to_string(o) +
                 " differ, expected one for 128 of FP8 in blocks: see RoundBlocks");
      scales.insert(scales.end(), row(block), row(block) + across);
    }
    return {rows.bytes.codes, std::move(scales)};
  }
  nlohmann::ordered_json statement(const PlainModules& plain) const override {
    return {{"activation_scheme", "dynamic"},
            {"fmt", "e4m3"},
            {"modules_to_not_convert", detail::modules_and_parents(plain)},
            {"quant_method", "fp8"},
            {"weight_block_size", {kBlock, kBlock}}};
  }
  PanelMatrix<Quantised> round(const PanelMatrix<F32>& weights) const override {
    return RoundBlocks{.outputs = kBlock}(weights, format());
  }

 private:
  static constexpr Index kBlock = WeightFormat::fp8().group;
  static constexpr Index num_blocks(Index extent) { return (extent + kBlock - 1) / kBlock; }
};

}  // namespace moe::inline MOE_ABI
