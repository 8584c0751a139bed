// SPDX-License-Identifier: MIT
#include "moe/gaussian/voronoi.hpp"

#include <bit>

#include "catch.hpp"
#include "gaussian/models.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;
using test::Line;
using test::parameters_of;

namespace {

using Dense = moe::GaussianMoe<moe::SoftmaxGate>;
using TopK = moe::GaussianMoe<moe::TopKGate>;
using Tempered = moe::GaussianMoe<moe::DenseToSparseGate<moe::LearnableTemperature>>;
using Activated = moe::GaussianMoe<moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>>;

constexpr auto kCentred = moe::VoronoiShift::Centred;

/// Expected values from an independent prototype in Python, in double: equal but for rounding in another order.
constexpr double kRounding = 1e-12;

struct Case {
  const char* name;
  Line fitted, truth;
  std::vector<Index> cells;
  std::vector<double> parameters, mass;  // per true expert
  double total;
};

template <class Model>
void check(const Case& c, const typename Model::Gate& gate) {
  CAPTURE(c.name);
  const auto loss = moe::voronoi_loss(Model(parameters_of(c.fitted), gate), Model(parameters_of(c.truth), gate));
  REQUIRE(loss.atoms.size() == c.cells.size());
  REQUIRE(loss.cells.size() == c.parameters.size());
  for (std::size_t i = 0; i < c.cells.size(); ++i) CHECK(loss.atoms[i].cell == c.cells[i]);
  for (std::size_t j = 0; j < c.parameters.size(); ++j) {
    CAPTURE(j);
    CHECK_THAT(loss.cells[j].parameters, WithinRel(c.parameters[j], kRounding));
    CHECK_THAT(loss.cells[j].mass, WithinRel(c.mass[j], kRounding));
  }
  CHECK_THAT(loss.total, WithinRel(c.total, kRounding));
}

const Line kTruth{{3, 0}, {0.5, 0}, {1, -1}, {1, -1}, {0.3, 0.4}};
const Line kActivated{{2, 0}, {0.3, 0}, {1, -1}, {1, -1}, {0.3, 0.4}, 0.5};

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

TEST_CASE("voronoi_loss: softmax gates give D1 and D2", "[gaussian][golden]") {
  const Case cases[] = {
      {"exact",
       {{3.1, 0}, {0.45, 0}, {0.95, -1.02}, {1.01, -0.98}, {0.31, 0.38}},
       kTruth,
       {0, 1},
       {0.26661307153332897, 0.06000000000000005},
       {0.08040908520995926, 0},
       0.4070221567432883},
      {"two experts in a cell",
       {{3.3, 2.8, 0}, {-0.2, -0.1, 0}, {0.9, 1.1, -1.02}, {1.3, 0.8, -0.98}, {0.25, 0.28, 0.38}},
       kTruth,
       {0, 0, 1},
       {0.03580336149862713, 0.06000000000000005},
       {0.07484690041381326, 0},
       0.17065026191244045},
      {"three experts in a cell",
       {{3.3, 2.8, 3, 0}, {-0.6, -0.5, -0.7, 0}, {0.9, 1.1, 1, -1.02}, {1.3, 0.8, 0.9, -0.98}, {0.25, 0.28, 0.3, 0.38}},
       kTruth,
       {0, 0, 0, 1},
       {0.0021070958707682134, 0.06000000000000005},
       {0.0032063288979409243, 0},
       0.06531342476870919}};
  for (const Case& c : cases) check<Dense>(c, {});
}

TEST_CASE("voronoi_loss: a top-2 gate adds the two largest cells", "[gaussian][golden]") {
  check<TopK>({"top-2 of 3",
               {{2.1, -1.9, 0}, {0.25, -0.2, 0}, {1.05, -0.9, 0.52}, {2.02, -2.1, 0.03}, {0.32, 0.36, 0.22}},
               {{2, -2, 0}, {0.3, -0.3, 0}, {1, -1, 0.5}, {2, -2, 0}, {0.3, 0.4, 0.2}},
               {0, 1, 2},
               {0.24396482917067108, 0.278368456046514, 0.07},
               {0.06583339088826179, 0.07791253239626394, 0},
               0.6660792085017109},
              {.k = 2});
}

TEST_CASE("voronoi_loss: activation gates count tau and have powers of their own", "[gaussian][golden]") {
  check<Activated>({"exact",
                    {{2.2, 0}, {0.28, 0}, {1.05, -0.97}, {1.02, -1.03}, {0.29, 0.42}, 0.55},
                    kActivated,
                    {0, 1},
                    {0.5490467339900241, 0.13000000000000006},
                    {0.15834081860255855, 0},
                    0.8373875525925827},
                   {});
  check<Activated>(
      {"two experts in a cell",
       {{2.2, 1.7, 0}, {-0.05, -0.02, 0}, {1.15, 0.9, -0.97}, {1.22, 0.85, -1.03}, {0.26, 0.28, 0.42}, 0.55},
       kActivated,
       {0, 0, 1},
       {0.16266507019315396, 0.13000000000000006},
       {0.055271494856477865, 0},
       0.3479365650496319},
      {});
}

TEST_CASE("voronoi_loss: with a temperature a linear gate is compared by ratio, or raw on demand", "[gaussian]") {
  moe::GaussianParameters scaled = parameters_of(kTruth);
  scaled.gate_slope *= 2, scaled.gate_bias *= 2, scaled.temperature = 2;  // the same density
  const Tempered fitted(scaled), truth(parameters_of(kTruth));
  CHECK(moe::voronoi_loss(fitted, truth).total == 0);
  // omega (|D beta_1|^2 + |D tau|^2) with |D tau| = 1 for both, |D beta_1| = 3 and 0, omega = exp(1 / 2) and 1.
  const auto raw = moe::voronoi_loss(fitted, truth, {.kind = moe::VoronoiKind::Power, .order = 2});
  CHECK_THAT(raw.total, WithinRel(10 * std::exp(0.5) + 1, kRounding));
  CHECK(raw.atoms[0].temperature == 1);
  const auto first = moe::voronoi_loss(fitted, truth, {.kind = moe::VoronoiKind::Activation});
  CHECK_THAT(first.total, WithinRel(4 * std::exp(0.5) + 1, kRounding));
}

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

TEST_CASE("voronoi_loss: normal form and centred agree on an exact fit", "[gaussian]") {
  const Dense truth(parameters_of(kTruth));
  const Dense fitted(parameters_of({{3.1, 0}, {0.45, 0}, {0.95, -1.02}, {1.01, -0.98}, {0.31, 0.38}}));
  const double loss = moe::voronoi_loss(fitted, truth).total;
  CHECK_THAT(moe::voronoi_loss(fitted, truth, {.shift = kCentred}).total, WithinRel(loss, kRounding));
}

TEST_CASE("voronoi_loss: ties go to the lower true expert, and a cell may be empty", "[gaussian]") {
  const Dense truth(parameters_of({{0, 0}, {0, 0}, {0, 0}, {-1, 1}, {1, 1}}));
  const Dense fitted(parameters_of({{0}, {0}, {0}, {0}, {1}}));
  const auto loss = moe::voronoi_loss(fitted, truth);
  CHECK(loss.atoms[0].cell == 0);
  CHECK(loss.cells[1].atoms == 0);
  CHECK(loss.cells[1].parameters == 0);
  CHECK(loss.cells[1].mass == 1);  // omega* = exp(0) of an expert that the fit has lost
  CHECK(loss.total == 2);
}

TEST_CASE("voronoi_loss: a weight that overflows makes the loss infinite, not NaN", "[gaussian]") {
  const Dense truth(parameters_of(kTruth));
  Dense fitted = truth;
  fitted.gate_bias(0) = 1e4;
  CHECK(moe::voronoi_loss(fitted, truth).total == INFINITY);
  CHECK_THROWS_WITH(moe::voronoi_loss(truth, fitted), ContainsSubstring("true expert 0 overflows"));
}

TEST_CASE("voronoi_exponent: 1, 4 and 6 as known, 2 m beyond", "[gaussian]") {
  CHECK(moe::voronoi_exponent(1) == 1);
  CHECK(moe::voronoi_exponent(2) == 4);
  CHECK(moe::voronoi_exponent(3) == 6);
  CHECK(moe::voronoi_exponent(5) == 10);
  CHECK_THROWS_AS(moe::voronoi_exponent(0), std::invalid_argument);
}

TEST_CASE("voronoi_loss: bad arguments are errors that name the number", "[gaussian][error]") {
  const Dense truth(parameters_of(kTruth));
  CHECK_THROWS_WITH(moe::voronoi_loss(Dense::zero(2, 3), truth), ContainsSubstring("fitted has 3 inputs"));
  CHECK_THROWS_WITH(moe::voronoi_loss(truth, truth, {.order = 0.5}), ContainsSubstring("order is 0.5"));
  Dense bad = truth;
  bad.variance(1) = 0;
  CHECK_THROWS_WITH(moe::voronoi_loss(bad, truth), ContainsSubstring("variance of expert 1 is 0"));
  const Activated activated(parameters_of(kActivated));
  CHECK_THROWS_WITH(moe::voronoi_loss(activated, activated, {.kind = moe::VoronoiKind::Softmax}),
                    ContainsSubstring("kind is Softmax"));
  Activated inside = activated;
  inside.gate.bias_place = moe::BiasPlace::Inside;
  CHECK_THROWS_WITH(moe::voronoi_loss(activated, inside), ContainsSubstring("expected Outside"));
}
