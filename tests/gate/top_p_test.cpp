// SPDX-License-Identifier: MIT
#include "moe/gate/top_p.hpp"

#include "moe/gate/softmax.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/routing/balance/statistics.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::Normalise;
using moe::TopKGate;
using moe::TopPGate;

namespace {

/// The choices of one token by their definition: sorted, summed in double. `slack` is what the rule allows for
/// rounding.
std::vector<Index> expected_choices(const TopPGate& gate, const std::vector<double>& z, double slack) {
  const double largest = *std::max_element(z.begin(), z.end());
  double total = 0, sum = 0;
  for (const double x : z) total += std::exp(x - largest);
  std::vector<Index> order(z.size()), chosen;
  for (std::size_t e = 0; e < z.size(); ++e) order[e] = static_cast<Index>(e);
  std::ranges::stable_sort(order, [&](Index a, Index b) { return z[std::size_t(a)] > z[std::size_t(b)]; });
  for (const Index e : order) {
    const Index found = std::ssize(chosen);
    if ((found >= gate.least && gate.p < 1 && sum >= gate.p - slack) || found == gate.most) {
      if (found > 0) break;
    }
    if (z[std::size_t(e)] == -INFINITY) break;
    chosen.push_back(e);
    sum += std::exp(z[std::size_t(e)] - largest) / total;
  }
  return chosen;
}

moe::Matrix<double> log_row(std::initializer_list<double> p) {
  moe::Matrix<double> logits = test::row<double>(p);
  for (Index e = 0; e < logits.cols(); ++e) logits(0, e) = std::log(logits(0, e));
  return logits;
}

}  // namespace

TEST_CASE("TopPGate: probabilities .45, .25, .2, .1 are cut where their sum reaches p", "[gate]") {
  const auto chosen = [](double p) {
    return std::ssize(test::experts_of(test::routed(TopPGate{.p = p}, log_row({0.45, 0.25, 0.2, 0.1}))));
  };
  CHECK(chosen(0.4) == 1);
  CHECK(chosen(0.45) == 1);  // a sum that is p is enough
  CHECK(chosen(0.5) == 2);
  CHECK(chosen(0.7) == 2);
  CHECK(chosen(0.9) == 3);  // .45 + .25 + .2 is 0.8999999999999999
  CHECK(chosen(0.95) == 4);
  CHECK(chosen(1) == 4);
  CHECK(chosen(1e-300) == 1);
  const auto routing = test::routed(TopPGate{.p = 0.9}, log_row({0.2, 0.45, 0.1, 0.25}));
  CHECK(test::experts_of(routing) == std::vector<Index>{1, 3, 0});
  for (const auto& [s, p] : {std::pair{0, 0.45}, {1, 0.25}, {2, 0.2}})
    CHECK_THAT(routing.weights(0)[std::size_t(s)], Catch::Matchers::WithinAbs(p, 1e-15));
}

TEST_CASE("TopPGate: equal experts are taken by number until their sum reaches p", "[gate]") {
  const auto uniform = log_row({0.25, 0.25, 0.25, 0.25});
  CHECK(test::experts_of(test::routed(TopPGate{.p = 0.5}, uniform)) == std::vector<Index>{0, 1});
  CHECK(test::experts_of(test::routed(TopPGate{.p = 0.51}, uniform)) == std::vector<Index>{0, 1, 2});
}

TEMPLATE_TEST_CASE("TopPGate: choices are those of the definition", "[gate]", float, double) {
  for (const Index experts : {1, 2, 9, 35, 130})
    for (const double p : {0.1, 0.4, 0.77, 0.999, 1.0}) {
      // The float test compares sums of float probabilities with those of double: none of them is near p by luck.
      const auto logits = test::random_logits<TestType>(20, experts, 3, 2);
      TopPGate gate{.p = p, .least = experts > 2 ? 2 : 1, .most = experts > 20 ? 17 : 0};
      const auto routing = test::routed(gate, logits);
      if (gate.most == 0) gate.most = experts;
      for (Index t = 0; t < logits.rows(); ++t) {
        CAPTURE(experts, p, t);
        const double slack = 8 * double(experts) * double(std::numeric_limits<TestType>::epsilon());
        CHECK(test::experts_of(routing, t) ==
              expected_choices(gate, {logits.row(t).data(), logits.row(t).data() + experts}, slack));
      }
    }
}

TEST_CASE("TopPGate: the last choice is needed, more p never takes one away, sharper logits never add one",
          "[gate][property]") {
  const auto logits = test::random_logits<double>(200, 16, 4);
  const auto probabilities = test::probabilities(TopPGate{}, logits);
  std::vector<std::size_t> before(200, 1);
  for (const double p : {0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0}) {
    const auto routing = test::routed(TopPGate{.p = p}, logits);
    const auto sharper = test::routed(TopPGate{.p = p}, moe::Matrix<double>(logits * 1.5));
    for (Index t = 0; t < 200; ++t) {
      double sum = 0;
      for (const Index e : routing.experts(t)) sum += probabilities(t, e);
      const auto count = routing.experts(t).size();
      CHECK(sum >= p - 1e-13);
      CHECK(sum - probabilities(t, routing.experts(t).back()) < p);
      CHECK(sharper.experts(t).size() <= count);
      CHECK(before[std::size_t(t)] <= count);
      before[std::size_t(t)] = count;
    }
  }
}

TEST_CASE("TopPGate: its limits are the raw top-1, the dense gate and the raw top-2, bit for bit", "[gate]") {
  const auto logits = test::random_logits<double>(30, 17, 5);
  const auto raw = [](Index k) { return TopKGate{.k = k, .normalise = Normalise::Off}; };
  CHECK(test::equal_bits(test::dense(test::routed(TopPGate{.p = 1e-9}, logits), 17),
                         test::dense(test::routed(raw(1), logits), 17)));
  CHECK(test::equal_bits(test::dense(test::routed(TopPGate{.p = 1}, logits), 17),
                         test::dense(test::routed(moe::SoftmaxGate{}, logits), 17)));
  CHECK(test::equal_bits(test::dense(test::routed(TopPGate{.p = 1, .most = 2}, logits), 17),
                         test::dense(test::routed(raw(2), logits), 17)));
  CHECK(
      test::equal_bits(test::dense(test::routed(TopPGate{.p = 1, .most = 3, .normalise = Normalise::Sum}, logits), 17),
                       test::dense(test::routed(TopKGate{.k = 3}, logits), 17)));
}

TEST_CASE("TopPGate: masked experts are never chosen, nor do they count", "[gate]") {
  const auto masked = test::row<double>({-INFINITY, 0, -INFINITY, 0});
  CHECK(test::experts_of(test::routed(TopPGate{.p = 1}, masked)) == std::vector<Index>{1, 3});
  CHECK(test::experts_of(test::routed(TopPGate{.p = 0.1, .least = 3}, masked)) == std::vector<Index>{1, 3});
  CHECK(test::experts_of(test::routed(TopPGate{.p = 1}, test::row<double>({0, -2000}))).size() == 2);  // p is 0
}

TEST_CASE("TopPGate: thousands of experts, all of them chosen or one", "[gate]") {
  const auto logits = test::random_logits<float>(3, 5000, 6, 0.01);
  const auto all = test::routed(TopPGate{.p = 1}, logits);
  CHECK(moe::mean_active_experts(all) == 5000);
  std::vector<Index> experts = test::experts_of(all, 2);
  CHECK(std::ranges::is_sorted(experts, [&](Index a, Index b) { return logits(2, a) > logits(2, b); }));
  CHECK(moe::mean_active_experts(test::routed(TopPGate{.p = 1e-4}, logits)) == 1);
}

TEST_CASE("TopPGate: gradients agree with central differences", "[gate]") {
  for (const Normalise normalise : {Normalise::Off, Normalise::Sum, Normalise::Euclidean})
    for (const Index experts : {1, 5, 17}) {
      CAPTURE(experts, int(normalise));
      const auto logits = test::random_logits<double>(6, experts, 7);
      CHECK(test::gate_gradient_error(TopPGate{.p = 0.7, .normalise = normalise}, logits) < 1e-6);
    }
  const auto logits = test::random_logits<double>(4, 6, 8);
  auto routing = test::routed(TopPGate{.p = 0.9}, logits);
  for (const Index a : {0, 3, 4}) routing.drop(a, moe::kDroppedByCapacity);
  CHECK(test::gate_gradient_error(TopPGate{.p = 0.9}, logits, {}, routing) < 1e-6);
}

TEST_CASE("TopPGate: numbers out of range, NaN and tokens without an expert are refused by name", "[gate][error]") {
  const auto message = [](const TopPGate& gate) { return test::message_of([&] { gate.validate(4); }); };
  CHECK(message({.p = 0}) == "moe::TopPGate: p is 0, expected 0 < p <= 1");
  CHECK(message({.p = 1.5}) == "moe::TopPGate: p is 1.5, expected 0 < p <= 1");
  CHECK(message({.p = NAN}) == "moe::TopPGate: p is nan, expected 0 < p <= 1");
  CHECK(message({.least = 0}) == "moe::TopPGate: least is 0, expected 1 <= least <= num_experts = 4");
  CHECK(message({.least = 3, .most = 2}) ==
        "moe::TopPGate: most is 2, expected 0, or least = 3 <= most <= num_experts = 4");
  CHECK(message({.normalise = Normalise::PNorm}) ==
        "moe::TopPGate: normalise is PNorm, expected Off, Sum or Euclidean: this gate has no norm_p");
  CHECK_THROWS_AS((TopPGate{.most = 3}.take(std::vector<Index>{0, 1}, 4)), std::invalid_argument);
  CHECK_THROWS_WITH(
      test::routed(TopPGate{}, test::row<double>({1, NAN, 2})),
      "moe::TopPGate::route: logit of token 0 for expert 1 is nan, expected a finite number, or -infinity "
      "as a mask");
  CHECK_THROWS_AS(test::routed(TopPGate{}, test::row<double>({-INFINITY, -INFINITY})), std::invalid_argument);
  const auto logits = test::random_logits<double>(3, 4, 9);
  CHECK_THROWS_AS(test::gate_gradient_error(TopPGate{.most = 1, .normalise = Normalise::Sum}, logits),
                  std::invalid_argument);
}
