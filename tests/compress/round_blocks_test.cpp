// SPDX-License-Identifier: MIT
#include "moe/compress/round_blocks.hpp"

#include "moe/compress/round_to_nearest.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using moe::PanelOrder;
using moe::WeightFormat;

moe::PanelMatrix<moe::F32> random_weights(Index outputs, Index inputs, PanelOrder order) {
  moe::PanelMatrix<moe::F32> weights(outputs, inputs, order);
  const moe::RandomField random(moe::Purpose::User, /*seed=*/3);
  for (Index o = 0; o < outputs; ++o)
    for (Index i = 0; i < inputs; ++i) weights(o, i) = static_cast<float>(random.normal(o, i));
  return weights;
}

}  // namespace

TEST_CASE("RoundBlocks: blocks of one output are rounded to nearest, bit for bit", "[compress]") {
  for (const char* name : {"fp8-g32", "fp8-e5m2-g32", "int8-g32", "int4-zero-g32", "mxfp4", "3bit-g32", "fp8-g0"}) {
    CAPTURE(name);
    const WeightFormat format = WeightFormat::named(name);
    const auto weights = random_weights(10, 75, PanelOrder::Paired);
    const auto blocks = moe::RoundBlocks{.outputs = 1}(weights, format), rows = moe::round_to_nearest(weights, format);
    CHECK(blocks.rows().codes == rows.rows().codes);
    CHECK(blocks.rows().scales == rows.rows().scales);
    CHECK(blocks.rows().zeros == rows.rows().zeros);
  }
}

TEST_CASE("RoundBlocks: a block has the scale of its largest weight, and ups begin anew", "[compress]") {
  for (const PanelOrder order : {PanelOrder::Plain, PanelOrder::Paired})
    for (const Index outputs : {6, 256, 300}) {
      CAPTURE(outputs);
      const Index inputs = 200, part = order == PanelOrder::Paired ? outputs / 2 : outputs;
      const auto weights = random_weights(outputs, inputs, order);
      const auto codes = moe::RoundBlocks{}(weights, WeightFormat::fp8());
      Index wrong = 0;
      for (Index o = 0; o < outputs; ++o)
        for (Index g = 0; g < 2; ++g) {
          const Index first = o / part * part + o % part / 128 * 128;
          float largest = 0;
          for (Index r = first; r < std::min(first + 128, o / part * part + part); ++r)
            for (Index i = 128 * g; i < std::min<Index>(128 * g + 128, inputs); ++i)
              largest = std::max(largest, std::abs(weights(r, i)));
          wrong += codes.scale(o, g) != static_cast<float>(static_cast<double>(largest) / 448);
        }
      CHECK(wrong == 0);
      for (Index o = 0; o < outputs; ++o)
        for (Index i = 0; i < inputs; ++i)  // half a step of three bits of fraction
          wrong += std::abs(codes.get(o, i) - weights(o, i)) >
                   std::abs(weights(o, i)) / 16 + codes.scale(o, i / 128) * 0x1p-10f;
      CHECK(wrong == 0);
    }
}

TEST_CASE("RoundBlocks: what it cannot round is refused", "[compress][error]") {
  auto weights = random_weights(4, 32, PanelOrder::Plain);
  for (const char* name : {"bf16", "nvfp4", "fp8-plain"})
    CHECK_THROWS_AS(moe::RoundBlocks{}(weights, WeightFormat::named(name)), std::invalid_argument);
  CHECK_THROWS_AS(moe::RoundBlocks{.outputs = 0}(weights, WeightFormat::fp8()), std::invalid_argument);
  weights(2, 5) = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(moe::RoundBlocks{}(weights, WeightFormat::fp8()),
                    Catch::Matchers::ContainsSubstring("weight of output 2, input 5"));
  weights(2, 5) = 1e8f;  // whose scale is too large for F16
  CHECK_THROWS_WITH(
      moe::RoundBlocks{}(weights, WeightFormat::int8()),
      Catch::Matchers::StartsWith("moe::RoundBlocks: output 0 has weights from input 0 on whose scale int8"));
}

TEST_CASE("RoundBlocks: more outputs than there are is all of them", "[compress]") {
  const auto weights = random_weights(6, 32, PanelOrder::Paired);
  const auto all = moe::RoundBlocks{.outputs = std::numeric_limits<Index>::max()}(weights, WeightFormat::fp8());
  CHECK(all.rows().scales == moe::RoundBlocks{.outputs = 3}(weights, WeightFormat::fp8()).rows().scales);
}
