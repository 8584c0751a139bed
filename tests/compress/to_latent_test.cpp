// SPDX-License-Identifier: MIT
#include "moe/compress/to_latent.hpp"

#include <limits>

#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"

using Catch::Matchers::ContainsSubstring;
using Eigen::MatrixXd;
using moe::ExpertPool;
using moe::F64;
using moe::Index;
using moe::LatentSides;
using moe::Matrix;
using moe::Step;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;

namespace {

constexpr Index kDim = 12, kHidden = 7;

MatrixXd random(Index rows, Index cols, std::uint64_t seed) { return test::random_matrix<double>(rows, cols, seed); }

/// Experts whose first matrices span `rank` rows together, and whose last ones as many columns.
ExpertPool<Glu> pool_of_rank(Index num_experts, Index rank, std::uint64_t seed) {
  const MatrixXd rows = random(rank, kDim, seed), cols = random(kDim, rank, seed + 1);
  std::vector<Glu> experts;
  for (Index e = 0; e < num_experts; ++e) {
    Glu expert(kDim, kHidden);
    const auto own = seed + 10 * static_cast<std::uint64_t>(e);
    expert.gate_up() =
        moe::PanelMatrix<F64>::from(Matrix<double>(random(2 * kHidden, rank, own + 2) * rows), moe::PanelOrder::Paired);
    expert.down() = moe::PanelMatrix<F64>::from(Matrix<double>(cols * random(rank, kHidden, own + 3)));
    experts.push_back(std::move(expert));
  }
  return ExpertPool<Glu>(std::move(experts));
}

/// Of a group by brute force: |W - A B|^2 of what the conversion has made.
template <class E>
double input_error(const ExpertPool<E>& pool, const moe::LatentExperts<E>& latent, Index group) {
  double sum = 0;
  for (Index e = latent.group_begin()[std::size_t(group)]; e < latent.group_begin()[std::size_t(group) + 1]; ++e)
    sum += (moe::detail::first_matrix(pool[e]).matrix() -
            moe::detail::first_matrix(latent.experts()[e]).matrix() * latent.input()[group].weight().matrix())
               .squaredNorm();
  return sum;
}

/// Outputs of every expert for the same tokens.
template <class X>
Matrix<double> run_all(const X& experts, const Matrix<double>& tokens) {
  moe::Routing<double> routing;
  routing.resize(tokens.rows(), experts.size());
  for (Index t = 0; t < tokens.rows(); ++t)
    for (Index e = 0; e < experts.size(); ++e) routing.experts(t)[static_cast<std::size_t>(e)] = e;
  moe::DispatchPlan plan;
  plan.build(routing, experts.size());
  moe::RowBuffer<double> rows;
  rows.resize(plan.num_rows(), moe::row_width(experts));
  experts.forward(tokens, plan, Step{}, rows);
  return rows.matrix().leftCols(experts.output_dim());
}

}  // namespace

TEST_CASE("latent_factors: the error is that of the singular values left out, to 6 digits", "[compress]") {
  std::vector<MatrixXd> weights;
  for (std::uint64_t i = 0; i < 3; ++i) weights.push_back(random(6 + Index(i), kDim, 10 + i));
  MatrixXd stacked(21, kDim);
  stacked << weights[0], weights[1], weights[2];
  const Eigen::VectorXd singular = stacked.jacobiSvd().singularValues();
  double last = std::numeric_limits<double>::infinity();
  for (const Index m : {1, 3, 7, 11, 12}) {
    CAPTURE(m);
    const moe::LatentFactors factors = moe::latent_factors(weights, m);
    const double formula = singular.tail(kDim - m).squaredNorm();
    double actual = 0;
    for (std::size_t i = 0; i < 3; ++i) actual += (weights[i] - factors.own[i] * factors.shared).squaredNorm();
    CHECK(std::abs(factors.squared_error - formula) <= 1e-9 * stacked.squaredNorm());
    CHECK(std::abs(actual - formula) <= 1e-6 * formula + 1e-20 * stacked.squaredNorm());
    CHECK((factors.singular_values - singular).cwiseAbs().maxCoeff() < 1e-6);
    CHECK(factors.squared_error < last);
    last = factors.squared_error;
    for (Index j = 0; j < m; ++j) {  // a balanced gauge
      double own = 0;
      for (const MatrixXd& a : factors.own) own += a.col(j).squaredNorm();
      CHECK(std::abs(own - factors.shared.row(j).squaredNorm()) < 1e-9);
    }
  }
}

TEST_CASE("latent_factors: moments weigh errors, and rounds of least squares do not add to them", "[compress]") {
  std::vector<MatrixXd> weights, moments;
  for (std::uint64_t i = 0; i < 3; ++i) {
    weights.push_back(random(8, kDim, 10 + i));
    const MatrixXd rows =
        random(40, kDim, 20 + i) *
        Eigen::VectorXd::LinSpaced(kDim, i == 1 ? 0 : -3, i == 1 ? -3 : 0).array().exp().matrix().asDiagonal();
    moments.emplace_back(rows.transpose() * rows);
  }
  const auto error = [&](const moe::LatentFactors& factors) {
    double sum = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      const MatrixXd difference = weights[i] - factors.own[i] * factors.shared;
      sum += (difference * moments[i] * difference.transpose()).trace();
    }
    return sum;
  };
  const double plain = error(moe::latent_factors(weights, 4));
  double last = error(moe::latent_factors(weights, 4, moments));
  CHECK(last < plain);
  for (const Index rounds : {1, 2, 5, 20}) {
    const auto factors = moe::latent_factors(weights, 4, moments, rounds);
    CHECK(error(factors) < last);
    CHECK(std::abs(error(factors) / factors.squared_error - 1) < 1e-9);
    last = error(factors);
  }
  // One moment for all: the start is the best already.
  const std::vector<MatrixXd> same(3, moments[0]);
  const auto start = moe::latent_factors(weights, 4, same), refined = moe::latent_factors(weights, 4, same, 10);
  CHECK(std::abs(refined.squared_error - start.squared_error) < 1e-6 * start.squared_error);
  // Of the singular values of W L with L L^T the sum of the three moments, and a ridge of 1e-6 of its mean.
  const double formula = start.singular_values.tail(kDim - 4).squaredNorm() / 3;
  CHECK(std::abs(start.squared_error - formula) < 1e-4 * formula);
}

TEST_CASE("latent_factors: what is no second moment is refused", "[compress][error]") {
  const std::vector<MatrixXd> weights(2, random(8, kDim, 1));
  const MatrixXd rows = random(40, kDim, 2), good = rows.transpose() * rows;
  const auto refuse = [&](const MatrixXd& bad, const char* why) {
    const std::vector<MatrixXd> moments = {good, bad};
    CHECK_THROWS_WITH(moe::latent_factors(weights, 3, moments), ContainsSubstring(why));
  };
  MatrixXd negative = good, large = good, crooked = good, indefinite = MatrixXd::Constant(kDim, kDim, -1);
  negative(4, 4) = -1;
  large(5, 2) = large(2, 5) = 3 * std::sqrt(good(5, 5) * good(2, 2));
  crooked(5, 2) += good(5, 5);
  refuse(negative, "where the diagonal has -1");
  refuse(large, "expected sums of squares and products");
  refuse(crooked, "moment 1 has");
  refuse(-0.5 * good, "moment 1 has");   // beside which the sum of both is one
  indefinite.diagonal().setConstant(1);  // no pair gives it away
  CHECK_THROWS_WITH(moe::latent_factors(weights, 3, std::vector<MatrixXd>(2, indefinite)),
                    ContainsSubstring("the sum of the moments is not positive definite, expected second moments"));
  MatrixXd rounded = good.cast<float>().cast<double>(), none = MatrixXd::Zero(kDim, kDim);
  rounded.row(3).setZero(), rounded.col(3).setZero();  // an input that is never on
  CHECK_NOTHROW(moe::latent_factors(weights, 3, std::vector<MatrixXd>{rounded, none}));
}

TEST_CASE("to_latent: at the rank of a group it is the same function, with its gradients", "[compress][property]") {
  const auto sides = GENERATE(LatentSides::Input, LatentSides::Both);
  const auto pool = pool_of_rank(5, 4, 3);
  const auto latent = moe::to_latent(pool, {.group = 2, .latent_dim = 4, .sides = sides}).experts;
  CHECK(latent.num_groups() == 3);  // 2, 2 and 1
  const auto tokens = test::random_matrix<double>(9, kDim, 1);
  CHECK(test::largest(Matrix<double>(run_all(latent, tokens) - run_all(pool, tokens))) < 1e-9);
  const auto dtokens = [&](const auto& experts) {
    std::vector<Index> ids(9);
    for (Index t = 0; t < 9; ++t) ids[std::size_t(t)] = t % 5;
    moe::DispatchPlan plan;
    plan.build(moe::Routing<double>::from(9, ids, std::vector<double>(9, 1.0), 5), 5);
    moe::RowBuffer<double> rows, dout;
    for (auto* buffer : {&rows, &dout}) buffer->resize(9, moe::row_width(experts));
    dout.matrix().setZero();
    dout.matrix().leftCols(kDim) = tokens;
    typename std::remove_cvref_t<decltype(experts)>::Tape tape;
    auto gradient = moe::zeros_like(experts);
    Matrix<double> result(9, kDim);
    experts.forward(tokens, plan, Step{}, rows, tape);
    experts.backward(tokens, plan, Step{}, tape, dout, gradient, result);
    return result;
  };
  CHECK(test::largest(Matrix<double>(dtokens(latent) - dtokens(pool))) < 1e-9);
}

TEST_CASE("to_latent: reports the errors of every group", "[compress]") {
  std::vector<Mlp> experts;
  for (Index e = 0; e < 5; ++e) experts.push_back(test::random_expert<Mlp>(kDim, kHidden + e, std::uint64_t(10 * e)));
  const ExpertPool<Mlp> pool(experts);
  const auto found = moe::to_latent(pool, {.group = 3, .latent_dim = 5});
  CHECK(found.output_error.empty());
  for (Index q = 0; q < 2; ++q) {
    const double expected = input_error(pool, found.experts, q);
    CHECK(std::abs(found.input_error[std::size_t(q)] - expected) < 1e-6 * expected);
  }
  // The other end, of GLUs without biases.
  const auto glus = ExpertPool<Glu>::random(4, kDim, kHidden, 1);
  const auto both = moe::to_latent(glus, {.group = 4, .latent_dim = 5, .sides = LatentSides::Both});
  double expected = 0;
  for (Index e = 0; e < 4; ++e)
    expected += (glus[e].down().matrix() -
                 both.experts.output()[0].weight().matrix() * both.experts.experts()[e].down().matrix())
                    .squaredNorm();
  CHECK(std::abs(both.output_error[0] - expected) < 1e-6 * expected);
}

TEST_CASE("to_latent: a calibration makes the error of outputs smaller", "[compress][property]") {
  const auto pool = ExpertPool<Glu>::random(4, kDim, kHidden, 1);
  Matrix<double> rows = test::random_matrix<double>(200, kDim, 5);
  for (Index i = 0; i < kDim; ++i) rows.col(i) *= std::exp(-0.6 * static_cast<double>(i));
  moe::Calibration calibration(pool);
  for (Index e = 0; e < 4; ++e) calibration[e] += moe::calibrate(pool[e], rows);
  const auto sides = GENERATE(LatentSides::Input, LatentSides::Both);
  const auto expected = run_all(pool, rows);
  const auto error = [&](const moe::LatentConversion<Glu>& found) {
    return (run_all(found.experts, rows) - expected).squaredNorm();
  };
  const moe::LatentOptions options{.group = 2, .latent_dim = 4, .sides = sides};
  moe::LatentOptions refined = options;
  refined.refinements = 2;
  const double plain = error(moe::to_latent(pool, options));
  CHECK(error(moe::to_latent(pool, calibration, options)) < 0.8 * plain);
  CHECK(error(moe::to_latent(pool, calibration, refined)) < 0.8 * plain);
}

TEST_CASE("to_latent: zero weights, one input and single experts convert", "[compress]") {
  const ExpertPool<Glu> zero(std::vector<Glu>(2, Glu(kDim, kHidden)));
  const auto tokens = test::random_matrix<double>(3, kDim, 1);
  CHECK(test::all_zero(run_all(moe::to_latent(zero, {.group = 2, .latent_dim = 3}).experts, tokens)));
  const auto narrow = ExpertPool<Glu>::random(2, {.input = 1, .hidden = 5, .output = 3}, 1);
  const auto column = test::random_matrix<double>(4, 1, 1);
  const auto found = moe::to_latent(narrow, {.group = 1, .latent_dim = 1});
  CHECK(test::largest(Matrix<double>(run_all(found.experts, column) - run_all(narrow, column))) < 1e-12);
  CHECK(found.input_error[1] < 1e-20);
}

TEST_CASE("to_latent: what cannot be is refused", "[compress][error]") {
  auto pool = ExpertPool<Glu>::random(2, kDim, kHidden, 1);
  CHECK_THROWS_WITH(moe::to_latent(pool, {.group = 2, .latent_dim = 13}),
                    "moe::to_latent: latent_dim is 13, expected 1 <= latent_dim <= 12");
  CHECK_THROWS_WITH(moe::to_latent(pool, {.group = 0, .latent_dim = 3}), ContainsSubstring("group is 0"));
  CHECK_THROWS_WITH(moe::to_latent(pool, {.group = 2, .latent_dim = 3, .refinements = 1}),
                    ContainsSubstring("refinements without a calibration"));
  const moe::Calibration other(ExpertPool<Glu>::random(3, kDim, kHidden, 1));
  CHECK_THROWS_WITH(moe::to_latent(pool, other, {.group = 2, .latent_dim = 3}),
                    ContainsSubstring("the calibration is of 3 experts, expected 2"));
  const ExpertPool<Mlp> biased(std::vector<Mlp>(2, Mlp(kDim, kHidden)));
  CHECK_THROWS_WITH(moe::to_latent(biased, {.group = 2, .latent_dim = 3, .sides = LatentSides::Both}),
                    ContainsSubstring("expert 0 has biases of its outputs"));
  pool[1].gate_up()(3, 2) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(moe::to_latent(pool, {.group = 2, .latent_dim = 3}), ContainsSubstring("not finite"));
}
