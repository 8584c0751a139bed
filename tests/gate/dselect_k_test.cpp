// SPDX-License-Identifier: MIT
#include "moe/gate/dselect_k.hpp"

#include "moe/gate/dselect_k_loss.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using moe::DSelectKGate;
using moe::Index;
using moe::Matrix;
using moe::Step;

namespace {

double smooth_step(double t, double g) {
  return t <= -g / 2 ? 0 : t >= g / 2 ? 1 : -2 * t * t * t / (g * g * g) + 3 * t / (2 * g) + 0.5;
}

/// Straight from the definition: selector after selector, expert after expert, bit after bit.
std::vector<double> weights_of(const DSelectKGate& gate, const Matrix<double>& logits, Index t) {
  const Index bits = DSelectKGate::num_bits(gate.num_experts), each = 1 + bits;
  double sum = 0;
  for (Index s = 0; s < gate.k; ++s) sum += std::exp(logits(t, s * each));
  std::vector<double> weights;
  for (Index e = 0; e < gate.num_experts; ++e) {
    double weight = 0;
    for (Index s = 0; s < gate.k; ++s) {
      double r = 1;
      for (Index b = 0; b < bits; ++b) {
        const double one = smooth_step(logits(t, s * each + 1 + b), gate.width);
        r *= (e >> b & 1) != 0 ? one : 1 - one;
      }
      weight += std::exp(logits(t, s * each)) / sum * r;
    }
    weights.push_back(weight);
  }
  return weights;
}

Matrix<double> logits_of(const DSelectKGate& gate, Index tokens, std::uint64_t seed, double scale = 0.4) {
  return test::random_logits<double>(tokens, gate.num_logits(gate.num_experts), seed, scale);
}

/// As gate_gradient_error(), whose gradients of probabilities are as wide as the logits.
double gradient_error(const DSelectKGate& gate, Matrix<double> logits, moe::Routing<double> routing) {
  const auto dp = test::random_logits<double>(logits.rows(), gate.num_experts, 6);
  std::vector<double> dweight;
  for (std::size_t a = 0; a < routing.weights().size(); ++a) dweight.push_back(std::sin(static_cast<double>(a + 1)));
  Matrix<double> dlogits;
  DSelectKGate gradient = gate;
  gate.backward<double>(logits, Step{}, routing, dweight, dp, dlogits, gradient);
  const auto loss = [&] {
    auto replayed = routing;
    gate.replay<double>(logits, Step{}, replayed);
    double sum = test::inner(dp, test::probabilities(gate, logits));
    for (std::size_t a = 0; a < dweight.size(); ++a) sum += dweight[a] * replayed.weights()[a];
    return sum;
  };
  return test::gradient_error(loss, logits, dlogits);
}

}  // namespace

TEST_CASE("DSelectKGate: asks for a weight and a code per selector", "[gate]") {
  for (const auto& [experts, bits] :
       {std::pair<Index, Index>{1, 0}, {2, 1}, {3, 2}, {4, 2}, {5, 3}, {64, 6}, {5000, 13}})
    CHECK(moe::detail::num_logits(DSelectKGate{.num_experts = experts, .k = 3}, experts) == 3 * (1 + bits));
}

TEST_CASE("DSelectKGate: equals its definition, without experts of weight zero", "[gate]") {
  for (const Index experts : {1, 2, 3, 7, 8, 17, 64})
    for (const Index k : {1, 2, 4}) {
      CAPTURE(experts, k);
      const DSelectKGate gate{.num_experts = experts, .k = k, .width = 0.7};
      const auto logits = logits_of(gate, 20, 5);
      const auto routing = test::routed(gate, logits);
      const auto p = test::probabilities(gate, logits);
      bool sparse = false;
      for (Index t = 0; t < 20; ++t) {
        const auto expected = weights_of(gate, logits, t);
        std::vector<Index> chosen;
        for (Index e = 0; e < experts; ++e) {
          CHECK_THAT(p(t, e), WithinAbs(expected[static_cast<std::size_t>(e)], 1e-15));
          if (expected[static_cast<std::size_t>(e)] > 0) chosen.push_back(e);
        }
        CHECK(test::experts_of(routing, t) == chosen);
        for (std::size_t s = 0; s < chosen.size(); ++s) CHECK(routing.weights(t)[s] == p(t, chosen[s]));
        sparse = sparse || std::ssize(chosen) < experts;
      }
      CHECK((sparse || experts < 7));  // of few experts four selectors may need all
    }
}

TEST_CASE("DSelectKGate: the step is continuous and flat at both ends, in width", "[gate]") {
  const moe::detail::SmoothStep step{0.5};
  CHECK(step.value(-0.25) == 0);
  CHECK(step.value(0.25) == 1);
  CHECK(step.value(0.0) == 0.5);
  CHECK_THAT(step.derivative(0.0), WithinAbs(3, 1e-15));  // 3 / (2 width)
  for (const double end : {-0.25, 0.25}) {
    CHECK(step.derivative(end) == 0);
    for (const double beside : {end - 1e-7, end + 1e-7}) {
      CHECK_THAT(step.value(beside), WithinAbs(step.value(end), 1e-12));  // 1.5 (1e-7 / width)^2 * 4
      CHECK_THAT(step.derivative(beside), WithinAbs(0, 1e-5));            // 48 * 1e-7
    }
  }
}

TEST_CASE("DSelectKGate: settled codes choose k experts, weighed by their selectors", "[gate]") {
  const DSelectKGate gate{.num_experts = 8, .k = 2};
  // Selector 0: expert 0b101, selector 1: expert 0b010; alphas 1 and 0.
  const auto routing = test::routed(gate, test::row<double>({1, 0.5, -0.6, 9, 0, -1, 0.7, -0.5}));
  CHECK(test::experts_of(routing) == std::vector<Index>{2, 5});
  CHECK_THAT(routing.weights(0)[0], WithinAbs(1 / (1 + std::exp(1.0)), 1e-15));
  CHECK_THAT(routing.weights(0)[1], WithinAbs(1 / (1 + std::exp(-1.0)), 1e-15));
  // Both on one expert: all of the weight.
  const auto same = test::routed(gate, test::row<double>({1, 1, 1, 1, 0, 1, 1, 1}));
  CHECK(test::experts_of(same) == std::vector<Index>{7});
  CHECK_THAT(same.weights(0)[0], WithinAbs(1, 1e-15));
}

TEST_CASE("DSelectKGate: weights sum to 1 for powers of two, and lose what no expert has", "[gate][property]") {
  for (const Index experts : {4, 8, 5, 6}) {
    const DSelectKGate gate{.num_experts = experts, .k = 3};
    const auto logits = logits_of(gate, 10, 7, 0.2);
    const auto p = test::probabilities(gate, logits);
    for (Index t = 0; t < 10; ++t) {
      const double sum = test::total(p.row(t));
      if (experts == 4 || experts == 8)
        CHECK_THAT(sum, WithinAbs(1, 1e-14));
      else
        CHECK(sum < 1);
    }
  }
  const DSelectKGate gate{.num_experts = 5, .k = 1};
  CHECK(test::routed(gate, test::row<double>({0, 1, 1, 1})).num_assignments() == 0);  // code 7
}

TEST_CASE("DSelectKGate: gradients agree with central differences", "[gate]") {
  for (const Index experts : {1, 2, 5, 8, 13})
    for (const Index k : {1, 3}) {
      CAPTURE(experts, k);
      const DSelectKGate gate{.num_experts = experts, .k = k, .width = 1.5};
      const auto logits = logits_of(gate, 6, 9);
      auto routing = test::routed(gate, logits);
      CHECK(gradient_error(gate, logits, routing) < 1e-6);
      for (Index a = 0; a < routing.num_assignments(); a += 3) routing.drop(a, moe::kDroppedByCapacity);
      CHECK(gradient_error(gate, logits, routing) < 1e-6);
    }
}

TEST_CASE("DSelectKGate: losses are those of the distribution over codes, with its gradients", "[gate]") {
  for (const Index experts : {1, 4, 5, 8, 11}) {
    CAPTURE(experts);
    const DSelectKGate gate{.num_experts = experts, .k = 2, .width = 2};
    auto logits = logits_of(gate, 7, 11);
    const auto valid = test::every_nth_padding(7, 3);
    Step step;
    step.valid = valid;
    // All codes as experts of a gate of their own, one selector at a time.
    const Index bits = DSelectKGate::num_bits(experts), codes = Index{1} << bits;
    double entropy = 0, unused = 0;
    for (const Index t : {1, 2, 4, 5})
      for (Index s = 0; s < 2; ++s) {
        const Matrix<double> own = logits.block(t, s * (1 + bits), 1, 1 + bits);
        const auto r = weights_of({.num_experts = codes, .k = 1, .width = 2}, own, 0);
        for (Index c = 0; c < codes; ++c) {
          const double p = r[static_cast<std::size_t>(c)];
          entropy -= p > 0 ? p * std::log(p) / 4 : 0;
          unused += c >= experts ? p / 4 : 0;
        }
      }
    moe::RoutingGradient<double> of_entropy, of_unused, ignored;
    CHECK_THAT(moe::code_entropy_loss<double>(gate, logits, step, 0.3, of_entropy), WithinAbs(entropy, 1e-13));
    CHECK_THAT(moe::unused_code_loss<double>(gate, logits, step, 0.3, of_unused), WithinAbs(unused, 1e-13));
    CHECK(test::gradient_error([&] { return 0.3 * moe::code_entropy_loss<double>(gate, logits, step, 0, ignored); },
                               logits, of_entropy.logits) < 1e-6);
    CHECK(test::gradient_error([&] { return 0.3 * moe::unused_code_loss<double>(gate, logits, step, 0, ignored); },
                               logits, of_unused.logits) < 1e-6);
  }
}

TEST_CASE("DSelectKGate: float, padding, threads and a batch of one token", "[gate][property]") {
  const DSelectKGate gate{.num_experts = 1500, .k = 2};  // too many for the stack
  auto logits = test::random_logits<float>(70, gate.num_logits(1500), 3, 0.4);
  const auto valid = test::every_nth_padding(70, 4);
  for (Index t = 0; t < 70; t += 4) logits.row(t).setConstant(NAN);
  Step step;
  step.valid = valid;
  const auto results = test::on_thread_counts([&] { return test::routed(gate, logits, step); });
  for (const auto& result : results) CHECK(test::equal_bits(result, results.front()));
  CHECK(results[0].experts(4).empty());
  const auto one = test::routed(gate, moe::Matrix<float>(logits.row(9)));
  CHECK(test::equal_bits(one.experts(), results[0].experts(9)));
  CHECK(test::equal_bits(one.weights(), results[0].weights(9)));
  CHECK(test::routed(gate, moe::Matrix<float>(0, gate.num_logits(1500))).num_assignments() == 0);
}

TEST_CASE("DSelectKGate: bad numbers and logits are refused", "[gate][error]") {
  CHECK_THROWS_WITH(DSelectKGate{}.validate(4), "moe::DSelectKGate: num_experts is 0, expected at least 1");
  CHECK_THROWS_WITH((DSelectKGate{.num_experts = 3}.validate(4)),
                    "moe::DSelectKGate: num_experts is 3, expected 4 as in the layer");
  CHECK_THROWS_WITH((DSelectKGate{.num_experts = 4, .k = 0}.validate(4)), ContainsSubstring("k is 0"));
  CHECK_THROWS_WITH((DSelectKGate{.num_experts = 4, .width = NAN}.validate(4)), ContainsSubstring("width is nan"));
  const DSelectKGate gate{.num_experts = 4, .k = 1};
  CHECK_THROWS_WITH(test::routed(gate, test::row<double>({1, 2})),
                    "moe::DSelectKGate::route: logits is [1, 2], expected [1, 3]");
  for (const double bad : {NAN, -INFINITY})
    CHECK_THROWS_WITH(test::routed(gate, test::row<double>({1, bad, 2})),
                      ContainsSubstring("moe::DSelectKGate::route: logit 1 of token 0 is "));
}
