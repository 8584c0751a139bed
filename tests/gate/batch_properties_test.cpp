// SPDX-License-Identifier: MIT
// What holds for gates that look at the whole batch, at codes or through another gate, as for those of
// properties_test.cpp.
#include "moe/gate/balanced.hpp"
#include "moe/gate/dense_to_sparse.hpp"
#include "moe/gate/dselect_k.hpp"
#include "moe/gate/sinkhorn.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/grouped.hpp"
#include "moe/gate/wrap/straight_through.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::BalancedGate;
using moe::DSelectKGate;
using moe::GroupedGate;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::StraightThrough;
using moe::TopKGate;

namespace {

TopKGate raw_top_k(Index k) { return {.k = k, .normalise = moe::Normalise::Off}; }

/// Calls f(name, gate) for gates that have a logit per expert, which may be masked, and k choices or one.
template <class F>
void for_each_gate_of_logits(Index k, F&& f) {
  f("balanced", BalancedGate{});
  f("balanced by auction", BalancedGate{.assignment = {.solver = moe::AssignmentSolver::Auction}});
  f("sinkhorn", moe::SinkhornGate{.top_k = raw_top_k(k)});
  f("grouped", GroupedGate<TopKGate>{raw_top_k(k)});
  f("grouped, dense",
    GroupedGate<moe::DenseToSparseGate<moe::LearnableTemperature>>{{.threshold = 0.3 / static_cast<double>(k)}});
  f("straight through", StraightThrough<TopKGate>{raw_top_k(k)});
  f("straight through groups", StraightThrough<GroupedGate<TopKGate>>{{raw_top_k(k)}});
}

/// The same and those whose logits are of codes.
template <class F>
void for_each_gate(Index experts, Index k, F&& f) {
  for_each_gate_of_logits(k, f);
  f("dselect", DSelectKGate{.num_experts = experts});
  f("grouped dselect", GroupedGate<DSelectKGate>{{.num_experts = experts}});
}

template <class G>
Index num_logits(const G& gate, Index experts) {
  return moe::detail::num_logits(gate, experts);
}

/// Whether backward is the derivative of route().
template <class G>
constexpr bool kIsDerivative = true;
template <class G>
constexpr bool kIsDerivative<StraightThrough<G>> = false;

/// Groups that stand in turns, and padding; two steps of an update, and of inference.
struct Batch {
  explicit Batch(Index tokens) : valid(test::every_nth_padding(tokens, 11)) {
    for (Index t = 0; t < tokens; ++t) group.push_back(t % 7);
    for (Step* step : {&train, &infer}) {
      step->group_id = group;
      step->valid = valid;
    }
  }
  std::vector<std::int64_t> group;
  std::vector<std::uint8_t> valid;
  Step train = Step::train(1), infer;
};

template <class S>
void require_finite(const Matrix<S>& matrix) {
  REQUIRE(std::isfinite(test::largest(matrix)));
}

/// Calls f(name, call) for each member that reads logits.
template <class G, class F>
void for_each_member(const G& gate, const Matrix<double>& good, const Matrix<double>& logits, const Step& step, F&& f) {
  const auto routing = test::routed(gate, good, step);
  const test::Backward<double, G> back(gate, good, step, routing);
  f("route", [&] { test::routed(gate, logits, step); });
  f("probabilities", [&] { test::probabilities(gate, logits, step); });
  f("replay", [&, replayed = routing]() mutable { gate.replay(logits, step, replayed); });
  f("backward", [&, dlogits = Matrix<double>(), gradient = gate]() mutable {
    gate.template backward<double>(logits, step, routing, back.dweight, back.dprobability, dlogits, gradient);
  });
}

}  // namespace

TEMPLATE_TEST_CASE("Gates over the batch: all bits are the same for any number of threads", "[gate][property]", float,
                   double) {
  const Batch batch(300);
  for_each_gate(9, 3, [&]<class G>(const char* name, const G& gate) {
    auto logits = test::random_logits<TestType>(300, num_logits(gate, 9), 41, 0.5);
    for (Index t = 0; t < 300; t += 11) logits.row(t).setConstant(test::kNan<TestType>);
    for (const Step& step : {batch.train, batch.infer}) {
      const test::Everything<TestType, G> serial(gate, logits, step);
      CAPTURE(name, step.training());
      require_finite(serial.back.dlogits);
      for (Index t = 0; t < 300; t += 11) {
        REQUIRE(serial.routing.experts(t).empty());
        REQUIRE(test::all_zero(serial.p.row(t)));
        REQUIRE(test::all_zero(serial.back.dlogits.row(t)));
      }
      const auto results = test::on_thread_counts([&] { return test::Everything<TestType, G>(gate, logits, step); });
      for (const auto& result : results) REQUIRE(serial.equals(result));
    }
  });
}

TEST_CASE("Gates over the batch: one expert, two and all of them, with gradients and replay", "[gate][property]") {
  const Batch batch(23);
  for (const auto& sizes : {std::pair<Index, Index>{1, 1}, {2, 2}, {5, 5}, {8, 2}}) {
    const Index experts = sizes.first, k = sizes.second;
    for_each_gate(experts, k, [&]<class G>(const char* name, const G& gate) {
      const auto logits = test::random_logits<double>(23, num_logits(gate, experts), 42, 0.5);
      for (const Step& step : {Step::train(1), batch.train, batch.infer}) {
        CAPTURE(name, experts, k, step.training());
        const auto routing = test::routed(gate, logits, step);
        for (Index t = 0; t < 23; ++t) REQUIRE(routing.experts(t).empty() != step.is_valid(t));
        auto replayed = routing;
        std::ranges::fill(replayed.weights(), -1.0);
        gate.replay(logits, step, replayed);
        REQUIRE(test::equal_bits(replayed, routing));
        if constexpr (kIsDerivative<G>) REQUIRE(test::gate_gradient_error(gate, logits, step) < 1e-6);
        require_finite(test::Backward<double, G>(gate, logits, step, routing).dlogits);
      }
    });
  }
}

TEST_CASE("Gates over the batch: all of five thousand experts", "[gate]") {
  constexpr Index kExperts = 5000;
  for_each_gate(kExperts, kExperts, [&]<class G>(const char* name, const G& gate) {
    const Matrix<float> logits =
        test::random_logits<float>(3, num_logits(gate, kExperts), 43, std::is_same_v<G, BalancedGate> ? 1 : 0.01);
    const test::Everything<float, G> all(gate, logits, Step::train(1));
    CAPTURE(name);
    require_finite(all.back.dlogits);
    REQUIRE(all.p.cols() == kExperts);
    if constexpr (std::is_same_v<G, BalancedGate>) {
      for (Index t = 0; t < 3; ++t) {  // far fewer tokens than experts: each gets its best
        Index best = 0;
        for (Index e = 1; e < kExperts; ++e) best = logits(t, e) > logits(t, best) ? e : best;
        REQUIRE(test::experts_of(all.routing, t) == std::vector<Index>{best});
      }
    } else {
      const auto weights = test::dense(all.routing, kExperts);
      REQUIRE(all.routing.num_assignments() == 3 * kExperts);
      for (Index i = 0; i < weights.size(); ++i) REQUIRE(weights.data()[i] > 0);
    }
  });
}

TEST_CASE("Gates over the batch: no tokens give an empty routing and matrices of the right width", "[gate]") {
  for_each_gate(6, 2, [&]<class G>(const char* name, const G& gate) {
    const Matrix<float> logits(0, num_logits(gate, 6));
    for (const Step& step : {Step{}, Step::train(1)}) {
      const test::Everything<float, G> none(gate, logits, step);
      CAPTURE(name, step.training());
      CHECK(none.routing.num_tokens() == 0);
      CHECK(none.routing.num_assignments() == 0);
      CHECK(none.p.rows() == 0);
      CHECK(none.p.cols() == 6);
      CHECK(none.back.dlogits.rows() == 0);
      CHECK(none.back.dlogits.cols() == logits.cols());
    }
  });
}

TEST_CASE("Gates over the batch: NaN and infinity are refused by every member", "[gate][error]") {
  for_each_gate(5, 2, [&](const char* name, const auto& gate) {
    const auto good = test::random_logits<double>(6, num_logits(gate, 5), 44, 0.5);
    for (const Step& step : {Step{}, Step::train(1)})
      for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
        auto logits = good;
        logits(4, 1) = bad;
        for_each_member(gate, good, logits, step, [&](const char* member, auto call) {
          CAPTURE(name, member, bad, step.training());
          CHECK_THROWS_AS(call(), std::invalid_argument);
          CHECK_THROWS_WITH(call(), ContainsSubstring("token 4") && ContainsSubstring(std::isnan(bad) ? "nan" : "inf"));
        });
      }
  });
  const DSelectKGate gate{.num_experts = 5};  // has no masks
  const auto good = test::random_logits<double>(6, 8, 44, 0.5);
  auto logits = good;
  logits(4, 1) = -INFINITY;
  for_each_member(gate, good, logits, Step{}, [&](const char* member, auto call) {
    CAPTURE(member);
    CHECK_THROWS_WITH(call(), ContainsSubstring("logit 1 of token 4 is -inf, expected a finite number"));
  });
}

TEMPLATE_TEST_CASE("Gates over the batch: masked experts get no choice, no score and no gradient", "[gate]", float,
                   double) {
  constexpr Index kTokens = 5, kExperts = 8;
  auto logits = test::random_logits<TestType>(kTokens, kExperts, 45);
  logits.col(3).setConstant(-std::numeric_limits<TestType>::infinity());
  for (Index t = 0; t < kTokens; ++t) logits(t, t) = -std::numeric_limits<TestType>::infinity();
  for_each_gate_of_logits(2, [&]<class G>(const char* name, const G& gate) {
    for (const Step& step : {Step{}, Step::train(1)}) {
      const test::Everything<TestType, G> all(gate, logits, step);
      CAPTURE(name, step.training());
      require_finite(all.back.dlogits);
      for (Index t = 0; t < kTokens; ++t) {
        REQUIRE(!all.routing.experts(t).empty());
        for (std::size_t s = 0; s < all.routing.experts(t).size(); ++s) {
          REQUIRE(std::isfinite(logits(t, all.routing.experts(t)[s])));
          REQUIRE(all.routing.weights(t)[s] > 0);
        }
        for (const Index e : {t, Index{3}}) {
          REQUIRE(all.p(t, e) == 0);
          REQUIRE(all.back.dlogits(t, e) == 0);
        }
      }
      auto none = logits;
      none.row(2).setConstant(-std::numeric_limits<TestType>::infinity());
      REQUIRE_THROWS_AS(test::routed(gate, none, step), std::invalid_argument);
    }
  });
}
