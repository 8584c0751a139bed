// SPDX-License-Identifier: MIT
#include "moe/router/columns.hpp"

#include "moe/router/frozen.hpp"
#include "moe/router/linear.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/routings.hpp"

using moe::Index;
using moe::Matrix;
using moe::Step;
using Linear = moe::BasicLinearRouter<moe::F64>;
using Router = moe::ColumnsRouter<Linear>;

namespace {

template <class R>
Matrix<typename R::Scalar> logits(const R& router, const moe::MatrixView<typename R::Scalar>& tokens) {
  Matrix<typename R::Scalar> out(tokens.rows(), router.num_experts());
  router.logits(tokens, Step{}, out);
  return out;
}

}  // namespace

TEST_CASE("ColumnsRouter: logits are those of the router over its columns, bit for bit", "[router]") {
  const auto tokens = test::random_matrix<double>(11, 9, 1);
  for (const Index first : {0, 2, 5}) {
    const Linear linear = Linear::random(3, 4, 2, moe::Bias::Zero);
    CAPTURE(first);
    CHECK(test::same_bits(logits(Router(linear, 9, first), tokens),
                          logits(linear, Matrix<double>(tokens.middleCols(first, 4)))));
  }
  CHECK(logits(Router(Linear(3, 4), 9, 1), Matrix<double>(0, 9)).rows() == 0);
}

TEST_CASE("ColumnsRouter: other columns may hold anything", "[router]") {
  const Router router(Linear::random(3, 2, 3), 5, 2);
  auto tokens = test::random_matrix<double>(4, 5, 4);
  const auto clean = logits(router, tokens);
  tokens.leftCols(2).setConstant(NAN);
  tokens.rightCols(1).setConstant(INFINITY);
  CHECK(test::same_bits(logits(router, tokens), clean));
}

TEST_CASE("ColumnsRouter: gradients agree with central differences and are added to", "[router]") {
  Router router(Linear::random(3, 4, 5, moe::Bias::Zero), 7, 2);
  auto tokens = test::random_matrix<double>(6, 7, 6);
  const auto slope = test::random_matrix<double>(6, 3, 7);
  const auto loss = [&] { return test::total(logits(router, tokens).cwiseProduct(slope)); };
  Router::Tape tape;
  Matrix<double> out(6, 3), dtokens = Matrix<double>::Ones(6, 7), only = Matrix<double>::Zero(6, 7);
  router.logits(tokens, Step{}, out, tape);
  Router gradient = moe::zeros_like(router), without = gradient;
  router.backward(tokens, Step{}, tape, slope, gradient, dtokens);
  router.backward(tokens, Step{}, tape, slope, without);
  router.backward(tokens, Step{}, tape, slope, moe::NoGradient{}, only);
  CHECK(test::gradient_error(loss, tokens, dtokens - Matrix<double>::Ones(6, 7)) < 1e-8);
  CHECK(test::gradient_error(loss, tokens, only) < 1e-8);
  CHECK(test::parameter_gradient_error(loss, router, gradient) < 1e-8);
  CHECK(test::parameter_gradient_error(loss, router, without) < 1e-8);
}

TEST_CASE("ColumnsRouter: the same bits for any number of threads and in any batch", "[router][property]") {
  const moe::ColumnsRouter router(moe::LinearRouter::random(9, 5, 8), 8, 3);
  const auto tokens = test::random_matrix<float>(300, 8, 9);
  const auto results = test::on_thread_counts([&] { return logits(router, tokens); });
  CHECK(test::all_equal(results));
  CHECK(test::same_bits(logits(router, tokens.row(123)), results[0].row(123)));
}

TEST_CASE("ColumnsRouter: it is of its router in names, structure and freezing", "[router]") {
  STATIC_REQUIRE(moe::RouterSkipsGradient<moe::ColumnsRouter<moe::LinearRouter>>);
  const Router router(Linear::random(4, 3, 10), 6, 1);
  moe::visit([](const std::string& name, const auto&) { CHECK(name == "weight"); }, router);
  const auto tokens = test::random_matrix<double>(5, 6, 11);
  CHECK(test::same_bits(logits(moe::Frozen(router), tokens), logits(router, tokens)));
  const auto all = logits(router, tokens), both = logits(router.concatenate(router), tokens);
  CHECK(test::same_bits(both.leftCols(4), all));
  CHECK(test::same_bits(both.rightCols(4), all));
  CHECK(test::same_bits(logits(router.take(std::vector<Index>{2}), tokens), all.col(2)));
  CHECK_THROWS_AS(router.concatenate(Router(Linear(4, 3), 6, 2)), std::invalid_argument);
}

TEST_CASE("ColumnsRouter: columns that are not there and other shapes are refused", "[router][error]") {
  CHECK_THROWS_WITH(Router(Linear(3, 4), 6, 3),
                    "moe::ColumnsRouter: first is 3, expected 0 to model_dim - columns of the router = 6 - 4");
  CHECK_THROWS_AS(Router(Linear(3, 4), 6, -1), std::invalid_argument);
  CHECK_THROWS_AS(Router(Linear(3, 4), 3, 0), std::invalid_argument);
  const Router router(Linear(3, 4), 6, 1);
  CHECK_THROWS_WITH(logits(router, Matrix<double>(2, 5)),
                    "moe::ColumnsRouter::logits: tokens is [2, 5], expected [2, 6]");
  Router::Tape tape;
  Router other(Linear(3, 4), 6, 2);
  Matrix<double> tokens(2, 6), dlogits(2, 3), narrow(2, 4);
  CHECK_THROWS_WITH(router.backward(tokens, Step{}, tape, dlogits, other),
                    "moe::ColumnsRouter::backward: gradient is of columns from 2 on, of 6, expected 1 and 6");
  Router gradient = router;
  CHECK_THROWS_WITH(router.backward(tokens, Step{}, tape, dlogits, gradient, narrow),
                    "moe::ColumnsRouter::backward: dtokens is [2, 4], expected [2, 6]");
}
