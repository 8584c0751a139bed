// SPDX-License-Identifier: MIT
#include "moe/gaussian/theory/near_truth.hpp"

#include <set>

#include "gaussian/models.hpp"
#include "moe/gaussian/model/gate_weights.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using Cells = std::vector<Index>;

constexpr moe::StartNoise kSilent = {.gate = {}, .expert = {}, .variance = {}};

moe::GaussianMoe<moe::SoftmaxGate> three() {
  return {test::parameters_of({.gate_slope = {2, -1, 0},
                               .gate_bias = {0.5, -0.3, 0},
                               .slope = {1, -1, 0.5},
                               .intercept = {2, -2, 0},
                               .variance = {0.3, 0.4, 0.2}})};
}

/// With an activation, a slope pinned at 0, and a temperature that is estimated.
auto tempered() {
  using Gate = moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>;
  return moe::GaussianMoe<Gate>(test::parameters_of({.gate_slope = {2, -1, 0},
                                                     .gate_bias = {0.5, -0.3, 0},
                                                     .slope = {1, -1, 0.5},
                                                     .intercept = {2, -2, 0},
                                                     .variance = {0.3, 0.4, 0.2},
                                                     .temperature = 0.5}));
}

bool hits_all(const Cells& cells, Index truth) {
  return std::set<Index>(cells.begin(), cells.end()).size() == static_cast<std::size_t>(truth);
}

double binomial(Index n, Index k) {
  double value = 1;
  for (Index i = 1; i <= k; ++i) value = value * static_cast<double>(n - k + i) / static_cast<double>(i);
  return value;
}

/// Largest difference between the weights of true experts, and those of a start summed over what shares them.
template <class Gate>
double weight_error(const moe::GaussianMoe<Gate>& start, const moe::GaussianMoe<Gate>& truth, const Cells& cells) {
  const moe::Matrix<double> x = Eigen::VectorXd::LinSpaced(21, -2, 2);
  moe::Matrix<double> difference = -moe::gate_weights(truth, x);
  const moe::Matrix<double> weights = moe::gate_weights(start, x);
  for (std::size_t i = 0; i < cells.size(); ++i) difference.col(cells[i]) += weights.col(static_cast<Index>(i));
  return difference.cwiseAbs().maxCoeff();
}

}  // namespace

TEST_CASE("expert_allocations: every way once, and no true expert left out", "[gaussian]") {
  CHECK(moe::expert_allocations(3, 2) == std::vector<Cells>{{0, 0, 1}, {0, 1, 1}});
  CHECK(moe::expert_allocations(2, 2) == std::vector<Cells>{{0, 1}});
  for (Index truth = 1; truth <= 5; ++truth)
    for (Index fitted = truth; fitted <= 8; ++fitted) {
      CAPTURE(truth, fitted);
      const std::vector<Cells> all = moe::expert_allocations(fitted, truth);
      CHECK(static_cast<double>(all.size()) == binomial(fitted - 1, truth - 1));
      CHECK(std::set<Cells>(all.begin(), all.end()).size() == all.size());
      for (const Cells& cells : all) {
        CHECK(hits_all(cells, truth));
        CHECK((std::is_sorted(cells.begin(), cells.end()) && static_cast<Index>(cells.size()) == fitted));
      }
    }
}

TEST_CASE("random_allocation: hits every true expert, in any order, and can keep the last", "[gaussian][property]") {
  std::set<Cells> seen;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    CAPTURE(seed);
    const Cells free = moe::random_allocation(4, 3, moe::LastExpert::Any, seed);
    CHECK((free.size() == 4 && hits_all(free, 3)));
    CHECK(free == moe::random_allocation(4, 3, moe::LastExpert::Any, seed));
    const Cells kept = moe::random_allocation(4, 3, moe::LastExpert::Last, seed);
    CHECK((hits_all(kept, 3) && kept.back() == 2));
    seen.insert(free);
  }
  // 36 maps of 4 onto 3. All have a probability above 1 / 72 (two of the 72 equally likely draws make each), so one of
  // them is missing in 400 with probability below 36 (1 - 1 / 72)^400 = 0.13; the seeds are fixed.
  CHECK(seen.size() == 36);
}

TEST_CASE("near_truth: without noise the density is the truth's, however experts are shared", "[gaussian]") {
  // gate weights are of order 1 and scores below 10: a few roundings
  for (const Cells& cells : {Cells{0, 1, 2}, Cells{2, 0, 1}, Cells{0, 0, 1, 2}, Cells{2, 1, 0, 2, 2}})
    CHECK(weight_error(moe::near_truth(three(), cells, kSilent, {}), three(), cells) < 1e-14);
  for (const Cells& cells : {Cells{1, 0, 2}, Cells{0, 2, 1, 2}, Cells{0, 0, 1, 1, 2}})
    CHECK(weight_error(moe::near_truth(tempered(), cells, kSilent, {}), tempered(), cells) < 1e-14);
}

TEST_CASE("near_truth: the start is in normal form and has the numbers of its true experts", "[gaussian]") {
  const auto start = moe::near_truth(three(), {2, 0, 1}, kSilent, {});
  CHECK((start.gate_slope(2, 0) == 0 && start.gate_bias(2) == 0));
  CHECK(start.intercept == test::row_of({0, 2, -2}));
  CHECK(start.variance == test::row_of({0.2, 0.3, 0.4}));
  const auto pinned = moe::near_truth(tempered(), {1, 0, 2, 2}, {}, {.num_rows = 10, .seed = 5});
  CHECK((pinned.gate_slope(3, 0) == 0 && pinned.gate_slope(2, 0) != 0 && pinned.gate_bias(3) == 0));
}

TEST_CASE("near_truth: noise has the deviation of its level, which shrinks with n", "[gaussian]") {
  const moe::StartNoise noise = {.expert = {.scale = 0.5, .power = 0.25}, .variance = {.scale = 0.1, .power = 0.5}};
  for (const Index n : {1, 10'000}) {
    CAPTURE(n);
    double squares = 0, variances = 0;
    constexpr int kSeeds = 2000;
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
      const auto start = moe::near_truth(three(), {0, 1, 2}, noise, {.num_rows = n, .seed = seed});
      squares += (start.intercept - three().intercept).squaredNorm() / (3 * kSeeds);
      const Eigen::RowVectorXd added = start.variance - three().variance;
      CHECK(added.minCoeff() >= 0);
      variances += added.squaredNorm() / (3 * kSeeds);
    }
    // a mean of 6000 squared normals has a relative deviation of sqrt(2 / 6000) = 0.018: five of them
    CHECK(std::abs(squares / (n == 1 ? 0.25 : 0.0025) - 1) < 0.09);
    CHECK(std::abs(variances / (n == 1 ? 0.01 : 1e-6) - 1) < 0.09);
  }
}

TEST_CASE("near_truth: noise of the temperature leaves a linear gate as it is, but not its temperature", "[gaussian]") {
  using Gate = moe::DenseToSparseGate<moe::LearnableTemperature>;
  moe::GaussianMoe<Gate> truth(three());
  truth.temperature = 0.5;
  moe::StartNoise noise = kSilent;
  noise.log_temperature = {.scale = 0.2};
  const auto start = moe::near_truth(truth, {0, 1, 2}, noise, {.num_rows = 100, .seed = 3});
  CHECK(std::abs(std::log(start.temperature / 0.5)) > 0.01);
  CHECK(weight_error(start, truth, {0, 1, 2}) < 1e-14);
}

TEST_CASE("near_truth: a bias inside of an activation is pinned with its slope", "[gaussian]") {
  moe::ActivationGate<moe::Tanh, moe::ConstantSchedule> gate;
  gate.bias_place = moe::BiasPlace::Inside;
  const auto truth = moe::GaussianMoe<decltype(gate)>::zero(2, 1, gate);
  moe::StartNoise noise;
  noise.gate = {.scale = 0.1, .power = 0};
  const auto start = moe::near_truth(truth, {0, 1}, noise, {});
  CHECK(start.gate_bias(0) != 0);
  CHECK((start.gate_bias(1) == 0 && start.gate_slope(1, 0) == 0));
}

TEST_CASE("near_truth: what cannot be is refused by name", "[gaussian][error]") {
  CHECK_THROWS_WITH(moe::expert_allocations(2, 3),
                    "moe::expert_allocations: there are 2 fitted experts, expected at least the true 3");
  CHECK_THROWS_WITH(moe::expert_allocations(20, 8),
                    "moe::expert_allocations: there are more than 1000 ways, expected fewer surplus experts");
  CHECK_THROWS_WITH(moe::random_allocation(2, 0, moe::LastExpert::Any, 1),
                    "moe::random_allocation: the truth has 0 experts, expected at least 1");
  CHECK_THROWS_WITH(moe::near_truth(three(), {}, {}, {}),
                    "moe::near_truth: cells is empty, expected one entry per expert");
  CHECK_THROWS_WITH(moe::near_truth(three(), {0, 1, 3}, {}, {}),
                    "moe::near_truth: cells holds 3, expected true experts 0 to 2");
  CHECK_THROWS_WITH(moe::near_truth(tempered(), {2, 0, 1}, {}, {}),
                    "moe::near_truth: the last entry of cells is 1, expected the true expert whose gate slope is 0, 2");
  CHECK_THROWS_WITH(moe::near_truth(three(), {0, 1, 2}, {.expert = {.scale = -1}}, {}),
                    "moe::near_truth: noise of expert is -1 n^-0, expected finite numbers >= 0");
}
