// SPDX-License-Identifier: MIT
#include "moe/router/none.hpp"

#include <limits>

#include "moe/gate/stochastic.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::Step;

namespace {

template <class Codec>
auto experts_of(Index num_experts, Index dim) {
  return moe::ExpertPool<moe::BasicGlu<Codec>>::random(num_experts, dim, 9, 1);
}

/// Output, dtokens and gradients of a layer whose gate draws.
template <class Router, class S = typename Router::Scalar>
auto drawn_pass(Router router, const Matrix<S>& tokens) {
  const moe::MoeLayer layer(std::move(router), moe::StochasticGate{.k = 2, .training = moe::DrawPer::Token},
                            experts_of<moe::F64>(4, tokens.cols()));
  struct {
    Matrix<S> out, dtokens;
    moe::ExpertPool<moe::BasicGlu<moe::F64>> gradient;
  } pass{test::nan_matrix<S>(tokens.rows(), tokens.cols()), test::nan_matrix<S>(tokens.rows(), tokens.cols()),
         moe::zeros_like(layer.experts())};
  typename decltype(moe::MoeLayer(layer))::Tape tape;
  auto gradient = moe::zeros_like(layer);
  layer.forward(tokens, Step::train(3), pass.out, tape);
  layer.backward(tokens, tape, tokens, gradient, pass.dtokens);
  pass.gradient = gradient.experts();
  return pass;
}

}  // namespace

TEMPLATE_TEST_CASE("NoRouter: logits are zero, whatever the tokens and the memory hold", "[router]", moe::F32,
                   moe::F64) {
  using S = typename TestType::Scalar;
  for (const Index num_experts : {1, 3, 17})
    for (const Index num_tokens : {0, 1, 9}) {
      const moe::BasicNoRouter<TestType> router(num_experts, 5);
      const Matrix<S> tokens = Matrix<S>::Constant(num_tokens, 5, std::numeric_limits<S>::quiet_NaN());
      auto wide = test::nan_matrix<S>(num_tokens, num_experts + 2);
      router.logits(tokens, Step{}, wide.leftCols(num_experts));
      CHECK(test::all_zero(wide.leftCols(num_experts)));
      CHECK((wide.rightCols(2).array() != wide.rightCols(2).array()).all());
    }
}

TEST_CASE("NoRouter: learns nothing and adds nothing to dtokens", "[router]") {
  const moe::BasicNoRouter<moe::F64> router(3, 5);
  auto gradient = moe::zeros_like(router);
  CHECK(moe::num_parameters(router) == 0);
  const auto tokens = test::random_matrix<double>(7, 5, 1), before = test::random_matrix<double>(7, 5, 2),
             dlogits = test::random_matrix<double>(7, 3, 3);
  Matrix<double> out(7, 3), dtokens = before;
  moe::BasicNoRouter<moe::F64>::Tape tape;
  router.logits(tokens, Step{}, out, tape);
  router.backward(tokens, Step{}, tape, dlogits, gradient, dtokens);
  router.backward(tokens, Step{}, tape, dlogits, gradient);
  CHECK(test::same_bits(dtokens, before));
}

TEST_CASE("NoRouter: a gate that draws gives the bits that it gives behind a router with weights", "[router]") {
  const auto tokens = test::random_matrix<double>(19, 11);
  const auto without = drawn_pass(moe::BasicNoRouter<moe::F64>(4, 11), tokens);
  const auto with = drawn_pass(moe::BasicLinearRouter<moe::F64>::random(4, 11, 5), tokens);
  CHECK(test::same_bits(without.out, with.out));
  CHECK(test::same_bits(without.dtokens, with.dtokens));
  CHECK(test::same_parameters(without.gradient, with.gradient));
}

TEST_CASE("NoRouter: before a gate that looks at logits all experts are alike", "[router]") {
  const moe::MoeLayer layer(moe::NoRouter(4, 6), moe::TopKGate{.k = 2}, experts_of<moe::F32>(4, 6));
  const auto tokens = test::random_matrix<float>(5, 6);
  moe::Workspace ws;
  Matrix<float> out(5, 6);
  layer.forward(tokens, out, ws);
  for (Index t = 0; t < 5; ++t) {
    CHECK(ws.routing.experts(t)[0] == 0);
    CHECK(ws.routing.experts(t)[1] == 1);
    CHECK(ws.routing.weights(t)[0] == 0.5f);
  }
}

TEST_CASE("NoRouter: bad sizes, shapes and memory are refused", "[router][error]") {
  CHECK_THROWS_WITH(moe::NoRouter(0, 5), "moe::NoRouter: num_experts is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::NoRouter(3, 0), "moe::NoRouter: model_dim is 0, expected at least 1");
  const moe::NoRouter router(3, 3);
  moe::NoRouter other(3, 4), gradient = router;
  moe::NoRouter::Tape tape;
  Matrix<float> tokens = Matrix<float>::Ones(2, 3), out(2, 3), wrong(2, 4);
  CHECK_THROWS_WITH(router.logits(wrong, Step{}, out), ContainsSubstring("moe::NoRouter::logits: tokens is [2, 4]"));
  CHECK_THROWS_WITH(router.logits(tokens, Step{}, wrong), ContainsSubstring("moe::NoRouter::logits: out is [2, 4]"));
  CHECK_THROWS_WITH(router.logits(tokens, Step{}, tokens), ContainsSubstring("overlap"));
  CHECK(tokens.isOnes(0));
  CHECK_THROWS_WITH(router.backward(tokens, Step{}, tape, out, gradient, wrong),
                    ContainsSubstring("dtokens is [2, 4]"));
  CHECK_THROWS_WITH(router.backward(tokens, Step{}, tape, wrong, gradient), ContainsSubstring("dlogits is [2, 4]"));
  CHECK_THROWS_WITH(router.backward(wrong, Step{}, tape, out, gradient), ContainsSubstring("tokens is [2, 4]"));
  CHECK_THROWS_WITH(router.backward(tokens, Step{}, tape, out, other),
                    "moe::NoRouter::backward: gradient is of 3 experts and 4 columns, expected 3 and 3");
}
