// SPDX-License-Identifier: MIT
// What looks at some of the rows draws them in proportion to their weights.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/identifiability.hpp"
#include "support/catch.hpp"

using moe::Index;

namespace {

moe::detail::Starts<> starts_of(const moe::RegressionData& data, const moe::detail::RowBlocks& rows) {
  const auto shape = moe::GaussianMoe<>::zero(2, data.input_dim());
  return {rows, moe::layout(shape), shape.form(), nullptr, 7};
}

}  // namespace

TEST_CASE("proportional_rows: each row is drawn in proportion to its weight, but for one", "[gaussian]") {
  for (const Index draws : {1, 7, 100, 5000}) {
    CAPTURE(draws);
    const std::array weights = {3.0, 0.0, 0.25, 1000.0, 2.0, 1e-9, 40.5};
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    const auto drawn =
        moe::detail::proportional_rows(7, total, draws, [&](Index i) { return weights[std::size_t(i)]; });
    CHECK(std::is_sorted(drawn.rows.begin(), drawn.rows.end()));
    CHECK(std::accumulate(drawn.counts.begin(), drawn.counts.end(), 0.0) == double(draws));
    for (std::size_t s = 0; s < drawn.rows.size(); ++s) {
      const double expected = double(draws) * weights[std::size_t(drawn.rows[s])] / total;
      CHECK(std::abs(drawn.counts[s] - expected) < 1);
      CHECK(drawn.counts[s] >= 1);
    }
  }
  CHECK(moe::detail::proportional_rows(3, 3.0, 3, [](Index) { return 1.0; }).rows == std::vector<Index>{0, 1, 2});
}

TEST_CASE("Starts: samples of large data and their lines see rows as often as their weights say", "[gaussian]") {
  moe::RegressionData data = test::simulated(test::two_lines(), 9001, 4);
  data.weights.setOnes(9001);
  data.weights(4321) = 9000;  // half of all; every stride of 4 misses it
  const auto none = moe::detail::Standardisation::none(1);
  const moe::detail::RowBlocks rows(data, none);
  const auto starts = starts_of(data, rows);
  const auto& sample = starts.sample();
  Index heavy = 0;
  CHECK(std::abs(sample.weight.maxCoeff(&heavy) / sample.weight.sum() - 0.5) < 1 / sample.weight.sum());
  CHECK(sample.y(heavy) == data.y(4321));
  CHECK(sample.y.size() < 4000);
}

TEST_CASE("Starts: kinds of starts by weights are those of repeated rows in the mean", "[gaussian]") {
  moe::RegressionData data = test::simulated(test::two_lines(), 300, 4);
  data.weights = Eigen::VectorXd::NullaryExpr(300, [&](Index i) { return data.x(i, 0) > 0.8 ? 50.0 : 1.0; });
  const auto none = moe::detail::Standardisation::none(1);
  const moe::RegressionData repeated = moe::repeated_rows(data);
  const moe::detail::RowBlocks rows(data, none), all(repeated, none);
  const auto starts = starts_of(data, rows), expected = starts_of(repeated, all);
  const auto shape = moe::GaussianMoe<>::zero(2, 1);
  for (const Index kind : {2, 3, 5}) {  // k-means, projection, random lines
    CAPTURE(kind);
    Eigen::Vector2d mean(0, 0), wanted(0, 0), square(0, 0);
    constexpr Index kDraws = 600;
    for (Index s = 0; s < kDraws; ++s) {
      const auto numbers = [&](const auto& of) {
        const auto m = of(kind + moe::detail::Starts<>::kKinds * s, shape);
        return Eigen::Vector2d(std::atan(m.intercept.minCoeff()), std::atan(m.slope.maxCoeff()));
      };
      const Eigen::Vector2d a = numbers(starts), b = numbers(expected);
      mean += a / kDraws, wanted += b / kDraws;
      square += b.cwiseAbs2() / kDraws;
    }
    // The two means are of as many independent numbers of one distribution: 4 standard deviations of their difference.
    for (Index i = 0; i < 2; ++i)
      CHECK(std::abs(mean(i) - wanted(i)) <=
            4 * std::sqrt(2 * std::max(square(i) - wanted(i) * wanted(i), 0.0) / kDraws));
  }
}

TEST_CASE("independence: points of weight w are w points", "[gaussian]") {
  const Eigen::VectorXd x = Eigen::VectorXd::LinSpaced(30, -2, 3);
  const Eigen::VectorXd weights = Eigen::VectorXd::NullaryExpr(30, [](Index i) { return double(i % 3); });
  std::vector<double> repeated;
  for (Index i = 0; i < 30; ++i) repeated.insert(repeated.end(), std::size_t(weights(i)), x(i));
  const Eigen::VectorXd points = Eigen::Map<const Eigen::VectorXd>(repeated.data(), std::ssize(repeated));
  const auto a = moe::independence<moe::Tanh>(1, x, weights), b = moe::independence<moe::Tanh>(1, points);
  CHECK(std::abs(a.first_order - b.first_order) < 1e-13);  // singular values of columns of length 1
  CHECK(std::abs(a.f0 - b.f0) < 1e-13);
  CHECK(std::abs(a.f1 - b.f1) < 1e-13);
  CHECK(std::abs(a.f2 - b.f2) < 1e-13);
  CHECK_THROWS_AS(moe::independence<moe::Tanh>(1, x, Eigen::VectorXd::Ones(29)), std::invalid_argument);
  CHECK_THROWS_AS(moe::independence<moe::Tanh>(1, x, -weights), std::invalid_argument);
}
