// SPDX-License-Identifier: MIT
// Gates that look at the whole batch, gates around gates, and those of groups, ranks and thresholds, in a layer.
#include "layer/fixtures.hpp"
#include "layer/gradient_check.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/gate/balanced.hpp"
#include "moe/gate/dselect_k.hpp"
#include "moe/gate/dselect_k_loss.hpp"
#include "moe/gate/prototype.hpp"
#include "moe/gate/rank.hpp"
#include "moe/gate/relu.hpp"
#include "moe/gate/sinkhorn.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/threshold.hpp"
#include "moe/gate/top_p.hpp"
#include "moe/gate/wrap/grouped.hpp"
#include "moe/gate/wrap/straight_through.hpp"
#include "moe/gate/wrap/with_skipping.hpp"
#include "moe/layer/merged_experts.hpp"
#include "moe/layer/structure.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using Mlp = moe::BasicMlp<moe::F64>;
using Router = moe::BasicLinearRouter<moe::F64>;

namespace {

constexpr Index kTokens = 18, kExperts = 4;

template <class Gate>
auto layer_of(Gate gate) {
  return test::layer_of<Mlp>(kExperts, gate);
}

/// Experts 3 and 1 of a layer are that layer with the other logits masked, and its copies compute the same.
template <class Gate>
void check_structure(const Gate& gate) {
  const auto layer = layer_of(gate);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto taken = take_experts(layer, {1, 3});
  auto masked = layer;
  for (const Index e : {0, 2}) {
    for (Index i = 0; i < kModelDim; ++i) masked.router().weight().set(e, i, 0);
    masked.router().bias().set(e, 0, -INFINITY);
  }
  CHECK(test::largest(Matrix<double>(test::forward(taken, tokens) - test::forward(masked, tokens))) < 1e-12);
  const auto rejoined = concatenate(take_experts(layer, {0, 1}), take_experts(layer, {2, 3}));
  CHECK(test::same_bits(test::forward(rejoined, tokens), test::forward(layer, tokens)));
}

}  // namespace

TEST_CASE("Gates over the batch: gradients of a layer are central differences", "[layer][gate][property]") {
  std::vector<std::int64_t> groups;
  for (Index t = 0; t < kTokens; ++t) groups.push_back(t % 3);
  const auto valid = test::every_nth_padding(kTokens, 5);
  Step step = Step::train(1);
  step.group_id = groups;
  step.valid = valid;
  CHECK(test::layer_gradient_error(layer_of(moe::BalancedGate{}), step, kTokens) < 1e-6);
  CHECK(test::layer_gradient_error(layer_of(moe::SinkhornGate{}), step, kTokens) < 1e-6);
  CHECK(test::layer_gradient_error(layer_of(moe::GroupedGate<TopKGate>{{.k = 2}}), step, kTokens) < 1e-6);
}

TEST_CASE("DSelectKGate: a layer learns through it, and a router scores its selectors", "[layer][gate]") {
  const moe::DSelectKGate gate{.num_experts = kExperts, .k = 2, .width = 4};
  const auto pool = layer_of(TopKGate{}).experts();
  auto router = Router::random(gate.num_logits(kExperts), kModelDim, 7, moe::Bias::Zero);
  test::randomise(router, 8, 0.1);
  const moe::MoeLayer layer(router, gate, pool);
  const auto losses = [](const auto& of, auto& tape, auto& gradient) {
    return 0.3 * moe::code_entropy_loss<double>(of.gate(), tape.logits, tape.step, 0.3, gradient);
  };
  CHECK(test::layer_gradient_error(layer, Step{}, kTokens, losses) < 1e-6);
  CHECK_THROWS_WITH(moe::MoeLayer(Router::random(kExperts, kModelDim, 1), gate, pool),
                    ContainsSubstring("the router scores 4 experts, expected 6"));
}

TEST_CASE("Gates over the batch: experts can be taken and joined", "[layer][gate]") {
  check_structure(moe::BalancedGate{});
  check_structure(moe::SinkhornGate{});
  check_structure(moe::StraightThrough<TopKGate>{{.k = 2}});
  // A masked router makes all logits of a group's mean masked, too.
  check_structure(moe::GroupedGate<TopKGate>{{.k = 2}});
}

TEST_CASE("Gates of groups, ranks and thresholds: experts can be taken and joined", "[layer][gate]") {
  check_structure(moe::PrototypeGate{.groups = 2});
  check_structure(moe::RankGate{{1, 0}});
  check_structure(moe::TopPGate{.p = 0.7});
  check_structure(moe::ReluGate{});
  check_structure(moe::WithSkipping<TopKGate>{{.k = 2}});
  moe::ThresholdGate thresholds{.thresholds = Eigen::RowVectorXd(kExperts)};
  thresholds.thresholds << 0.5, 0.4, 0.6, 0.3;
  check_structure(thresholds);
}

TEST_CASE("DSelectKGate: two layers are not one, also with as many logits as experts", "[layer][gate][error]") {
  const moe::DSelectKGate gate{.num_experts = 8, .k = 2};
  const auto layer = test::layer_of<Mlp>(8, gate);
  CHECK_THROWS_WITH(concatenate(layer, layer),
                    ContainsSubstring("DSelectKGate::concatenate: 8 and 8 experts have codes of their own"));
  const moe::DSelectKGate three{.num_experts = 8, .k = 3};
  const moe::MoeLayer wider(Router::random(12, kModelDim, 1), three, layer.experts());
  CHECK_THROWS_WITH(concatenate(wider, wider), ContainsSubstring("the gates want 12 and 12 logits"));
}

TEST_CASE("Gates over the batch: copies of experts compute the same at inference", "[layer][gate]") {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto check = [&](const auto& layer) {
    const auto out = test::forward(layer, tokens);
    for (const Index times : {1, 2, 3})
      CHECK(test::largest(Matrix<double>(test::forward(duplicate_experts(layer, times), tokens) - out)) < 1e-12);
  };
  check(layer_of(moe::BalancedGate{}));
  check(layer_of(moe::SinkhornGate{}));
  check(layer_of(moe::GroupedGate<TopKGate>{{.k = 2}}));
  check(layer_of(moe::PrototypeGate{.groups = 2}));
  check(layer_of(moe::PrototypeGate{.groups = 2, .k = 2}));
  check(layer_of(moe::RankGate{{2, 0}}));
  check(layer_of(moe::RankGate{.ranks = {1}, .normalise = moe::Normalise::Off}));
  for (const Index k : {1, 2}) check(layer_of(moe::StraightThrough<TopKGate>{{.k = k}}));
  check(layer_of(moe::StraightThrough<moe::GroupedGate<moe::RankGate>>{{{{3, 1}}}}));
  moe::ThresholdGate threshold{.threshold = 0.3, .score = moe::Score::Softmax, .unclaimed = moe::Unclaimed::Nobody};
  check(layer_of(threshold));
  threshold.thresholds.resize(kExperts);
  threshold.thresholds << 0.2, 0.1, 0.3, 0.4;
  check(layer_of(threshold));
  check(layer_of(moe::StraightThrough<moe::ThresholdGate>{threshold}));
}

TEST_CASE("Gates of ranks and thresholds: copies that would weigh more than their expert are refused",
          "[layer][gate][error]") {
  const auto check = [](const auto& gate, const char* message) {
    const auto layer = layer_of(gate);
    CHECK(duplicate_experts(layer, 1).num_experts() == kExperts);
    CHECK_THROWS_WITH(duplicate_experts(layer, 2), ContainsSubstring(message));
  };
  check(moe::RankGate{.normalise = moe::Normalise::Euclidean},
        "moe::RankGate::duplicate: weights are normalised by their Euclidean norm, expected their sum");
  const char* const shares = "moe::ThresholdGate::duplicate: 2 copies would not weigh what their expert did, expected";
  check(moe::ThresholdGate{}, shares);
  check(moe::ThresholdGate{.score = moe::Score::Softmax}, shares);
  check(
      moe::ThresholdGate{
          .score = moe::Score::Softmax, .unclaimed = moe::Unclaimed::Nobody, .weight = moe::ChoiceWeight::Unit},
      shares);
}

TEST_CASE("MergedExperts: a layer of them takes and joins experts", "[layer]") {
  const auto pool = layer_of(TopKGate{}).experts();
  const moe::MoeLayer layer(Router::random(kExperts, kModelDim, 7), moe::SoftmaxGate{}, moe::MergedExperts(pool));
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto back = concatenate(take_experts(layer, {0, 1}), take_experts(layer, {2, 3}));
  CHECK(test::same_bits(test::forward(back, tokens), test::forward(layer, tokens)));
  const auto copies = duplicate_experts(layer, 2);
  CHECK(test::largest(Matrix<double>(test::forward(copies, tokens) - test::forward(layer, tokens))) < 1e-12);
}
