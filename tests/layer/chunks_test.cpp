// SPDX-License-Identifier: MIT
// A workspace that limits the number of tokens: the same bits in chunks.
#include "layer/fixtures.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/hash.hpp"
#include "moe/gate/hash_tables.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "support/catch.hpp"

using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;

namespace {

constexpr Index kTokens = 23;

/// A forward pass in chunks, checked against one in a whole.
template <class Layer>
void check_chunks(const Layer& layer, const Step& step) {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim);
  const auto whole = test::forward(layer, tokens, step);
  for (const Index most : {1, 2, 5, 22, 23, 24}) {
    typename Layer::Workspace ws;
    ws.max_tokens = most;
    auto out = test::nan_matrix<double>(kTokens, kModelDim);
    layer.forward(tokens, step, out, ws);
    CAPTURE(most);
    CHECK(test::same_bits(out, whole));
    CHECK(ws.routing.num_tokens() <= most);
    Matrix<double> in_place = tokens;
    layer.forward(in_place, step, in_place, ws);
    CHECK(test::same_bits(in_place, whole));
  }
}

}  // namespace

TEST_CASE("max_tokens: chunks give the bits of one pass", "[layer][property]") {
  check_chunks(test::layer_of<Glu>(5, TopKGate{.k = 2}), Step{});
}

TEST_CASE("max_tokens: tokens draw what they draw in one pass, with and without ids of their own",
          "[layer][property]") {
  const auto layer = test::layer_of<Glu>(5, moe::StochasticGate{.k = 2, .training = moe::DrawPer::Token});
  check_chunks(layer, Step::train(3, 5));
  std::vector<std::int64_t> id(kTokens), group(kTokens);
  std::vector<std::uint8_t> valid(kTokens, 1);
  for (std::size_t t = 0; t < id.size(); ++t) id[t] = std::int64_t(1000 - 3 * t), group[t] = std::int64_t(t / 4);
  valid[3] = valid[22] = 0;
  Step step = Step::train(3, 5);
  step.token_id = id;
  step.group_id = group;
  step.valid = valid;
  check_chunks(layer, step);
  check_chunks(test::layer_of<Glu>(5, moe::StochasticGate{.k = 2, .training = moe::DrawPer::Group}), step);
}

TEST_CASE("max_tokens: keys go with their tokens, in chunks and to layers among the experts", "[layer]") {
  const moe::HashGate gate{.table = moe::random_hash_table(9, 5, 2, 1), .weight = moe::ChoiceWeight::Score};
  const auto layer = test::layer_of<Glu>(5, gate);
  std::vector<std::int64_t> key(kTokens);
  for (std::size_t t = 0; t < key.size(); ++t) key[t] = std::int64_t(t * t % 9);
  Step step;
  step.key = key;
  check_chunks(layer, step);

  const auto inner = [&] { return moe::LayerExpert(layer); };
  const moe::ExpertPool pool(std::vector{inner(), inner(), inner()});
  const moe::MoeLayer outer(moe::BasicLinearRouter<F64>::random(3, kModelDim, 2), TopKGate{.k = 2}, pool);
  check_chunks(outer, step);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim);
  const auto whole = test::forward(outer, tokens, step);
  for (Index t = 0; t < kTokens; ++t) {
    Step alone;
    alone.key = std::span(key).subspan(std::size_t(t), 1);
    CHECK(test::same_bits(test::forward(outer, Matrix<double>(tokens.row(t)), alone), whole.row(t)));
  }
  CHECK_THROWS_AS(test::forward(outer, tokens, Step{}), std::invalid_argument);
}

TEST_CASE("max_tokens: branches go in the chunks of their layer", "[layer]") {
  const moe::WithBranches layer(test::layer_of<Glu>(5, TopKGate{.k = 2}), moe::BasicScaledIdentity<F64>{kModelDim});
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim);
  const auto whole = test::forward(layer, tokens);
  moe::BasicWorkspace<double> ws;
  ws.max_tokens = 4;
  auto out = test::nan_matrix<double>(kTokens, kModelDim);
  layer.forward(tokens, out, ws);
  CHECK(test::same_bits(out, whole));
  Matrix<double> narrow(kTokens, kModelDim - 1);
  CHECK_THROWS_WITH(layer.forward(tokens, narrow, ws),
                    "moe::WithBranches::forward: out is [23, 10], expected [23, 11]");
}

TEST_CASE("max_tokens: gates that look at the whole batch and negative limits are refused", "[layer][error]") {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim);
  Matrix<double> out(kTokens, kModelDim);
  moe::BasicWorkspace<double> ws;
  ws.max_tokens = 4;
  const auto capacity = test::layer_of<Glu>(5, moe::WithCapacity<TopKGate>{});
  CHECK_THROWS_WITH(capacity.forward(tokens, out, ws),
                    "moe::MoeLayer::forward: workspace.max_tokens is 4, expected 0 with a gate that does not decide "
                    "token by token");
  ws.max_tokens = -1;
  CHECK_THROWS_WITH(test::layer_of<Glu>(5, TopKGate{}).forward(tokens, out, ws),
                    "moe::MoeLayer::forward: workspace.max_tokens is -1, expected >= 0");
}

TEST_CASE("max_tokens: a layer inside that looks at its whole batch is refused", "[layer][error]") {
  using Limited = test::Layer<Glu, moe::WithCapacity<TopKGate>>;
  using Inner = moe::LayerExpert<Limited>;
  const Inner inner(test::layer_of<Glu>(5, moe::WithCapacity<TopKGate>{}));
  const moe::MoeLayer layer(moe::BasicLinearRouter<F64>::random(2, kModelDim, 1), TopKGate{},
                            moe::ExpertPool<Inner>({inner, inner}));
  const moe::WithBranches branched(test::layer_of<Glu>(5, TopKGate{}), inner);
  STATIC_REQUIRE(!decltype(layer)::kPerToken);
  STATIC_REQUIRE(!decltype(branched)::kPerToken);
  STATIC_REQUIRE(test::Layer<Glu>::kPerToken);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim);
  Matrix<double> out(kTokens, kModelDim);
  moe::BasicWorkspace<double> ws;
  ws.max_tokens = 4;
  CHECK_THROWS_AS(layer.forward(tokens, out, ws), std::invalid_argument);
  CHECK_THROWS_AS(branched.forward(tokens, out, ws), std::invalid_argument);
}
