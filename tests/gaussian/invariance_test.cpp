// SPDX-License-Identifier: MIT
// What leaves the likelihood of a mixture as it is, and the gates that others turn into.
#include <numeric>

#include "gaussian/oracle_bounds.hpp"
#include "gaussian/samples.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"

using moe::Index;

namespace {

/// Requires the same log-likelihood, up to the bounds of both, and says so for log_density too.
template <class A, class B>
void require_same(const moe::GaussianMoe<A>& a, const moe::GaussianMoe<B>& b, const moe::RegressionData& data) {
  const oracle::Model left = oracle::model(a), right = oracle::model(b);
  const auto total = oracle::log_likelihood_bound(left, data) + oracle::log_likelihood_bound(right, data);
  CHECK(std::abs(moe::log_likelihood(a, data) - moe::log_likelihood(b, data)) <= static_cast<double>(total));
  const Eigen::VectorXd of_a = moe::log_density(a, data), of_b = moe::log_density(b, data);
  oracle::Vec bound(data.num_rows());
  for (Index i = 0; i < data.num_rows(); ++i)
    bound(i) = oracle::bound(left, oracle::evaluate(left, data, i)).log_density +
               oracle::bound(right, oracle::evaluate(right, data, i)).log_density;
  CHECK(oracle::worst(of_a, of_b.cast<oracle::Real>(), bound) <= 1);
}

/// The same model with its experts in another order.
template <class Gate>
moe::GaussianMoe<Gate> permuted(const moe::GaussianMoe<Gate>& model, const std::vector<Index>& order) {
  auto result = model;
  for (Index j = 0; j < model.num_experts(); ++j) {
    const Index from = order[static_cast<std::size_t>(j)];
    result.gate_slope.row(j) = model.gate_slope.row(from);
    result.slope.row(j) = model.slope.row(from);
    result.gate_bias(j) = model.gate_bias(from);
    result.intercept(j) = model.intercept(from);
    result.variance(j) = model.variance(from);
  }
  return result;
}

}  // namespace

TEST_CASE("GaussianMoe: a common shift of a linear gate changes nothing", "[gaussian][property]") {
  const auto shifted = [](auto model) {
    for (Index c = 0; c < model.input_dim(); ++c) model.gate_slope.col(c).array() += 0.75 - static_cast<double>(c);
    model.gate_bias.array() -= 1.3;
    return model;
  };
  const auto softmax = test::sample_model(3, 2, moe::SoftmaxGate{});
  const auto top = test::sample_model(4, 2, moe::TopKGate{.k = 2});
  const auto tempered = test::sample_model(3, 2, test::TemperatureGate{.temperature = {0.7}});
  require_same(softmax, shifted(softmax), test::sample_data(softmax, 100));
  require_same(top, shifted(top), test::sample_data(top, 100));
  require_same(tempered, shifted(tempered), test::sample_data(tempered, 100));
}

TEST_CASE("normalise: changes no density", "[gaussian][property]") {
  test::for_each_model(3, 2, [](const char* name, auto model) {
    const bool linear = oracle::model(model).rule.linear, inside = oracle::model(model).rule.inside;
    const auto data = test::sample_data(model, 60);
    if (linear) model.gate_slope.array() += 0.4;
    if (linear || !inside) model.gate_bias.array() += 0.6;
    auto normal = model;
    moe::normalise(normal);
    CAPTURE(name);
    if (linear || !inside) CHECK(normal.gate_bias(2) == 0);
    require_same(model, normal, data);
    CHECK(moe::score(normal, data).allFinite());
  });
}

TEST_CASE("GaussianMoe: temperature is a scale of a linear gate", "[gaussian][property]") {
  const auto model =
      test::sample_model(3, 2, test::FreeTemperatureGate{.temperature = moe::LearnableTemperature::starting_at(1.4)});
  const auto data = test::sample_data(model, 200);
  const double here = moe::log_likelihood(model, data);
  for (const double scale : {1e-3, 0.3, 7.0, 1e4}) {
    auto scaled = model;
    scaled.gate_slope *= scale;
    scaled.gate_bias *= scale;
    scaled.temperature *= scale;
    CAPTURE(scale);
    CHECK_THAT(moe::log_likelihood(scaled, data), Catch::Matchers::WithinRel(here, 1e-12));
  }
}

TEST_CASE("observed_information: is singular along the ray of a free temperature", "[gaussian][property]") {
  // l(c beta, log tau + log c) = l for all c. The derivative in log c says v's = 0 with v = (beta_1, beta_0, 1); that
  // in theta says I v = (s of beta_1 and beta_0, 0): nothing at a maximum. Rounding: some 100 u per row of positive
  // terms.
  for (const Index d : {1, 3}) {
    const auto model =
        test::sample_model(3, d, test::FreeTemperatureGate{.temperature = moe::LearnableTemperature::starting_at(0.8)});
    const auto data = test::sample_data(model, 500);
    const moe::ParameterLayout at = moe::layout(model);
    Eigen::VectorXd ray = Eigen::VectorXd::Zero(at.size());
    ray.head(at.log_temperature()) = moe::pack(model, at).head(at.log_temperature());
    ray(at.log_temperature()) = 1;
    const Eigen::VectorXd score = moe::score(model, data);
    Eigen::VectorXd expected = Eigen::VectorXd::Zero(at.size());
    expected.head(at.log_temperature()) = score.head(at.log_temperature());
    const Eigen::MatrixXd information = moe::observed_information(model, data);
    const Eigen::VectorXd along = information * ray;
    CAPTURE(d);
    CHECK(std::abs(score.dot(ray)) <= 1e-11 * 500);
    CHECK(test::largest(along - expected) <= 1e-11 * 500);
    CHECK(test::largest(expected) > 1);
  }
}

TEMPLATE_TEST_CASE("GaussianMoe: two gates behind an odd activation may swap and change sign", "[gaussian][property]",
                   moe::Tanh, moe::Sigmoid) {
  const auto model = test::sample_model(2, 3, test::FreeActivationGate<TestType>{}, 1, moe::LastSlope::Free);
  auto swapped = model;
  swapped.gate_slope.row(0) = -model.gate_slope.row(1);
  swapped.gate_slope.row(1) = -model.gate_slope.row(0);
  const auto data = test::sample_data(model, 100);
  require_same(model, swapped, data);
  auto negated = model;  // without the swap the density is another
  negated.gate_slope *= -1;
  CHECK(std::abs(moe::log_likelihood(negated, data) - moe::log_likelihood(model, data)) > 1);
}

TEST_CASE("GaussianMoe: the order of the experts changes nothing, and moves the responsibilities along",
          "[gaussian][property]") {
  const std::vector<Index> order = {2, 0, 3, 1};
  test::for_each_model(4, 2, [&](const char* name, const auto& model) {
    const auto other = permuted(model, order);
    const auto data = test::sample_data(model, 60);
    CAPTURE(name);
    require_same(model, other, data);
    const moe::Matrix<double> r = moe::responsibilities(model, data), moved = moe::responsibilities(other, data);
    const oracle::Model m = oracle::model(model), p = oracle::model(other);
    for (Index i = 0; i < data.num_rows(); ++i) {
      const oracle::RowBound one = oracle::bound(m, oracle::evaluate(m, data, i)),
                             two = oracle::bound(p, oracle::evaluate(p, data, i));
      for (Index j = 0; j < 4; ++j) {
        const Index from = order[static_cast<std::size_t>(j)];
        REQUIRE(std::abs(moved(i, j) - r(i, from)) <= static_cast<double>(one.posterior(from) + two.posterior(j)));
      }
    }
  });
}

TEST_CASE("GaussianMoe: top-K of all experts is softmax", "[gaussian][property]") {
  const auto softmax = test::sample_model(4, 2, moe::SoftmaxGate{});
  const auto data = test::sample_data(softmax, 100);
  const moe::GaussianMoe<moe::TopKGate> by_logit(softmax, {.k = 4});
  const moe::GaussianMoe<moe::TopKGate> by_product(softmax, {.k = 4, .weight_bias = Eigen::RowVectorXd::Zero(4)});
  require_same(softmax, by_logit, data);
  require_same(softmax, by_product, data);
  CHECK(test::largest(moe::score(softmax, data) - moe::score(by_product, data)) <= 1e-11);  // 100 rows, 1e3 u each
}

TEST_CASE("GaussianMoe: a falling temperature leads to top-1, away from ties", "[gaussian][property]") {
  // Where the best score leads by 1e-3, the others weigh e^(-1e4) or less at tau = 1e-7; no density makes up for that.
  auto cold = test::sample_model(3, 2, test::TemperatureGate{});
  cold.temperature = 1e-7;
  const moe::GaussianMoe<moe::TopKGate> top(
      [&] {
        moe::GaussianParameters hard = cold;
        hard.temperature = 1;
        return hard;
      }(),
      {.k = 1});
  const auto data = test::sample_data(cold, 300);
  const oracle::Model m = oracle::model(top), c = oracle::model(cold);
  const Eigen::VectorXd limit = moe::log_density(top, data), density = moe::log_density(cold, data);
  Index compared = 0;
  for (Index i = 0; i < data.num_rows(); ++i) {
    const oracle::Row row = oracle::evaluate(m, data, i);
    Index close = 0;
    for (Index j = 0; j < 3; ++j) close += row.score(j) > row.score.maxCoeff() - 1e-3L;
    if (close > 1) continue;
    ++compared;
    const oracle::Real bound =
        oracle::bound(m, row).log_density + oracle::bound(c, oracle::evaluate(c, data, i)).log_density;
    REQUIRE(bound < 1e-6L);  // scores are 1e7, rounded to 1e-9
    REQUIRE(std::abs(density(i) - limit(i)) <= static_cast<double>(bound));
  }
  CHECK(compared > 290);
}

TEST_CASE("GaussianMoe: an activation that does nothing is the temperature gate", "[gaussian][property]") {
  auto dense = test::sample_model(3, 2, test::TemperatureGate{});
  dense.temperature = 0.4;
  const auto data = test::sample_data(dense, 100);
  for (const auto place : {moe::BiasPlace::Outside, moe::BiasPlace::Inside}) {
    test::FixedActivationGate<moe::Identity> gate;
    gate.bias_place = place;
    const moe::GaussianMoe<test::FixedActivationGate<moe::Identity>> same(dense, gate);
    require_same(dense, same, data);
    CHECK(test::largest(moe::score(dense, data) - moe::score(same, data)) <= 1e-11);  // 100 rows, 1e3 u each
    CHECK_THAT(test::largest(moe::observed_information(dense, data) - moe::observed_information(same, data)),
               Catch::Matchers::WithinAbs(0, 1e-9));  // the same with squares: 1e5 u each
  }
}
