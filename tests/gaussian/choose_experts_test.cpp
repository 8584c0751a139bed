// SPDX-License-Identifier: MIT
#include "moe/gaussian/inference/choose_experts.hpp"

#include <cmath>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/inference/dendrogram.hpp"
#include "support/catch.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;

/// Three atoms, of which the first two are close.
moe::GaussianMoe<> near_twins() {
  return moe::GaussianMoe<>(test::parameters_of({.gate_slope = {1, 1.2, 0},
                                                 .gate_bias = {std::log(0.5), std::log(1.5), 0},
                                                 .slope = {1, 1.1, -1},
                                                 .intercept = {2, 2.4, -1},
                                                 .variance = {0.3, 0.2, 0.5}}));
}

/// Change of the density on a grid by merging twins whose gate slopes and intercepts are apart.
Eigen::ArrayXd merge_change(double gate_slope, double intercept, moe::Merge how) {
  auto twins = near_twins();
  twins.gate_slope(1, 0) = twins.gate_slope(0, 0) + gate_slope;
  twins.slope.row(1) = twins.slope.row(0);
  twins.intercept(1) = twins.intercept(0) + intercept;
  twins.variance(1) = twins.variance(0);
  moe::detail::Atoms atoms(twins);
  atoms.merge(0, 1, how);
  const moe::GaussianMoe<> merged(atoms.parameters(1));
  Eigen::ArrayXd change(21 * 41);
  for (Index i = 0; i < 21; ++i)
    for (Index j = 0; j < 41; ++j) {
      const Eigen::RowVectorXd x = Eigen::RowVectorXd::Constant(1, 0.1 * static_cast<double>(i) - 1);
      const double y = 0.2 * static_cast<double>(j) - 3;
      change(41 * i + j) = moe::conditional(twins, x).density(y) - moe::conditional(merged, x).density(y);
    }
  return change;
}

}  // namespace

TEST_CASE("sweep_experts: BIC and ICL find the number of experts", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 500, 31);
  const auto sweep = moe::sweep_experts(data, {.least = 1, .most = 3}, moe::SoftmaxGate{}, {.starts = 10});
  REQUIRE(sweep.rows.size() == 3);
  CHECK(sweep.best_bic == 2);
  CHECK(sweep.best_icl == 2);
  CHECK(sweep.best_aic >= 2);
  CHECK(sweep[1].fit.log_likelihood < sweep[2].fit.log_likelihood);
  CHECK(sweep[2].fit.log_likelihood <= sweep[3].fit.log_likelihood + 1e-6);
  CHECK_THROWS_WITH(sweep[4], ContainsSubstring("no fit with 4"));
}

TEST_CASE("sweep_experts: gates with biases of their own get as many as there are experts", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 200, 32);
  const moe::TopKGate gate{.k = 1, .weight_bias = Eigen::RowVectorXd::Zero(2).eval()};
  const auto sweep = moe::sweep_experts(data, {.least = 1, .most = 3}, gate, {.starts = 2, .long_runs = 1});
  CHECK(sweep[3].fit.model.gate.weight_bias.size() == 3);
  CHECK_THROWS_WITH(moe::sweep_experts(data, {.least = 0}), ContainsSubstring("range is 0 to 5"));
  CHECK_THROWS_WITH(moe::sweep_experts(data, {.least = 3, .most = 2}), ContainsSubstring("range is 3 to 2"));
}

TEST_CASE("dendrogram: merged experts keep the moments of their measure", "[gaussian]") {
  const moe::GaussianMoe<> twins = near_twins();
  moe::detail::Atoms atoms(twins);
  // w = (0.5, 1.5, 1) / 3, so 1 / (6 + 2) = 1/8, |.|^2 = 0.04 + 0.01 + 0.16, |dnu| = 0.1
  CHECK(std::abs(atoms.dissimilarity(0, 1) - 0.31 / 8) < 1e-15);
  moe::detail::Atoms averaged = atoms;
  atoms.merge(0, 1, moe::Merge::Moments);
  averaged.merge(0, 1, moe::Merge::Averages);
  const auto m = atoms.parameters(1), a = averaged.parameters(1);
  REQUIRE(m.num_experts() == 2);
  CHECK(std::abs(m.gate_bias(0) - m.gate_bias(1) - std::log(2)) < 1e-15);
  CHECK(std::abs(m.gate_slope(0, 0) - 1.15) < 1e-15);
  CHECK(std::abs(m.intercept(0) - 2.3) < 1e-15);
  CHECK(std::abs(a.slope(0, 0) - 1.075) < 1e-15);
  CHECK(std::abs(a.variance(0) - 0.225) < 1e-15);
  CHECK(std::abs(m.slope(0, 0) - (1.075 + 0.25 * (-0.15) * (-0.3) + 0.75 * 0.05 * 0.1)) < 1e-15);
  CHECK(std::abs(m.variance(0) - (0.225 + 0.25 * 0.09 + 0.75 * 0.01)) < 1e-15);
  CHECK(m.intercept(1) == -1);
}

TEST_CASE("dendrogram: moments keep the density to an order more than averages", "[gaussian][property]") {
  // Second-order terms of the change, in the distance of the twins. That in db^2 is taken up by nu; that in dbeta db,
  // which changes its sign with db, by a; that in dbeta^2 by nothing. Halving the distance divides what is left by
  // about 8, and second-order terms by about 4.
  const auto intercepts = [](double delta, moe::Merge how) { return merge_change(0, delta, how); };
  const auto interaction = [](double delta, moe::Merge how) -> Eigen::ArrayXd {
    return merge_change(delta, delta, how) - merge_change(delta, -delta, how) - merge_change(0, delta, how) +
           merge_change(0, -delta, how);
  };
  const auto order = [](const auto& change, moe::Merge how) {
    return change(0.04, how).abs().maxCoeff() / change(0.02, how).abs().maxCoeff();
  };
  CHECK(std::abs(order(intercepts, moe::Merge::Averages) - 4) < 0.8);
  CHECK(std::abs(order(intercepts, moe::Merge::Moments) - 8) < 1.6);
  CHECK(std::abs(order(interaction, moe::Merge::Averages) - 4) < 0.8);
  CHECK(std::abs(order(interaction, moe::Merge::Moments) - 8) < 1.6);
}

TEST_CASE("dendrogram: finds the experts of a fit with two too many", "[gaussian]") {
  Index right = 0, all = 0;
  for (std::uint64_t seed = 41; seed < 44; ++seed)
    for (const auto& truth : {test::two_lines(), test::three_lines()}) {
      const Index k = truth.num_experts();
      const auto data = test::simulated(truth, 1000, seed);
      const auto fit = moe::fit(data, k + 2, moe::SoftmaxGate{}, {.starts = 10, .long_runs = 2});
      const auto tree = moe::dendrogram(fit, data);
      UNSCOPED_INFO("k = " << k << " seed " << seed << ": " << tree.num_experts << (fit.flags.at_floor ? " floor" : "")
                           << (fit.flags.separated ? " separated" : ""));
      for (const auto& level : tree.levels)
        UNSCOPED_INFO("  " << level.num_experts() << " height " << level.height << " l " << level.log_likelihood
                           << " criterion " << level.criterion);
      REQUIRE(tree.levels.size() == static_cast<std::size_t>(k + 2));
      CHECK(tree.levels.back().num_experts() == 1);
      ++all;
      right += tree.num_experts == k ? 1 : 0;
    }
  CHECK(right == all);
}

TEST_CASE("dendrogram: refits do not fall below the merged models", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 300, 51);
  const auto fit = moe::fit(data, 3, moe::SoftmaxGate{}, {.starts = 5, .long_runs = 1});
  const auto plain = moe::dendrogram(fit, data), refitted = moe::dendrogram(fit, data, {.refit = true});
  for (std::size_t s = 0; s < plain.levels.size(); ++s)
    CHECK(refitted.levels[s].log_likelihood >= plain.levels[s].log_likelihood - 1e-9);
}

TEST_CASE("dendrogram: does not depend on units", "[gaussian][property]") {
  const auto data = test::simulated(near_twins(), 200, 52);
  auto scaled = data;
  scaled.y *= 1024;
  auto model = near_twins();
  model.slope *= 1024;
  model.intercept *= 1024;
  model.variance *= 1024.0 * 1024;
  const auto a = moe::dendrogram(near_twins(), data), b = moe::dendrogram(model, scaled);
  for (std::size_t s = 0; s < a.levels.size(); ++s)  // powers of two: the same but for log(1024)
    CHECK(std::abs(a.levels[s].height - b.levels[s].height) <= 1e-12 * a.levels[s].height);
  CHECK(a.num_experts == b.num_experts);
}

TEST_CASE("dendrogram: errors name what is wrong", "[gaussian][error]") {
  const auto data = test::simulated(near_twins(), 50, 53);
  const moe::GaussianMoe<moe::TopKGate> sparse(near_twins(), moe::TopKGate{.k = 2});
  CHECK_THROWS_WITH(moe::dendrogram(sparse, data), ContainsSubstring("expected a dense gate"));
  auto shifted = near_twins();
  shifted.gate_bias(2) = 1;
  CHECK_THROWS_WITH(moe::dendrogram(shifted, data), ContainsSubstring("normal form"));
  auto own = near_twins();
  own.gate_inputs = std::vector<moe::Index>{0};  // all there are
  CHECK_NOTHROW(moe::dendrogram(own, data));
  own.expert_inputs = std::vector<moe::Index>{};
  own.slope.setZero();
  CHECK_THROWS_WITH(moe::dendrogram(own, data), ContainsSubstring("read columns of their own"));
}
