// SPDX-License-Identifier: MIT
// Layer normalisation against its formula, and its gradients.
#include "moe/sequence/layer_norm.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/parameters.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;

namespace {

template <class S>
moe::LayerNorm<S> norm(Index dim) {
  moe::LayerNorm<S> result(dim, 1e-3);
  test::randomise(result, 5);
  return result;
}

template <class S>
Matrix<S> run(const moe::LayerNorm<S>& norm, const Matrix<S>& rows) {
  moe::Scratch scratch;
  auto out = test::nan_matrix<S>(rows.rows(), rows.cols());
  norm.forward(rows, out, {moe::Step{}, scratch});
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("LayerNorm: is the formula, for widths around a register", "[sequence]", float, double) {
  using S = TestType;
  for (const Index dim : {1, 7, 8, 9, 16, 33}) {
    const auto layer = norm<S>(dim);
    const auto rows = test::random_matrix<S>(5, dim, 1, 3);
    const auto out = run(layer, rows);
    for (Index r = 0; r < 5; ++r) {
      double mean = 0, variance = 0;
      for (Index c = 0; c < dim; ++c) mean += static_cast<double>(rows(r, c)) / static_cast<double>(dim);
      for (Index c = 0; c < dim; ++c)
        variance += std::pow(static_cast<double>(rows(r, c)) - mean, 2) / static_cast<double>(dim);
      for (Index c = 0; c < dim; ++c) {
        const double expected = static_cast<double>(layer.scale()(c)) * (static_cast<double>(rows(r, c)) - mean) /
                                    std::sqrt(variance + 1e-3) +
                                static_cast<double>(layer.shift()(c));
        // Numbers below 20, of some 10 roundings; with one column 1 / sqrt(1e-3) = 32 times what is left of x - x.
        CHECK(std::abs(static_cast<double>(out(r, c)) - expected) < 400 * std::numeric_limits<S>::epsilon());
      }
    }
  }
}

TEST_CASE("LayerNorm: gradients are central differences, in place too", "[sequence]") {
  for (const Index dim : {1, 5, 11}) {
    auto layer = norm<double>(dim);
    auto rows = test::random_matrix<double>(4, dim, 1);
    const auto c = test::random_matrix<double>(4, dim, 2);
    moe::LayerNorm<double>::Tape tape;
    auto gradient = moe::zeros_like(layer);
    Matrix<double> out(4, dim), drows = c;
    const moe::Context context(moe::Step::train(1));
    layer.forward(rows, out, context, tape);
    layer.backward(rows, tape, drows, drows, gradient, context);
    const auto loss = [&] { return run(layer, rows).cwiseProduct(c).eval().sum(); };
    CHECK(test::gradient_error(loss, rows, drows) < 1e-7);
    CHECK(test::parameter_gradient_error(loss, layer, gradient) < 1e-8);
  }
}

TEST_CASE("LayerNorm: rows have the same bits alone and in a batch, gradients for any threads",
          "[sequence][property]") {
  const auto layer = norm<float>(19);
  const auto rows = test::random_matrix<float>(200, 19, 1), dout = test::random_matrix<float>(200, 19, 2);
  const auto all = run(layer, rows);
  CHECK(test::same_bits(run<float>(layer, rows.middleRows(77, 1)), all.row(77)));
  CHECK(run<float>(layer, rows.topRows(0)).rows() == 0);
  const auto gradient = [&] {
    auto result = moe::zeros_like(layer);
    moe::LayerNorm<float>::Tape tape;
    Matrix<float> out(200, 19), drows(200, 19);
    const moe::Context context(moe::Step::train(1));
    layer.forward(rows, out, context, tape);
    layer.backward(rows, tape, dout, drows, result, context);
    return result;
  };
  const auto serial = gradient();
  test::ThreadExecutor threads(3);
  const moe::UseExecutor use(threads);
  CHECK(test::same_parameters(gradient(), serial));
}

TEST_CASE("LayerNorm: constant rows are the shift, and sizes are checked", "[sequence][error]") {
  const auto layer = norm<double>(4);
  const auto out = run(layer, Matrix<double>(Matrix<double>::Constant(2, 4, 7.0)));
  CHECK(test::same_bits(out.row(1), layer.shift()));
  CHECK_THROWS_WITH(run(layer, Matrix<double>(Matrix<double>::Zero(2, 3))),
                    ContainsSubstring("rows is [2, 3], expected [2, 4]"));
  CHECK_THROWS_WITH(moe::LayerNorm<double>(0), ContainsSubstring("dim is 0, expected at least 1"));
  CHECK_THROWS_WITH(moe::LayerNorm<double>(3, 0), ContainsSubstring("epsilon is 0, expected a finite value above 0"));
  CHECK_THROWS_WITH(moe::LayerNorm<float>(3, 1e-50),
                    ContainsSubstring("epsilon is 1e-50, expected a finite value above 0 in 32 bits"));
  for (const double epsilon : {-1.0, test::kNan<double>, std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH(moe::LayerNorm<double>(3, epsilon), ContainsSubstring("expected a finite value above 0"));
    CHECK_THROWS_WITH(moe::LayerNorm<float>(3, epsilon), ContainsSubstring("expected a finite value above 0"));
  }
  CHECK_THROWS_WITH(moe::LayerNorm<float>(3, 1e39), ContainsSubstring("expected a finite value above 0"));
  const moe::LayerNorm<double> least(4, 1e-50);
  CHECK(test::all_zero(run(least, Matrix<double>(Matrix<double>::Constant(1, 4, 7.0)))));
}
