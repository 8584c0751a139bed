// SPDX-License-Identifier: MIT
// Layers whose gates need more than logits of experts: nulls or masks beside them, keys of tokens.
#include "layer/gradient_check.hpp"
#include "moe/gate/hash.hpp"
#include "moe/gate/null_expert.hpp"
#include "moe/gate/wrap/top_any_loss.hpp"
#include "moe/layer/structure.hpp"
#include "moe/router/normalised.hpp"
#include "moe/routing/balance/null_experts.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::F64;
using moe::HashGate;
using moe::Index;
using moe::Matrix;
using moe::NullExpertGate;
using moe::Step;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Linear = moe::BasicLinearRouter<F64>;

namespace {

/// Four experts and two nulls, under logits of one standard deviation.
auto with_nulls(const NullExpertGate& gate) {
  return moe::MoeLayer(moe::NormalisedRouter(Linear::random(6, kModelDim, 2, moe::Bias::Zero), {.scale = 2}), gate,
                       test::layer_of<Glu>(4, moe::TopKGate{}).experts());
}

}  // namespace

TEST_CASE("NullExpertGate: in a layer nulls cost no rows, and tokens that chose them alone are zero", "[layer]") {
  const auto layer = with_nulls({.k = 2, .nulls = 2});
  const auto tokens = test::random_matrix<double>(60, kModelDim);
  auto out = test::nan_matrix<double>(60, kModelDim);
  moe::BasicWorkspace<double> ws;
  layer.forward(tokens, out, ws);
  Index chosen = 0, alone = 0;
  for (Index t = 0; t < 60; ++t) {
    const auto count = std::ssize(ws.routing.experts(t));
    chosen += count;
    alone += count == 0 ? 1 : 0;
    CHECK(test::all_zero(out.row(t)) == (count == 0));
  }
  CHECK(ws.plan().num_rows() == chosen);
  CHECK(chosen < 2 * 60);
  CHECK(alone > 0);
}

TEST_CASE("NullExpertGate: a layer is trained through experts, nulls and their balance", "[layer]") {
  const NullExpertGate gate{.k = 3, .nulls = 2, .normalise = moe::Normalise::Off};
  const auto balance = [&](const auto& layer, auto& tape, moe::RoutingGradient<double>& losses) {
    Matrix<double> p;
    layer.gate().probabilities(tape.logits, tape.step, p);
    return 0.3 * moe::null_expert_loss(p, tape.routing, {.count = gate.nulls, .k = gate.k}, tape.step, 0.3, losses);
  };
  CHECK(test::layer_gradient_error(with_nulls(gate), Step{}, 7, balance) < 1e-6);
}

TEST_CASE("NullExpertGate: experts are taken with their logits and all nulls", "[layer]") {
  const auto layer = with_nulls({.k = 2, .nulls = 2});
  const auto small = moe::take_experts(layer, {3, 1});
  CHECK(small.router().num_experts() == 4);
  for (const auto& [to, from] : {std::pair<Index, Index>{0, 3}, {1, 1}, {2, 4}, {3, 5}})
    CHECK(small.router().router().weight()(to, 0) == layer.router().router().weight()(from, 0));
}

TEST_CASE("NullExpertGate: layers with nulls are not joined, as nulls stand behind all experts", "[layer][error]") {
  const auto layer = with_nulls({.k = 2, .nulls = 2});
  CHECK_THROWS_WITH(moe::concatenate(layer, layer), ContainsSubstring("the gates want 6 and 6 logits"));
}

namespace {

/// Four experts, of which a token chooses three and keeps some.
auto with_masks() {
  const moe::TopAnyGate<moe::TopKGate> gate{
      .gate = {.k = 3}, .k = 3, .temperature = {.start = 0.8, .end = 0.8}, .skipped = moe::SkippedWeight::Shared};
  return moe::MoeLayer(Linear::random(7, kModelDim, 2, moe::Bias::Zero), gate,
                       test::layer_of<Glu>(4, moe::TopKGate{}).experts());
}

}  // namespace

TEST_CASE("TopAnyGate: a layer runs no rows for what its mask drops", "[layer]") {
  const auto layer = with_masks();
  auto full = layer;  // whose masks are all for three choices
  full.router().bias()(6, 0) = 100;
  const auto tokens = test::random_matrix<double>(60, kModelDim);
  moe::BasicWorkspace<double> ws, of_full;
  auto out = test::nan_matrix<double>(60, kModelDim);
  full.forward(tokens, out, of_full);
  CHECK(of_full.plan().num_rows() == 3 * 60);
  layer.forward(tokens, out, ws);
  const auto skipped = std::ranges::count(ws.routing.dropped(), moe::kDroppedByMask);
  CHECK(skipped > 0);
  CHECK(ws.plan().num_rows() == 3 * 60 - skipped);
  for (Index t = 0; t < 60; ++t) CHECK(ws.routing.dropped(t)[0] == 0);
  const moe::MoeLayer base(full.router().take(std::vector<Index>{0, 1, 2, 3}), moe::TopKGate{.k = 3}, layer.experts());
  CHECK(test::same_bits(test::forward(full, tokens), test::forward(base, tokens)));
}

TEST_CASE("TopAnyGate: a layer is trained through experts, masks and what they cost", "[layer]") {
  const auto cost = [&](const auto& layer, auto& tape, moe::RoutingGradient<double>& losses) {
    return 0.3 * moe::kept_choices_loss(layer.gate(), tape.logits, tape.routing, tape.step, 0.3, losses);
  };
  CHECK(test::layer_gradient_error(with_masks(), Step::train(2, 5), 7, cost) < 1e-6);
  CHECK(test::layer_gradient_error(with_masks(), Step{}) < 1e-6);
}

TEST_CASE("TopAnyGate: experts are taken with their logits and all masks", "[layer]") {
  const auto layer = with_masks();
  const auto small = moe::take_experts(layer, {3, 1, 0});
  CHECK(small.router().num_experts() == 6);
  for (const auto& [to, from] : {std::pair<Index, Index>{0, 3}, {2, 0}, {3, 4}, {5, 6}})
    CHECK(small.router().weight()(to, 0) == layer.router().weight()(from, 0));
}

TEST_CASE("HashGate: a layer whose scores weigh trains its router, and follows its experts", "[layer]") {
  HashGate gate{.table = Matrix<double>(3, 2), .weight = moe::ChoiceWeight::Score};
  gate.table << 0, 2, 1, 3, 3, 0;
  const std::vector<std::int64_t> keys = {0, 2, 1, 1, 0, 2, 2};
  Step step;
  step.key = keys;
  const auto layer = test::layer_of<Glu>(4, gate);
  CHECK(test::layer_gradient_error(layer, step) < 1e-6);
  const auto tokens = test::random_matrix<double>(7, kModelDim);
  const auto turned = moe::take_experts(layer, {2, 3, 0, 1});
  CHECK(test::same_bits(test::forward(turned, tokens, step), test::forward(layer, tokens, step)));
}

TEST_CASE("HashGate: copies share the keys of their expert, and compute the same at the same cost", "[layer]") {
  using moe::Normalise;
  const std::vector<std::int64_t> keys = {0, 2, 1, 1, 0, 3, 2};
  Step step;
  step.key = keys;
  const auto tokens = test::random_matrix<double>(7, kModelDim);
  HashGate gate{.table = Matrix<double>(4, 2)};
  gate.table << 0, 2, 1, 3, 3, 0, 0, 2;
  const auto check = [&] {
    const auto layer = test::layer_of<Glu>(4, gate);
    const auto out = test::forward(layer, tokens, step);
    for (const Index times : {1, 2, 3}) {
      const auto copies = moe::duplicate_experts(layer, times);
      CHECK(copies.gate().k() == 2);
      CHECK(test::largest(Matrix<double>(test::forward(copies, tokens, step) - out)) < 1e-12);
    }
  };
  check();
  const Matrix<double> twice = gate.duplicate(2, 4).table;
  Matrix<double> dealt_out(4, 2);
  dealt_out << 0, 4, 2, 6, 7, 1, 0, 5;
  CHECK(test::same_bits(twice, dealt_out));
  for (const auto score : {moe::Score::Softmax, moe::Score::Sigmoid})
    for (const auto normalise : {Normalise::Sum, Normalise::Euclidean, Normalise::Off})
      for (const double epsilon : {0.0, 0.25}) {
        gate = {gate.table, moe::ChoiceWeight::Score, score, normalise, epsilon, /*scale=*/1.5};
        CAPTURE(static_cast<int>(score), static_cast<int>(normalise), epsilon);
        check();
      }
}
