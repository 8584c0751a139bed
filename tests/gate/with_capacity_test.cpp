// SPDX-License-Identifier: MIT
#include "moe/gate/wrap/with_capacity.hpp"

#include "moe/gate/top_k.hpp"

#include "gate/own_gate.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using moe::CapacityOptions;
using moe::Index;
using moe::KeptWeights;
using moe::Matrix;
using moe::Routing;
using moe::ServiceOrder;
using moe::Step;
using moe::WithCapacity;
using test::OwnGate;

namespace {

/// The least that a user writes.
struct FirstExpertGate {
  static constexpr bool kPerToken = true;
  void route(const moe::Logits<float>& logits, const moe::Context&, Routing<float>& routing) const {
    routing.resize(logits.rows(), 1);
    std::fill(routing.experts().begin(), routing.experts().end(), 0);
    std::fill(routing.weights().begin(), routing.weights().end(), 1.0f);
  }
};

struct CheckedGate : FirstExpertGate {
  void validate(Index num_experts) const {
    if (num_experts < 2) moe::fail("CheckedGate: too few experts");
  }
};

using Limited = WithCapacity<OwnGate>;
static_assert(moe::DifferentiableGate<Limited, float> && moe::DifferentiableGate<Limited, double>);
static_assert(!Limited::kPerToken && moe::HasParameters<Limited>);
static_assert(moe::Gate<WithCapacity<FirstExpertGate>>);
static_assert(!moe::DifferentiableGate<WithCapacity<FirstExpertGate>>);

Limited limited(KeptWeights weights, ServiceOrder order = ServiceOrder::ByPosition, double factor = 0.6) {
  return {.gate = {}, .capacity = {.factor = factor, .min_capacity = 0, .order = order, .weights = weights}};
}

/// A loss that is smooth in weights and probabilities, and what backward needs of it.
struct SmoothLoss {
  explicit SmoothLoss(const Matrix<double>& logits)
      : of_probability(test::random_logits<double>(logits.rows(), logits.cols(), 9)) {}

  static double weight_slope(std::size_t a) { return std::sin(1.0 + static_cast<double>(a)); }

  double operator()(const Limited& gate, const Matrix<double>& logits, const Step& step,
                    Routing<double> routing) const {
    Matrix<double> p;
    gate.replay(logits, step, routing);
    gate.probabilities(logits, step, p);
    double loss = 0;
    for (Index t = 0; t < p.rows(); ++t)
      for (Index e = 0; e < p.cols(); ++e) loss += of_probability(t, e) * p(t, e);
    for (std::size_t a = 0; a < routing.weights().size(); ++a) loss += weight_slope(a) * routing.weights()[a];
    return loss;
  }

  Matrix<double> of_probability;
};

const KeptWeights kWeights[] = {KeptWeights::AsTheyAre, KeptWeights::Renormalised, KeptWeights::NormalisedFirst};

}  // namespace

TEMPLATE_TEST_CASE("WithCapacity: route is the gate's, then the limit", "[gate]", float, double) {
  const auto order = GENERATE(ServiceOrder::ByPosition, ServiceOrder::ByScore, ServiceOrder::Random,
                              ServiceOrder::ByToken, ServiceOrder::ByWeight);
  const auto weights = GENERATE(from_range(std::begin(kWeights), std::end(kWeights)));
  const Matrix<TestType> logits = test::random_logits<TestType>(40, 5);
  const Limited gate = limited(weights, order);
  Routing<TestType> routing, expected;
  gate.route(logits, Step::train(1), routing);
  gate.gate.route(logits, Step::train(1), expected);
  moe::apply_capacity(gate.capacity, 5, Step::train(1), expected);
  CHECK(test::copy_of(routing.weights()) == test::copy_of(expected.weights()));
  CHECK(test::copy_of(routing.dropped()) == test::copy_of(expected.dropped()));
}

TEST_CASE("WithCapacity: replay gives the weights of route, bit by bit", "[gate][property]") {
  const auto weights = GENERATE(from_range(std::begin(kWeights), std::end(kWeights)));
  const auto valid = test::every_nth_padding(40, 7);
  Step step = Step::train(1);
  step.valid = valid;
  const auto logits = test::random_logits<double>(40, 5);
  Limited gate = limited(weights);
  gate.gate.normalises = GENERATE(false, true);
  gate.gate.drops_itself = GENERATE(false, true);
  Routing<double> routing;
  gate.route(logits, step, routing);
  auto replayed = routing;
  for (double& w : replayed.weights()) w = std::nan("");
  gate.replay(logits, step, replayed);
  CHECK(test::copy_of(replayed.weights()) == test::copy_of(routing.weights()));
  CHECK(test::copy_of(replayed.dropped()) == test::copy_of(routing.dropped()));
}

TEST_CASE("WithCapacity: gradients by logits and parameters equal central differences", "[gate]") {
  const auto weights = GENERATE(from_range(std::begin(kWeights), std::end(kWeights)));
  const auto order = GENERATE(ServiceOrder::ByPosition, ServiceOrder::ByScore, ServiceOrder::Random,
                              ServiceOrder::ByToken, ServiceOrder::ByWeight);
  const auto valid = test::every_nth_padding(23, 6);
  Step step = Step::train(1);
  step.valid = valid;
  Matrix<double> logits = test::random_logits<double>(23, 5);
  Limited gate = limited(weights, order);
  gate.gate.normalises = GENERATE(false, true);
  gate.gate.drops_itself = GENERATE(false, true);
  Routing<double> routing;
  gate.route(logits, step, routing);
  REQUIRE(std::count(routing.dropped().begin(), routing.dropped().end(), moe::kDroppedByCapacity) > 5);

  const SmoothLoss loss(logits);
  std::vector<double> dweight;
  for (std::size_t a = 0; a < routing.weights().size(); ++a) dweight.push_back(SmoothLoss::weight_slope(a));
  Matrix<double> dlogits;
  Limited gradient = moe::zeros_like(gate);
  gate.backward(logits, step, routing, dweight, loss.of_probability, dlogits, gradient);
  const auto at = [&] { return loss(gate, logits, step, routing); };
  CHECK(test::gradient_error(at, logits, dlogits) < 1e-6);
  CHECK(test::parameter_gradient_error(at, gate, gradient) < 1e-6);
}

TEST_CASE("WithCapacity: dropped choices get exactly no gradient, whatever dweight holds there", "[gate]") {
  const auto weights = GENERATE(from_range(std::begin(kWeights), std::end(kWeights)));
  const auto logits = test::random_logits<double>(12, 4);
  const Limited gate = limited(weights, ServiceOrder::ByPosition, 0);  // every choice is dropped
  Routing<double> routing;
  gate.route(logits, Step::train(0), routing);
  REQUIRE(routing.num_assignments() > 12);
  const std::vector<double> dweight(routing.weights().size(), std::nan(""));
  Matrix<double> dlogits;
  Limited gradient = moe::zeros_like(gate);
  gate.backward(logits, Step::train(0), routing, dweight, Matrix<double>(), dlogits, gradient);
  CHECK(dlogits.isZero(0));
  CHECK(gradient.gate.scale == 0);
}

TEST_CASE("WithCapacity: without a limit, backward is the gate's", "[gate]") {
  const auto logits = test::random_logits<double>(12, 4);
  const Limited gate = limited(KeptWeights::AsTheyAre);
  Routing<double> routing;
  gate.route(logits, Step{}, routing);  // inference: unlimited
  std::vector<double> dweight(routing.weights().size());
  for (std::size_t a = 0; a < dweight.size(); ++a) dweight[a] = SmoothLoss::weight_slope(a);
  Matrix<double> dlogits, expected;
  Limited gradient = moe::zeros_like(gate);
  OwnGate expected_gradient = moe::zeros_like(gate.gate);
  gate.backward(logits, Step{}, routing, dweight, Matrix<double>(), dlogits, gradient);
  gate.gate.backward(logits, Step{}, routing, dweight, Matrix<double>(), expected, expected_gradient);
  CHECK(dlogits == expected);
  CHECK(gradient.gate.scale == expected_gradient.scale);
}

TEST_CASE("WithCapacity: a gate of the least kind can be limited", "[gate]") {
  const WithCapacity gate{FirstExpertGate{}, CapacityOptions{.factor = 1, .min_capacity = 3}};
  Routing<float> routing;
  gate.route(Matrix<float>::Zero(10, 4), Step::train(0), routing);
  CHECK(std::count(routing.dropped().begin(), routing.dropped().end(), 0) == 3);
}

TEST_CASE("WithCapacity: a token whose weights sum to zero keeps zeros and gets no gradient", "[gate]") {
  const auto weights = GENERATE(KeptWeights::Renormalised, KeptWeights::NormalisedFirst);
  const WithCapacity<moe::TopKGate> gate{
      .gate = {.k = 2, .score = moe::Score::Sigmoid, .normalise = moe::Normalise::Off},
      .capacity = {.factor = 4, .weights = weights}};
  Matrix<double> logits = test::random_logits<double>(3, 4), dlogits;
  logits.row(1).setConstant(-1000);  // sigmoid(-1000) is zero, and so is its slope
  Routing<double> routing;
  gate.route<double>(logits, Step::train(0), routing);
  CHECK(routing.weights(1)[0] == 0);
  CHECK(routing.weights(1)[1] == 0);
  CHECK_THAT(routing.weights(2)[0] + routing.weights(2)[1], Catch::Matchers::WithinAbs(1, 1e-15));
  gate.replay<double>(logits, Step::train(0), routing);
  CHECK(routing.weights(1)[0] == 0);
  const std::vector<double> dweight(6, 0.7);
  WithCapacity<moe::TopKGate> gradient = gate;
  gate.backward<double>(logits, Step::train(0), routing, dweight, Matrix<double>(), dlogits, gradient);
  CHECK(dlogits.row(1).isZero(0));
  CHECK(dlogits.allFinite());
}

TEST_CASE("WithCapacity: no tokens give an empty routing and gradient", "[gate]") {
  const Limited gate = limited(KeptWeights::Renormalised);
  const Matrix<double> logits(0, 4);
  Routing<double> routing;
  gate.route(logits, Step::train(0), routing);
  Matrix<double> dlogits;
  Limited gradient = moe::zeros_like(gate);
  gate.backward(logits, Step::train(0), routing, {}, Matrix<double>(), dlogits, gradient);
  CHECK(dlogits.rows() == 0);
  CHECK(dlogits.cols() == 4);
}

TEST_CASE("WithCapacity: parameters keep the names of the gate", "[gate]") {
  Limited gate;
  std::vector<std::string> names;
  moe::visit([&](const std::string& name, auto&) { names.push_back(name); }, gate);
  CHECK(names == std::vector<std::string>{"scale"});
}

TEST_CASE("WithCapacity: validate asks the gate and the options", "[gate][error]") {
  CHECK_NOTHROW(WithCapacity<CheckedGate>{}.validate(2));
  CHECK_THROWS_WITH(WithCapacity<CheckedGate>{}.validate(1), "CheckedGate: too few experts");
  CHECK_THROWS_AS((WithCapacity<CheckedGate>{.gate = {}, .capacity = {.factor = -1}}.validate(2)),
                  std::invalid_argument);
}

TEST_CASE("WithCapacity: a dweight of another batch is an error", "[gate][error]") {
  const auto logits = test::random_logits<double>(12, 4);
  const Limited gate = limited(KeptWeights::AsTheyAre);
  Routing<double> routing;
  gate.route(logits, Step::train(0), routing);
  Matrix<double> dlogits;
  Limited gradient;
  CHECK_THROWS_AS(
      gate.backward(logits, Step::train(0), routing, std::vector<double>(1), Matrix<double>(), dlogits, gradient),
      std::invalid_argument);
}
