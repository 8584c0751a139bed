// SPDX-License-Identifier: MIT
#include "moe/train/temporal_splatting.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Matrix;
using moe::SplatWidth;
using Curve = std::vector<double>;

namespace {

const Curve kTwoPeaks = {.1, .12, .2, .45, .8, .9, .7, .4, .15, .1, .1, .1, .3, .55, .35, .1};

Curve gaussian(double height, double deviation) {
  Curve curve;
  for (int t = 0; t < 61; ++t) curve.push_back(0.02 + height * std::exp(-std::pow((t - 30) / deviation, 2) / 2));
  return curve;
}

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

/// Three bags and an empty one.
const std::vector<Index> kSizes = {9, 0, 1, 7};
const std::vector<std::uint8_t> kLabels = {1, 1, 0, 0};
const moe::Bags kBags{kSizes, kLabels};

/// A peak of height z at step `at` of `size`, in logits.
Matrix<double> bump(Index size, Index at, double z) {
  Matrix<double> logits = Matrix<double>::Constant(size, 1, -3);
  for (Index t = 0; t < size; ++t) logits(t, 0) += (z + 3) * std::exp(-std::pow(double(t - at), 2) / 3);
  return logits;
}
Matrix<double> sample_logits() {
  Matrix<double> logits = test::random_matrix<double>(17, 1, 3, 0.3);
  logits.topRows(9) += bump(9, 4, 2);
  return logits;
}

}  // namespace

TEST_CASE("find_peaks: where, how high, how wide", "[train]") {
  const auto peaks = moe::find_peaks(kTwoPeaks);
  REQUIRE(peaks.size() == 2);
  CHECK(peaks[0].first == 5);
  CHECK(peaks[0].last == 5);
  CHECK(peaks[0].run == 5);
  CHECK_THAT(peaks[0].prominence, WithinAbs(0.8, 1e-15));  // valleys .1 and .1
  CHECK(peaks[1].first == 13);
  CHECK(peaks[1].run == 2);
  CHECK_THAT(peaks[1].prominence, WithinAbs(0.45, 1e-15));
  // Half height .5: to the left of .9 between .8 and .45, 1 + 6/7; to the right between .7 and .4, 1 + 2/3.
  CHECK_THAT(peaks[0].half_width, WithinAbs(1 + 6.0 / 7, 1e-14));
  // Half height .325: to the left between .55 and .3, .9; to the right between .35 and .1, 1.1.
  CHECK_THAT(peaks[1].half_width, WithinAbs(1.1, 1e-14));
}

TEST_CASE("find_peaks: prominence is measured from the higher valley, up to a higher step", "[train]") {
  const Curve curve = {0, .5, .3, .8, .1, .6, .2};
  const auto peaks = moe::find_peaks(curve, {.prominence = 0.1, .neighbours = 1});
  REQUIRE(peaks.size() == 3);
  CHECK_THAT(peaks[0].prominence, WithinAbs(0.2, 1e-15));          // to the right .3 before .8
  CHECK_THAT(peaks[1].prominence, WithinAbs(0.7, 1e-15));          // valleys 0 and .1
  CHECK_THAT(peaks[2].prominence, WithinAbs(0.4, 1e-15));          // to the left .1, to the end .2
  CHECK(moe::find_peaks(curve, {.prominence = 0.1}).size() == 1);  // .8 is within two steps of the others
  CHECK(moe::find_peaks(curve, {.prominence = 0.75, .neighbours = 1}).empty());
}

TEST_CASE("find_peaks: curves without a peak", "[train]") {
  for (const Curve& curve : {Curve{}, Curve{.7}, Curve{.1, .9}, Curve(20, 0.0), Curve(20, 1.0), Curve{.1, .2, .4, .9},
                             Curve{.9, .9, .2, 0}}) {
    CHECK(moe::find_peaks(curve).empty());
    CHECK(moe::splat_scores(curve).empty());
  }
}

TEST_CASE("find_peaks: peaks of one rounding, and the largest numbers", "[train]") {
  for (const Curve& curve : {Curve{1e17, 1e17 + 16, 1e17}, Curve{1e17 + 16, 1e17 + 32, 1e17 + 16},
                             Curve{.5, std::nextafter(.5, 1), .5}, Curve{.25, .25, std::nextafter(.25, 1), .25},
                             Curve{0, 5e-324, 0}, Curve{-4e307, 4e307, -4e307}, Curve{4e307, -4e307, 4e307, -4e307}}) {
    const auto peaks = moe::find_peaks(curve, {.prominence = 0, .neighbours = 1});
    CAPTURE(curve);
    REQUIRE(peaks.size() == 1);
    const Index top = std::ranges::max_element(curve.begin() + 1, curve.end()) - curve.begin();
    CHECK(peaks[0].first == top);
    CHECK(peaks[0].prominence == curve[std::size_t(top)] - curve[std::size_t(top - 1)]);
    CHECK((peaks[0].half_width >= 0 && peaks[0].half_width <= 1));  // both neighbours are valleys
  }
  CHECK(moe::find_peaks(Curve{-4e307, 4e307, -4e307})[0].half_width == 0.5);
  const Curve flat = {.5, std::nextafter(.5, 1), .5};
  for (const auto width : {SplatWidth::HalfWidth, SplatWidth::ScoreStd, SplatWidth::Moment})
    CHECK(moe::splat_scores(flat, {.width = width, .peaks = {.prominence = 0}})[1] == 1);
}

TEST_CASE("find_peaks: neighbours beyond the ends of the curve are all of it", "[train]") {
  const auto peaks = moe::find_peaks(kTwoPeaks, {.neighbours = std::numeric_limits<Index>::max()});
  REQUIRE(peaks.size() == 1);
  CHECK(peaks[0].first == 5);
}

TEST_CASE("find_peaks: a plateau is one peak, and its splat is flat", "[train]") {
  const Curve curve = {0, 0, .1, .8, .8, .8, .8, .1, 0, 0};
  const auto peaks = moe::find_peaks(curve);
  REQUIRE(peaks.size() == 1);
  CHECK(peaks[0].first == 3);
  CHECK(peaks[0].last == 6);
  const Curve splat = moe::splat_scores(curve);
  for (std::size_t t = 3; t < 7; ++t) CHECK(splat[t] == 1);
  CHECK(splat[2] < 1);
}

TEST_CASE("splat_scores: kernels as wide as scores vary are the peaks alone, moments spread", "[train]") {
  const Curve literal = moe::splat_scores(kTwoPeaks, {.width = SplatWidth::ScoreStd});
  const Curve moment = moe::splat_scores(kTwoPeaks, {.width = SplatWidth::Moment});
  const Curve expected = {.048191, .143581, .335635, .615565, .885765, 1, .885765, .615565,
                          .335635, .143581, .048191, .144998, .617079, 1, .617079, .144998};
  for (std::size_t t = 0; t < 16; ++t) {
    CAPTURE(t);
    CHECK_THAT(literal[t], WithinAbs(t == 5 || t == 13 ? 1 : t == 4 || t == 6 ? .004904 : 0, 1e-6));
    CHECK_THAT(moment[t], WithinAbs(expected[t], 2e-6));
  }
}

TEST_CASE("splat_scores: the kernel of a Gaussian bump is that bump", "[train]") {
  for (const double deviation : {2.0, 4.0, 7.0}) {
    const Curve curve = gaussian(0.9, deviation), splat = moe::splat_scores(curve);
    CAPTURE(deviation);
    REQUIRE(moe::find_peaks(curve).size() == 1);
    const double found = moe::find_peaks(curve)[0].half_width / std::sqrt(2 * std::log(2.0));
    CHECK(std::abs(found - deviation) < 0.15);  // lines in place of the curve between steps
    const auto reach = static_cast<int>(2 * found * std::sqrt(2 * std::log(2.0)));
    for (int t = 0; t < 61; ++t) {
      const double expected = std::abs(t - 30) > reach ? 0 : std::exp(-std::pow((t - 30) / found, 2) / 2);
      CHECK_THAT(splat[std::size_t(t)], WithinAbs(expected, 1e-12));
    }
  }
}

TEST_CASE("splat_scores: symmetric in time, in [0, 1], 1 at peaks, blind to a constant", "[train][property]") {
  // Other orders of sums: 40 squares in a deviation, which moves exp(-x) by the relative error of x / e at most; then
  // kernels, of which a curve of 40 steps has at most 13, as peaks are three steps apart.
  constexpr double kReversed = 13 * ((40 + 4) / 2.7 + 2) * kEpsilon;
  for (const auto width : {SplatWidth::HalfWidth, SplatWidth::ScoreStd, SplatWidth::Moment})
    for (std::uint64_t seed = 1; seed < 20; ++seed) {
      const moe::RandomField random(moe::Purpose::User, seed);
      Curve curve;  // eighths, so that plateaus and equal peaks are common, and nothing rounds
      for (Index t = 0; t < 40; ++t) curve.push_back(double(random.below(7, t)) / 8);
      const Curve splat = moe::splat_scores(curve, {.width = width});
      Curve reversed = curve, raised = curve;
      std::ranges::reverse(reversed);
      for (double& score : raised) score += 0.25;
      Curve back = moe::splat_scores(reversed, {.width = width});
      std::ranges::reverse(back);
      const Curve high = moe::splat_scores(raised, {.width = width});
      CAPTURE(seed);
      for (const auto& peak : moe::find_peaks(curve)) CHECK(splat[std::size_t(peak.first)] == 1);
      REQUIRE(back.size() == splat.size());
      for (std::size_t t = 0; t < splat.size(); ++t) {
        CHECK(std::abs(splat[t] - back[t]) <= kReversed);
        CHECK((splat[t] >= 0 && splat[t] <= 1));
        if (width == SplatWidth::HalfWidth) CHECK(splat[t] == high[t]);  // as nothing rounds in another way
      }
    }
  const Curve bare = {0, 0, 0, 1, 0, 0, 0};  // whose moment is 0
  CHECK(moe::splat_scores(bare, {.width = SplatWidth::Moment}) == Curve{0, 0, 0, 1, 0, 0, 0});
}

TEST_CASE("mil_top_k_loss: by its definition, and gradients by central differences", "[train]") {
  Matrix<double> logits = sample_logits(), dlogits;
  const auto sigmoid = [](double z) { return 1 / (1 + std::exp(-z)); };
  double expected = 0;
  Curve first(logits.data(), logits.data() + 9), last(logits.data() + 10, logits.data() + 17);
  std::ranges::sort(first, std::greater{});
  std::ranges::sort(last, std::greater{});
  expected -= std::log((sigmoid(first[0]) + sigmoid(first[1]) + sigmoid(first[2])) / 3);
  expected -= std::log(1 - sigmoid(logits(9, 0)));
  expected -= std::log(1 - (sigmoid(last[0]) + sigmoid(last[1])) / 2);
  CHECK_THAT(moe::mil_top_k_loss<double>(logits, kBags, 3, dlogits), WithinAbs(expected / 3, 1e-14));
  Matrix<double> unused;
  const auto loss = [&] { return moe::mil_top_k_loss<double>(logits, kBags, 3, unused); };
  CHECK(test::gradient_error(loss, logits, dlogits) < 1e-8);
  CHECK((dlogits.array() != 0).count() == 3 + 1 + 2);
}

TEST_CASE("splatting_loss: by its definition, targets frozen, and gradients by central differences", "[train]") {
  Matrix<double> logits = sample_logits(), dlogits = Matrix<double>::Constant(17, 1, 0.5);
  const moe::SplatTargets targets = moe::splat_targets<double>(logits, kBags);
  CHECK(targets.values[4] == 1);
  CHECK(targets.known == std::vector<std::uint8_t>(17, 1));
  double expected = 0;
  for (Index t = 0; t < 17; ++t) {
    const double s = 1 / (1 + std::exp(-logits(t, 0))), y = targets.values[std::size_t(t)];
    expected -= (y * std::log(s) + (1 - y) * std::log(1 - s)) / (t < 9 ? 9 : t < 10 ? 1 : 7);
  }
  CHECK_THAT(moe::splatting_loss<double>(logits, targets, kBags, 0.7, dlogits), WithinAbs(expected / 3, 1e-14));
  Matrix<double> unused = dlogits;
  const auto loss = [&] { return 0.7 * moe::splatting_loss<double>(logits, targets, kBags, 0, unused); };
  CHECK(test::gradient_error(loss, logits, dlogits - Matrix<double>::Constant(17, 1, 0.5)) < 1e-8);
}

TEST_CASE("splatting_loss: a positive bag without a peak says nothing", "[train]") {
  Matrix<double> logits = Matrix<double>::Constant(17, 1, -1), dlogits = Matrix<double>::Zero(17, 1);
  const moe::SplatTargets targets = moe::splat_targets<double>(logits, kBags);
  CHECK(std::count(targets.known.begin(), targets.known.begin() + 9, 1) == 0);
  const double loss = moe::splatting_loss<double>(logits, targets, kBags, 1, dlogits);
  CHECK_THAT(loss, WithinAbs(2.0 / 3 * std::log1p(std::exp(-1.0)), 1e-15));  // of the two negative bags of three
  CHECK(test::all_zero(dlogits.topRows(9)));
}

TEST_CASE("temporal splatting: no bag, empty bags, one step and huge logits are finite", "[train]") {
  Matrix<float> none(0, 1), dlogits;
  const std::vector<Index> zeros = {0, 0};
  const std::vector<std::uint8_t> labels = {1, 0};
  for (const moe::Bags& bags : {moe::Bags{}, moe::Bags{zeros, labels}}) {
    CHECK(moe::mil_top_k_loss<float>(none, bags, 16, dlogits) == 0);
    CHECK(moe::splatting_loss<float>(none, moe::splat_targets<float>(none, bags), bags, 1, dlogits) == 0);
  }
  for (const float z : {-3e38f, -1000.f, 0.f, 1000.f, 3e38f})
    for (const auto label : {std::uint8_t{0}, std::uint8_t{1}}) {
      const std::vector<Index> size = {5};
      const std::vector<std::uint8_t> of = {label};
      const moe::Bags bags{size, of};
      Matrix<float> logits = Matrix<float>::Constant(5, 1, -z);
      logits(2, 0) = z;
      const double mil = moe::mil_top_k_loss<float>(logits, bags, 16, dlogits);
      const double splat =
          moe::splatting_loss<float>(logits, moe::splat_targets<float>(logits, bags), bags, 1, dlogits);
      CAPTURE(z, int{label});
      CHECK(std::isfinite(mil));
      CHECK(std::isfinite(splat));
      CHECK(dlogits.allFinite());
    }
}

TEST_CASE("temporal splatting: what does not fit is refused", "[train][error]") {
  const Curve bad = {0, NAN, 0}, above = {0, 1.5, 0};
  CHECK_THROWS_WITH(moe::find_peaks(bad),
                    "moe::find_peaks: step 1 of the curve is nan, expected a number of magnitude <= 4.49423e+307");
  for (const double large : {1.7e308, -1.7e308, 4.5e307, -std::numeric_limits<double>::infinity()})
    CHECK_THROWS_AS(moe::find_peaks(Curve{0, large, 0}), std::invalid_argument);
  CHECK_THROWS_WITH(moe::splat_scores(above), "moe::splat_scores: score of step 1 is 1.5, expected a number in [0, 1]");
  CHECK_THROWS_AS(moe::find_peaks(kTwoPeaks, {.prominence = -1}), std::invalid_argument);
  CHECK_THROWS_AS(moe::find_peaks(kTwoPeaks, {.neighbours = 0}), std::invalid_argument);
  Matrix<double> logits = sample_logits(), dlogits = Matrix<double>::Zero(17, 1);
  const moe::SplatTargets targets = moe::splat_targets<double>(logits, kBags);
  CHECK_THROWS_WITH(moe::mil_top_k_loss<double>(logits.topRows(16), kBags, 3, dlogits),
                    "moe::mil_top_k_loss: sizes of bags sum to more at bag 3, expected the number of rows = 16");
  const Matrix<double> more = Matrix<double>::Zero(18, 1);
  CHECK_THROWS_WITH(moe::mil_top_k_loss<double>(more, kBags, 3, dlogits),
                    "moe::mil_top_k_loss: sizes of bags sum to 17, expected the number of rows = 18");
  const std::vector<Index> wraps(4, Index{1} << 62);  // the sum of which wraps to 0
  CHECK_THROWS_WITH((moe::Bags{wraps, kLabels}.validate("f", 0)),
                    "f: sizes of bags sum to more at bag 0, expected the number of rows = 0");
  CHECK_THROWS_WITH(moe::mil_top_k_loss<double>(logits, kBags, 0, dlogits),
                    "moe::mil_top_k_loss: steps_per_instance is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::splatting_loss<double>(logits, {}, kBags, 1, dlogits),
                    "moe::splatting_loss: targets are of 0 rows, expected 17");
  CHECK_THROWS_AS(moe::splatting_loss<double>(logits, targets, kBags, NAN, dlogits), std::invalid_argument);
  const std::vector<std::uint8_t> labels = {1, 2, 0, 0};
  CHECK_THROWS_WITH(moe::splat_targets<double>(logits, {kSizes, labels}),
                    "moe::splat_targets: label of bag 1 is 2, expected 0 or 1");
  logits(3, 0) = INFINITY;
  CHECK_THROWS_WITH(moe::mil_top_k_loss<double>(logits, kBags, 3, dlogits),
                    "moe::mil_top_k_loss: logit of row 3 is inf, expected finite numbers");
  CHECK(test::all_zero(dlogits));
}
