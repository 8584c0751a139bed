// SPDX-License-Identifier: MIT
#include "moe/gate/sparse_mixer.hpp"

#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::SparseMixerGate;

namespace {

/// The rule as it is written down: pass by pass, in double, the division and its zero included.
void check_token(const std::vector<double>& z, double jitter, const moe::Routing<double>& routing, Index t) {
  std::vector<bool> gone(z.size(), false);
  for (std::size_t pass = 0; pass < 2; ++pass) {
    std::size_t best = z.size();
    for (std::size_t e = 0; e < z.size(); ++e)
      if (!gone[e] && (best == z.size() || z[e] > z[best])) best = e;
    double sum = 0;
    for (std::size_t e = 0; e < z.size(); ++e) {
      const double ratio = (z[best] - z[e]) / std::max(std::abs(z[e]), z[best]);
      if (!gone[e] && !(ratio > 2 * jitter)) sum += std::exp(z[e] - z[best]);
    }
    CHECK(routing.experts(t)[pass] == static_cast<Index>(best));
    CHECK_THAT(routing.weights(t)[pass], WithinAbs(1 / sum, 1e-15));
    gone[best] = true;
  }
}

}  // namespace

TEST_CASE("SparseMixerGate: two passes of a masked softmax", "[gate]") {
  for (const Index experts : {2, 3, 8, 17})
    for (const double jitter : {0.0, 0.01, 0.25, 0.6}) {
      const auto logits = test::random_logits<double>(40, experts, 5);
      const auto routing = test::routed(SparseMixerGate{jitter}, logits);
      CAPTURE(experts, jitter);
      for (Index t = 0; t < logits.rows(); ++t)
        check_token({logits.row(t).data(), logits.row(t).data() + experts}, jitter, routing, t);
    }
}

TEST_CASE("SparseMixerGate: close logits share a pass, far ones do not", "[gate]") {
  // (5 - 4.99) / 5 is within 2 * 0.01, (5 - 1) / 5 is not; in the second pass 4.99 stands alone.
  const auto routing = test::routed(SparseMixerGate{}, test::row<double>({1, 5, 4.99, -3}));
  CHECK(test::experts_of(routing) == std::vector<Index>{1, 2});
  CHECK_THAT(routing.weights(0)[0], WithinAbs(1 / (1 + std::exp(-0.01)), 1e-15));
  CHECK(routing.weights(0)[1] == 1);
}

TEST_CASE("SparseMixerGate: logits of zero and equal logits divide by nothing", "[gate]") {
  const auto zeros = test::routed(SparseMixerGate{}, test::row<double>({0, 0, 0}));
  CHECK(test::experts_of(zeros) == std::vector<Index>{0, 1});
  CHECK_THAT(zeros.weights(0)[0], WithinAbs(1.0 / 3, 1e-15));
  CHECK_THAT(zeros.weights(0)[1], WithinAbs(0.5, 1e-15));
  const auto masked = test::routed(SparseMixerGate{}, test::row<double>({-INFINITY, -1, -2}));
  CHECK(test::experts_of(masked) == std::vector<Index>{1, 2});
  CHECK(masked.weights(0)[0] == 1);
}

TEST_CASE("SparseMixerGate: gradients agree with central differences", "[gate]") {
  for (const Index experts : {2, 5, 17})
    for (const double jitter : {0.01, 0.4}) {
      CAPTURE(experts, jitter);
      const auto logits = test::random_logits<double>(6, experts, 31);
      CHECK(test::gate_gradient_error(SparseMixerGate{jitter}, logits) < 1e-6);
    }
}

TEST_CASE("SparseMixerGate: dropped choices get no gradient", "[gate]") {
  const auto logits = test::random_logits<double>(4, 6, 32);
  auto routing = test::routed(SparseMixerGate{.jitter = 0.4}, logits);
  for (const Index a : {0, 3, 4, 5}) routing.drop(a, moe::kDroppedByCapacity);
  CHECK(test::gate_gradient_error(SparseMixerGate{.jitter = 0.4}, logits, {}, routing) < 1e-6);
}

TEST_CASE("SparseMixerGate: one expert, a bad jitter and masked tokens are refused", "[gate][error]") {
  CHECK_THROWS_AS(SparseMixerGate{}.validate(1), std::invalid_argument);
  CHECK_THROWS_AS(SparseMixerGate{.jitter = -1}.validate(4), std::invalid_argument);
  CHECK_THROWS_AS(SparseMixerGate{.jitter = NAN}.validate(4), std::invalid_argument);
  CHECK_THROWS_AS(test::routed(SparseMixerGate{}, test::row<double>({1, -INFINITY, -INFINITY})), std::invalid_argument);
  CHECK_THROWS_AS(test::routed(SparseMixerGate{}, test::row<double>({1, NAN, 2})), std::invalid_argument);
}
