// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "moe/io/checkpoint/weight_writer.hpp"

namespace moe::inline MOE_ABI {

/// MXFP4 as GPT-OSS is published: stacks `name_blocks` U8 [.., out, in / 32, 16] and `name_scales` U8 [.., out, in /
/// 32] (see MxBlocksLayout), or with a dot before the last word, as OpenAI's own files have it. Inputs are a multiple
/// of 32.
class MxBlocksWriter final : public WeightWriter {
 public:
  enum class Separator { Underscore, Dot };

  explicit MxBlocksWriter(Separator separator = Separator::Underscore)
      : WeightWriter(WeightFormat::mxfp4()), separator_(separator == Separator::Dot ? "." : "_") {}

  std::string name() const override { return "MXFP4 in blocks"; }
  Stacks stacks() const override { return Stacks::Needed; }
  std::vector<Part> parts(const std::string& name, const std::vector<Index>& shape) const override {
    require_shape(name, shape);
    const Index group = format().group;
    if (shape.back() % group != 0)
      refuse("weight " + detail::in_quotes(name) + " has " + std::to_string(shape.back()) +
             " inputs, expected a multiple of 32 of MXFP4");
    std::vector<Index> scales = shape;
    scales.back() /= group;
    std::vector<Index> blocks = scales;
    blocks.push_back(group / 2);
    return {{name + separator_ + "blocks", {.dtype = Dtype::U8, .shape = std::move(blocks)}},
            {name + separator_ + "scales", {.dtype = Dtype::U8, .shape = std::move(scales)}}};
  }
  std::vector<std::vector<std::byte>> encode(const CodeRows& rows) const override {
    require_rows(rows);
    return {rows.bytes.codes, rows.bytes.scales};
  }
  nlohmann::ordered_json statement(const PlainModules& plain) const override {
    return {{"modules_to_not_convert", detail::modules_and_parents(plain)}, {"quant_method", "mxfp4"}};
  }

 private:
  std::string separator_;
};

}  // namespace moe::inline MOE_ABI
