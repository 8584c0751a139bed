// SPDX-License-Identifier: MIT
// Experts of several outputs, independent within an expert.
#include "moe/likelihood/diagonal_normal.hpp"

#include <cmath>
#include <numbers>

#include "likelihood/mixtures.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/text.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using test::message_of;
using Two = moe::DiagonalNormal<2>;
using Three = moe::DiagonalNormal<3>;

template <Index M, class G>
moe::ResponseData data_of(const moe::MixtureRegression<moe::DiagonalNormal<M>, G>& model, Index n, std::uint64_t seed) {
  moe::RegressionData rows{.x = test::uniform_inputs(n, model.input_dim(), seed)};
  const moe::Matrix<double> outputs = moe::sample_outputs(model, rows.x, seed);
  return moe::ResponseData::of_outputs(std::move(rows), outputs);
}

/// Sum over rows of log sum_j pi_j prod_c N(y_c; a_jc x + b_jc, nu_jc), as it is written.
template <Index M>
double plain_log_likelihood(const moe::MixtureRegression<moe::DiagonalNormal<M>>& m, const moe::ResponseData& data) {
  double sum = 0;
  for (Index i = 0; i < data.num_rows(); ++i) {
    Eigen::RowVectorXd z = data.x.row(i) * m.gate_slope.transpose() + m.gate_bias;
    const Eigen::RowVectorXd pi = z.array().exp() / z.array().exp().sum();
    double density = 0;
    for (Index j = 0; j < m.num_experts(); ++j) {
      double f = pi(j);
      for (Index c = 0; c < M; ++c) {
        const double e = data.output(c)(i) - m.slope.row(j * M + c).dot(data.x.row(i)) - m.intercept(j * M + c);
        f *= std::exp(-0.5 * e * e / m.shape(j, c)) / std::sqrt(2 * std::numbers::pi * m.shape(j, c));
      }
      density += f;
    }
    sum += data.weight(i) * std::log(density);
  }
  return sum;
}

/// Clusters that neither output tells apart: each has one and the same distribution, but in one cluster they go
/// together, in the other against each other.
moe::ResponseData crossed(Index n) {
  auto m = moe::MixtureRegression<Two>::zero(2, 1);
  m.slope << 2, 2, 2, -2;  // rows: expert 0 output 0, output 1; expert 1 ...
  m.shape.setConstant(0.05);
  return data_of(m, n, 7);
}

}  // namespace

TEST_CASE("DiagonalNormal: the likelihood is what it says, score and information its derivatives", "[likelihood]") {
  const auto model = test::random_mixture<Three>(2, 2, 4);
  const moe::ResponseData data = data_of(model, 70, 5);
  const double value = moe::log_likelihood(model, data);
  CHECK(std::abs(value - plain_log_likelihood(model, data)) < 1e-12 * 70 * 10);
  const Eigen::VectorXd theta = moe::free_parameters(model), score = moe::score(model, data);
  const Eigen::MatrixXd information = moe::observed_information(model, data);
  REQUIRE(theta.size() == 3 + 2 * 3 * (3 + 1));
  REQUIRE(moe::parameter_names(model).size() == 27);
  CHECK(moe::parameter_names(model)[6] == "a[0,0|1]");
  CHECK(moe::parameter_names(model)[12] == "log variance[0|0]");
  CHECK(moe::parameter_names(model)[26] == "log variance[1|2]");
  CHECK(moe::criteria(model, data).num_parameters == 27);
  constexpr double h = 1e-5;  // h^2 f''' and 1e-16 |f| / h are below 1e-7 of 70 rows
  for (Index i = 0; i < theta.size(); ++i) {
    const Eigen::VectorXd step = h * Eigen::VectorXd::Unit(theta.size(), i);
    const auto up = moe::with_free_parameters(model, theta + step),
               down = moe::with_free_parameters(model, theta - step);
    CHECK(std::abs((moe::log_likelihood(up, data) - moe::log_likelihood(down, data)) / (2 * h) - score(i)) < 1e-5);
    const Eigen::VectorXd change = (moe::score(down, data) - moe::score(up, data)) / (2 * h);
    CHECK((change - information.col(i)).cwiseAbs().maxCoeff() < 1e-6 * (1 + information.cwiseAbs().maxCoeff()));
  }
}

TEST_CASE("DiagonalNormal: one expert is a regression for every output", "[likelihood]") {
  const Index n = 60;
  moe::ResponseData data = data_of(test::random_mixture<Three>(2, 2, 9), n, 6);
  data.weights = Eigen::VectorXd::NullaryExpr(n, [](Index i) { return double(1 + i % 3); });
  const auto fit = moe::fit_mixture<Three>(data, 1);
  const auto errors = moe::standard_errors(fit, data);
  REQUIRE(errors.available());
  Eigen::MatrixXd x(n, 3);
  x << data.x, Eigen::VectorXd::Ones(n);
  const double rows = data.total_weight();
  const Eigen::MatrixXd gram = x.transpose() * data.weights.asDiagonal() * x, inverse = gram.inverse();
  for (Index c = 0; c < 3; ++c) {
    const Eigen::VectorXd y = data.output(c), b = gram.ldlt().solve(x.transpose() * data.weights.cwiseProduct(y));
    const double variance = data.weights.dot((y - x * b).cwiseAbs2()) / rows;
    CHECK((fit.model.slope.row(c).transpose() - b.head(2)).cwiseAbs().maxCoeff() < 1e-8);
    CHECK(std::abs(fit.model.intercept(c) - b(2)) < 1e-8);
    CHECK(std::abs(fit.model.shape(0, c) - variance) < 1e-8);
    const std::string end = '|' + std::to_string(c) + ']';
    CHECK(std::abs(errors["a[0,1" + end].error->observed - std::sqrt(variance * inverse(1, 1))) < 1e-8);
    CHECK(std::abs(errors["b[0" + end].error->observed - std::sqrt(variance * inverse(2, 2))) < 1e-8);
    CHECK(std::abs(errors["variance[0" + end].error->observed - variance * std::sqrt(2 / rows)) < 1e-8);
  }
}

TEST_CASE("DiagonalNormal: with one output it is Normal", "[likelihood]") {
  const auto truth = test::random_mixture<moe::Normal>(2, 2, 3);
  const moe::ResponseData data = test::simulated(truth, 150, 3);
  const auto a = moe::fit_mixture<moe::DiagonalNormal<1>>(data, 2);
  const auto b = moe::fit_mixture<moe::Normal>(data, 2);
  CHECK(std::abs(a.log_likelihood - b.log_likelihood) < 1e-10);
  CHECK(a.hits == b.hits);
  CHECK((a.model.slope - b.model.slope).cwiseAbs().maxCoeff() < 1e-10);
  CHECK((a.model.shape - b.model.shape).cwiseAbs().maxCoeff() < 1e-10);
  CHECK(moe::parameter_names(a.model) == moe::parameter_names(b.model));
}

TEST_CASE("DiagonalNormal: outputs together tell experts apart that none tells alone", "[likelihood]") {
  const moe::ResponseData data = crossed(300);
  const auto joint = moe::fit_mixture<Two>(data, 2);
  CHECK(joint.converged);
  CHECK(joint.flags.interior());
  CHECK_FALSE(joint.flags.not_reproduced);
  for (std::size_t i = 1; i < joint.path.size(); ++i) CHECK(joint.path[i] >= joint.path[i - 1]);
  // Output 0 is one line in both, 2 x; output 1 a line up and one down. Deviations .22 of about 150 rows with x of
  // deviation .58: a standard error of .032.
  CHECK(std::abs(joint.model.slope(0, 0) - 2) < 4 * 0.032);
  CHECK(std::abs(joint.model.slope(2, 0) - 2) < 4 * 0.032);
  CHECK(std::abs(joint.model.slope(1, 0) + joint.model.slope(3, 0)) < 4 * 0.046);
  CHECK(std::abs(std::abs(joint.model.slope(1, 0)) - 2) < 4 * 0.032);
  // Alone, outputs of clusters far apart in the plane, each of which has two peaks too close to be two.
  auto truth = moe::MixtureRegression<moe::DiagonalNormal<6>>::zero(2, 1);
  for (Index c = 0; c < 6; ++c) truth.intercept(c) = 0.75, truth.intercept(6 + c) = -0.75;  // 1.5 deviations each
  const moe::ResponseData six = data_of(truth, 400, 3);
  const moe::Draws who = moe::draw(truth, six.x, 3);
  const auto right = [&](const moe::Matrix<double>& r) {
    Index same = 0;
    for (Index i = 0; i < 400; ++i) same += (r(i, 0) > 0.5) == (who.experts[static_cast<std::size_t>(i)] == 0);
    return static_cast<double>(std::max(same, 400 - same)) / 400;
  };
  const auto all = moe::fit_mixture<moe::DiagonalNormal<6>>(six, 2);
  moe::ResponseData one = six;
  one.further.resize(400, 0);
  const auto alone = moe::fit_mixture<moe::Normal>(one, 2);
  // Phi(sqrt(6) .75) = .967 of the rows at best, Phi(.75) = .773 alone; four standard errors of 400 rows.
  CHECK(right(moe::responsibilities(all.model, six)) > 0.967 - 4 * 0.009);
  CHECK(right(moe::responsibilities(alone.model, one)) < 0.773 + 4 * 0.021);
}

TEST_CASE("DiagonalNormal: weights are rows", "[likelihood]") {
  const auto start = test::random_mixture<Two>(2, 1, 8);
  moe::ResponseData data = data_of(start, 90, 8);
  data.weights = Eigen::VectorXd::NullaryExpr(90, [](Index i) { return double(i % 4); });
  std::vector<Index> copies;
  for (Index i = 0; i < 90; ++i)
    for (Index w = 0; w < i % 4; ++w) copies.push_back(i);
  moe::ResponseData rows = moe::detail::rows_of(data, copies);
  rows.weights.resize(0);
  CHECK(std::abs(moe::log_likelihood(start, data) - moe::log_likelihood(start, rows)) < 1e-9);
  const auto a = moe::fit_mixture_from(data, start), b = moe::fit_mixture_from(rows, start);
  CHECK(std::abs(a.log_likelihood - b.log_likelihood) < 1e-9 * std::abs(b.log_likelihood));
  const auto of_a = moe::standard_errors(a.model, data), of_b = moe::standard_errors(a.model, rows);
  REQUIRE(of_a.parameters.size() == of_b.parameters.size());
  for (std::size_t i = 0; i < of_a.parameters.size(); ++i) {
    REQUIRE(of_a.parameters[i].error.has_value() == of_b.parameters[i].error.has_value());
    if (const auto& e = of_a.parameters[i].error)
      CHECK(std::abs(e->sandwich - of_b.parameters[i].error->sandwich) < 1e-9 * e->sandwich);
  }
}

TEST_CASE("DiagonalNormal: means, samples and files have all outputs", "[likelihood]") {
  const auto model = test::random_mixture<Two>(2, 1, 5);
  const moe::Matrix<double> x = moe::Matrix<double>::Constant(40000, 1, 0.3);
  const moe::Matrix<double> y = moe::sample_outputs(model, x, 11), mean = moe::predict_mean(model, x);
  REQUIRE(mean.cols() == 2);
  CHECK(y.col(0) == moe::sample(model, x, 11));
  CHECK(moe::expert_means(model, x).cols() == 4);
  for (Index c = 0; c < 2; ++c) {
    const double spread = std::sqrt((y.col(c).array() - y.col(c).mean()).square().mean() / 40000);
    CHECK(std::abs(y.col(c).mean() - mean(0, c)) < 4 * spread);
  }
  const auto alone = moe::sample_outputs(model, x.topRows(3).eval(), 11);
  CHECK(alone == y.topRows(3));
  const test::TemporaryDirectory directory;
  moe::save_parameters(directory / "m.safetensors", model);
  auto other = moe::MixtureRegression<Two>::zero(2, 1);
  moe::load_parameters(directory / "m.safetensors", other);
  CHECK(moe::predict_mean(other, x) == mean);
  CHECK(other.shape == model.shape);
}

TEST_CASE("DiagonalNormal: what it cannot is refused or told", "[likelihood][error]") {
  const auto model = test::random_mixture<Two>(2, 1, 5);
  moe::ResponseData data = data_of(model, 50, 5);
  const auto refused = [](const auto& call, const char* why) { CHECK_THAT(message_of(call), ContainsSubstring(why)); };
  refused([] { moe::ResponseData::of_outputs({.x = test::uniform_inputs(3, 1, 1)}, moe::Matrix<double>(3, 0)); },
          "there are no outputs, expected at least one column");
  refused([&] { moe::fit_mixture<Three>(data, 2); }, "the data have 2 outputs (y, and columns of further), expected 3");
  refused([&] { moe::fit_mixture<moe::Normal>(data, 2); }, "expected 1");
  refused([&] { moe::log_likelihood(test::random_mixture<Three>(2, 1, 5), data); }, "expected 3");
  moe::ResponseData bad = data;
  bad.further(4, 0) = NAN;
  refused([&] { moe::fit_mixture<Two>(bad, 2); }, "output 1 is nan in row 4");
  bad.further(4, 0) = -INFINITY;
  refused([&] { moe::log_likelihood(model, bad); }, "output 1 is -inf in row 4, expected finite numbers");
  bad.further.resize(49, 1);
  refused([&] { moe::log_likelihood(model, bad); }, "further has 49 rows, expected as many as x, 50");
  data.further.setConstant(3);  // as a constant y of Normal
  const auto flat = moe::fit_mixture<Two>(data, 1);
  CHECK(flat.flags.at_floor);
  CHECK(flat.model.intercept(1) == 3);
  CHECK(flat.model.slope.row(1).isZero(1e-12));
}

TEST_CASE("DiagonalNormal: one row has a likelihood, no row none to fit", "[likelihood][error]") {
  const auto model = test::random_mixture<Two>(2, 1, 5);
  const moe::ResponseData one = data_of(model, 1, 5);
  CHECK(std::abs(moe::log_likelihood(model, one) - plain_log_likelihood(model, one)) < 1e-12);
  CHECK(moe::predict_mean(model, moe::Matrix<double>(0, 1)).rows() == 0);
  CHECK(moe::sample_outputs(model, moe::Matrix<double>(0, 1), 3).cols() == 2);
  CHECK_THAT(message_of([&] { moe::fit_mixture<Two>(one, 1); }), ContainsSubstring("moe::fit_mixture"));
  const moe::ResponseData none =
      moe::ResponseData::of_outputs({.x = moe::Matrix<double>(0, 1)}, moe::Matrix<double>(0, 2));
  CHECK_THAT(message_of([&] { moe::fit_mixture<Two>(none, 1); }), ContainsSubstring("moe::fit_mixture"));
}

TEST_CASE("DiagonalNormal: an offset is one of all outputs", "[likelihood]") {
  const auto start = test::random_mixture<Two>(2, 1, 8);
  const moe::ResponseData data = data_of(start, 80, 8);
  moe::ResponseData moved = data;
  moved.offset = Eigen::VectorXd::NullaryExpr(80, [](Index i) { return 0.25 * double(i % 5); });
  moved.y += moved.offset;
  moved.further.col(0) += moved.offset;
  CHECK(std::abs(moe::log_likelihood(start, moved) - moe::log_likelihood(start, data)) < 1e-10);
  // Equal but for roundings of y - offset, which a maximum within its tolerances does not enlarge beyond 1e-8.
  const auto fit = moe::fit_mixture_from(moved, start), plain = moe::fit_mixture_from(data, start);
  CHECK((fit.model.slope - plain.model.slope).cwiseAbs().maxCoeff() < 1e-8);
  CHECK((fit.model.intercept - plain.model.intercept).cwiseAbs().maxCoeff() < 1e-8);
}

TEST_CASE("DiagonalNormal: the number of threads changes no bit", "[likelihood][property]") {
  const moe::ResponseData data = data_of(test::random_mixture<Three>(2, 2, 4), 2100, 5);  // several blocks of rows
  const auto with = [&](Index threads) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    return moe::fit_mixture<Three>(data, 2);
  };
  const auto a = with(1), b = with(3);
  CHECK(a.log_likelihood == b.log_likelihood);
  CHECK(a.model.slope == b.model.slope);
  CHECK(a.model.shape == b.model.shape);
  CHECK(a.model.gate_slope == b.model.gate_slope);
}
