// SPDX-License-Identifier: MIT
// Blocks of published families with adapters: as the layers in them, trained, merged, and from files of PEFT.
#include "moe/io/block/adapt_block.hpp"

#include "io/family_blocks.hpp"
#include "moe/io/adapter/load_peft_adapters.hpp"
#include "moe/io/adapter/peft_options.hpp"
#include "moe/io/adapter/save_peft_adapters.hpp"
#include "support/catch.hpp"
#include "support/sample_layer.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::AdaptedMoeBlock;
using moe::Adapters;
using moe::Index;
using moe::Matrix;
using moe::MoeBlock;
using moe::PeftLayout;

namespace {

template <class Block>
Matrix<float> output_of(const Block& block, const Matrix<float>& tokens) {
  moe::Workspace ws;
  Matrix<float> out(tokens.rows(), tokens.cols());
  block.forward(tokens, moe::Step{}, out, ws);
  return out;
}

/// All numbers of the updates random.
Adapters random_adapters(const AdaptedMoeBlock& block) {
  Adapters adapters = moe::adapters_of(block);
  test::fill(adapters, [random = moe::RandomField(moe::Purpose::User, 5)](Index k) { return 0.2 * random.normal(k); });
  return adapters;
}

}  // namespace

TEST_CASE("MoeBlock: with new adapters it has its bits, with others those of the merged block, in every family",
          "[io]") {
  const auto tokens = test::random_matrix<float>(9, 12, 5);
  for (const auto& [family, text] : test::family_configs()) {
    CAPTURE(family);
    const MoeBlock block = test::random_block(test::config_of(family), 3);
    AdaptedMoeBlock adapted = moe::with_adapters(block, {.rank = 2, .alpha = 3}, 1);
    const Matrix<float> before = output_of(block, tokens);
    CHECK(test::same_bits(output_of(adapted, tokens), before));
    moe::set_adapters(adapted, random_adapters(adapted));
    const Matrix<float> after = output_of(adapted, tokens);
    const float size = std::max(1.0f, after.cwiseAbs().maxCoeff());
    CHECK((after - before).cwiseAbs().maxCoeff() > 1e-3f * size);
    // Sums of some ten terms through two products: 1e-5 is a hundred roundings.
    CHECK((output_of(moe::merge_adapters(adapted), tokens) - after).cwiseAbs().maxCoeff() < 1e-5f * size);
    CHECK(test::same_bits(output_of(moe::without_adapters(adapted), tokens), before));
    CHECK(adapted.config().family == block.config().family);
  }
}

TEST_CASE("MoeBlock: backward of an adapted block is that of its layer, and the experts have no gradient", "[io]") {
  const auto tokens = test::random_matrix<float>(9, 12, 5), dout = test::random_matrix<float>(9, 12, 6);
  for (const char* family : {"mixtral", "deepseek_v3", "gpt_oss", "longcat_flash", "switch_transformers"}) {
    CAPTURE(family);
    AdaptedMoeBlock adapted = moe::with_adapters(test::random_block(test::config_of(family), 3), {.rank = 2}, 1);
    moe::set_adapters(adapted, random_adapters(adapted));
    AdaptedMoeBlock::Tape tape;
    AdaptedMoeBlock gradient = moe::zeros_like(adapted);
    Matrix<float> out(9, 12), dtokens(9, 12), expected(9, 12);
    adapted.forward(tokens, moe::Step::train(0, 1), out, tape);
    adapted.backward(tokens, tape, dout, gradient, dtokens);
    std::visit(
        [&](const auto& layer) {
          typename std::remove_cvref_t<decltype(layer)>::Tape own;
          auto by_layer = moe::zeros_like(layer);
          layer.forward(tokens, moe::Step::train(0, 1), out, own);
          layer.backward(tokens, own, dout, by_layer, expected);
          CHECK(test::flatten(gradient) == test::flatten(by_layer));
        },
        adapted.layer());
    CHECK(test::same_bits(dtokens, expected));
    CHECK(test::largest(Matrix<float>(dtokens)) > 0);
    moe::visit([](const std::string& name,
                  const auto&) { CHECK_FALSE((name.find("experts.") != name.npos && name.ends_with(".weight"))); },
               gradient);
  }
}

TEST_CASE("MoeBlock: adapters come from files of PEFT, gates and ups of GPT-OSS in turns", "[io]") {
  const test::TemporaryDirectory directory;
  const auto tokens = test::random_matrix<float>(9, 12, 5);
  for (const auto& [family, layout, order] :
       {std::tuple{"mixtral", PeftLayout::PerExpert, moe::GateUpOrder::GatesFirst},
        {"qwen3_moe", PeftLayout::Fused, moe::GateUpOrder::GatesFirst},
        {"gpt_oss", PeftLayout::Fused, moe::GateUpOrder::InTurns}}) {
    CAPTURE(family);
    const moe::PeftOptions options = moe::peft_options(test::config_of(family), layout);
    CHECK(options.gate_up_order == order);
    const MoeBlock block = test::random_block(test::config_of(family), 3);
    AdaptedMoeBlock adapted = moe::with_adapters(block, {.rank = 2}, 1), loaded = adapted;
    moe::set_adapters(adapted, random_adapters(adapted));
    moe::save_peft_adapters(directory / family, {{3, moe::adapters_of(adapted)}}, options);
    moe::set_adapters(loaded, moe::load_peft_adapters(directory / family, options).at(3));
    CHECK(test::same_bits(output_of(loaded, tokens), output_of(adapted, tokens)));
  }
}

TEST_CASE("QuantisedMoeBlock: adapters on codes are those of the decoded block, bit for bit", "[io]") {
  const auto tokens = test::random_matrix<float>(9, 12, 5);
  for (const char* family : {"mixtral", "qwen2_moe"}) {
    const auto small = moe::quantise(test::random_block(test::config_of(family), 3), moe::WeightFormat::int8());
    auto adapted = moe::with_adapters(small, {.rank = 2}, 1);
    auto decoded = moe::with_adapters(moe::dequantise(small), {.rank = 2}, 1);
    const Adapters adapters = random_adapters(decoded);
    moe::set_adapters(adapted, adapters);
    moe::set_adapters(decoded, adapters);
    CHECK(test::same_bits(output_of(adapted, tokens), output_of(decoded, tokens)));
    CHECK(test::same_bits(output_of(moe::merge_adapters(adapted), tokens),
                          output_of(moe::merge_adapters(decoded), tokens)));
  }
}

TEST_CASE("peft_options: names are those of the family's tensors, and others are refused", "[io][error]") {
  const auto of = [](const char* family, PeftLayout layout) {
    return moe::peft_options(test::config_of(family), layout);
  };
  const moe::PeftOptions mixtral = of("mixtral", PeftLayout::PerExpert);
  CHECK(mixtral.experts == "model.layers.{}.block_sparse_moe.experts");
  CHECK(mixtral.gate == "w1");
  CHECK(mixtral.up == "w3");
  CHECK(mixtral.down == "w2");
  CHECK(of("mixtral", PeftLayout::Fused).experts == "model.layers.{}.mlp.experts");
  CHECK(of("mixtral", PeftLayout::Fused).gate_up == "gate_up_proj");
  CHECK_THROWS_WITH(of("gpt_oss", PeftLayout::PerExpert),
                    ContainsSubstring("'gpt_oss' has no experts as modules of their own, expected"));
  moe::MoeConfig unknown;
  unknown.family = "x";
  CHECK_THROWS_WITH(moe::peft_options(unknown), ContainsSubstring("family is 'x', expected one that is known"));
  for (const auto& [family, text] : test::family_configs())  // whatever has names can be saved and loaded
    for (const PeftLayout layout : {PeftLayout::PerExpert, PeftLayout::Fused}) {
      CAPTURE(family);
      try {
        const moe::PeftOptions options = of(family.c_str(), layout);
        CHECK(options.experts.ends_with(".experts"));
      } catch (const std::invalid_argument& error) {
        CHECK(std::string(error.what()).find("moe::peft_options: family '") == 0);
      }
    }
}
