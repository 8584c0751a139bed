// SPDX-License-Identifier: MIT
#include "moe/gate/dense_to_sparse.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::LearnableTemperature;
using moe::Step;
using moe::WeightLogits;

namespace {

using Learnt = moe::DenseToSparseGate<LearnableTemperature>;

/// dL/dtau for L = weights of expert e, from dL/draw.
double dweight_dtau(const Learnt& gate, const moe::Matrix<double>& logits, Index expert) {
  const auto routing = test::routed(gate, logits, Step::train(0));
  std::vector<double> dweight(routing.weights().size());
  dweight[static_cast<std::size_t>(expert)] = 1;
  moe::Matrix<double> dlogits;
  Learnt gradient = moe::zeros_like(gate);
  gate.backward(logits, Step::train(0), routing, dweight, moe::Matrix<double>(), dlogits, gradient);
  return gradient.temperature.raw / moe::Softplus::derivative(gate.temperature.raw);
}

}  // namespace

TEST_CASE("DenseToSparseGate: the derivatives of the weights in tau are those of the table", "[gate]") {
  const Learnt gate{.temperature = LearnableTemperature::starting_at(0.5), .threshold = 0};
  const auto logits = test::row<double>({2, 1, 0.5, -1});
  const double expected[] = {-0.616712, 0.372364, 0.220830, 0.023518};
  double sum = 0;
  for (Index e = 0; e < 4; ++e) {
    const double derivative = dweight_dtau(gate, logits, e);
    CHECK_THAT(derivative, WithinAbs(expected[e], 5e-7));  // six decimals
    sum += derivative;
  }
  CHECK_THAT(sum, WithinAbs(0, 1e-14));
}

TEST_CASE("DenseToSparseGate: gradients agree with central differences for every combination of its axes", "[gate]") {
  for (const Index experts : {1, 2, 9, 17})
    for (const double tau : {0.3, 1.0, 4.0})
      for (const double threshold : {0.0, 0.05})
        for (const std::uint64_t hard_from : {std::uint64_t{0}, moe::kFinished})
          for (const double gumbel : {0.0, 0.7})
            for (const WeightLogits weights : {WeightLogits::Selection, WeightLogits::Clean}) {
              const Learnt gate{.temperature = LearnableTemperature::starting_at(tau),
                                .threshold = threshold,
                                .hard_from = hard_from,
                                .gumbel = gumbel,
                                .weights = weights};
              CAPTURE(experts, tau, threshold, hard_from, gumbel, static_cast<int>(weights));
              const auto logits = test::random_logits<double>(3, experts, 11);
              REQUIRE(test::gate_gradient_error(gate, logits, Step::train(2, 3)) < 1e-6);
            }
}

TEST_CASE("DenseToSparseGate: inference has gradients too", "[gate]") {
  const auto logits = test::random_logits<double>(3, 5, 12);
  CHECK(test::gate_gradient_error(Learnt{.temperature = LearnableTemperature::starting_at(0.7)}, logits) < 1e-6);
  CHECK(test::gate_gradient_error(moe::DenseToSparseGate<>{.at_inference = moe::AtInference::Dense}, logits) < 1e-6);
}

TEST_CASE("DenseToSparseGate: gradients with dropped choices agree with central differences", "[gate]") {
  const Learnt gate{.temperature = LearnableTemperature::starting_at(0.7), .threshold = 0.02};
  const auto logits = test::random_logits<double>(4, 6, 13);
  auto routing = test::routed(gate, logits, Step::train(0));
  for (Index a = 0; a < routing.num_assignments(); a += 3) routing.drop(a, moe::kDroppedByCapacity);
  CHECK(test::gate_gradient_error(gate, logits, Step::train(0), routing) < 1e-6);
}

TEMPLATE_TEST_CASE("DenseToSparseGate: masked experts get no gradient and do not spoil that of tau", "[gate]", float,
                   double) {
  auto logits = test::random_logits<TestType>(4, 9, 14);
  logits.col(3).setConstant(-INFINITY);
  for (const WeightLogits weights : {WeightLogits::Selection, WeightLogits::Clean}) {
    const Learnt gate{.temperature = LearnableTemperature::starting_at(0.7), .gumbel = 1, .weights = weights};
    const test::Backward<TestType, Learnt> back(gate, logits, Step::train(0),
                                                test::routed(gate, logits, Step::train(0)));
    CHECK(back.dlogits.allFinite());
    CHECK(back.dlogits.col(3).isZero(0));
    CHECK(std::isfinite(back.gradient.temperature.raw));
  }
}

TEST_CASE("DenseToSparseGate: adding a constant to the logits of a token changes no gradient", "[gate][property]") {
  // Logits and constant are multiples of 1/64, so the sums are exact and the bits must be equal.
  const auto logits = test::exact_logits<double>(6, 9, 15);
  moe::Matrix<double> shifted = logits;
  for (Index t = 0; t < 6; ++t) shifted.row(t).array() += 100.5 * static_cast<double>(t);
  const Learnt gate{.temperature = LearnableTemperature::starting_at(0.7)};
  const auto routing = test::routed(gate, logits, Step::train(0));
  CHECK(test::equal_bits(routing, test::routed(gate, shifted, Step::train(0))));
  const test::Backward<double, Learnt> a(gate, logits, Step::train(0), routing),
      b(gate, shifted, Step::train(0), routing);
  CHECK(test::equal_bits(a.dlogits, b.dlogits));
  CHECK(a.gradient.temperature.raw == b.gradient.temperature.raw);
}

TEST_CASE("LearnableTemperature: starts where it is told, small or large, and stays above its minimum", "[gate]") {
  for (const double start : {0.011, 0.1, 1.0, 5.0, 800.0}) {
    const auto temperature = LearnableTemperature::starting_at(start);
    CAPTURE(start);
    CHECK_THAT(temperature(0), WithinAbs(start, 1e-12 * start));
    CHECK(temperature(0) == temperature(moe::kFinished));
  }
  CHECK(LearnableTemperature{.raw = -1e4, .minimum = 0.2}(0) == 0.2);
  CHECK_THROWS_AS(LearnableTemperature::starting_at(0.01), std::invalid_argument);
  CHECK_THROWS_AS(LearnableTemperature::starting_at(1, 0), std::invalid_argument);
  CHECK_THROWS_AS((LearnableTemperature{.raw = 0, .minimum = 0}.validate()), std::invalid_argument);
  CHECK_THROWS_AS((LearnableTemperature{.raw = NAN}.validate()), std::invalid_argument);
}

TEST_CASE("LearnableTemperature: is the one parameter of a gate that has it, and none otherwise", "[gate]") {
  Learnt gate;
  std::vector<std::string> names;
  moe::visit([&](const std::string& name, auto&) { names.push_back(name); }, gate);
  CHECK(names == std::vector<std::string>{"temperature.raw"});
  CHECK(moe::num_parameters(moe::DenseToSparseGate<>{}) == 0);
}
