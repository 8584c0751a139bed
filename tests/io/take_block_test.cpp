// SPDX-License-Identifier: MIT
// Blocks of published families with some of their experts.
#include "io/family_blocks.hpp"
#include "layer/structure_fixtures.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::MoeBlock;
using moe::take_experts;
using Ids = std::vector<Index>;

namespace {

moe::Matrix<float> output_of(const MoeBlock& block, const moe::Matrix<float>& tokens) {
  moe::Workspace ws;
  moe::Matrix<float> out(tokens.rows(), tokens.cols());
  block.forward(tokens, moe::Step{}, out, ws);
  return out;
}

/// Experts of the block in an order that keeps groups of two and kinds of experts together.
Ids reordered(const MoeBlock& block) {
  Ids ids = {4, 5, 1, 0, 3, 2};
  for (Index e = 6; e < block.num_experts(); ++e) ids.push_back(e);
  return ids;
}

}  // namespace

TEST_CASE("MoeBlock: all experts are the block, bit for bit, in every family", "[io]") {
  const auto tokens = test::random_matrix<float>(9, 12, 5);
  for (const auto& [family, text] : test::family_configs()) {
    const MoeBlock block = test::random_block(test::config_of(family), 3);
    const Ids order = reordered(block);
    const MoeBlock moved = take_experts(block, order), back = take_experts(moved, moe::inverse_permutation(order));
    CAPTURE(family);
    CHECK(moved.num_experts() == block.num_experts());
    CHECK(!(test::leaves_of(moved) == test::leaves_of(block)));
    CHECK(test::leaves_of(back) == test::leaves_of(block));
    CHECK(test::same_bits(output_of(back, tokens), output_of(block, tokens)));
  }
}

TEST_CASE("MoeBlock: fewer experts are those of the layer in it, and the configuration says so", "[io]") {
  for (const auto& [family, text] : test::family_configs()) {
    const MoeBlock block = test::random_block(test::config_of(family), 3);
    Ids ids = {5, 4, 0, 1};
    if (block.config().num_identity_experts != 0) ids.push_back(7);
    const MoeBlock taken = take_experts(block, ids);
    CAPTURE(family);
    CHECK(taken.config().num_experts == 4);
    CHECK(taken.num_experts() == std::ssize(ids));
    CHECK(test::leaves_of(taken).size() < test::leaves_of(block).size());
    const MoeBlock made(taken.config());  // the configuration describes the block: every weight has its place
    for (const auto& [name, leaf] : test::leaves_of(taken)) {
      const auto leaves = test::leaves_of(made);
      CAPTURE(name);
      REQUIRE(leaves.contains(name));
      REQUIRE(leaves.at(name).shape == leaf.shape);
    }
    std::visit(
        [&](const auto& layer) {
          using L = std::remove_cvref_t<decltype(layer)>;
          CHECK(test::leaves_of(std::get<L>(taken.layer())) == test::leaves_of(take_experts(layer, ids)));
        },
        block.layer());
    output_of(taken, test::random_matrix<float>(9, 12, 5));
  }
}

TEST_CASE("MoeBlock: groups go with their experts, and what cannot be is refused", "[io][error]") {
  const MoeBlock block = test::random_block(test::config_of("deepseek_v3"), 3);
  CHECK(block.config().gate.groups.count == 3);
  CHECK(take_experts(block, {0, 1, 4, 5}).config().gate.groups.count == 2);
  CHECK_THROWS_WITH(take_experts(block, {0, 1, 2}), ContainsSubstring("expected equally many of each group"));
  CHECK_THROWS_WITH(take_experts(block, {0, 6}), "moe::take_experts: ids[1] is 6, expected 0 <= id < 6");
  CHECK_THROWS_WITH(take_experts(test::random_block(test::config_of("longcat_flash")), {0, 1, 2}),
                    ContainsSubstring("0 experts of set 1"));
  CHECK_THROWS_WITH(take_experts(test::random_block(test::config_of("phimoe")), {3}),
                    ContainsSubstring("num_experts is 1"));
}
