// SPDX-License-Identifier: MIT
#include "moe/gaussian/inference/identifiability.hpp"

#include <cmath>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "support/catch.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Identifiability;
using moe::Index;
using Tau = moe::LearnableTemperature;

/// A model of two lines with a gate, slopes times `steepness`.
template <class Gate>
moe::GaussianMoe<Gate> lines_with(const Gate& gate, double tau, double steepness = 1) {
  moe::GaussianMoe<Gate> model(test::two_lines(), gate);
  model.temperature = tau;
  model.gate_slope *= steepness;
  return model;
}

template <class Gate>
moe::IdentifiabilityReport report_of(const moe::GaussianMoe<Gate>& model, Index n = 500) {
  return moe::identifiability(model, test::simulated(model, n, 61));
}

}  // namespace

TEST_CASE("identifiability: nothing stands against a well separated softmax mixture", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 500, 60);
  const auto report = moe::identifiability(moe::fit_from(data, test::two_lines()).model, data);
  CHECK(report.findings.empty());
  CHECK(report.rank == 8);
  CHECK(report.full_rank());
  CHECK(report.information_ratio > 1e-3);
  CHECK_THAT(moe::to_string(report), ContainsSubstring("rank 8 of 8") && ContainsSubstring("nothing stands"));
}

TEST_CASE("identifiability: the null direction of a free temperature is its ray", "[gaussian]") {
  const auto check = [](const auto& model) {
    const auto report = report_of(model);
    const auto* ray = report.find(Identifiability::TemperatureRay);
    REQUIRE(ray);
    CHECK(ray->number < 1e-7);  // square root of what is left of sums of squares that cancel: sqrt(eps)
    CHECK(report.rank == 8);    // of 9
    CHECK_FALSE(report.find(Identifiability::RankDeficient));  // the null vector found is the ray itself
    // (beta_1, beta_0, 1) / largest
    REQUIRE(ray->direction.size() == 9);
    const double top = std::abs(model.gate_slope(0, 0));
    REQUIRE(top > 1);
    CHECK(std::abs(ray->direction(0) - 1) < 1e-12);
    CHECK(std::abs(ray->direction(1) - model.gate_bias(0) / model.gate_slope(0, 0)) < 1e-12);
    CHECK(std::abs(ray->direction(2) - 1 / model.gate_slope(0, 0)) < 1e-12);
    CHECK(ray->direction.tail(6).isZero(1e-12));
    CHECK_THAT(moe::to_string(report), ContainsSubstring("direction: beta1[0,0]"));
  };
  check(lines_with(moe::DenseToSparseGate<Tau>{}, 0.7));
  check(lines_with(moe::ActivationGate<moe::Relu, Tau>{}, 0.7));
}

TEST_CASE("identifiability: a tanh gate identifies its temperature where it bends, not where it is straight",
          "[gaussian]") {
  using Gate = moe::ActivationGate<moe::Tanh, Tau>;
  const auto bent = report_of(lines_with(Gate{}, 0.5), 2000);
  CHECK(bent.rank == 9);
  CHECK_FALSE(bent.find(Identifiability::TemperatureRay));
  CHECK_FALSE(bent.find(Identifiability::WeakActivation));
  const auto straight = report_of(lines_with(Gate{}, 0.05, 0.05), 2000);
  const auto* weak = straight.find(Identifiability::WeakActivation);
  REQUIRE(weak);
  CHECK(weak->number > 0.5);
  CHECK_THAT(weak->why, ContainsSubstring("tanh"));
}

TEST_CASE("identifiability: odd activations exchange two free slopes", "[gaussian]") {
  moe::ActivationGate<moe::Sigmoid, Tau> gate;
  for (const auto place : {moe::BiasPlace::Outside, moe::BiasPlace::Inside}) {
    gate.bias_place = place;
    auto model = lines_with(gate, 0.3);
    model.last_slope = moe::LastSlope::Free;
    model.gate_slope(1, 0) = 1.3;
    if (place == moe::BiasPlace::Inside) model.gate_bias(1) = 0.4;
    const auto report = report_of(model, 300);
    const auto* finding = report.find(Identifiability::SignSymmetry);
    REQUIRE(finding);
    CHECK(finding->number < 1e-9);  // 300 terms of order 1, rounded
  }
  CHECK_FALSE(report_of(lines_with(gate, 0.3)).find(Identifiability::SignSymmetry));  // one slope is pinned
  auto gelu = lines_with(moe::ActivationGate<moe::Gelu, Tau>{}, 0.3);
  gelu.last_slope = moe::LastSlope::Free;
  CHECK_FALSE(report_of(gelu).find(Identifiability::SignSymmetry));
}

TEST_CASE("identifiability: one active expert leaves a partition", "[gaussian]") {
  const auto report = report_of(lines_with(moe::TopKGate{.k = 1}, 1));
  CHECK(report.find(Identifiability::PartitionOnly));
  CHECK(report.rank == 6);
  CHECK_FALSE(report.find(Identifiability::RankDeficient));
  CHECK_FALSE(report.find(Identifiability::NeverTogether));
}

TEST_CASE("identifiability: sparse gates name experts and pairs that no row selects", "[gaussian]") {
  const moe::TopKGate gate{.k = 2};
  const auto three = moe::GaussianMoe<moe::TopKGate>(test::three_lines(), gate);
  const auto report = report_of(three);
  const auto* apart = report.find(Identifiability::NeverTogether);
  REQUIRE(apart);  // the outer experts: slopes -5, -2.5, 0 put the middle one into every pair
  CHECK_THAT(apart->title, ContainsSubstring("0 and 2"));
  auto dead = three;
  dead.gate_bias(1) = -20;
  const auto missing = report_of(dead);
  const auto* never = missing.find(Identifiability::NeverActive);
  REQUIRE(never);
  CHECK_THAT(never->title, ContainsSubstring("expert 1"));
  CHECK_THAT(moe::to_string(missing), ContainsSubstring("parameters without influence") && ContainsSubstring("b[1]"));
  CHECK(missing.rank == missing.num_parameters() - 5);  // its gate, line and variance
}

TEST_CASE("identifiability: the same expert twice", "[gaussian]") {
  auto model = moe::GaussianMoe<>::zero(3, 1);
  const auto two = test::two_lines();
  model.gate_slope << two.gate_slope, 0;
  model.slope << two.slope, two.slope(1, 0);
  model.intercept << two.intercept, two.intercept(1);
  model.variance << two.variance, two.variance(1);
  const auto report = report_of(model, 1000);
  const auto* twins = report.find(Identifiability::CoincidingExperts);
  REQUIRE(twins);
  CHECK_THAT(twins->title, ContainsSubstring("1 and 2"));
  CHECK(twins->number == 0);
  // w N(a, b, nu) twice with constant weights: differences of a, b, nu and the split of the weight, 4 directions, but
  // not the slope of the split, 13 - 5: it moves both lines to the same density as well
  CHECK(report.rank == 8);
  CHECK(report.find(Identifiability::RankDeficient));
  CHECK_FALSE(report_of(test::three_lines()).find(Identifiability::CoincidingExperts));
}

TEST_CASE("identifiability: separated gates and saddles", "[gaussian]") {
  auto steep = test::two_lines();
  steep.gate_slope(0, 0) = -200;
  const auto step = test::simulated(moe::GaussianMoe<moe::TopKGate>(steep, {.k = 1}), 500, 61);
  const auto separated = moe::identifiability(steep, step);
  const auto* finding = separated.find(Identifiability::SeparatedGate);
  REQUIRE(finding);
  CHECK(finding->number > 100);
  const auto data = test::simulated(test::two_lines(), 300, 62);
  auto wrong = test::two_lines();
  wrong.variance *= 100;  // far too wide: twice the mean of e^2 / nu - 1 is negative
  const auto report = moe::identifiability(wrong, data);
  CHECK(report.find(Identifiability::NotAMaximum));
}

TEST_CASE("identifiability: errors name what is wrong", "[gaussian][error]") {
  auto data = test::simulated(test::two_lines(), 50, 63);
  data.x.setConstant(2);
  CHECK_THROWS_WITH(moe::identifiability(test::two_lines(), data), ContainsSubstring("column 0 of x is constant"));
}
