// SPDX-License-Identifier: MIT
#include "moe/router/cosine.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/thread_executor.hpp"

using moe::Bias;
using moe::Index;
using moe::Matrix;
using moe::Step;
using Router = moe::BasicCosineRouter<moe::F64>;

namespace {

template <class Codec>
moe::BasicCosineRouter<Codec> random_router(Index experts, Index dim, Index proj, Bias bias = Bias::Zero) {
  auto router = moe::BasicCosineRouter<Codec>::random(experts, dim, proj, 3, bias);
  const auto values = test::random_matrix<double>(1, proj, 4);
  if (bias == Bias::Zero) router.projection().bias().write(std::span(values.data(), static_cast<std::size_t>(proj)));
  router.temperature() = 0.3;
  return router;
}

template <class R, class S = typename R::Scalar>
Matrix<S> logits(const R& router, const Matrix<S>& tokens) {
  auto out = test::nan_matrix<S>(tokens.rows(), router.num_experts());
  router.logits(tokens, Step{}, out);
  return out;
}

/// In double, straight from the formula.
template <class Codec>
double by_definition(const moe::BasicCosineRouter<Codec>& router, const Matrix<double>& tokens, Index t, Index e) {
  double product = 0, squares = 0, vector_squares = 0;
  for (Index i = 0; i < router.proj_dim(); ++i) {
    double h = router.projection().bias().empty() ? 0 : static_cast<double>(router.projection().bias()(i, 0));
    for (Index j = 0; j < router.model_dim(); ++j)
      h += static_cast<double>(router.projection().weight()(i, j)) * tokens(t, j);
    const auto v = static_cast<double>(router.vectors()(e, i));
    product += h * v;
    squares += h * h;
    vector_squares += v * v;
  }
  return std::exp(std::min(router.temperature(), std::log(100.0))) * product /
         (std::max(std::sqrt(squares), 1e-12) * std::max(std::sqrt(vector_squares), 1e-12));
}

}  // namespace

TEMPLATE_TEST_CASE("CosineRouter: logits equal the formula", "[router]", moe::F32, moe::F64) {
  using S = typename TestType::Scalar;
  for (const Index experts : {1, 3, 17})
    for (const Index proj : {1, 8, 19})
      for (const Index tokens : {0, 1, 70})
        for (const Bias bias : {Bias::Off, Bias::Zero}) {
          CAPTURE(experts, proj, tokens, bias);
          const auto router = random_router<TestType>(experts, 13, proj, bias);
          const auto x = test::random_matrix<S>(tokens, 13);
          const Matrix<S> z = logits(router, x);
          // exp(0.3) < 1.4 times a cosine. h may be some 2 * 13 roundings of |W| |x|, up to 10 times |h|, off; sums of
          // 19 products add as many again.
          const double bound = 1.4 * 600 * static_cast<double>(std::numeric_limits<S>::epsilon());
          for (Index t = 0; t < tokens; ++t)
            for (Index e = 0; e < experts; ++e)
              CHECK(std::abs(static_cast<double>(z(t, e)) -
                             by_definition(router, Matrix<double>(x.template cast<double>()), t, e)) < bound);
        }
}

TEST_CASE("CosineRouter: sizes of vectors, and without bias of tokens, do not matter", "[router][property]") {
  auto router = random_router<moe::F64>(5, 7, 4, Bias::Off);
  const auto tokens = test::random_matrix<double>(9, 7);
  const auto before = logits(router, tokens);
  for (Index i = 0; i < 4; ++i) router.vectors()(2, i) *= 1e160;  // whose square is infinite
  const auto after = logits(router, Matrix<double>(tokens * 1e-3));
  CHECK(test::largest(Matrix<double>(after - before)) < 1e-14);  // a few ulp of numbers of order 1
}

TEST_CASE("CosineRouter: zero vectors have logits of zero and finite gradients", "[router]") {
  const Router router(3, 4, 2);  // all zero
  const auto tokens = test::random_matrix<double>(5, 4);
  CHECK(test::all_zero(logits(router, tokens)));
  Router::Tape tape;
  Matrix<double> out(5, 3), dtokens = Matrix<double>::Zero(5, 4);
  router.logits(tokens, Step{}, out, tape);
  auto gradient = moe::zeros_like(router);
  router.backward(tokens, Step{}, tape, Matrix<double>::Ones(5, 3), gradient, dtokens);
  CHECK(dtokens.allFinite());
}

TEST_CASE("CosineRouter: the temperature is limited to ln 100", "[router]") {
  auto router = random_router<moe::F64>(3, 4, 2);
  const auto tokens = test::random_matrix<double>(5, 4);
  router.temperature() = std::log(100.0);
  const auto most = logits(router, tokens);
  router.temperature() = 50;
  CHECK(test::same_bits(logits(router, tokens), most));
}

TEST_CASE("CosineRouter: backward adds central differences to gradient and dtokens", "[router]") {
  for (const double temperature : {-0.5, 0.3, 6.0}) {  // the last is limited, hence constant
    CAPTURE(temperature);
    auto router = random_router<moe::F64>(5, 13, 6);
    router.temperature() = temperature;
    auto tokens = test::random_matrix<double>(9, 13);
    const auto c = test::random_matrix<double>(9, 5, 3);
    Router::Tape tape;
    Matrix<double> out(9, 5), dtokens = Matrix<double>::Constant(9, 13, 2);
    router.logits(tokens, Step{}, out, tape);
    auto gradient = moe::zeros_like(router);
    router.backward(tokens, Step{}, tape, c, gradient, dtokens);
    dtokens.array() -= 2;
    const auto loss = [&] {
      const auto z = logits(router, tokens);
      double sum = 0;
      for (Index i = 0; i < z.size(); ++i) sum += z.data()[i] * c.data()[i];
      return sum;
    };
    CHECK(test::gradient_error(loss, tokens, dtokens) < 1e-6);
    std::string name;
    CHECK(test::parameter_gradient_error(loss, router, gradient, &name) < 1e-6);
    CHECK((gradient.temperature() != 0) == (temperature < 6));
  }
}

TEST_CASE("CosineRouter: padding leaves no gradient", "[router]") {
  const auto router = random_router<moe::F64>(3, 4, 2);
  auto tokens = test::random_matrix<double>(5, 4);
  tokens.row(2).setConstant(NAN);
  const std::vector<std::uint8_t> valid = {1, 1, 0, 1, 1};
  Step step;
  step.valid = valid;
  Router::Tape tape;
  Matrix<double> out(5, 3), dtokens = Matrix<double>::Zero(5, 4);
  router.logits(tokens, step, out, tape);
  auto gradient = moe::zeros_like(router);
  router.backward(tokens, step, tape, Matrix<double>::Ones(5, 3), gradient, dtokens);
  moe::visit(
      [](const std::string&, const auto& leaf) {
        for (const double value : moe::parameter_span(leaf)) CHECK(std::isfinite(value));
      },
      gradient);
  CHECK(test::all_zero(dtokens.row(2)));
}

TEST_CASE("CosineRouter: a token alone and any number of threads give the same bits", "[router][property]") {
  const auto router = random_router<moe::F32>(17, 37, 9);
  const auto tokens = test::random_matrix<float>(200, 37);
  const auto batch = logits(router, tokens);
  for (const Index t : {0, 47, 199}) CHECK(test::same_bits(logits(router, Matrix<float>(tokens.row(t))), batch.row(t)));
  for (const Index workers : {2, 8}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    CHECK(test::same_bits(logits(router, tokens), batch));
  }
}

TEST_CASE("CosineRouter: wrong sizes are refused", "[router][error]") {
  CHECK_THROWS_WITH(Router(0, 4, 2), "moe::CosineRouter: num_experts is 0, expected at least 1");
  CHECK_THROWS_WITH(Router(3, 0, 2), "moe::CosineRouter: model_dim is 0, expected at least 1");
  CHECK_THROWS_WITH(Router::random(3, 4, 0, 1), "moe::CosineRouter: proj_dim is 0, expected at least 1");
  const auto router = random_router<moe::F64>(3, 4, 2);
  auto other = random_router<moe::F64>(4, 4, 2);
  CHECK_THROWS_AS(logits(router, Matrix<double>(Matrix<double>::Zero(2, 5))), std::invalid_argument);
  Router::Tape tape;
  Matrix<double> out(2, 3), tokens = Matrix<double>::Zero(2, 4);
  router.logits(tokens, Step{}, out, tape);
  CHECK_THROWS_WITH(router.backward(tokens, Step{}, tape, out, other, tokens),
                    "moe::CosineRouter::backward: gradient has [4, 2] vectors, expected [3, 2]");
}
