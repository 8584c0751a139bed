// SPDX-License-Identifier: MIT
#include "layer/gradient_check.hpp"
#include "moe/gate/activation.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/router/noisy.hpp"
#include "moe/routing/balance/importance.hpp"
#include "moe/routing/balance/load.hpp"
#include "moe/routing/balance/load_balancing.hpp"
#include "moe/routing/balance/z_loss.hpp"
#include "support/catch.hpp"

using moe::Bias;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;

namespace {

constexpr double kTolerance = 1e-6;
constexpr Index kExperts = 4;

/// One gate with every kind of expert, in training.
template <class Gate>
void check_with_every_expert(const Gate& gate) {
  const Step step = Step::train(3, 5);
  CHECK(test::layer_gradient_error(test::layer_of<Glu>(kExperts, gate), step) < kTolerance);
  CHECK(test::layer_gradient_error(test::layer_of<Mlp>(kExperts, gate), step) < kTolerance);
}

/// All losses that a layer takes gradients of through RoutingGradient.
struct AllLosses {
  template <class Layer>
  double operator()(const Layer& layer, typename Layer::Tape& tape, moe::RoutingGradient<double>& gradient) const {
    Matrix<double> p;
    layer.gate().probabilities(tape.logits, tape.step, p);
    return 0.3 * moe::load_balancing_loss(p, tape.routing, tape.step, 0.3, gradient) +
           0.2 * moe::z_loss(tape.logits, tape.step, 0.2, gradient) +
           0.4 * moe::importance_loss(tape.routing, layer.num_experts(), tape.step, 0.4, gradient);
  }
};

/// Shazeer's load loss, whose gradients reach the noisy router through its tape.
struct LoadLoss {
  template <class Layer>
  double operator()(const Layer&, typename Layer::Tape& tape, moe::RoutingGradient<double>& gradient) const {
    moe::NoisyLogitsGradient<double> parts;
    const double loss =
        moe::load_loss<double>({tape.router.clean, tape.logits, tape.router.noise_std}, 2, tape.step, 0.5, parts);
    gradient.logits = parts.noisy;
    tape.router.dclean = parts.clean;
    tape.router.dnoise_std = parts.deviation;
    return 0.5 * loss;
  }
};

}  // namespace

TEST_CASE("MoeLayer: gradients are central differences for every gate", "[layer]") {
  SECTION("top-K") { check_with_every_expert(TopKGate{.k = 2}); }
  SECTION("top-1, raw") { check_with_every_expert(TopKGate{.k = 1, .normalise = moe::Normalise::Off}); }
  SECTION("top-K with a weight bias") {
    check_with_every_expert(TopKGate{
        .k = 2, .score = moe::Score::Sigmoid, .weight_bias = Eigen::RowVectorXd::LinSpaced(kExperts, -0.5, 0.7)});
  }
  SECTION("softmax") { check_with_every_expert(moe::SoftmaxGate{}); }
  SECTION("learnt temperature") {
    check_with_every_expert(moe::DenseToSparseGate<moe::LearnableTemperature>{
        .temperature = moe::LearnableTemperature::starting_at(1.3), .gumbel = 1});
  }
  SECTION("activation with a bias") {
    check_with_every_expert(moe::ActivationGate<>{.bias = Eigen::RowVectorXd::LinSpaced(kExperts, -0.5, 0.7)});
  }
  SECTION("stochastic") { check_with_every_expert(moe::StochasticGate{.k = 2, .training = moe::DrawPer::Token}); }
  SECTION("noisy top-K") { check_with_every_expert(moe::NoisyTopKGate{}); }
  SECTION("capacity") {
    check_with_every_expert(moe::WithCapacity<TopKGate>{
        .capacity = {.factor = 0.7, .min_capacity = 1, .weights = moe::KeptWeights::Renormalised}});
  }
}

TEST_CASE("MoeLayer: gradients are central differences for experts with other biases", "[layer]") {
  CHECK(test::layer_gradient_error(test::layer_of<Glu>(kExperts, TopKGate{}, Bias::Zero), Step{}) < kTolerance);
  CHECK(test::layer_gradient_error(test::layer_of<Mlp>(kExperts, TopKGate{}, Bias::Off), Step{}) < kTolerance);
}

TEST_CASE("MoeLayer: gradients are central differences where outputs have another width than tokens", "[layer]") {
  using Linear = moe::BasicLinear<F64>;  // kHiddenDim inputs, kModelDim outputs
  CHECK(test::layer_gradient_error(test::layer_of<Linear>(kExperts, TopKGate{}), Step{}) < kTolerance);
  CHECK(test::layer_gradient_error(test::layer_of<Linear>(kExperts, moe::SoftmaxGate{}, Bias::Off), Step{}) <
        kTolerance);
}

TEST_CASE("MoeLayer: gradients are central differences where rows take several panels", "[layer]") {
  constexpr Index kDim = 21, kWide = 35;  // more than two registers of doubles, and a rest
  const auto check = [](auto expert) {
    using E = decltype(expert);
    auto pool = moe::ExpertPool<E>({test::random_expert<E>(kDim, kWide, 1), test::random_expert<E>(kDim, kWide, 20)});
    const moe::MoeLayer layer(moe::BasicLinearRouter<F64>::random(2, kDim, 1), TopKGate{}, std::move(pool));
    CHECK(test::layer_gradient_error(layer, Step{}, 3) < kTolerance);
  };
  check(Glu(1, 1));
  check(Mlp(1, 1));
}

TEST_CASE("MoeLayer: gradients of auxiliary losses are added", "[layer]") {
  CHECK(test::layer_gradient_error(test::layer_of<Glu>(kExperts, TopKGate{}), Step{}, 7, AllLosses{}) < kTolerance);
  CHECK(test::layer_gradient_error(test::layer_of<Mlp>(kExperts, moe::SoftmaxGate{}), Step{}, 7, AllLosses{}) <
        kTolerance);
}

TEST_CASE("MoeLayer: gradients of the learnt noise are central differences, with the load loss", "[layer]") {
  auto router = moe::BasicNoisyRouter<F64>::random(kExperts, kModelDim, 1);
  test::randomise(router, 3, 0.3);
  const moe::MoeLayer layer(router, TopKGate{}, moe::ExpertPool<Glu>::random(kExperts, kModelDim, 5, 2));
  for (const Step& step : {Step{}, Step::train(3, 5)}) CHECK(test::layer_gradient_error(layer, step) < kTolerance);
  CHECK(test::layer_gradient_error(layer, Step::train(3, 5), 7, LoadLoss{}) < kTolerance);
}

TEST_CASE("MoeLayer: gradients are central differences for zero, one and many tokens", "[layer]") {
  for (const Index num_tokens : {0, 1, 33}) {
    CAPTURE(num_tokens);
    CHECK(test::layer_gradient_error(test::layer_of<Glu>(3, TopKGate{}), Step{}, num_tokens) < kTolerance);
  }
}

TEST_CASE("MoeLayer: padding gets no gradient and gives none, whatever its rows hold", "[layer]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{});
  const std::vector<std::uint8_t> valid = {0, 1, 1, 0, 1, 1, 1, 0};
  auto tokens = test::random_matrix<double>(8, kModelDim), dout = test::random_matrix<double>(8, kModelDim, 2);
  Matrix<double> kept(5, kModelDim), dkept(5, kModelDim);
  Step step;
  step.valid = valid;
  for (Index t = 0, row = 0; t < 8; ++t) {
    if (!step.is_valid(t)) {
      tokens.row(t).setConstant(test::kNan<double>);
    } else {
      kept.row(row) = tokens.row(t);
      dkept.row(row++) = dout.row(t);
    }
  }
  const test::TrainingPass padded(layer, tokens, dout, step), compact(layer, kept, dkept);
  CHECK(test::same_parameters(padded.gradient, compact.gradient));
  for (Index t = 0, row = 0; t < 8; ++t) {
    CAPTURE(t);
    if (!step.is_valid(t))
      CHECK(test::all_zero(padded.dtokens.row(t)));
    else
      CHECK(test::same_bits(padded.dtokens.row(t), compact.dtokens.row(row++)));
  }
}

TEST_CASE("MoeLayer: backward adds to the gradient and overwrites dtokens", "[layer]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{});
  const auto tokens = test::random_matrix<double>(7, kModelDim);
  test::TrainingPass once(layer, tokens, tokens);
  auto twice = once.gradient;
  auto dtokens = test::nan_matrix<double>(7, kModelDim);
  layer.backward(tokens, once.tape, tokens, twice, dtokens);
  CHECK(test::same_bits(dtokens, once.dtokens));
  moe::visit(
      [](const std::string& name, const auto& two, const auto& one) {
        CAPTURE(name);
        const auto a = moe::parameter_span(two), b = moe::parameter_span(one);
        // Sums of 14 terms of order 1 to 10: 1e-12 is a hundred times their rounding.
        for (std::size_t i = 0; i < a.size(); ++i) REQUIRE_THAT(a[i], Catch::Matchers::WithinAbs(2 * b[i], 1e-12));
      },
      twice, once.gradient);
}

TEST_CASE("MoeLayer: gradients are zero in the padding of panels", "[layer]") {
  const auto layer = test::layer_of<Glu>(3, moe::SoftmaxGate{}, Bias::Zero);
  const auto tokens = test::random_matrix<double>(7, kModelDim);
  const test::TrainingPass pass(layer, tokens, tokens);
  CHECK(test::num_nonzero(pass.gradient) == moe::num_parameters(pass.gradient));
}

TEST_CASE("MoeLayer: several tapes may be live, and a tape may be used again", "[layer]") {
  const auto layer = test::layer_of<Glu>(kExperts, TopKGate{});
  const auto first = test::random_matrix<double>(7, kModelDim, 1);
  const auto second = test::random_matrix<double>(30, kModelDim, 2);
  using Layer = std::remove_const_t<decltype(layer)>;
  Layer::Tape tapes[2];
  Matrix<double> out7(7, kModelDim), out30(30, kModelDim);
  const auto backward = [&](const Matrix<double>& tokens, Layer::Tape& tape) {
    Layer gradient = moe::zeros_like(layer);
    auto dtokens = test::nan_matrix<double>(tokens.rows(), kModelDim);
    layer.backward(tokens, tape, tokens, gradient, dtokens);
    return std::pair{gradient, dtokens};
  };
  const test::TrainingPass expected(layer, first, first);
  for (int round = 0; round < 2; ++round) {
    layer.forward(first, Step{}, out7, tapes[0]);
    layer.forward(second, Step{}, out30, tapes[1]);
    const auto [gradient, dtokens] = backward(first, tapes[0]);
    CHECK(test::same_parameters(gradient, expected.gradient));
    CHECK(test::same_bits(dtokens, expected.dtokens));
    backward(second, tapes[1]);
    std::swap(tapes[0], tapes[1]);
  }
}

TEST_CASE("MoeLayer: float gradients are double ones to single precision", "[layer]") {
  const auto single = test::layer_of<moe::Glu, TopKGate, moe::F32>(kExperts, TopKGate{});
  const auto twice = test::layer_of<Glu>(kExperts, TopKGate{});
  const auto tokens = test::random_matrix<float>(33, kModelDim), dout = test::random_matrix<float>(33, kModelDim, 2);
  const test::TrainingPass low(single, tokens, dout);
  const test::TrainingPass high(twice, Matrix<double>(tokens.cast<double>()), Matrix<double>(dout.cast<double>()));
  // Some 100 operations deep, condition of order 10: 1e3 units of 1.2e-7.
  const double tolerance = 1.2e-4 * test::largest(high.dtokens);
  CHECK(test::largest(low.dtokens.cast<double>() - high.dtokens) < tolerance);
  for (Index e = 0; e < kExperts; ++e) {
    const auto of = [e](const auto& pass) { return test::in_double(pass.gradient.experts()[e].gate_up()); };
    CAPTURE(e);
    CHECK(test::largest(of(low) - of(high)) < 1.2e-4 * test::largest(of(high)));
  }
}
