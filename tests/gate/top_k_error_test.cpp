// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::Score;
using moe::TopKGate;

namespace {

std::string validation_message(const TopKGate& gate, Index num_experts = 8) {
  return test::message_of([&] { gate.validate(num_experts); });
}

TopKGate with_selection_bias(Eigen::RowVectorXd bias) {
  TopKGate gate;
  gate.selection_bias = std::move(bias);
  return gate;
}

TopKGate with_weight_bias(Eigen::RowVectorXd bias) {
  TopKGate gate;
  gate.weight_bias = std::move(bias);
  return gate;
}

}  // namespace

TEST_CASE("TopKGate: validation says what is wrong and what was expected", "[gate][error]") {
  CHECK(validation_message({.k = 9}) == "moe::TopKGate: k is 9, expected 1 <= k <= num_experts = 8");
  CHECK(test::contains(validation_message({.k = 0}), "k is 0"));
  CHECK(test::contains(validation_message({.k = -1}), "k is -1"));
  CHECK(test::contains(validation_message({.k = 1}, 0), "num_experts = 0"));
  CHECK(test::contains(validation_message({.epsilon = -1e-9}), "epsilon is -1e-09"));
  CHECK(test::contains(validation_message({.epsilon = NAN}), "epsilon is nan"));
  CHECK(test::contains(validation_message({.scale = INFINITY}), "scale is inf"));
  CHECK(test::contains(validation_message({.groups = {.count = 3}}), "groups.count is 3"));
  CHECK(test::contains(validation_message({.groups = {.count = 0}}), "groups.count is 0"));
  CHECK(test::contains(validation_message({.groups = {.count = 4, .kept = 5}}), "groups.kept is 5"));
  CHECK(test::contains(validation_message({.groups = {.count = 4, .kept = 0}}), "groups.kept is 0"));
  CHECK(test::contains(validation_message({.groups = {.count = 4, .kept = 1, .best = 3}}), "groups.best is 3"));
  CHECK(test::contains(validation_message({.k = 3, .groups = {.count = 4, .kept = 1}}), "kept groups = 2"));
  CHECK(validation_message({.k = 8}) == "");
  CHECK(validation_message({.k = 4, .groups = {.count = 4, .kept = 2, .best = 2}}) == "");
}

TEST_CASE("TopKGate: biases of the wrong length or not finite are refused", "[gate][error]") {
  CHECK(test::contains(validation_message(with_selection_bias(Eigen::RowVectorXd::Zero(7))),
                       "selection_bias has 7 entries, expected 0 or num_experts = 8"));
  CHECK(test::contains(validation_message(with_weight_bias(Eigen::RowVectorXd::Zero(9))), "weight_bias has 9 entries"));
  Eigen::RowVectorXd bias = Eigen::RowVectorXd::Zero(8);
  bias(5) = NAN;
  CHECK(test::contains(validation_message(with_weight_bias(bias)), "weight_bias of expert 5 is nan"));
  bias(5) = 1e300;  // infinite in float
  CHECK(test::contains(validation_message(with_selection_bias(bias)), "selection_bias of expert 5 is 1e+300"));
}

TEST_CASE("TopKGate: route refuses more choices than experts", "[gate][error]") {
  CHECK_THROWS_AS(test::routed(TopKGate{.k = 3}, moe::Matrix<float>(moe::Matrix<float>::Zero(1, 2))),
                  std::invalid_argument);
  CHECK_THROWS_AS(test::routed(TopKGate{.k = 3}, moe::Matrix<float>(0, 2)), std::invalid_argument);
}

TEMPLATE_TEST_CASE("TopKGate: fewer unmasked experts than choices is an error, exactly as many is none",
                   "[gate][error]", float, double) {
  moe::Matrix<TestType> logits = moe::Matrix<TestType>::Zero(70, 4);
  logits.row(69) << 0, -INFINITY, -INFINITY, -INFINITY;
  logits.row(33) << -INFINITY, -INFINITY, 1, 2;
  const std::string message = test::message_of([&] { test::routed(TopKGate{.k = 2}, logits); });
  CAPTURE(message);
  CHECK(test::contains(message, "moe::TopKGate::route: token 69 has 1 finite logits"));
  CHECK(test::contains(message, "expected 2"));
  logits(69, 3) = -5;
  CHECK(test::experts_of(test::routed(TopKGate{.k = 2}, logits), 69) == std::vector<Index>{0, 3});
}

TEST_CASE("TopKGate: masks that empty the kept groups are an error", "[gate][error]") {
  const TopKGate gate{.k = 2, .groups = {.count = 2, .kept = 1, .best = 1}};
  const auto logits = test::row<float>({5, -INFINITY, 1, 1});
  CHECK(test::contains(test::message_of([&] { test::routed(gate, logits); }), "token 0 has 3 finite logits"));
}

TEST_CASE("TopKGate: a bad logit is named by the lowest token and expert", "[gate][error]") {
  for (const float bad : {static_cast<float>(NAN), INFINITY}) {
    auto logits = test::random_logits<float>(300, 17, 3);
    logits(290, 0) = bad;
    logits(157, 16) = bad;
    logits(157, 11) = bad;
    logits.row(200).setConstant(-INFINITY);
    const std::string message = test::message_of([&] { test::routed(TopKGate{}, logits); });
    CAPTURE(message);
    CHECK(test::contains(message, "moe::TopKGate::route: logit of token 157 for expert 11 is "));
  }
}

TEST_CASE("FirstRejected: names the lowest token in whatever order tokens are rejected", "[gate][error]") {
  const moe::Matrix<double> logits = moe::Matrix<double>::Constant(9, 2, NAN);
  moe::detail::FirstRejected rejected;
  rejected.raise<double>("f", logits, 1);  // nothing rejected: no throw
  for (const Index token : {5, 3, 7}) rejected.reject(token);
  CHECK(test::contains(test::message_of([&] { rejected.raise<double>("f", logits, 1); }), "f: logit of token 3 for"));
}

TEST_CASE("TopKGate: replay, probabilities and backward refuse NaN too", "[gate][error]") {
  const TopKGate gate;
  auto logits = test::random_logits<double>(3, 4, 3);
  auto routing = test::routed(gate, logits);
  logits(2, 1) = NAN;
  CHECK(test::contains(test::message_of([&] { gate.replay(logits, moe::Step{}, routing); }),
                       "replay: logit of token 2 for expert 1"));
  CHECK(
      test::contains(test::message_of([&] { test::probabilities(gate, logits); }), "probabilities: logit of token 2"));
  CHECK(test::contains(test::message_of([&] { test::Backward<double, TopKGate>(gate, logits, {}, routing); }),
                       "backward: logit of token 2"));
}

TEST_CASE("TopKGate: what does not fit the logits is refused", "[gate][error]") {
  const TopKGate gate;
  const auto logits = test::random_logits<double>(3, 4, 3);
  auto routing = test::routed(gate, logits);
  const std::vector<double> dweight(6), short_dweight(5);
  moe::Matrix<double> dlogits, none, wrong = moe::Matrix<double>::Zero(3, 5);
  TopKGate gradient;
  const auto backward = [&](const auto& dw, const auto& dp) {
    return test::message_of([&] { gate.backward(logits, moe::Step{}, routing, dw, dp, dlogits, gradient); });
  };
  CHECK(backward(dweight, none) == "");
  CHECK(test::contains(backward(short_dweight, none), "dweight has 5 entries, expected one per assignment = 6"));
  CHECK(test::contains(backward(dweight, wrong), "dprobability is [3, 5], expected [3, 4]"));
  const auto fewer_tokens = test::random_logits<double>(2, 4, 3), fewer_experts = test::random_logits<double>(3, 2, 3);
  CHECK(test::contains(test::message_of([&] { gate.replay(fewer_tokens, moe::Step{}, routing); }),
                       "routing has 3 tokens"));
  routing.experts()[0] = 3;
  CHECK(test::contains(test::message_of([&] { gate.replay(fewer_experts, moe::Step{}, routing); }), "names expert 3"));
}

TEST_CASE("TopKGate: a gradient without room for the weight bias is refused", "[gate][error]") {
  const TopKGate gate = with_weight_bias(Eigen::RowVectorXd::Ones(4));
  const auto logits = test::random_logits<double>(3, 4, 3);
  const auto routing = test::routed(gate, logits);
  moe::Matrix<double> dlogits;
  TopKGate gradient;
  CHECK(test::contains(test::message_of([&] {
                         gate.backward(logits, moe::Step{}, routing, std::vector<double>(6), moe::Matrix<double>(),
                                       dlogits, gradient);
                       }),
                       "gradient of the bias has 0 entries, expected num_experts = 4"));
}

TEST_CASE("TopKGate: step spans of the wrong length are refused", "[gate][error]") {
  const std::vector<std::uint8_t> valid(2, 1);
  moe::Step step;
  step.valid = valid;
  const auto logits = test::random_logits<float>(3, 4, 3);
  CHECK(test::contains(test::message_of([&] { test::routed(TopKGate{}, logits, step); }), "step.valid has 2 entries"));
}
