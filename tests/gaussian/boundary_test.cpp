// SPDX-License-Identifier: MIT
#include "moe/gaussian/fit/boundary.hpp"

#include <Eigen/QR>
#include <cmath>
#include <numbers>
#include <vector>

#include "gaussian/simulated.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using moe::detail::Bounds;

/// Lines with breaks at the cuts, in x from -1 to 1, and the objective of a top-1 gate on them.
struct Broken {
  Broken(Index n, Index k, std::initializer_list<double> cuts)
      : shape(moe::GaussianMoe<moe::TopKGate>::zero(k, 1, {.k = 1})),
        data(test::simulated(test::two_lines(), n, 21)),
        rows((add_breaks(cuts), data), moe::detail::Standardisation::none(1)),
        objective(rows, moe::layout(shape), shape.form(), {}) {}

  void add_breaks(std::initializer_list<double> cuts) {
    for (Index i = 0; i < data.num_rows(); ++i)
      for (const double cut : cuts) data.y(i) += data.x(i, 0) > cut ? 8 : 0;
  }

  moe::GaussianMoe<moe::TopKGate> shape;
  moe::RegressionData data;
  moe::detail::RowBlocks rows;
  moe::detail::ObjectiveOf<moe::Identity> objective;
};

/// Log-likelihood of the least-squares line of the rows for which `in` holds.
template <class In>
double line_value(const moe::RegressionData& data, In&& in) {
  std::vector<Index> which;
  for (Index i = 0; i < data.num_rows(); ++i)
    if (in(data.x(i, 0))) which.push_back(i);
  const Index n = static_cast<Index>(which.size());
  if (n < 3) return -INFINITY;
  Eigen::MatrixXd x(n, 2);
  Eigen::VectorXd y(n);
  for (Index s = 0; s < n; ++s) {
    x.row(s) << data.x(which[static_cast<std::size_t>(s)], 0), 1;
    y(s) = data.y(which[static_cast<std::size_t>(s)]);
  }
  const Eigen::VectorXd e = y - x * x.colPivHouseholderQr().solve(y);
  const double count = static_cast<double>(n), variance = std::max(e.squaredNorm() / count, 1e-6);
  return -0.5 * count * (std::log(2 * std::numbers::pi * variance) + 1);
}

}  // namespace

TEST_CASE("BoundarySearch: the cut of two experts on one input is the best of all", "[gaussian]") {
  const Broken problem(120, 2, {0.4});
  double best = -INFINITY;
  for (Index i = 0; i < 120; ++i) {
    const double cut = problem.data.x(i, 0);
    best = std::max(best, line_value(problem.data, [&](double x) { return x <= cut; }) +
                              line_value(problem.data, [&](double x) { return x > cut; }));
  }
  moe::GaussianParameters m = problem.shape;
  const moe::detail::BoundarySearch search(problem.objective, Bounds{});
  REQUIRE(search.improve(problem.objective, m));
  // Sums of 120 squares below 100 and their differences: 1e4 units in the last place, over variances above 0.1.
  CHECK(std::abs(problem.objective.value(m) - best) < 1e-8);
  CHECK_FALSE(search.improve(problem.objective, m));
}

TEST_CASE("BoundarySearch: bounds of the gate do not move the cuts", "[gaussian]") {
  const Broken problem(150, 4, {0.8, 0.9});
  for (const double box : {0.01, 0.5, 500.0})
    for (Index absent = 0; absent < 4; ++absent) {
      const Bounds bounds{.gate_box = box};
      moe::GaussianParameters m = problem.shape;
      m.gate_bias(absent) = -1;  // who starts without rows
      REQUIRE(moe::detail::BoundarySearch(problem.objective, bounds).improve(problem.objective, m));
      moe::GaussianParameters clamped = m;
      bounds.clamp(problem.objective.layout(), clamped);
      CAPTURE(box, absent);
      CHECK(clamped.gate_slope == m.gate_slope);
      CHECK(clamped.gate_bias == m.gate_bias);
      CHECK(m.gate_slope(3, 0) == 0);
      CHECK(m.gate_bias(3) == 0);
      CHECK(problem.objective.value(m) > problem.objective.value(problem.shape) + 100);
    }
}

TEST_CASE("BoundarySearch: random moves never lower the criterion, and dense gates have no borders", "[gaussian]") {
  const auto truth = moe::GaussianMoe<moe::TopKGate>(test::three_lines(), {.k = 2});
  const moe::RegressionData data = test::simulated(truth, 300, 5);
  const moe::detail::RowBlocks rows(data, moe::detail::Standardisation::none(1));
  const moe::detail::ObjectiveOf<moe::Identity> objective(rows, moe::layout(truth), truth.form(), {});
  moe::GaussianParameters m = truth;
  m.gate_bias(0) += 2;  // the border is elsewhere
  const double before = objective.value(m);
  REQUIRE(moe::detail::BoundarySearch(objective, {}).improve(objective, m));
  CHECK(objective.value(m) > before);
  const moe::detail::ObjectiveOf<moe::Identity> all(rows, moe::layout(truth), {.active = 3}, {});
  CHECK_FALSE(moe::detail::BoundarySearch(all, {}).sparse());
  CHECK_FALSE(moe::detail::BoundarySearch(all, {}).improve(all, m));
}
