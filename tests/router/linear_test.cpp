// SPDX-License-Identifier: MIT
#include "moe/router/linear.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/thread_executor.hpp"
#include "support/tolerance.hpp"

using moe::Bias;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Step;
using test::Mat;

namespace {

/// A router with random numbers in all its parameters.
template <class Codec>
moe::BasicLinearRouter<Codec> random_router(Index num_experts, Index model_dim, Bias bias = Bias::Zero) {
  auto router = moe::BasicLinearRouter<Codec>::random(num_experts, model_dim, 1, bias);
  const auto values = test::random_matrix<double>(1, num_experts, 2);
  if (bias == Bias::Zero) router.bias().write(std::span(values.data(), static_cast<std::size_t>(num_experts)));
  return router;
}

template <class Codec, class S = typename Codec::Scalar>
Matrix<S> logits(const moe::BasicLinearRouter<Codec>& router, const Matrix<S>& tokens) {
  Matrix<S> out = test::nan_matrix<S>(tokens.rows(), router.num_experts());
  router.logits(tokens, Step{}, out);
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("LinearRouter: logits are x W^T + b within the error of the sums", "[router]", F32, F64) {
  using S = typename TestType::Scalar;
  for (const Index num_experts : {1, 2, 8, 17, 64, 130})
    for (const Index model_dim : {1, 37})
      for (const Index num_tokens : {0, 1, 6, 7, 100})
        for (const Bias bias : {Bias::Off, Bias::Zero}) {
          const auto router = random_router<TestType>(num_experts, model_dim, bias);
          const auto tokens = test::random_matrix<S>(num_tokens, model_dim);
          const test::Bounded<S> exact{Mat(tokens.template cast<double>())};
          const Mat w = router.weight().matrix().template cast<double>();
          const Mat b = router.bias().matrix().template cast<double>();
          CAPTURE(num_experts, model_dim, num_tokens, bias);
          CHECK(exact.linear(w, b).worst(logits(router, tokens)) <= 1);
        }
}

TEMPLATE_TEST_CASE("LinearRouter: a token alone and any number of threads give the same bits", "[router][property]",
                   F32, F64) {
  using S = typename TestType::Scalar;
  const auto router = random_router<TestType>(17, 37);
  const auto tokens = test::random_matrix<S>(100, 37);
  const Matrix<S> batch = logits(router, tokens);
  for (const Index t : {0, 1, 47, 48, 99}) {
    CAPTURE(t);
    CHECK(test::same_bits(logits(router, Matrix<S>(tokens.row(t))), batch.row(t)));
  }
  for (const Index workers : {2, 3, 8}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    CHECK(test::same_bits(logits(router, tokens), batch));
  }
}

TEST_CASE("LinearRouter: backward adds central differences to gradient and dtokens", "[router]") {
  for (const Bias bias : {Bias::Off, Bias::Zero}) {
    auto router = random_router<F64>(5, 13, bias);
    auto tokens = test::random_matrix<double>(9, 13);
    const auto c = test::random_matrix<double>(9, 5, 3);
    moe::BasicLinearRouter<F64>::Tape tape;
    auto gradient = moe::zeros_like(router);
    Matrix<double> dtokens = Matrix<double>::Constant(9, 13, 2);
    router.backward(tokens, Step{}, tape, c, gradient, dtokens);
    dtokens.array() -= 2;
    const auto loss = [&] {
      const auto z = logits(router, tokens);
      double sum = 0;
      for (Index i = 0; i < z.size(); ++i) sum += z.data()[i] * c.data()[i];
      return sum;
    };
    CHECK(test::gradient_error(loss, tokens, dtokens) < 1e-6);
    CHECK(test::parameter_gradient_error(loss, router, gradient) < 1e-6);
  }
}

TEST_CASE("LinearRouter: a random router has weights of one over the root of the dimension and no bias", "[router]") {
  const auto router = moe::LinearRouter::random(64, 100, 3);
  CHECK(router.bias().empty());
  const auto [least, most] = std::ranges::minmax(router.weight().span());
  CHECK((most < 0.1f && most > 0.098f && least > -0.1f && least < -0.098f));
}

TEST_CASE("LinearRouter: wrong sizes are refused", "[router][error]") {
  CHECK_THROWS_WITH(moe::LinearRouter(0, 4), "moe::LinearRouter: num_experts is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::LinearRouter(4, 0), "moe::LinearRouter: model_dim is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::LinearRouter::random(-4, 8, 1), "moe::LinearRouter: num_experts is -4, expected at least 1");
  const moe::LinearRouter router(3, 4);
  CHECK_THROWS_WITH(logits(router, Matrix<float>(Matrix<float>::Zero(2, 5))),
                    "moe::LinearRouter::logits: tokens is [2, 5], expected [2, 4]");
  moe::LinearRouter biased(3, 4, Bias::Zero);
  moe::LinearRouter::Tape tape;
  Matrix<float> tokens = Matrix<float>::Zero(2, 4), dlogits = Matrix<float>::Zero(2, 3);
  CHECK_THROWS_WITH(router.backward(tokens, Step{}, tape, dlogits, biased, tokens),
                    "moe::LinearRouter::backward: gradient is [3, 4] with 3 biases, expected [3, 4] with 0");
  CHECK_THROWS_WITH(router.backward(tokens, Step{}, tape, tokens, biased, tokens),
                    "moe::LinearRouter::backward: dlogits is [2, 4], expected [2, 3]");
}
