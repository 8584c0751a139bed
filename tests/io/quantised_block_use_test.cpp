// SPDX-License-Identifier: MIT
// Blocks with weights in few bits do all that blocks do: run, train what is not coded, and are cut.
#include "io/family_blocks.hpp"
#include "io/stored_block.hpp"
#include "layer/structure_fixtures.hpp"
#include "moe/io/block/quantise_block.hpp"
#include "moe/io/file/parameters.hpp"
#include "moe/train/squared_error.hpp"
#include "moe/train/trainer.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::Matrix;
using moe::MoeBlock;
using moe::QuantisedMoeBlock;
using moe::WeightFormat;

namespace {

/// A training pass: outputs, what comes back to the tokens, and the gradients of what learns by name.
template <class Block>
struct Pass {
  explicit Pass(const Block& block) : out(7, block.model_dim()), dtokens(7, block.model_dim()) {
    const auto tokens = test::random_matrix<float>(7, block.model_dim(), 1);
    const auto dout = test::random_matrix<float>(7, block.model_dim(), 2);
    typename Block::Tape tape;
    block.forward(tokens, moe::Step::train(0, 1), out, tape);
    Block gradient = moe::zeros_like(block);
    block.backward(tokens, tape, dout, gradient, dtokens);
    moe::visit(
        [&](const std::string& name, const auto& leaf) {
          auto& to = gradients[name];
          to.resize(static_cast<std::size_t>(moe::parameter_size(leaf)));
          moe::read_parameter(leaf, std::span<double>(to));
        },
        gradient);
  }
  Matrix<float> out, dtokens;
  std::map<std::string, std::vector<double>> gradients;
};

}  // namespace

TEST_CASE("QuantisedMoeBlock: every family has the bits of its decoded weights, backward included", "[io]") {
  for (const auto& [family, text] : test::family_configs()) {
    const MoeBlock whole = test::random_block(test::config_of(family), 3);
    const QuantisedMoeBlock codes = moe::quantise(whole, WeightFormat::int8());
    const MoeBlock floats = moe::dequantise(codes);
    CAPTURE(family);
    CHECK(test::leaves_of(floats) == test::leaves_of(codes));
    const Pass of_codes(codes);
    const Pass of_floats(floats);
    CHECK(test::same_bits(of_codes.out, of_floats.out));
    CHECK(test::same_bits(of_codes.dtokens, of_floats.dtokens));
    CHECK(of_codes.gradients.contains("router.weight"));
    for (const auto& [name, gradient] : of_codes.gradients) CHECK(gradient == of_floats.gradients.at(name));
    Index learned = 0;  // all but the matrices of experts
    for (const auto& [name, gradient] : of_floats.gradients) learned += !of_codes.gradients.contains(name);
    CHECK(learned >= 2 * codes.config().num_experts);
  }
}

TEST_CASE("QuantisedMoeBlock: the shared expert is coded, its gate and the router are not", "[io]") {
  const MoeBlock whole = test::random_block(test::config_of("qwen2_moe"), 3);
  const auto choose = [&](const moe::ExpertMatrix& matrix) {
    return matrix.expert == moe::kSharedExpert ? WeightFormat::int8() : WeightFormat::mxfp4();
  };
  const QuantisedMoeBlock codes = moe::quantise(whole, choose);
  std::map<std::string, std::string> formats;
  moe::visit_state(
      [&](const std::string& name, const auto& leaf) {
        if constexpr (requires { leaf.format(); }) formats[name] = leaf.format().name();
      },
      codes);
  CHECK(formats.size() == 2 * 6 + 2);
  CHECK(formats.at("experts.3.down.weight") == "mxfp4");
  CHECK(formats.at("branches.0.expert.gate_up.weight") == "int8-g32");
  CHECK(moe::num_parameters(codes) == 6 * 12 + 12);
}

TEST_CASE("QuantisedMoeBlock: rows of all experts are rounded where asked, near the exact product", "[io]") {
  const MoeBlock whole = test::random_block(test::config_of("qwen2_moe", 64, 32), 3);
  const QuantisedMoeBlock codes = moe::quantise(whole, WeightFormat::int8());
  const QuantisedMoeBlock fast = moe::with_dot(codes, moe::Dot::Int8);
  moe::visit_state(
      [](const std::string& name, const auto& leaf) {
        CAPTURE(name);
        if constexpr (requires { leaf.dot(); }) CHECK(leaf.dot() == moe::Dot::Int8);
      },
      fast);
  const Matrix<float> exact = test::output_of(codes), rounded = test::output_of(fast);
  CHECK(!test::same_bits(rounded, exact));
  CHECK(test::largest(rounded - exact) <
        0.05 * test::largest(exact));  // 3 products, each row within 1 / 254 of its max
  CHECK_THROWS_AS(moe::with_dot(moe::quantise(whole, WeightFormat::planes(3)), moe::Dot::Int8), std::invalid_argument);
}

TEST_CASE("QuantisedMoeBlock: is cut as blocks are, and copies share codes", "[io]") {
  for (const char* family : {"mixtral", "qwen2_moe", "longcat_flash"}) {
    const MoeBlock whole = test::random_block(test::config_of(family), 3);
    const QuantisedMoeBlock codes = moe::quantise(whole, WeightFormat::int4());
    std::vector<Index> ids = {4, 1, 0};
    for (Index e = 6; e < codes.num_experts(); ++e) ids.push_back(e);
    const QuantisedMoeBlock taken = take_experts(codes, ids);
    CAPTURE(family);
    CHECK(taken.config().num_experts == 3);
    CHECK(test::leaves_of(taken) == test::leaves_of(take_experts(moe::dequantise(codes), ids)));
  }
}

TEST_CASE("QuantisedMoeBlock: is saved, and loaded into a block of its configuration that has no codes yet", "[io]") {
  const test::TemporaryDirectory directory;
  for (const char* family : {"gpt_oss", "qwen2_moe", "longcat_flash"}) {
    const MoeBlock whole = test::random_block(test::config_of(family), 3);
    const QuantisedMoeBlock codes = moe::quantise(whole, WeightFormat::nvfp4());
    moe::save_parameters(directory / "block.safetensors", codes);
    QuantisedMoeBlock loaded(codes.config());
    moe::load_parameters(directory / "block.safetensors", loaded);
    int count = 0;
    CAPTURE(family);
    CHECK(test::same_codes(loaded, codes, count));
    CHECK(test::leaves_of(loaded) == test::leaves_of(codes));
  }
}

TEST_CASE("QuantisedMoeBlock: a trainer trains router and biases, and leaves the codes", "[io]") {
  QuantisedMoeBlock block = moe::quantise(test::random_block(test::config_of("gpt_oss"), 3), WeightFormat::int8());
  const QuantisedMoeBlock before = block;
  const auto tokens = test::random_matrix<float>(6, 12, 1), target = test::random_matrix<float>(6, 12, 2);
  moe::Trainer trainer(block, moe::Sgd{}, {.balance = 0.1});
  trainer.accumulate(tokens, moe::Step::train(0, 1), [&](const auto& output, auto& doutput) {
    return moe::squared_error(output, target, {}, doutput);
  });
  CHECK(trainer.update(0.01).taken);
  int count = 0;
  CHECK(test::same_codes(block, before, count));
  CHECK(count == 12);
  CHECK(test::flatten(block) != test::flatten(before));
}

TEST_CASE("MoeBlock: a layer of other experts or widths than its configuration says is refused", "[io][error]") {
  const MoeBlock block(test::config_of("mixtral"));
  moe::MoeConfig more = block.config();
  more.num_experts = 7;
  CHECK_THROWS_AS(MoeBlock(more, block.layer()), std::invalid_argument);
  CHECK_NOTHROW(MoeBlock(block.config(), block.layer()));
}
