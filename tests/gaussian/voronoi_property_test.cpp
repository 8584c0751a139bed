// SPDX-License-Identifier: MIT
#include <bit>

#include "gaussian/models.hpp"
#include "moe/gaussian/theory/voronoi.hpp"
#include "support/catch.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;

namespace {

using Dense = moe::GaussianMoe<moe::SoftmaxGate>;
using TopK = moe::GaussianMoe<moe::TopKGate>;
using Activated = moe::GaussianMoe<moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>>;

constexpr auto kCentred = moe::VoronoiShift::Centred;

/// Sums of some ten positive terms in another order: some 1e-15.
constexpr double kRounding = 1e-12;

/// The experts in another order.
moe::GaussianParameters permuted(const moe::GaussianParameters& model, const std::vector<Index>& order) {
  moe::GaussianParameters result = model;
  for (std::size_t to = 0; to < order.size(); ++to) {
    const auto j = static_cast<Index>(to);
    result.gate_slope.row(j) = model.gate_slope.row(order[to]);
    result.gate_bias(j) = model.gate_bias(order[to]);
    result.slope.row(j) = model.slope.row(order[to]);
    result.intercept(j) = model.intercept(order[to]);
    result.variance(j) = model.variance(order[to]);
  }
  return result;
}

moe::GaussianParameters translated(moe::GaussianParameters model, double slope, double bias) {
  model.gate_slope.array() += slope;
  model.gate_bias.array() += bias;
  return model;
}

}  // namespace

TEST_CASE("voronoi_loss: the order of fitted and true experts does not matter", "[gaussian][property]") {
  for (const int seed : {1, 2, 3}) {
    CAPTURE(seed);
    const auto fitted = test::random_parameters(5, 3, seed), truth = test::random_parameters(4, 3, seed + 100);
    const Dense other(permuted(fitted, {3, 1, 4, 0, 2})), same(permuted(truth, {2, 0, 3, 1}));
    const double loss = moe::voronoi_loss(Dense(fitted), Dense(truth)).total;
    CHECK(loss > 0);
    CHECK_THAT(moe::voronoi_loss(other, same).total, WithinRel(loss, kRounding));
    // centred, the last true expert is the reference: only the order of the fitted ones is free
    const double centred = moe::voronoi_loss(Dense(fitted), Dense(truth), {.shift = kCentred}).total;
    CHECK_THAT(moe::voronoi_loss(other, Dense(truth), {.shift = kCentred}).total, WithinRel(centred, kRounding));
  }
}

TEST_CASE("voronoi_loss: zero for equal models, positive once any parameter differs", "[gaussian][property]") {
  const auto truth = test::random_parameters(3, 2, 7);
  CHECK(moe::voronoi_loss(Dense(truth), Dense(truth)).total == 0);
  CHECK(moe::voronoi_loss(Activated(truth), Activated(truth)).total == 0);
  CHECK(moe::voronoi_loss(Dense(permuted(truth, {2, 0, 1})), Dense(truth)).total == 0);
  const auto positive = [&](auto change) {
    auto fitted = truth;
    change(fitted);
    return moe::voronoi_loss(Activated(fitted), Activated(truth)).total > 0;
  };
  CHECK(positive([](auto& m) { m.gate_slope(1, 0) += 1e-9; }));
  CHECK(positive([](auto& m) { m.gate_bias(1) += 1e-9; }));
  CHECK(positive([](auto& m) { m.temperature += 1e-9; }));
  CHECK(positive([](auto& m) { m.slope(2, 1) += 1e-9; }));
  CHECK(positive([](auto& m) { m.intercept(0) += 1e-9; }));
  CHECK(positive([](auto& m) { m.variance(0) += 1e-9; }));
}

TEST_CASE("voronoi_loss: top-K is the largest sum over K true experts", "[gaussian][property]") {
  const Index k = 6;
  for (const Index active : {1, 2, 3, 5, 6}) {
    CAPTURE(active);
    const moe::TopKGate gate{.k = active};
    const TopK fitted(test::random_parameters(k, 2, 11), gate), truth(test::random_parameters(k, 2, 12), gate);
    const auto loss = moe::voronoi_loss(fitted, truth);
    double largest = 0;
    for (unsigned subset = 0; subset < 1u << k; ++subset) {
      if (std::popcount(subset) != static_cast<int>(active)) continue;
      double sum = 0;
      for (std::size_t j = 0; j < loss.cells.size(); ++j)
        if ((subset >> j & 1u) != 0) sum += loss.cells[j].loss();
      largest = std::max(largest, sum);
    }
    CHECK_THAT(loss.total, WithinRel(largest, kRounding));
  }
}

TEST_CASE("voronoi_loss: centred, a common shift of either gate changes nothing", "[gaussian][property]") {
  // the shift of up to 50 costs as many units of 1e-16 in what is left of it
  constexpr double kTolerance = 1e-11;
  for (const int seed : {1, 2, 3, 4}) {
    CAPTURE(seed);
    const auto truth = test::random_parameters(3, 2, seed), fitted = test::random_parameters(4, 2, seed + 50);
    const double loss = moe::voronoi_loss(Dense(fitted), Dense(truth), {.shift = kCentred}).total;
    for (const double by : {-50.0, -1.0, 3.0, 50.0}) {
      CAPTURE(by);
      const Dense moved(translated(fitted, by, -by)), moved_truth(translated(truth, by / 2, by));
      CHECK_THAT(moe::voronoi_loss(moved, Dense(truth), {.shift = kCentred}).total, WithinRel(loss, kTolerance));
      CHECK_THAT(moe::voronoi_loss(Dense(fitted), moved_truth, {.shift = kCentred}).total, WithinRel(loss, kTolerance));
      const Dense shifted(translated(truth, by, -by));
      CHECK_THAT(moe::voronoi_loss(shifted, Dense(truth), {.shift = kCentred}).total, WithinAbs(0, kTolerance));
    }
  }
}

TEST_CASE("voronoi_loss: centred, an activation keeps its slopes", "[gaussian]") {
  const auto truth = test::random_parameters(3, 1, 5);
  auto biased = truth, sloped = truth;
  biased.gate_bias.array() += 4;
  sloped.gate_slope.array() += 0.1;
  const moe::VoronoiOptions options{.shift = kCentred};
  CHECK_THAT(moe::voronoi_loss(Activated(biased), Activated(truth), options).total, WithinAbs(0, 1e-13));
  CHECK(moe::voronoi_loss(Activated(sloped), Activated(truth), options).total > 0.1);
}
