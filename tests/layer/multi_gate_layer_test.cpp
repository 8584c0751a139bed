// SPDX-License-Identifier: MIT
#include "moe/layer/multi_gate_layer.hpp"

#include <atomic>
#include <set>

#include "layer/fixtures.hpp"
#include "layer/gradient_check.hpp"
#include "moe/expert/feature_gated.hpp"
#include "moe/expert/normalised.hpp"
#include "moe/gate/self_gate.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/train/routed_pass.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::ExpertMask;
using moe::Index;
using moe::Matrix;
using moe::SoftmaxGate;
using moe::Step;
using moe::TopKGate;
using test::kHiddenDim;
using test::kModelDim;
using Mlp = moe::BasicMlp<moe::F64>;
using Router = moe::BasicLinearRouter<moe::F64>;
using Groups = std::vector<std::vector<Index>>;
template <class G, class E = Mlp>
using Layer = moe::MultiGateLayer<Router, G, moe::ExpertPool<E>>;

namespace {

constexpr Index kTokens = 17, kExperts = 5, kOutputs = 4;

/// Experts 0 and 1 are shared, 2 belongs to gate 0, 3 and 4 to gate 1; gate 2 sees all.
ExpertMask blocks() { return ExpertMask(3, kExperts).allow(0, 0, 3).allow(1, 0, 2).allow(1, 3, 2).allow(2, 0, 5); }

moe::ExpertPool<Mlp> pool_of(Index num_experts) {
  std::vector<Mlp> experts;
  for (Index e = 0; e < num_experts; ++e) {
    experts.emplace_back(moe::Widths{.input = kModelDim, .hidden = kHiddenDim, .output = kOutputs});
    test::randomise(experts.back(), std::uint64_t(100 * e + 1));
  }
  return moe::ExpertPool<Mlp>(std::move(experts));
}

template <class G>
std::vector<Router> routers_of(const ExpertMask& mask, const std::vector<G>& gates, Index gate_dim) {
  std::vector<Router> routers;
  for (Index g = 0; g < mask.num_gates(); ++g) {
    const Index logits = moe::detail::num_logits(gates[std::size_t(g)], std::ssize(mask.experts(g)));
    routers.emplace_back(logits, gate_dim, moe::Bias::Zero);
    test::randomise(routers.back(), std::uint64_t(7 + g));
  }
  return routers;
}

template <class G>
Layer<G> layer_of(const ExpertMask& mask, G gate, Groups groups = {}, Index gate_dim = kModelDim) {
  const std::vector<G> gates(static_cast<std::size_t>(mask.num_gates()), gate);
  return {routers_of(mask, gates, gate_dim), gates, pool_of(mask.num_experts()), mask, std::move(groups)};
}

/// The experts that gate g may choose, behind it alone.
template <class G>
auto plain_layer(const Layer<G>& layer, Index g) {
  return moe::MoeLayer(layer.router(g), layer.gate(g), layer.experts().take(layer.mask().experts(g)));
}

/// Some tokens are padding; groups take turns.
struct Batch {
  std::vector<std::uint8_t> valid;
  std::vector<std::int64_t> group;
  Step step = Step::train(3, 5);

  explicit Batch(Index num_groups = 1, Index num_tokens = kTokens) : valid(test::every_nth_padding(num_tokens, 5)) {
    for (Index t = 0; t < num_tokens; ++t) group.push_back(valid[std::size_t(t)] ? t % num_groups : 99);
    step.valid = valid;
    step.group_id = group;
  }
};

/// Relative errors of all gradients of <out, c> plus two auxiliary losses of every gate, choices frozen.
template <class L>
double gradient_error(L layer, const Step& step, Index num_tokens = 6) {
  auto tokens = test::random_matrix<double>(num_tokens, layer.input_dim(), 3);
  auto gate_tokens = test::random_matrix<double>(num_tokens, layer.gate_dim(), 5);
  const auto c = test::random_matrix<double>(num_tokens, layer.output_dim(), 4);
  auto out = test::nan_matrix<double>(num_tokens, layer.output_dim());
  auto dtokens = test::nan_matrix<double>(num_tokens, layer.input_dim());
  auto dgate_tokens = test::nan_matrix<double>(num_tokens, layer.gate_dim());
  typename L::Tape tape;
  const auto losses = [&] {
    double sum = 0;
    moe::for_each_routed(layer, tape, [&](const moe::RoutedPass<double>& pass) {
      auto& dp = moe::detail::accumulator("test", "p", pass.losses.probability, num_tokens, pass.probability.cols());
      auto& dz = moe::detail::accumulator("test", "z", pass.losses.logits, num_tokens, pass.logits.cols());
      for (Index t = 0; t < num_tokens; ++t) {
        if (!pass.step.is_valid(t)) continue;
        for (Index e = 0; e < dp.cols(); ++e) sum += 0.3 * pass.probability(t, e) * double(e);
        for (Index e = 0; e < dp.cols(); ++e) dp(t, e) += 0.3 * double(e);
        for (Index e = 0; e < dz.cols(); ++e) sum += 0.05 * pass.logits(t, e) * pass.logits(t, e);
        for (Index e = 0; e < dz.cols(); ++e) dz(t, e) += 0.1 * pass.logits(t, e);
      }
    });
    return sum;
  };
  const moe::MultiGateInputs<double> inputs{tokens, gate_tokens};
  layer.forward(inputs, step, out, tape);
  losses();
  L gradient = moe::zeros_like(layer);
  layer.backward(inputs, tape, c, gradient, {dtokens, dgate_tokens});
  const auto loss = [&] {
    layer.replay(moe::MultiGateInputs<double>{tokens, gate_tokens}, out, tape);
    return test::dot(out, c) + losses();
  };
  std::string name;
  const double of_tokens = test::gradient_error(loss, tokens, dtokens);
  const double of_gate_tokens = test::gradient_error(loss, gate_tokens, dgate_tokens);
  const double of_parameters = test::parameter_gradient_error(loss, layer, gradient, &name);
  UNSCOPED_INFO("tokens " << of_tokens << ", of gates " << of_gate_tokens << ", parameters " << of_parameters
                          << ", worst " << name);
  return std::max({of_tokens, of_gate_tokens, of_parameters});
}

}  // namespace

TEMPLATE_TEST_CASE("MultiGateLayer: one gate and a full mask are the plain layer, bit for bit", "[layer][property]",
                   SoftmaxGate, TopKGate) {
  const auto layer = layer_of(ExpertMask::all(1, kExperts), TestType{});
  const auto plain = plain_layer(layer, 0);
  for (const Index count : {0, 1, 17}) {
    CAPTURE(count);
    const auto tokens = test::random_matrix<double>(count, kModelDim, 1);
    const auto dout = test::random_matrix<double>(count, kOutputs, 2);
    const Step step = Step::train(3, 5);
    const test::TrainingPass of_gates(layer, tokens, dout, step);
    const test::TrainingPass of_one(plain, tokens, dout, step);
    CHECK(test::same_bits(test::forward(layer, tokens, step), of_one.out));
    CHECK(test::same_bits(of_gates.out, of_one.out));
    CHECK(test::same_bits(of_gates.dtokens, of_one.dtokens));
    CHECK(test::same_parameters(of_gates.gradient.experts(), of_one.gradient.experts()));
    CHECK(test::same_parameters(of_gates.gradient.router(0), of_one.gradient.router()));
  }
}

TEMPLATE_TEST_CASE("MultiGateLayer: each gate has the bits of a layer over the experts it may choose", "[layer]",
                   SoftmaxGate, TopKGate) {
  const auto layer = layer_of(blocks(), TestType{});
  const Batch batch;
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto out = test::forward(layer, tokens, batch.step);
  const auto dout = test::random_matrix<double>(kTokens, 3 * kOutputs, 2);
  const test::TrainingPass pass(layer, tokens, dout, batch.step);
  REQUIRE(layer.output_dim() == 3 * kOutputs);
  CHECK(test::same_bits(pass.out, out));
  Matrix<double> dtokens = Matrix<double>::Zero(kTokens, kModelDim);
  std::vector<std::vector<double>> dexpert(kExperts, std::vector<double>(test::flatten(layer.experts()[0]).size()));
  for (Index g = 0; g < 3; ++g) {
    const auto plain = plain_layer(layer, g);
    const test::TrainingPass of_one(plain, tokens, Matrix<double>(dout.middleCols(g * kOutputs, kOutputs)), batch.step);
    CHECK(test::same_bits(out.middleCols(g * kOutputs, kOutputs), of_one.out));
    CHECK(test::same_parameters(pass.gradient.router(g), of_one.gradient.router()));
    dtokens += of_one.dtokens;
    for (std::size_t i = 0; i < layer.mask().experts(g).size(); ++i) {
      const auto own = test::flatten(of_one.gradient.experts()[Index(i)]);
      auto& sum = dexpert[std::size_t(layer.mask().experts(g)[i])];
      for (std::size_t k = 0; k < own.size(); ++k) sum[k] += own[k];
    }
  }
  // Sums of some hundred products of numbers around 1, in another order.
  CHECK(test::largest(Matrix<double>(pass.dtokens - dtokens)) < 1e-12);
  for (Index e = 0; e < kExperts; ++e) {
    const auto found = test::flatten(pass.gradient.experts()[e]);
    for (std::size_t k = 0; k < found.size(); ++k) CHECK(std::abs(found[k] - dexpert[std::size_t(e)][k]) < 1e-12);
  }
}

TEST_CASE("MultiGateLayer: tokens of a group go through the gates of the group, others see padding", "[layer]") {
  const Groups groups = {{2, 0}, {1}, {0, 1}};
  const auto layer = layer_of(blocks(), SoftmaxGate{}, groups);
  const Batch batch(3);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto out = test::forward(layer, tokens, batch.step);
  REQUIRE(out.cols() == 2 * kOutputs);
  std::vector<Matrix<double>> of_gate;
  for (Index g = 0; g < 3; ++g) of_gate.push_back(test::forward(plain_layer(layer, g), tokens, batch.step));
  for (Index t = 0; t < kTokens; ++t) {
    if (!batch.step.is_valid(t)) {
      CHECK(test::all_zero(out.row(t)));
      continue;
    }
    const std::vector<Index>& gates = groups[std::size_t(t % 3)];
    for (std::size_t i = 0; i < gates.size(); ++i)
      CHECK(test::same_bits(out.row(t).segment(Index(i) * kOutputs, kOutputs), of_gate[std::size_t(gates[i])].row(t)));
    if (gates.size() == 1) CHECK(test::all_zero(out.row(t).tail(kOutputs)));
  }
  const auto one_each = layer_of(blocks(), TopKGate{}, {{0}, {1}, {2}});
  CHECK(one_each.output_dim() == kOutputs);
  typename Layer<TopKGate>::Tape tape;
  auto single = test::nan_matrix<double>(kTokens, kOutputs);
  one_each.forward(tokens, batch.step, single, tape);
  CHECK(tape.chosen.plan().num_rows() == 2 * batch.step.num_valid(kTokens));  // its own two experts for every token
}

TEST_CASE("MultiGateLayer: gradients are central differences, of losses of its gates too", "[layer][property]") {
  const Batch batch(3, 6);
  CHECK(gradient_error(layer_of(blocks(), SoftmaxGate{}, {}, 3), batch.step) < 1e-7);
  CHECK(gradient_error(layer_of(blocks(), TopKGate{}, {{2, 0}, {1}, {0, 1}}, 3), batch.step) < 1e-7);
}

TEST_CASE("MultiGateLayer: gates that read the tokens add to their gradient", "[layer]") {
  const auto layer = layer_of(blocks(), SoftmaxGate{});
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto dout = test::random_matrix<double>(kTokens, 3 * kOutputs, 2);
  const test::TrainingPass together(layer, tokens, dout);
  auto out = together.out;
  Matrix<double> dtokens = test::nan_matrix<double>(kTokens, kModelDim), dgates = dtokens;
  typename Layer<SoftmaxGate>::Tape tape;
  auto gradient = moe::zeros_like(layer);
  const moe::MultiGateInputs<double> inputs{tokens, tokens};
  layer.forward(inputs, Step{}, out, tape);
  CHECK(test::same_bits(out, together.out));
  layer.backward(inputs, tape, dout, gradient, {dtokens, dgates});
  CHECK(test::same_parameters(gradient, together.gradient));
  CHECK(test::largest(Matrix<double>(dtokens + dgates - together.dtokens)) < 1e-13);
  auto without = moe::zeros_like(layer);
  layer.backward(tokens, tape, dout, without);
  CHECK(test::same_parameters(without, together.gradient));
}

TEST_CASE("MultiGateLayer: what a gate may not choose has no influence on it and learns nothing from it", "[layer]") {
  auto layer = layer_of(blocks(), SoftmaxGate{});
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  Matrix<double> dout = Matrix<double>::Zero(kTokens, 3 * kOutputs);
  dout.leftCols(kOutputs) = test::random_matrix<double>(kTokens, kOutputs, 2);  // of gate 0, which has 0, 1 and 2
  const test::TrainingPass before(layer, tokens, dout);
  for (const Index e : {3, 4}) {
    CHECK(test::num_nonzero(before.gradient.experts()[e]) == 0);
    test::fill(layer.experts()[e], [&](Index i) { return 1e3 * static_cast<double>(i % 7); });
  }
  const test::TrainingPass after(layer, tokens, dout);
  CHECK(test::same_bits(after.out.leftCols(kOutputs), before.out.leftCols(kOutputs)));
  CHECK(!test::same_bits(after.out.rightCols(kOutputs), before.out.rightCols(kOutputs)));
  CHECK(test::same_bits(after.dtokens, before.dtokens));
  CHECK(test::same_parameters(after.gradient, before.gradient));
}

namespace {

/// Counts its rows.
struct Counting {
  using Scalar = double;
  std::atomic<Index>* rows;
  Index input_dim() const { return kModelDim; }
  Index output_dim() const { return kModelDim; }
  void forward(const moe::ConstMatrixRef<double>& in, moe::MatrixRef<double> out, const moe::Context&) const {
    *rows += in.rows();
    out = in;
  }
};

}  // namespace

TEST_CASE("MultiGateLayer: a row is computed once, however many gates choose it", "[layer]") {
  std::vector<std::atomic<Index>> rows(kExperts);
  std::vector<Counting> experts;
  for (auto& of_expert : rows) experts.push_back({&of_expert});
  const ExpertMask mask = ExpertMask::all(4, kExperts);
  const std::vector<TopKGate> gates(4, TopKGate{.k = 2});
  const moe::MultiGateLayer layer(routers_of(mask, gates, kModelDim), gates, moe::ExpertPool<Counting>(experts), mask);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto out = test::forward(layer, tokens);
  std::vector<std::set<Index>> chosen(kExperts);
  for (Index g = 0; g < 4; ++g) {
    Matrix<double> logits(kTokens, kExperts);
    layer.router(g).logits(tokens, Step{}, logits);
    moe::Routing<double> routing;
    layer.gate(g).route(logits, Step{}, routing);
    for (Index t = 0; t < kTokens; ++t)
      for (const Index e : routing.experts(t)) chosen[std::size_t(e)].insert(t);
  }
  Index all = 0;
  for (std::size_t e = 0; e < chosen.size(); ++e) {
    CHECK(rows[e].load() == std::ssize(chosen[e]));
    all += rows[e].load();
  }
  CHECK(all < 4 * 2 * kTokens);  // some were shared
}

TEST_CASE("MultiGateLayer: the same bits on any number of threads, in any batch and in chunks", "[layer][property]") {
  const auto layer = layer_of(blocks(), TopKGate{}, {{2, 0}, {1}, {0, 1}});
  const Batch batch(3);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto dout = test::random_matrix<double>(kTokens, 2 * kOutputs, 2);
  const auto passes = test::on_thread_counts([&] { return test::TrainingPass(layer, tokens, dout, batch.step); });
  for (const auto& pass : passes) {
    CHECK(test::same_bits(pass.out, passes[0].out));
    CHECK(test::same_bits(pass.dtokens, passes[0].dtokens));
    CHECK(test::same_parameters(pass.gradient, passes[0].gradient));
  }
  for (const Index t : {1, 7, 16}) {
    const std::vector<std::int64_t> id = {t}, group = {batch.group[std::size_t(t)]};
    Step step = Step::train(3, 5);
    step.token_id = id;
    step.group_id = group;
    const test::TrainingPass alone(layer, tokens.row(t), dout.row(t), step);
    CHECK(test::same_bits(alone.out, passes[0].out.row(t)));
    CHECK(test::same_bits(alone.dtokens, passes[0].dtokens.row(t)));
  }
  typename Layer<TopKGate>::Workspace ws;
  ws.max_tokens = 5;
  auto out = test::nan_matrix<double>(kTokens, 2 * kOutputs);
  layer.forward(tokens, batch.step, out, ws);
  CHECK(test::same_bits(out, passes[0].out));
}

TEST_CASE("MultiGateLayer: with normalised, feature-gated experts and self gates it is a level of HoME", "[layer]") {
  using E = moe::Normalised<moe::FeatureGated<Mlp>>;
  std::vector<E> experts;
  for (Index e = 0; e < kExperts; ++e) {
    experts.emplace_back(moe::FeatureGated<Mlp>(pool_of(kExperts)[e], {.rank = 2}));
    test::randomise(experts.back(), std::uint64_t(20 + 30 * e));
    for (double& variance : experts.back().variance()) variance = 1 + variance * variance;
  }
  const ExpertMask mask = ExpertMask(2, kExperts).allow(0, 0, 3).allow(1, 0, 2).allow(1, 3, 2);
  const std::vector<moe::SelfGate> gates = {{.own = 1}, {.own = 2}};
  const moe::MultiGateLayer layer(routers_of(mask, gates, kModelDim), gates, moe::ExpertPool<E>(experts), mask);
  CHECK(gradient_error(layer, Step::train(1)) < 1e-6);
  CHECK(moe::num_state(layer) == kExperts * 2 * kOutputs);
}

TEST_CASE("MultiGateLayer: parts that do not fit are refused", "[layer][error]") {
  const auto make = [](const ExpertMask& mask, Groups groups) { return layer_of(mask, SoftmaxGate{}, groups); };
  const std::vector<SoftmaxGate> gates(3);
  const auto routers = routers_of(blocks(), gates, kModelDim);
  CHECK_THROWS_WITH(moe::MultiGateLayer(routers, SoftmaxGate{}, pool_of(kExperts), ExpertMask(3, kExperts).allow(0, 0)),
                    ContainsSubstring("router 0 maps 11 columns to 3 experts, expected 11 to 1"));
  CHECK_THROWS_WITH(moe::MultiGateLayer(std::vector(routers.begin(), routers.begin() + 1), SoftmaxGate{},
                                        pool_of(kExperts), ExpertMask(2, kExperts).allow(0, 0, 3)),
                    ContainsSubstring("there are 1 routers and 2 gates, expected 2 of both as in the mask"));
  ExpertMask no_expert = ExpertMask(3, kExperts).allow(0, 0, 3).allow(2, 0, 5);
  CHECK_THROWS_WITH(moe::MultiGateLayer(routers, SoftmaxGate{}, pool_of(kExperts), no_expert),
                    ContainsSubstring("moe::MultiGateLayer: gate 1 may choose 0 experts, expected at least 1"));
  CHECK_THROWS_WITH(moe::MultiGateLayer(routers, SoftmaxGate{}, pool_of(4), blocks()),
                    ContainsSubstring("the mask is of 5 experts, expected 4 as in the expert set"));
  CHECK_THROWS_WITH(moe::MultiGateLayer(routers, TopKGate{.k = 4}, pool_of(kExperts), blocks()),
                    ContainsSubstring("k is 4"));
  CHECK_THROWS_WITH(make(blocks(), {{0}, {3}}), ContainsSubstring("group 1 names gate 3, expected 0 <= gate < 3"));
  CHECK_THROWS_WITH(make(blocks(), {{0, 0}}), ContainsSubstring("group 0 names gate 0 more than once"));
  CHECK_THROWS_WITH(make(blocks(), {{}}), ContainsSubstring("no group names a gate"));
  CHECK_THROWS_WITH(ExpertMask(2, 3).allow(2, 0), ContainsSubstring("gate is 2, expected 0 <= gate < 2"));
  CHECK_THROWS_WITH(ExpertMask(2, 3).allow(1, 2, 2), ContainsSubstring("experts [2, 2 + 2), expected them in [0, 3)"));
  CHECK_THROWS_WITH(ExpertMask(0, 3), ContainsSubstring("num_gates is 0, expected at least 1"));
}

TEST_CASE("MultiGateLayer: wrong batches, tapes and gradients are refused before anything is written",
          "[layer][error]") {
  const auto layer = layer_of(blocks(), SoftmaxGate{}, {{2, 0}, {1}});
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  auto out = test::nan_matrix<double>(kTokens, 2 * kOutputs), narrow = test::nan_matrix<double>(kTokens, kOutputs);
  typename Layer<SoftmaxGate>::Workspace ws;
  typename Layer<SoftmaxGate>::Tape tape;
  const Batch three(3);
  CHECK_THROWS_WITH(layer.forward(tokens, three.step, out, ws),
                    ContainsSubstring("token 2 is of group 2, expected 0 <= group < 2"));
  CHECK(std::isnan(out(0, 0)));
  CHECK_THROWS_WITH(layer.forward(tokens, Step{}, narrow, ws), ContainsSubstring("out is [17, 4], expected [17, 8]"));
  auto gradient = moe::zeros_like(layer),
       other = moe::zeros_like(layer_of(ExpertMask::all(2, kExperts), SoftmaxGate{}));
  auto dtokens = test::nan_matrix<double>(kTokens, kModelDim);
  CHECK_THROWS_WITH(layer.backward(tokens, tape, out, gradient, dtokens),
                    ContainsSubstring("the tape holds no forward pass that has ended"));
  layer.forward(tokens, Step{}, out, tape);
  CHECK_THROWS_WITH(layer.backward(tokens, tape, out, other, dtokens),
                    ContainsSubstring("gradient has 2 gates, expected 3"));
  CHECK_THROWS_WITH(layer.backward(tokens, tape, narrow, gradient, dtokens), ContainsSubstring("dout is [17, 4]"));
  CHECK_THROWS_WITH(layer.backward(tokens.topRows(3), tape, out.topRows(3), gradient, dtokens.topRows(3)),
                    ContainsSubstring("tokens has 3 rows, expected 17"));
  CHECK(test::num_nonzero(gradient) == 0);
  CHECK(std::isnan(dtokens(0, 0)));
}
