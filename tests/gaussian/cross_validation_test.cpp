// SPDX-License-Identifier: MIT
#include "moe/gaussian/inference/cross_validation.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "gaussian/simulated.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;

TEST_CASE("random_folds: sizes differ by one at most, another seed is another deal", "[gaussian]") {
  for (const Index n : {2, 7, 100}) {
    const Index folds = std::min<Index>(n, 7);
    std::vector<Index> counts(static_cast<std::size_t>(folds), 0);
    for (const Index f : moe::detail::random_folds(n, folds, 3)) ++counts.at(static_cast<std::size_t>(f));
    CHECK(*std::max_element(counts.begin(), counts.end()) - *std::min_element(counts.begin(), counts.end()) <= 1);
    CHECK(std::count(counts.begin(), counts.end(), 0) == 0);
  }
  CHECK(moe::detail::random_folds(100, 7, 3) != moe::detail::random_folds(100, 7, 4));
  CHECK(moe::detail::random_folds(100, 7, 3) == moe::detail::random_folds(100, 7, 3));
}

TEST_CASE("cross_validate: leaving one row out of a line is the textbook's", "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 25, 3);
  const auto cv = moe::cross_validate(data, {1, 1}, moe::SoftmaxGate{}, {.folds = 25});
  double sum = 0, squares = 0;
  for (Index out = 0; out < 25; ++out) {
    Eigen::Matrix2d gram = Eigen::Matrix2d::Zero();
    Eigen::Vector2d right = Eigen::Vector2d::Zero();
    for (Index i = 0; i < 25; ++i) {
      if (i == out) continue;
      const Eigen::Vector2d x(data.x(i, 0), 1);
      gram += x * x.transpose();
      right += data.y(i) * x;
    }
    const Eigen::Vector2d line = gram.ldlt().solve(right);
    double nu = 0;
    for (Index i = 0; i < 25; ++i)
      if (i != out) nu += std::pow(data.y(i) - line(0) * data.x(i, 0) - line(1), 2) / 24;
    const double e = data.y(out) - line(0) * data.x(out, 0) - line(1);
    const double density = -0.5 * (std::log(2 * M_PI * nu) + e * e / nu);
    sum += density;
    squares += density * density;
  }
  CHECK(std::abs(cv.rows[0].log_density - sum / 25) < 1e-8);
  const double variance = (squares - sum * sum / 25) / 24;
  CHECK(std::abs(cv.rows[0].standard_error - std::sqrt(variance / 25)) < 1e-8);
  CHECK(cv.best == 1);
  CHECK(cv.fewest == 1);
  CHECK(cv.rows[0].loss == 0);
}

TEST_CASE("cross_validate: finds the number of experts, and rows of weight 0 do not count", "[gaussian]") {
  moe::RegressionData data = test::simulated(test::two_lines(), 240, 11);
  const moe::CrossValidationOptions options{.folds = 5, .fit = {.starts = 8}};
  const auto cv = moe::cross_validate(data, {1, 3}, moe::SoftmaxGate{}, options);
  CHECK(cv.fewest == 2);
  CHECK(cv.rows[0].loss > 3 * cv.rows[0].loss_error);  // a line is far worse
  CHECK(cv.rows[1].log_density > cv.rows[0].log_density);
  moe::RegressionData more{moe::Matrix<double>(241, 1), Eigen::VectorXd(241), Eigen::VectorXd::Ones(241)};
  more.x << data.x, 1e9;
  more.y << data.y, 0;
  more.weights(240) = 0;
  data.weights = Eigen::VectorXd::Ones(240);
  CHECK(moe::cross_validate(more, {2, 2}, moe::SoftmaxGate{}, options).rows[0].log_density ==
        moe::cross_validate(data, {2, 2}, moe::SoftmaxGate{}, options).rows[0].log_density);
}

TEST_CASE("cross_validate: weights count as rows do", "[gaussian]") {
  const moe::RegressionData data{moe::Matrix<double>::Zero(4, 1), Eigen::VectorXd::Zero(4),
                                 Eigen::Vector4d(1, 3, 2, 2)};
  const auto [mean, error] = moe::detail::weighted_mean(Eigen::Vector4d(4, 0, 1, 3), data);
  CHECK(mean == 1.5);
  // 1 * 2.5^2 + 3 * 1.5^2 + 2 * 0.5^2 + 2 * 1.5^2 = 18, over 8 * 7
  CHECK(std::abs(error - std::sqrt(18.0 / 56)) < 1e-15);
  const auto [other, same] =
      moe::detail::weighted_mean((Eigen::VectorXd(8) << 4, 0, 0, 0, 1, 1, 3, 3).finished(), moe::repeated_rows(data));
  CHECK(other == mean);
  CHECK(std::abs(same - error) < 1e-15);
}

TEST_CASE("cross_validate: errors", "[gaussian][error]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 30, 3);
  const auto error = [&](const moe::ExpertRange& range, Index folds) {
    try {
      moe::cross_validate(data, range, moe::SoftmaxGate{}, {.folds = folds});
    } catch (const std::invalid_argument& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  CHECK_THAT(error({1, 2}, 1),
             ContainsSubstring("moe::cross_validate: folds is 1, expected 2 to the number of rows, 30"));
  CHECK_THAT(error({1, 2}, 31), ContainsSubstring("folds is 31"));
  CHECK_THAT(error({2, 1}, 5), ContainsSubstring("range is 2 to 1"));
  CHECK_THAT(error({0, 1}, 5), ContainsSubstring("range is 0 to 1"));
}
