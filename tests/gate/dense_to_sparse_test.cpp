// SPDX-License-Identifier: MIT
#include "moe/gate/dense_to_sparse.hpp"

#include "moe/gate/softmax.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::WithinAbs;
using moe::AtInference;
using moe::ConstantSchedule;
using moe::Index;
using moe::Step;
using moe::WeightLogits;

namespace {

constexpr double kPrinted = 5e-7;  // the expected values are given to six decimals
using Fixed = moe::DenseToSparseGate<ConstantSchedule>;

/// Dense at every temperature: no threshold, training.
Fixed dense_at(double tau) { return {.temperature = {tau}, .threshold = 0}; }

double entropy(const moe::Matrix<double>& p) {
  double sum = 0;
  for (Index e = 0; e < p.cols(); ++e) sum -= p(0, e) > 0 ? p(0, e) * std::log(p(0, e)) : 0;
  return sum;
}

}  // namespace

TEMPLATE_TEST_CASE("DenseToSparseGate: weights sharpen as the temperature falls", "[gate]", float, double) {
  const auto logits = test::row<TestType>({2, 1, 0.5, -1});
  const std::vector<std::pair<double, std::vector<double>>> table = {{2, {0.434400, 0.263477, 0.205196, 0.096928}},
                                                                     {1, {0.609460, 0.224208, 0.135989, 0.030343}},
                                                                     {0.5, {0.842034, 0.113957, 0.041922, 0.002087}},
                                                                     {0.1, {0.999954, 0.000045, 0.000000, 0.000000}}};
  for (const auto& [tau, expected] : table) {
    const auto weights = test::dense(test::routed(dense_at(tau), logits, Step::train(0)), 4);
    for (Index e = 0; e < 4; ++e) {
      CAPTURE(tau, e);
      CHECK_THAT(weights(0, e), WithinAbs(expected[static_cast<std::size_t>(e)], kPrinted));
    }
  }
}

TEST_CASE("DenseToSparseGate: the entropy of the weights is that of the table and never falls with temperature",
          "[gate][property]") {
  const auto logits = test::row<double>({2, 1, 0.5, -1});
  CHECK_THAT(entropy(test::probabilities(dense_at(2), logits)), WithinAbs(1.264817, kPrinted));
  CHECK_THAT(entropy(test::probabilities(dense_at(1), logits)), WithinAbs(1.014403, kPrinted));
  CHECK_THAT(entropy(test::probabilities(dense_at(0.5), logits)), WithinAbs(0.538139, kPrinted));
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const auto z = test::random_logits<double>(1, 9, seed, 2);
    double before = 0;
    for (double tau = 0.01; tau < 1e3; tau *= 1.5) {
      const double now = entropy(test::probabilities(dense_at(tau), z));
      CAPTURE(seed, tau);
      REQUIRE(now >= before - 1e-14);  // rounding of nine terms
      before = now;
    }
  }
}

TEST_CASE("DenseToSparseGate: temperature to zero is arg-max, to infinity is uniform", "[gate][property]") {
  for (const Index experts : test::kExpertCounts) {
    const auto logits = test::random_logits<float>(5, experts, 3);
    const auto cold = test::probabilities(dense_at(1e-6), logits), hot = test::probabilities(dense_at(1e12), logits);
    for (Index t = 0; t < 5; ++t) {
      const float* row = &logits(t, 0);
      const Index best = std::max_element(row, row + experts) - row;
      CAPTURE(experts, t);
      REQUIRE(cold(t, best) == 1);
      REQUIRE(test::total(moe::Matrix<float>(cold.row(t))) == 1);
      for (Index e = 0; e < experts; ++e) REQUIRE(hot(t, e) == 1 / static_cast<float>(experts));
    }
  }
}

TEST_CASE("DenseToSparseGate: logits at temperature tau are logits / tau at temperature one", "[gate][property]") {
  const auto logits = test::random_logits<double>(20, 17, 4, 3);
  const auto a = test::probabilities(dense_at(0.25), logits);
  const auto b = test::probabilities(dense_at(1), moe::Matrix<double>(logits / 0.25));
  CHECK(test::equal_bits(a, b));  // dividing by a power of two is exact
}

TEST_CASE("DenseToSparseGate: experts at or below the threshold are left out, the best one never", "[gate]") {
  const auto logits = test::row<double>({2, 1, 0.5, -1});
  const auto chosen = [&](double threshold) {
    return test::experts_of(test::routed(Fixed{.temperature = {1}, .threshold = threshold}, logits, Step::train(0)));
  };
  CHECK(chosen(0) == std::vector<Index>{0, 1, 2, 3});
  CHECK(chosen(0.1) == std::vector<Index>{0, 1, 2});
  CHECK(chosen(0.2) == std::vector<Index>{0, 1});
  CHECK(chosen(0.9) == std::vector<Index>{0});
}

TEST_CASE("DenseToSparseGate: with more experts than 1 / threshold the best one is kept", "[gate]") {
  auto logits = test::random_logits<float>(3, 2000, 5, 0.01);
  logits(1, 1234) = 0.5;
  const auto routing = test::routed(Fixed{.temperature = {1}}, logits, Step::train(0));
  REQUIRE(routing.num_assignments() == 3);
  CHECK(test::experts_of(routing, 1) == std::vector<Index>{1234});
}

TEST_CASE("DenseToSparseGate: weights are not normalised after selection", "[gate]") {
  const Fixed gate{.temperature = {1}, .threshold = 0.2};
  const auto routing = test::routed(gate, test::row<double>({2, 1, 0.5, -1}), Step::train(0));
  CHECK_THAT(routing.weights(0)[0] + routing.weights(0)[1], WithinAbs(0.833668, 2 * kPrinted));
}

TEST_CASE("DenseToSparseGate: clean weights know neither temperature nor noise", "[gate]") {
  const Fixed gate{.temperature = {0.5}, .threshold = 0.1, .gumbel = 1, .weights = WeightLogits::Clean};
  const auto logits = test::random_logits<double>(50, 6, 6);
  const auto weights = test::dense(test::routed(gate, logits, Step::train(3, 4)), 6);
  const auto p = test::probabilities(moe::SoftmaxGate{}, logits);
  for (Index i = 0; i < weights.size(); ++i)
    if (weights.data()[i] != 0) REQUIRE(weights.data()[i] == p.data()[i]);
}

TEST_CASE("DenseToSparseGate: from hard_from on one expert is trained, ties going to the lower one", "[gate]") {
  const Fixed gate{.temperature = {1}, .hard_from = 10};
  const auto logits = test::row<double>({0, 1, 1});
  CHECK(test::experts_of(test::routed(gate, logits, Step::train(9))) == std::vector<Index>{0, 1, 2});
  CHECK(test::experts_of(test::routed(gate, logits, Step::train(10))) == std::vector<Index>{1});
}

TEST_CASE("DenseToSparseGate: the best expert is found where probabilities have underflowed to a tie", "[gate]") {
  const Fixed gate{.temperature = {1e25}, .hard_from = 0};  // all probabilities are 1/3 in float
  CHECK(test::experts_of(test::routed(gate, test::row<float>({1, 3, 2}), Step::train(0))) == std::vector<Index>{1});
}

TEST_CASE("DenseToSparseGate: inference takes the best expert at the last temperature, without noise", "[gate]") {
  const moe::DenseToSparseGate<> gate{.temperature = {.start = 2, .end = 0.5, .updates = 100}, .gumbel = 1};
  CHECK(gate.tau(Step{}) == 0.5);
  CHECK(gate.tau(Step::train(0)) == 2);
  const auto routing = test::routed(gate, test::row<double>({2, 1, 0.5, -1}));
  REQUIRE(test::experts_of(routing) == std::vector<Index>{0});
  CHECK_THAT(routing.weights(0)[0], WithinAbs(0.842034, kPrinted));
}

TEST_CASE("DenseToSparseGate: dense inference keeps every expert of positive probability", "[gate]") {
  const Fixed gate{.temperature = {1}, .threshold = 0.5, .at_inference = AtInference::Dense};
  const auto logits = test::row<double>({2, -INFINITY, 0.5, -5000});
  CHECK(test::experts_of(test::routed(gate, logits)) == std::vector<Index>{0, 2});
}

TEST_CASE("DenseToSparseGate: the number of experts per token falls from all to one", "[gate]") {
  const moe::DenseToSparseGate<> gate{
      .temperature = {.start = 5, .end = 0.05, .updates = 100}, .threshold = 0.01, .hard_from = 100};
  const auto logits = test::random_logits<float>(200, 8, 7);
  const auto assignments = [&](std::uint64_t update) {
    return test::routed(gate, logits, Step::train(update)).num_assignments();
  };
  CHECK(assignments(0) == 200 * 8);
  for (std::uint64_t update = 10; update <= 100; update += 10) {
    CAPTURE(update);
    CHECK(assignments(update) <= assignments(update - 10));
  }
  CHECK(assignments(90) > 200);
  CHECK(assignments(100) == 200);
}

TEST_CASE("DenseToSparseGate: dropping to one expert is smooth once the temperature is low", "[gate]") {
  moe::Matrix<double> logits(8, 8);
  for (Index t = 0; t < 8; ++t)
    for (Index e = 0; e < 8; ++e) logits(t, e) = 0.1 * static_cast<double>((3 * e + t) % 8);  // distinct in each row
  const Fixed soft{.temperature = {1e-3}, .threshold = 0}, hard{.temperature = {1e-3}, .hard_from = 0};
  const auto a = test::dense(test::routed(soft, logits, Step::train(0)), 8);
  const auto b = test::dense(test::routed(hard, logits, Step::train(0)), 8);
  CHECK(test::largest(a - b) < 1e-6);
}

TEST_CASE("DenseToSparseGate: with Gumbel noise the arg-max is a draw from the softmax, at any temperature", "[gate]") {
  constexpr Index kTokens = 100000;
  const moe::Matrix<double> logits = test::row<double>({2, 1, 0.5, -1}).replicate(kTokens, 1);
  const Fixed gate{.temperature = {1}, .hard_from = 0, .gumbel = 1};
  const auto routing = test::routed(gate, logits, Step::train(1, 2));
  std::vector<double> counts(4);
  for (const Index e : routing.experts()) ++counts[static_cast<std::size_t>(e)];
  const std::vector<double> shares = {0.609460, 0.224208, 0.135989, 0.030343};
  CHECK(test::chi_square(counts, shares) < 16.27);  // p = 0.001 at 3 degrees of freedom
  const Fixed colder{.temperature = {0.2}, .hard_from = 0, .gumbel = 1};
  CHECK(test::equal_bits(routing.experts(), test::routed(colder, logits, Step::train(1, 2)).experts()));
}

TEST_CASE("DenseToSparseGate: noise differs between updates, layers and passes, and is off at inference", "[gate]") {
  const Fixed gate{.temperature = {1}, .gumbel = 1};
  const auto logits = test::random_logits<double>(4, 8, 9);
  Step update = Step::train(1), layer = Step::train(0), pass = Step::train(0), seed = Step::train(0, 1);
  layer.layer = 1;
  pass.pass = 1;
  const auto p = test::probabilities(gate, logits, Step::train(0));
  for (const Step& other : {update, layer, pass, seed})
    CHECK(!test::equal_bits(p, test::probabilities(gate, logits, other)));
  CHECK(test::equal_bits(test::probabilities(gate, logits), test::probabilities(dense_at(1), logits)));
}

TEMPLATE_TEST_CASE("DenseToSparseGate: huge logits neither overflow nor give NaN", "[gate]", float, double) {
  for (const double tau : {1e-30, 1e-3, 1.0, 1e30}) {
    const auto logits = test::row<TestType>({1e4, -1e4, 9999, -3e38});
    const auto p = test::probabilities(dense_at(tau), logits);
    CAPTURE(tau);
    CHECK(p.allFinite());
    CHECK_THAT(test::total(p), WithinAbs(1, 1e-6));
    const test::Backward<TestType, Fixed> back(dense_at(tau), logits, Step::train(0),
                                               test::routed(dense_at(tau), logits, Step::train(0)));
    CHECK(!back.dlogits.hasNaN());
  }
}

TEST_CASE("DenseToSparseGate: bad numbers are refused", "[gate][error]") {
  const auto message = [](const auto& gate) { return test::message_of([&] { gate.validate(4); }); };
  CHECK(test::contains(message(Fixed{.temperature = {0}}), "temperature is 0 at the start"));
  CHECK(test::contains(message(Fixed{.temperature = {-1}}), "temperature is -1"));
  CHECK(message(Fixed{.temperature = {NAN}}) != "");
  CHECK(message(Fixed{.temperature = {1e-40}}) != "");
  CHECK(test::contains(message(moe::DenseToSparseGate<>{.temperature = {.start = 0.1, .end = 1}}),
                       "expected it not to rise"));
  CHECK(test::contains(message(moe::DenseToSparseGate<>{.temperature = {.updates = 0}}), "updates is 0"));
  CHECK(test::contains(message(Fixed{.threshold = -0.1}), "threshold is -0.1"));
  CHECK(test::contains(message(Fixed{.threshold = 1}), "threshold is 1"));
  CHECK(message(Fixed{.threshold = NAN}) != "");
  CHECK(test::contains(message(Fixed{.gumbel = -1}), "gumbel is -1"));
  CHECK(message(Fixed{.gumbel = INFINITY}) != "");
  CHECK(test::message_of([] { Fixed{}.validate(0); }) != "");
  CHECK(message(Fixed{}) == "");
}

TEST_CASE("DenseToSparseGate: a schedule that turns bad on the way is caught when it does", "[gate][error]") {
  const auto schedule = [](std::uint64_t update) { return update == 5 ? 0.0 : 1.0; };
  const moe::DenseToSparseGate<decltype(schedule)> gate{.temperature = schedule};
  const auto logits = test::random_logits<float>(2, 3, 1);
  CHECK(test::routed(gate, logits, Step::train(4)).num_tokens() == 2);
  CHECK(test::contains(test::message_of([&] { test::routed(gate, logits, Step::train(5)); }),
                       "temperature is 0 at this update"));
}

TEST_CASE("DenseToSparseGate: bad logits are named, in each of its modes", "[gate][error]") {
  for (const std::uint64_t hard_from : {std::uint64_t{0}, moe::kFinished}) {
    const Fixed gate{.temperature = {1}, .hard_from = hard_from};
    auto logits = test::random_logits<float>(100, 5, 2);
    logits.row(70).setConstant(-INFINITY);
    CHECK(test::contains(test::message_of([&] { test::routed(gate, logits, Step::train(0)); }),
                         "moe::DenseToSparseGate::route: token 70 has 0 finite logits"));
    logits(40, 3) = INFINITY;
    CHECK(test::contains(test::message_of([&] { test::routed(gate, logits, Step::train(0)); }),
                         "token 40 for expert 3 is inf"));
  }
}
