// SPDX-License-Identifier: MIT
#include "moe/gate/activation.hpp"

#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::WithinAbs;
using moe::ActivationGate;
using moe::BiasPlace;
using moe::ConstantSchedule;
using moe::Index;
using moe::LearnableTemperature;
using moe::Step;

namespace {

template <class Act>
using Fixed = ActivationGate<Act, ConstantSchedule>;
template <class Act>
using Learnt = ActivationGate<Act, LearnableTemperature>;

Eigen::RowVectorXd bias_of_table() { return Eigen::RowVector3d(0.1, 0.2, -0.3); }

template <class Act, class S>
void require_table(double tau, const std::vector<double>& expected) {
  const Fixed<Act> gate{.bias = bias_of_table(), .sparse = {.temperature = {tau}, .threshold = 0}};
  const auto weights = test::dense(test::routed(gate, test::row<S>({2, -1, 0.5}), Step::train(0)), 3);
  for (Index e = 0; e < 3; ++e) {
    CAPTURE(Act::kName, tau, e);
    CHECK_THAT(weights(0, e), WithinAbs(expected[static_cast<std::size_t>(e)], 5e-7));  // six decimals
  }
}

/// tau dG/dtau + <u, dG/du> + <bias, dG/dbias> for a random functional of the weights: the derivative along
/// (u, bias, tau) -> (c u, c bias, c tau).
template <class Act>
double derivative_along_scaling() {
  Learnt<Act> gate{.bias = test::random_bias(7, 3, 0.5),
                   .sparse = {.temperature = LearnableTemperature::starting_at(0.7), .threshold = 0}};
  const auto u = test::random_logits<double>(20, 7, 4);
  const test::Backward<double, Learnt<Act>> back(gate, u, Step::train(0), test::routed(gate, u, Step::train(0)));
  const double dtau = back.gradient.sparse.temperature.raw / moe::Softplus::derivative(gate.sparse.temperature.raw);
  return 0.7 * dtau + test::inner(u, back.dlogits) + test::inner(gate.bias, back.gradient.bias);
}

}  // namespace

TEMPLATE_TEST_CASE("ActivationGate: weights are the softmax of (act(u) + bias) / tau", "[gate]", float, double) {
  require_table<moe::Sigmoid, TestType>(1, {0.472346, 0.283116, 0.244539});
  require_table<moe::Sigmoid, TestType>(0.5, {0.614521, 0.220772, 0.164707});
  require_table<moe::Tanh, TestType>(1, {0.623993, 0.122795, 0.253212});
  require_table<moe::Tanh, TestType>(0.5, {0.830983, 0.032181, 0.136837});
  require_table<moe::Identity, TestType>(1, {0.830157, 0.045678, 0.124165});
  require_table<moe::Identity, TestType>(0.5, {0.975231, 0.002953, 0.021817});
}

TEST_CASE("ActivationGate: a bias inside is a shift of u", "[gate]") {
  const auto u = test::random_logits<double>(9, 3, 1);
  const Fixed<moe::Tanh> inside{.bias = bias_of_table(), .bias_place = BiasPlace::Inside};
  moe::Matrix<double> shifted = u;
  shifted.rowwise() += bias_of_table();
  CHECK(test::equal_bits(test::probabilities(inside, u), test::probabilities(Fixed<moe::Tanh>{}, shifted)));
}

TEMPLATE_TEST_CASE("ActivationGate: with the identity it is DenseToSparseGate, bit for bit", "[gate]", float, double) {
  const moe::DenseToSparseGate<LearnableTemperature> plain{
      .temperature = LearnableTemperature::starting_at(0.6), .threshold = 0.05, .gumbel = 0.5};
  for (const Index experts : test::kExpertCounts)
    for (const Index bias_size : {Index{0}, experts}) {
      const Learnt<moe::Identity> gate{.bias = Eigen::RowVectorXd::Zero(bias_size), .sparse = plain};
      const auto u = test::random_logits<TestType>(40, experts, 2);
      const auto routing = test::routed(plain, u, Step::train(1));
      CAPTURE(experts, bias_size);
      REQUIRE(test::equal_bits(routing, test::routed(gate, u, Step::train(1))));
      REQUIRE(test::equal_bits(test::routed(plain, u), test::routed(gate, u)));
      const test::Backward a(plain, u, Step::train(1), routing);
      const test::Backward b(gate, u, Step::train(1), routing);
      REQUIRE(test::equal_bits(a.dlogits, b.dlogits));
      REQUIRE(a.gradient.temperature.raw == b.gradient.sparse.temperature.raw);
    }
}

TEST_CASE("ActivationGate: the scale of (u, bias, tau) is lost with the identity and ReLU only", "[gate][property]") {
  const auto u = test::random_logits<double>(20, 7, 4);
  const auto largest_change = [&]<class Act>(Act) {
    const Fixed<Act> gate{.bias = test::random_bias(7, 3, 0.5), .sparse = {.temperature = {0.5}}};
    const Fixed<Act> scaled{.bias = 4 * gate.bias, .sparse = {.temperature = {2}}};
    return test::largest(test::probabilities(gate, u) - test::probabilities(scaled, moe::Matrix<double>(4 * u)));
  };
  CHECK(largest_change(moe::Identity{}) < 1e-14);
  CHECK(largest_change(moe::Relu{}) < 1e-14);
  CHECK(largest_change(moe::Sigmoid{}) > 1e-3);
  CHECK(largest_change(moe::Tanh{}) > 1e-3);
  CHECK(largest_change(moe::Gelu{}) > 1e-3);
}

TEST_CASE("ActivationGate: gradients vanish along the scale of (u, bias, tau) exactly where it is lost", "[gate]") {
  CHECK(std::abs(derivative_along_scaling<moe::Identity>()) < 1e-10);
  CHECK(std::abs(derivative_along_scaling<moe::Relu>()) < 1e-10);
  CHECK(std::abs(derivative_along_scaling<moe::Sigmoid>()) > 1e-3);
  CHECK(std::abs(derivative_along_scaling<moe::Tanh>()) > 1e-3);
  CHECK(std::abs(derivative_along_scaling<moe::Softplus>()) > 1e-3);
}

TEMPLATE_TEST_CASE("ActivationGate: gradients of u, bias and tau agree with central differences", "[gate]",
                   moe::Sigmoid, moe::Tanh, moe::Gelu, moe::Relu) {
  for (const Index experts : {1, 2, 9})
    for (const BiasPlace place : {BiasPlace::Outside, BiasPlace::Inside})
      for (const moe::WeightLogits weights : {moe::WeightLogits::Selection, moe::WeightLogits::Clean})
        for (const std::uint64_t hard_from : {std::uint64_t{0}, moe::kFinished}) {
          const Learnt<TestType> gate{.bias = test::random_bias(experts, 5, 0.5),
                                      .bias_place = place,
                                      .sparse = {.temperature = LearnableTemperature::starting_at(0.4),
                                                 .threshold = 0.02,
                                                 .hard_from = hard_from,
                                                 .gumbel = 0.3,
                                                 .weights = weights}};
          CAPTURE(TestType::kName, experts, static_cast<int>(place), static_cast<int>(weights), hard_from);
          const auto u = test::random_logits<double>(3, experts, 6, 1.5);
          REQUIRE(test::gate_gradient_error(gate, u, Step::train(1)) < 1e-6);
        }
}

TEMPLATE_TEST_CASE("ActivationGate: saturated activations give finite weights and no gradient", "[gate]", float,
                   double) {
  const auto u = test::row<TestType>({50, -50, 50, -50, 3e38, -3e38});
  const auto check = [&](const auto& gate) {
    const test::Backward back(gate, u, Step::train(0), test::routed(gate, u, Step::train(0)));
    CHECK(test::probabilities(gate, u, Step::train(0)).allFinite());
    CHECK(test::largest(back.dlogits) < 1e-15);  // sigmoid'(50) = 2e-22
    CHECK(back.gradient.bias.allFinite());
  };
  check(Fixed<moe::Sigmoid>{.bias = Eigen::RowVectorXd::Zero(6)});
  check(Fixed<moe::Tanh>{.bias = Eigen::RowVectorXd::Zero(6)});
}

TEMPLATE_TEST_CASE("ActivationGate: a masked expert stays masked, whatever the activation makes of -infinity", "[gate]",
                   moe::Sigmoid, moe::Gelu, moe::Silu, moe::Relu) {
  for (const BiasPlace place : {BiasPlace::Outside, BiasPlace::Inside}) {
    const Learnt<TestType> gate{.bias = Eigen::RowVector3d(0, 9, 0), .bias_place = place, .sparse = {.gumbel = 1}};
    const auto u = test::row<float>({1, -INFINITY, 0});
    const auto routing = test::routed(gate, u, Step::train(0));
    CHECK(test::dense(routing, 3)(0, 1) == 0);
    const test::Backward<float, Learnt<TestType>> back(gate, u, Step::train(0), routing);
    CHECK(back.dlogits.allFinite());
    CHECK(back.dlogits(0, 1) == 0);
    CHECK(back.gradient.bias.allFinite());
    CHECK(back.gradient.bias(1) == 0);
    CHECK(std::isfinite(back.gradient.sparse.temperature.raw));
  }
}

TEST_CASE("ActivationGate: its parameters are the bias and, if learnt, the temperature", "[gate]") {
  Learnt<moe::Sigmoid> gate{.bias = Eigen::RowVectorXd::Zero(5)};
  std::vector<std::string> names;
  moe::visit([&](const std::string& name, auto&) { names.push_back(name); }, gate);
  CHECK(names == std::vector<std::string>{"bias", "temperature.raw"});
  CHECK(moe::num_parameters(ActivationGate<>{}) == 0);
}

TEST_CASE("ActivationGate: bad numbers and bad logits are refused under its own name", "[gate][error]") {
  const auto u = test::random_logits<float>(2, 3, 1);
  const Fixed<moe::Sigmoid> short_bias{.bias = Eigen::RowVectorXd::Zero(2)};
  CHECK(test::contains(test::message_of([&] { test::routed(short_bias, u); }),
                       "moe::ActivationGate: bias has 2 entries, expected 0 or num_experts = 3"));
  CHECK_THROWS_AS((Fixed<moe::Sigmoid>{.sparse = {.temperature = {0}}}.validate(3)), std::invalid_argument);
  CHECK_THROWS_AS(Fixed<moe::Sigmoid>{}.validate(0), std::invalid_argument);
  auto bad = u;
  bad(1, 2) = NAN;
  CHECK(test::contains(test::message_of([&] { test::routed(Fixed<moe::Sigmoid>{}, bad); }),
                       "moe::ActivationGate::route: logit of token 1 for expert 2 is"));
}
