// SPDX-License-Identifier: MIT
#include "moe/gate/wrap/top_any.hpp"

#include "gate/own_gate.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/top_p.hpp"
#include "moe/gate/wrap/top_any_loss.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::SkippedWeight;
using moe::Step;
using moe::TopAnyGate;
using moe::TopKGate;

namespace {

/// Logits of experts, then masks.
template <class S>
moe::Matrix<S> with_masks(const moe::Matrix<S>& logits, const std::vector<double>& masks) {
  moe::Matrix<S> all(logits.rows(), logits.cols() + std::ssize(masks));
  for (Index t = 0; t < all.rows(); ++t)
    for (Index c = 0; c < all.cols(); ++c)
      all(t, c) = c < logits.cols() ? logits(t, c) : static_cast<S>(masks[static_cast<std::size_t>(c - logits.cols())]);
  return all;
}

using Gate = TopAnyGate<TopKGate>;

Gate gate_of(Index k, SkippedWeight skipped = SkippedWeight::Lost) {
  return {.gate = {.k = k, .normalise = moe::Normalise::Off},
          .k = k,
          .temperature = {.start = 0.9, .end = 0.5, .updates = 10},
          .skipped = skipped};
}

}  // namespace

TEST_CASE("TopAnyGate: a mask for all choices is the gate, one for the first leaves one", "[gate]") {
  const auto logits = test::random_logits<float>(40, 7, 1);
  const auto chosen = test::routed(gate_of(3).gate, logits);
  CHECK(test::equal_bits(test::routed(gate_of(3), with_masks<float>(logits, {-1, 0, 2})), chosen));
  const auto first = test::routed(gate_of(3), with_masks<float>(logits, {2, 0, 2}));  // ties go to fewer
  const auto second = test::routed(gate_of(3), with_masks<float>(logits, {-INFINITY, 1, 0}));
  for (Index t = 0; t < 40; ++t)
    for (std::size_t s = 0; s < 3; ++s) {
      CHECK(first.dropped(t)[s] == (s < 1 ? 0 : moe::kDroppedByMask));
      CHECK(second.dropped(t)[s] == (s < 2 ? 0 : moe::kDroppedByMask));
      CHECK(second.experts(t)[s] == chosen.experts(t)[s]);
      CHECK(second.weights(t)[s] == (s < 2 ? chosen.weights(t)[s] : 0));
    }
}

TEST_CASE("TopAnyGate: of one choice there is nothing to skip", "[gate]") {
  const auto logits = test::random_logits<double>(10, 5, 1);
  CHECK(test::equal_bits(test::routed(gate_of(1), with_masks<double>(logits, {-3})),
                         test::routed(gate_of(1).gate, logits)));
  CHECK(test::equal_bits(test::routed(gate_of(1), with_masks<double>(logits, {-3}), Step::train(1)),
                         test::routed(gate_of(1).gate, logits, Step::train(1))));
}

TEST_CASE("TopAnyGate: weights that are shared out keep their sum", "[gate]") {
  const auto logits = with_masks<double>(test::random_logits<double>(20, 6, 1), {0.1, 0.3, 0.2, -1});
  for (const Step& step : {Step{}, Step::train(3, 4)}) {
    const auto chosen = test::routed(gate_of(4).gate, moe::Matrix<double>(logits.leftCols(6)));
    const auto lost = test::routed(gate_of(4), logits, step);
    const auto shared = test::routed(gate_of(4, SkippedWeight::Shared), logits, step);
    for (Index t = 0; t < 20; ++t) {
      const double sum = moe::detail::sum_of_weights(chosen, t);
      CHECK(moe::detail::sum_of_weights(lost, t) < sum);
      CHECK_THAT(moe::detail::sum_of_weights(shared, t), Catch::Matchers::WithinRel(sum, 1e-14));
      CHECK_THAT(shared.weights(t)[1] / shared.weights(t)[0],
                 Catch::Matchers::WithinRel(lost.weights(t)[1] / lost.weights(t)[0], 1e-14));
    }
  }
}

TEST_CASE("TopAnyGate: in training weights are those of the gate times sums of a Gumbel softmax", "[gate]") {
  const Step step = Step::train(4, 9);
  const auto logits = with_masks<double>(test::random_logits<double>(30, 5, 2), {0.4, -0.2, 0.1});
  const auto routing = test::routed(gate_of(3), logits, step);
  const auto chosen = test::routed(gate_of(3).gate, moe::Matrix<double>(logits.leftCols(5)));
  const double tau = 0.9 * std::pow(0.5 / 0.9, 0.4);
  CHECK_THAT(gate_of(3).tau(step), Catch::Matchers::WithinRel(tau, 1e-14));
  CHECK(gate_of(3).tau(Step{}) == 0.5);
  const moe::RandomField gumbel = step.random(moe::Purpose::Gumbel);
  for (Index t = 0; t < 30; ++t) {
    double e[3], sum = 0, mask = 0;
    for (Index j = 0; j < 3; ++j) sum += e[j] = std::exp((logits(t, 5 + j) + gumbel.gumbel(t, 5 + j)) / tau);
    for (std::size_t i = 3; i-- > 0;) {
      mask += e[i] / sum;
      CHECK(routing.dropped(t)[i] == 0);
      CHECK_THAT(routing.weights(t)[i], Catch::Matchers::WithinRel(mask * chosen.weights(t)[i], 1e-12));
    }
  }
}

TEST_CASE("TopAnyGate: cold masks are draws from the softmax", "[gate][property]") {
  const Index tokens = 4000;
  const auto logits = with_masks<double>(moe::Matrix<double>::Constant(tokens, 4, 1.0), {0.5, -0.5, 0.2});
  Gate gate = gate_of(3);
  gate.temperature = {.start = 1e-3, .end = 1e-3, .updates = 1};
  const auto routing = test::routed(gate, logits, Step::train(0, 3));
  std::vector<double> counts(3), shares(3);
  for (Index t = 0; t < tokens; ++t) {
    std::size_t kept = 0;
    for (const double weight : routing.weights(t)) kept += weight > 0.125 ? 1 : 0;  // each choice weighs 1/4
    ++counts[kept - 1];
  }
  const double sum = std::exp(0.5) + std::exp(-0.5) + std::exp(0.2);
  for (std::size_t j = 0; j < 3; ++j) shares[j] = std::exp(logits(0, 4 + Index(j))) / sum;
  CHECK(test::chi_square(counts, shares) < 13.8);  // 2 degrees of freedom, p = 0.001
}

TEST_CASE("TopAnyGate: gradients agree with central differences, alone, limited and around limits", "[gate]") {
  auto logits = test::random_logits<double>(14, 6 + 4, 2);
  for (const Step& step : {Step::train(2, 3), Step{}})
    for (const SkippedWeight skipped : {SkippedWeight::Lost, SkippedWeight::Shared}) {
      CAPTURE(int(skipped), step.training());
      const auto around = [&]<class G>(const G& gate) {
        return TopAnyGate<G>{.gate = gate, .k = 4, .temperature = {.start = 0.7, .end = 0.7}, .skipped = skipped};
      };
      const auto check = [&](const auto& gate) {
        const auto routing = test::routed(gate, logits, step);
        auto replayed = routing;
        gate.replay(logits, step, replayed);
        CHECK(test::equal_bits(routing, replayed));
        CHECK(test::gate_gradient_error(gate, logits, step) < 1e-6);
      };
      check(around(TopKGate{.k = 4, .normalise = moe::Normalise::Off}));
      check(around(TopKGate{.k = 4}));
      check(around(moe::TopPGate{.p = 0.8, .most = 4}));  // ragged
      const moe::CapacityOptions capacity{.factor = 0.8, .min_capacity = 1, .weights = moe::KeptWeights::Renormalised};
      check(around(moe::WithCapacity<TopKGate>{.gate = TopKGate{.k = 4}, .capacity = capacity}));
      check(moe::WithSkipping<TopAnyGate<TopKGate>>{.gate = around(TopKGate{.k = 4}), .min_ratio = 0.3});
    }
}

TEST_CASE("kept_choices_loss: the expected number of choices, with its gradient", "[gate]") {
  const Gate gate = gate_of(3);
  auto logits = test::random_logits<double>(9, 5 + 3, 4);
  std::vector<std::uint8_t> valid(9, 1);
  valid[4] = 0;
  Step step = Step::train(1, 2);
  step.valid = valid;
  const auto routing = test::routed(gate, logits, step);
  moe::RoutingGradient<double> gradient;
  const double loss = moe::kept_choices_loss(gate, logits, routing, step, 0.3, gradient);
  double expected = 0;
  const auto chosen = test::routed(gate.gate, moe::Matrix<double>(logits.leftCols(5)), step);
  for (Index t = 0; t < 9; ++t)
    for (std::size_t i = 0; i < 3 && t != 4; ++i) expected += routing.weights(t)[i] / chosen.weights(t)[i] / 8;
  CHECK_THAT(loss, Catch::Matchers::WithinRel(expected, 1e-12));
  const auto weighed = [&] {
    moe::RoutingGradient<double> ignored;
    return 0.3 * moe::kept_choices_loss(gate, logits, routing, step, 0.0, ignored);
  };
  CHECK(test::gradient_error(weighed, logits, gradient.logits) < 1e-8);
  // Driven by it alone, tokens end with one choice each; never with none.
  for (int i = 0; i < 400; ++i) {
    moe::RoutingGradient<double> slope;
    Step next = Step::train(static_cast<std::uint64_t>(i), 2);  // with noise of its own
    next.valid = valid;
    moe::kept_choices_loss(gate, logits, routing, next, 1.0, slope);
    logits -= 4 * slope.logits;
  }
  const auto last = test::routed(gate, logits);
  for (Index t = 0; t < 9; ++t)
    if (t != 4) CHECK(std::ranges::count(last.dropped(t), 0) == 1);
}

TEST_CASE("TopAnyGate: its bits do not depend on what else is in the batch", "[gate][property]") {
  const auto logits = test::random_logits<float>(30, 8 + 3, 6);
  const Gate gate = gate_of(3, SkippedWeight::Shared);
  const test::Everything all(gate, logits, Step::train(2, 8));
  for (const Index t : {0, 7, 29}) {
    const std::vector<std::int64_t> id = {t};
    Step step = Step::train(2, 8);
    step.token_id = id;
    const test::Everything alone(gate, moe::Matrix<float>(logits.row(t)), step);
    CHECK(test::equal_bits(alone.routing.weights(), all.routing.weights(t)));
    CHECK(test::equal_bits(moe::Matrix<float>(alone.back.dlogits.rightCols(3)),
                           moe::Matrix<float>(all.back.dlogits.row(t).rightCols(3))));
  }
}

TEST_CASE("TopAnyGate: masks stay where experts are taken", "[gate]") {
  const Gate gate = gate_of(2);
  STATIC_REQUIRE(Gate::kPerToken);
  STATIC_REQUIRE_FALSE(TopAnyGate<moe::WithCapacity<TopKGate>>::kPerToken);
  CHECK(gate.num_logits(4) == 6);
  CHECK(gate.logits_of(std::vector<Index>{3, 0, 1}, 4) == std::vector<Index>{3, 0, 1, 4, 5});
  CHECK(gate.take(std::vector<Index>{3, 0}, 4).k == 2);
  CHECK_THROWS_AS(gate.take(std::vector<Index>{3}, 4), std::invalid_argument);
  CHECK(moe::detail::num_logits(moe::WithSkipping<Gate>{.gate = gate}, 4) == 6);
}

TEST_CASE("TopAnyGate: numbers out of range, masks that say nothing and too many choices are refused",
          "[gate][error]") {
  CHECK_THROWS_WITH((Gate{.k = 0}.validate(4)), "moe::TopAnyGate: k is 0, expected at least 1");
  CHECK_THROWS_AS((Gate{.temperature = {.start = 0.1, .end = 1}}.validate(4)), std::invalid_argument);
  CHECK_THROWS_WITH(test::routed(gate_of(2), test::row<double>({1, 2})),
                    "moe::TopAnyGate::route: logits have 2 columns, expected more than k = 2, which is at least 1");
  CHECK_THROWS_WITH(test::routed(gate_of(2), test::row<double>({1, 2, 3, NAN, 1})),
                    "moe::TopAnyGate::route: mask 1 of token 0 is nan, expected a number");
  CHECK_THROWS_WITH(test::routed(gate_of(2), test::row<double>({1, 2, 3, -INFINITY, -INFINITY})),
                    "moe::TopAnyGate::route: the largest mask of token 0 is -inf, expected a finite one");
  Gate narrow = gate_of(3);
  narrow.k = 2;
  CHECK_THROWS_WITH(test::routed(narrow, test::random_logits<double>(1, 7, 1)),
                    "moe::TopAnyGate::route: token 0 has 3 choices, expected at most k = 2");
  // The loss writes nothing then.
  const auto logits = test::random_logits<double>(2, 7, 1);
  auto broken = logits;
  broken(1, 5) = NAN;
  moe::RoutingGradient<double> gradient;
  gradient.logits = moe::Matrix<double>::Zero(2, 7);
  const auto loss = [&](const Gate& routed_by, const moe::Matrix<double>& of) {
    return moe::kept_choices_loss(narrow, of, test::routed(routed_by.gate, moe::Matrix<double>(of.leftCols(4))), Step{},
                                  1.0, gradient);
  };
  CHECK_THROWS_WITH(loss(narrow, logits), "moe::kept_choices_loss: token 0 has 3 choices, expected at most k = 2");
  CHECK_THROWS_WITH(loss(gate_of(2), broken), "moe::kept_choices_loss: mask 1 of token 1 is nan, expected a number");
  CHECK((gradient.logits.array() == 0).all());
  Step padding;
  const std::vector<std::uint8_t> valid = {0};
  padding.valid = valid;
  CHECK_NOTHROW(test::routed(gate_of(2), test::row<double>({1, 2, 3, NAN, NAN}), padding));
}
