// SPDX-License-Identifier: MIT
#include "moe/layer/separate_experts.hpp"

#include <string>
#include <vector>

#include "layer/fixtures.hpp"
#include "layer/gradient_check.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/layer/structure.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::SeparateExperts;
using moe::Step;
using test::kHiddenDim;
using test::kModelDim;
using Mlp = moe::BasicMlp<moe::F64>;
using Router = moe::BasicLinearRouter<moe::F64>;

namespace {

constexpr Index kTokens = 17, kExperts = 4, kOutput = 3;

moe::ExpertPool<Mlp> pool() {
  std::vector<Mlp> experts;
  for (Index e = 0; e < kExperts; ++e) {
    experts.push_back(Mlp(moe::Widths{.input = kModelDim, .hidden = kHiddenDim, .output = kOutput}));
    test::randomise(experts.back(), std::uint64_t(10 * e + 1));
  }
  return moe::ExpertPool<Mlp>(std::move(experts));
}

template <class Gate>
auto layer_of(Gate gate) {
  auto router = Router::random(kExperts, kModelDim, 7, moe::Bias::Zero);
  test::randomise(router, 8);
  return moe::MoeLayer(std::move(router), std::move(gate), SeparateExperts(pool()));
}

}  // namespace

TEST_CASE("SeparateExperts: gives the weights, then what each expert makes of the token", "[layer]") {
  const std::vector<std::uint8_t> valid = test::every_nth_padding(kTokens, 5);
  Step step;
  step.valid = valid;
  const auto layer = layer_of(moe::TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  moe::BasicWorkspace<double> ws;
  auto out = test::nan_matrix<double>(kTokens, kExperts * (1 + kOutput));
  layer.forward(tokens, step, out, ws);
  Matrix<double> expected = Matrix<double>::Zero(kTokens, kExperts * (1 + kOutput));
  for (Index t = 0; t < kTokens; ++t)
    for (std::size_t s = 0; s < ws.routing.experts(t).size(); ++s) {
      if (ws.routing.dropped(t)[s]) continue;
      const Index e = ws.routing.experts(t)[s];
      expected(t, e) = ws.routing.weights(t)[s];
      expected.row(t).segment(kExperts + e * kOutput, kOutput) =
          test::run(layer.experts()[e], Matrix<double>(tokens.row(t)));
    }
  CHECK(test::largest(Matrix<double>(out - expected)) < 1e-13);
  CHECK(test::all_zero(out.row(0)) == !step.is_valid(0));
}

TEST_CASE("SeparateExperts: gradients of a layer are central differences", "[layer][property]") {
  CHECK(test::layer_gradient_error(layer_of(moe::SoftmaxGate{}), Step::train(1, 2)) < 1e-8);
  CHECK(test::layer_gradient_error(layer_of(moe::TopKGate{.k = 2}), Step::train(1, 2)) < 1e-8);
}

TEST_CASE("SeparateExperts: any threads and company give the same bits, with a tape and without", "[layer][property]") {
  const auto layer = layer_of(moe::SoftmaxGate{});
  const auto tokens = test::random_matrix<double>(200, kModelDim, 1);
  const auto c = test::random_matrix<double>(200, layer.output_dim(), 2);
  const auto run = [&] {
    decltype(layer_of(moe::SoftmaxGate{}))::Tape tape;
    std::pair<Matrix<double>, Matrix<double>> result{Matrix<double>(200, layer.output_dim()),
                                                     Matrix<double>(200, kModelDim)};
    layer.forward(tokens, Step{}, result.first, tape);
    auto gradient = moe::zeros_like(layer);
    layer.backward(tokens, tape, c, gradient, result.second);
    return result;
  };
  const auto one = run();
  CHECK(test::same_bits(test::forward(layer, tokens), one.first));
  CHECK(test::same_bits(test::forward(layer, Matrix<double>(tokens.row(9))), one.first.row(9)));
  test::ThreadExecutor threads(4);
  const moe::UseExecutor use(threads);
  const auto many = run();
  CHECK(test::same_bits(one.first, many.first));
  CHECK(test::same_bits(one.second, many.second));
}

TEST_CASE("SeparateExperts: a routing to other experts is not that of the tape", "[layer][error]") {
  const SeparateExperts mixture(pool());
  const auto tokens = test::random_matrix<double>(2, kModelDim, 1);
  const std::vector<int> ids = {0, 2, 3, 1};
  const std::vector<Index> begins = {0, 1, 4}, others = {0, 3, 4};
  auto routing = moe::Routing<double>::from(begins, ids, {}, kExperts);
  routing.dropped()[3] = 1;
  decltype(mixture)::Tape tape;
  Matrix<double> out(2, mixture.output_dim());
  mixture.forward(tokens, routing, Step{}, out, tape);
  auto gradient = moe::zeros_like(mixture);
  mixture.require_backward(routing, tape, gradient);
  routing.experts()[3] = 0;  // dropped: without a row, nobody reads its expert
  mixture.require_backward(routing, tape, gradient);

  const auto expect_refused = [&](Index e) {
    const auto dout = test::random_matrix<double>(2, mixture.output_dim(), 2);
    std::vector<double> dweight(4, 7);
    moe::Scratch scratch;
    routing.experts()[1] = e;
    CHECK_THROWS_WITH(mixture.backward(tokens, routing, {Step{}, scratch}, tape, dout, gradient, dweight),
                      "moe::SeparateExperts::backward: assignment 1 names expert " + std::to_string(e) +
                          ", expected 2 as in the forward pass of the tape");
    CHECK(dweight == std::vector<double>(4, 7));
  };
  for (const Index e : {-1, 0, 1, 3, 4, 1000}) expect_refused(e);
  CHECK_THROWS_WITH(
      mixture.require_backward(moe::Routing<double>::from(others, ids, {}, kExperts), tape, gradient),
      "moe::SeparateExperts::backward: the choices of token 1 begin at 3, expected 1 as in the forward pass of the "
      "tape");
  CHECK_THROWS_WITH(mixture.require_backward(moe::Routing<double>(), tape, gradient),
                    "moe::SeparateExperts::backward: routing has 0 tokens and 0 assignments, expected 2 and 4 as in "
                    "the forward pass of the tape");
}

TEST_CASE("SeparateExperts: takes and joins experts, is nothing of no tokens, and refuses what does not fit",
          "[layer][error]") {
  const auto layer = layer_of(moe::TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto out = test::forward(layer, tokens);
  const std::vector<Index> turned = {2, 0, 3, 1};
  const auto other = test::forward(moe::take_experts(layer, turned), tokens);
  for (Index i = 0; i < kExperts; ++i) {
    const Index e = turned[static_cast<std::size_t>(i)];
    CHECK(test::largest(Matrix<double>(other.col(i) - out.col(e))) < 1e-14);
    CHECK(test::same_bits(other.middleCols(kExperts + i * kOutput, kOutput),
                          out.middleCols(kExperts + e * kOutput, kOutput)));
  }
  CHECK(moe::concatenate(layer, layer).output_dim() == 2 * layer.output_dim());
  CHECK(test::forward(layer, Matrix<double>(0, kModelDim)).rows() == 0);

  const SeparateExperts mixture(pool());
  moe::Routing<double> routing;
  routing.resize(1, 3);
  std::ranges::copy(std::vector<Index>{2, 1, 2}, routing.experts().begin());
  Matrix<double> rows(1, mixture.output_dim());
  CHECK_THROWS_WITH(mixture.forward(Matrix<double>(1, kModelDim), routing, Step{}, rows),
                    ContainsSubstring("moe::SeparateExperts::forward: token 0 names expert 2 twice"));
  routing.experts()[2] = 0;
  CHECK_THROWS_WITH(mixture.forward(Matrix<double>(1, kModelDim), routing, Step{}, rows.leftCols(3)),
                    ContainsSubstring("moe::SeparateExperts::forward: out is [1, 3], expected [1, 16]"));
  SeparateExperts<moe::ExpertPool<Mlp>>::Tape tape;
  auto gradient = moe::zeros_like(mixture);
  CHECK_THROWS_WITH(mixture.require_backward(routing, tape, gradient),
                    ContainsSubstring("moe::SeparateExperts::backward: the tape holds no forward pass that has ended"));
}
