// SPDX-License-Identifier: MIT
#include "moe/gaussian/theory/voronoi.hpp"

#include "gaussian/models.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
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
void check(const Case& c, const typename Model::GateType& gate) {
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
  CHECK_THROWS_WITH(moe::voronoi_loss(activated, inside), ContainsSubstring("expected the same place"));
}

TEST_CASE("voronoi_loss: of cosines the direction counts, not its length", "[gaussian]") {
  moe::GaussianMoe<moe::CosineGate<>> truth(parameters_of(kTruth));
  truth.gate_slope = moe::Matrix<double>(2, 2);
  truth.slope = moe::Matrix<double>(2, 2);
  truth.gate_slope << 3, 4, -1, 0;
  truth.slope << 1, 0, -1, 0;
  truth.last_slope = moe::LastSlope::Free;
  auto fitted = truth;
  fitted.gate_slope.row(0) *= 5;
  CHECK(moe::voronoi_loss(fitted, truth).total == 0);
  fitted.gate_slope.row(1) << -0.96, 0.28;  // (-1, 0) turned: a chord of length sqrt(0.04^2 + 0.28^2)
  const auto loss = moe::voronoi_loss(fitted, truth);
  CHECK_THAT(loss.atoms[1].gate_slope, WithinRel(std::hypot(0.04, 0.28), kRounding));
  CHECK_THAT(loss.total, WithinRel(std::hypot(0.04, 0.28), kRounding));  // its weight is 1
}

TEST_CASE("voronoi_loss: perturbed cosines are compared by gamma, centred up to a common shift", "[gaussian]") {
  moe::CosineGate<> gate;
  gate.score.weight_shift = 0.5;
  moe::GaussianMoe<moe::CosineGate<>> truth(parameters_of(kTruth), gate);
  truth.last_slope = moe::LastSlope::Free;
  truth.gate_slope << 0.5, -1.5;  // gamma 0.5, -0.75
  auto fitted = truth;
  fitted.gate_slope << 1.5, -0.5;  // 0.75, -0.5: both 0.25 more
  CHECK(moe::voronoi_loss(fitted, truth, {.shift = kCentred}).total < 1e-15);
  const auto off = moe::voronoi_loss(fitted, truth);
  CHECK_THAT(off.total, WithinRel(0.25 * (std::exp(0.5) + 1), kRounding));
  gate.score.weight_shift = 0.4;
  fitted.gate = gate;
  CHECK_THROWS_WITH(moe::voronoi_loss(fitted, truth), ContainsSubstring("the shifts of the fitted cosines are 0.4"));
}

TEST_CASE("voronoi_loss: inside of an activation the bias is a coefficient, and there is no mass", "[gaussian]") {
  Activated truth(parameters_of(kActivated));
  truth.gate.bias_place = moe::BiasPlace::Inside;
  Activated fitted = truth;
  CHECK(moe::voronoi_loss(fitted, truth).total == 0);
  fitted.gate_slope(0, 0) += 0.3;
  fitted.gate_bias(0) -= 0.4;
  fitted.intercept(1) += 0.2;
  for (const auto shift : {moe::VoronoiShift::Off, kCentred})
    CHECK_THAT(moe::voronoi_loss(fitted, truth, {.shift = shift}).total, WithinRel(0.5 + 0.2, kRounding));
}
