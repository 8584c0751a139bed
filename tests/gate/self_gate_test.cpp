// SPDX-License-Identifier: MIT
#include "moe/gate/self_gate.hpp"

#include "moe/gate/softmax.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::SelfGate;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// exp(z_i) / sum exp(z) of some logits.
std::vector<double> softmax_of(const std::vector<double>& logits) {
  double sum = 0;
  std::vector<double> p;
  for (const double z : logits) sum += std::exp(z);
  for (const double z : logits) p.push_back(std::exp(z) / sum);
  return p;
}

}  // namespace

TEST_CASE("SelfGate: own experts weigh their softmax and their self gate", "[gate]") {
  const auto one = test::dense(test::routed(SelfGate{.own = 1}, test::row<double>({0.3, -1, 2, 0.4})), 3);
  const auto p = softmax_of({0.3, -1, 2});
  // Two softmaxes of three terms, rounded a few times each: 16 epsilon.
  CHECK(std::abs(one(0, 0) - p[0]) < 4e-15);
  CHECK(std::abs(one(0, 1) - p[1]) < 4e-15);
  CHECK(std::abs(one(0, 2) - (p[2] + 1 / (1 + std::exp(-0.4)))) < 4e-15);
  const auto two = test::dense(test::routed(SelfGate{.own = 2}, test::row<double>({0.3, -1, 2, 0.4, 1.5})), 3);
  const auto self = softmax_of({0.4, 1.5});
  CHECK(std::abs(two(0, 0) - p[0]) < 4e-15);
  CHECK(std::abs(two(0, 1) - (p[1] + self[0])) < 4e-15);
  CHECK(std::abs(two(0, 2) - (p[2] + self[1])) < 4e-15);
  CHECK(test::dense(test::routed(SelfGate{.own = 1}, test::row<double>({0, 0})), 1)(0, 0) == 1.5);  // sigmoid(0)
}

TEST_CASE("SelfGate: without experts of its own it is the softmax gate, bit for bit", "[gate]") {
  const auto logits = test::random_logits<float>(30, 9, 1);
  const SelfGate gate{.own = 0};
  CHECK(test::equal_bits(test::routed(gate, logits), test::routed(moe::SoftmaxGate{}, logits)));
  CHECK(test::equal_bits(test::probabilities(gate, logits), test::probabilities(moe::SoftmaxGate{}, logits)));
  const auto routing = test::routed(gate, logits);
  CHECK(test::equal_bits(test::Backward<float, SelfGate>(gate, logits, {}, routing).dlogits,
                         test::Backward<float, moe::SoftmaxGate>({}, logits, {}, routing).dlogits));
}

TEST_CASE("SelfGate: gradients are central differences", "[gate][property]") {
  for (const Index own : {0, 1, 2, 4}) {
    CAPTURE(own);
    CHECK(test::gate_gradient_error(SelfGate{.own = own}, test::random_logits<double>(9, 4 + own, 3)) < 1e-9);
  }
}

TEST_CASE("SelfGate: a mask takes an expert out of the softmax that it stands in", "[gate]") {
  const auto both = test::routed(SelfGate{.own = 2}, test::row<double>({0, 1, -kInfinity, 3, -kInfinity}));
  CHECK(test::experts_of(both) == std::vector<Index>{0, 1});
  CHECK(both.weights(0)[1] > 1);  // all of the self gate
  const auto one = test::routed(SelfGate{.own = 2}, test::row<double>({0, 1, -kInfinity, -kInfinity, 3}));
  CHECK(test::experts_of(one) == std::vector<Index>{0, 1, 2});
  CHECK(one.weights(0)[2] == 1);
  CHECK_THROWS_WITH(test::routed(SelfGate{.own = 1}, test::row<double>({-kInfinity, 1})),
                    ContainsSubstring("moe::SelfGate::route: token 0 has 1 finite logits"));
  CHECK_THROWS_AS(test::routed(SelfGate{.own = 2}, test::row<double>({0, 1, -kInfinity, -kInfinity})),
                  std::invalid_argument);
}

TEST_CASE("SelfGate: numbers out of range are refused", "[gate][error]") {
  CHECK_THROWS_WITH(SelfGate{.own = 3}.validate(2),
                    ContainsSubstring("own is 3, expected 0 <= own <= num_experts = 2"));
  CHECK_THROWS_WITH(SelfGate{.own = -1}.validate(2), ContainsSubstring("own is -1"));
  CHECK_THROWS_WITH(test::routed(SelfGate{.own = 2}, test::row<double>({0, 1})),
                    ContainsSubstring("logits have 2 columns, expected more than own = 2"));
  const std::vector<Index> twice{0, 3, 3}, once{0, 3};
  CHECK_THROWS_WITH(SelfGate{.own = 1}.take(twice, 4),
                    ContainsSubstring("the only expert of the self gate is named 2 times, expected once at most"));
  CHECK(SelfGate{.own = 1}.take(once, 4) == SelfGate{.own = 1});
}
