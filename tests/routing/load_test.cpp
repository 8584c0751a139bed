// SPDX-License-Identifier: MIT
#include "moe/routing/balance/load.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::LoadThreshold;
using moe::Matrix;
using moe::NoisyLogitsGradient;
using moe::Step;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class S = double>
struct Batch {
  Batch(Index num_tokens, Index num_experts)
      : clean(test::random_logits<S>(num_tokens, num_experts, 1)),
        deviation((test::random_logits<S>(num_tokens, num_experts, 2).array().abs() + S{0.25}).matrix()),
        noisy(
            (clean.array() + deviation.array() * test::random_logits<S>(num_tokens, num_experts, 3).array()).matrix()) {
  }

  double loss(Index k, const Step& step = {}, double weight = 1, NoisyLogitsGradient<S>* gradient = nullptr) const {
    NoisyLogitsGradient<S> ignored;
    return weight * moe::load_loss({clean, noisy, deviation}, k, step, weight, gradient ? *gradient : ignored, options);
  }

  Matrix<S> clean, deviation, noisy;
  moe::ExpertLoadOptions options = {};
};

/// Load of each expert straight from its definition: sort the others, take the k-th.
std::vector<double> load_by_definition(const Batch<>& batch, Index k) {
  std::vector<double> load(static_cast<std::size_t>(batch.clean.cols()));
  for (Index t = 0; t < batch.clean.rows(); ++t)
    for (Index e = 0; e < batch.clean.cols(); ++e) {
      std::vector<double> others;
      const bool with_own = batch.options.threshold == LoadThreshold::KthLargest;
      for (Index i = 0; i < batch.clean.cols(); ++i)
        if (i != e || with_own) others.push_back(batch.noisy(t, i));
      std::sort(others.rbegin(), others.rend());
      const double margin = (batch.clean(t, e) - others[static_cast<std::size_t>(k - 1)]) / batch.deviation(t, e);
      load[static_cast<std::size_t>(e)] += 0.5 * std::erfc(-margin / std::sqrt(2.0));
    }
  return load;
}

double squared_cv(const std::vector<double>& x, const moe::CvOptions& options = {}) {
  const auto n = static_cast<double>(x.size());
  double mean = 0, square = 0;
  for (const double v : x) mean += v / n;
  for (const double v : x) square += (v - mean) * (v - mean);
  return square / (options.variance == moe::Variance::Sample ? n - 1 : n) / (mean * mean + options.epsilon);
}

}  // namespace

TEST_CASE("load_loss: the worked example of one token", "[loss]") {
  Batch<> batch(1, 3);
  batch.clean << 1, .5, 0;
  batch.noisy << 1.2, .9, -.3;
  batch.deviation.setOnes();
  // Phi(0.1), Phi(-0.7), Phi(-1.2), given to 6 digits: CV^2, of slope below 4 in each, is good to 1e-5.
  REQUIRE_THAT(batch.loss(1), WithinAbs(squared_cv({.539828, .241964, .115070}), 1e-5));
}

TEST_CASE("load_loss: equals its definition for any k", "[loss]") {
  Batch<> batch(37, 6);
  const Index k = GENERATE(1, 2, 3, 5);
  batch.options.threshold = GENERATE(LoadThreshold::WithoutExpert, LoadThreshold::KthLargest);
  batch.options.cv = GENERATE(moe::CvOptions{}, moe::CvOptions{moe::Variance::Sample, 20.0});
  CAPTURE(k);
  const auto expected = load_by_definition(batch, k);
  REQUIRE_THAT(batch.loss(k), WithinAbs(squared_cv(expected, batch.options.cv), 1e-13));
  const auto load =
      moe::expert_load<double>({batch.clean, batch.noisy, batch.deviation}, k, {}, batch.options.threshold);
  REQUIRE(load.size() == expected.size());
  for (std::size_t e = 0; e < load.size(); ++e) REQUIRE_THAT(load[e], WithinAbs(expected[e], 1e-13));
}

TEST_CASE("load_loss: gradients by clean logits, noisy logits and deviation equal central differences", "[loss]") {
  const Index k = GENERATE(1, 2, 4);
  const auto valid = test::every_nth_padding(9, 4);
  Step step;
  step.valid = valid;
  Batch<> batch(9, 5);
  batch.options.threshold = GENERATE(LoadThreshold::WithoutExpert, LoadThreshold::KthLargest);
  NoisyLogitsGradient<double> gradient;
  batch.loss(k, step, 0.1, &gradient);
  const auto loss = [&] { return batch.loss(k, step, 0.1); };
  CAPTURE(k);
  // The gap between any two noisy logits is far above the step 1e-5, so the thresholds stay where they are.
  CHECK(test::gradient_error(loss, batch.clean, gradient.clean) < 1e-6);
  CHECK(test::gradient_error(loss, batch.noisy, gradient.noisy) < 1e-6);
  CHECK(test::gradient_error(loss, batch.deviation, gradient.deviation) < 1e-6);
  CHECK(test::largest(gradient.clean) > 1e-4);  // far above what the comparison would let pass as 0
  CHECK(test::largest(gradient.noisy) > 1e-4);
  CHECK(test::largest(gradient.deviation) > 1e-4);
}

TEST_CASE("load_loss: a constant added to all logits changes nothing", "[loss][property]") {
  Batch<> batch(20, 5);
  const double before = batch.loss(2);
  batch.clean.array() += 3;
  batch.noisy.array() += 3;
  REQUIRE_THAT(batch.loss(2), WithinAbs(before, 1e-13));
}

TEST_CASE("load_loss: the slopes by clean and noisy logits of a token cancel", "[loss][property]") {
  const Batch<> batch(20, 5);
  NoisyLogitsGradient<double> gradient;
  batch.loss(2, {}, 1, &gradient);
  for (Index t = 0; t < 20; ++t)
    REQUIRE_THAT(test::total(gradient.clean.row(t)) + test::total(gradient.noisy.row(t)), WithinAbs(0, 1e-15));
}

TEST_CASE("load_loss: k of at least num_experts leaves nothing to balance", "[loss]") {
  const Batch<> batch(4, 3);
  const Index k = GENERATE(3, 4);
  NoisyLogitsGradient<double> gradient;
  CHECK(batch.loss(k, {}, 1, &gradient) == 0);
  CHECK(gradient.clean.isZero(0));
}

TEST_CASE("load_loss: masked experts have load 0 and leave gradients finite", "[loss]") {
  Batch<> batch(6, 4);
  const Index masked = GENERATE(1, 3);  // 3: fewer rivals than k
  CAPTURE(masked);
  batch.clean.leftCols(masked).setConstant(-kInfinity);
  batch.noisy.leftCols(masked).setConstant(-kInfinity);
  NoisyLogitsGradient<double> gradient;
  CHECK(std::isfinite(batch.loss(2, {}, 1, &gradient)));
  for (const Matrix<double>* part : {&gradient.clean, &gradient.noisy, &gradient.deviation}) {
    CHECK(part->allFinite());
    CHECK(part->leftCols(masked).isZero(0));
  }
}

TEMPLATE_TEST_CASE("load_loss: any number of threads gives the same bits", "[loss][property]", float, double) {
  const Batch<TestType> batch(900, 7);
  const auto results = test::on_thread_counts([&] {
    NoisyLogitsGradient<TestType> gradient;
    const double loss = batch.loss(2, {}, 0.1, &gradient);
    return std::tuple(loss, gradient.clean, gradient.noisy, gradient.deviation);
  });
  REQUIRE(test::all_equal(results));
}

TEST_CASE("load_loss: no valid token gives 0 with zero gradient", "[loss]") {
  const std::vector<std::uint8_t> none(5, 0);
  Step step;
  step.valid = none;
  NoisyLogitsGradient<double> gradient;
  CHECK(Batch<>(5, 3).loss(1, step, 1, &gradient) == 0);
  CHECK(gradient.clean.isZero(0));
  CHECK(Batch<>(0, 3).loss(1) == 0);
}

TEST_CASE("load_loss: k below 1 and shapes that differ are errors", "[loss][error]") {
  Batch<> batch(5, 3);
  CHECK_THROWS_WITH(batch.loss(0), "moe::load_loss: k is 0, expected at least 1");
  const auto load = [&](Index k) {
    return moe::expert_load<double>({batch.clean, batch.noisy, batch.deviation}, k, {});
  };
  CHECK_THROWS_WITH(load(0), "moe::expert_load: k is 0, expected 1 <= k < num_experts = 3");
  CHECK_THROWS_WITH(load(3), "moe::expert_load: k is 3, expected 1 <= k < num_experts = 3");
  batch.options.cv.epsilon = -1;
  CHECK_THROWS_WITH(batch.loss(1), "moe::load_loss: epsilon is -1, expected at least 0");
  batch.options.cv.epsilon = 0;
  batch.deviation.resize(5, 2);
  CHECK_THROWS_WITH(batch.loss(1), "moe::load_loss: logits.deviation is [5, 2], expected [5, 3]");
}
