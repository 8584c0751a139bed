// SPDX-License-Identifier: MIT
#include "moe/gate/softmax.hpp"

#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;

namespace {
constexpr double kPrinted = 5e-7;  // the expected values are given to six decimals
}

TEMPLATE_TEST_CASE("SoftmaxGate: weights are the softmax of the logits, experts ascending", "[gate]", float, double) {
  const auto routing = test::routed(moe::SoftmaxGate{}, test::row<TestType>({2, 1, 0.5, -1}));
  const double expected[] = {0.609460, 0.224208, 0.135989, 0.030343};
  REQUIRE(test::experts_of(routing) == std::vector<Index>{0, 1, 2, 3});
  for (std::size_t s = 0; s < 4; ++s)
    CHECK_THAT(static_cast<double>(routing.weights(0)[s]), WithinAbs(expected[s], kPrinted));
}

TEMPLATE_TEST_CASE("SoftmaxGate: agrees with the definition in double", "[gate]", float, double) {
  // a sum of n rounded exponentials: n eps relative
  for (const Index experts : test::kExpertCounts) {
    const auto logits = test::random_logits<TestType>(5, experts, 1, 3);
    const auto weights = test::dense(test::routed(moe::SoftmaxGate{}, logits), experts);
    const double tolerance =
        static_cast<double>(experts + 20) * static_cast<double>(std::numeric_limits<TestType>::epsilon());
    for (Index t = 0; t < 5; ++t) {
      double sum = 0;
      for (Index e = 0; e < experts; ++e) sum += std::exp(static_cast<double>(logits(t, e)));
      for (Index e = 0; e < experts; ++e) {
        CAPTURE(experts, t, e);
        REQUIRE_THAT(weights(t, e), WithinAbs(std::exp(static_cast<double>(logits(t, e))) / sum, tolerance));
      }
    }
  }
}

TEST_CASE("SoftmaxGate: a masked expert is not sent the token and gets no gradient", "[gate]") {
  const auto logits = test::row<double>({1, -INFINITY, 0});
  const auto routing = test::routed(moe::SoftmaxGate{}, logits);
  REQUIRE(test::experts_of(routing) == std::vector<Index>{0, 2});
  CHECK_THAT(routing.weights(0)[0] + routing.weights(0)[1], WithinAbs(1, 1e-15));
  const test::Backward<double, moe::SoftmaxGate> back(moe::SoftmaxGate{}, logits, {}, routing);
  CHECK(back.dlogits(0, 1) == 0);
  CHECK(back.dlogits.allFinite());
}

TEST_CASE("SoftmaxGate: a token with all experts masked is an error that names it", "[gate][error]") {
  moe::Matrix<double> logits = moe::Matrix<double>::Zero(3, 2);
  logits.row(1).setConstant(-INFINITY);
  const std::string message = test::message_of([&] { test::routed(moe::SoftmaxGate{}, logits); });
  CAPTURE(message);
  CHECK(test::contains(message, "moe::SoftmaxGate::route"));
  CHECK(test::contains(message, "token 1 has 0 finite logits"));
}

TEST_CASE("SoftmaxGate: gradients agree with central differences", "[gate]") {
  for (const Index experts : {1, 2, 9, 17}) {
    CAPTURE(experts);
    CHECK(test::gate_gradient_error(moe::SoftmaxGate{}, test::random_logits<double>(3, experts, 2)) < 1e-6);
  }
}

TEST_CASE("SoftmaxGate: a single expert gets weight one and no gradient", "[gate]") {
  const auto logits = test::random_logits<float>(4, 1, 3);
  const auto routing = test::routed(moe::SoftmaxGate{}, logits);
  for (const float weight : routing.weights()) CHECK(weight == 1);
  const test::Backward<float, moe::SoftmaxGate> back(moe::SoftmaxGate{}, logits, {}, routing);
  CHECK(back.dlogits.isZero(0));
}

TEST_CASE("SoftmaxGate: no experts is an error", "[gate][error]") {
  CHECK_THROWS_AS(moe::SoftmaxGate{}.validate(0), std::invalid_argument);
  CHECK_THROWS_AS(test::routed(moe::SoftmaxGate{}, moe::Matrix<float>(3, 0)), std::invalid_argument);
}

TEST_CASE("SoftmaxGate: huge logits neither overflow nor lose the largest", "[gate]") {
  const auto routing = test::routed(moe::SoftmaxGate{}, test::row<float>({1e4, -1e4, 3e38, -3e38}));
  CHECK(routing.weights(0)[2] == 1);
  CHECK(routing.weights(0)[0] == 0);
}
