// SPDX-License-Identifier: MIT
// What a layer refuses, in which words, and that it then leaves the output alone.
#include "layer/fixtures.hpp"
#include "support/catch.hpp"

using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::TopKGate;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Router = moe::BasicLinearRouter<F64>;
using Pool = moe::ExpertPool<Glu>;

namespace {

/// Routes one token less than there are, or names an expert that is not there.
struct WrongGate {
  static constexpr bool kPerToken = true;
  Index missing = 1, expert = 0;

  void route(const moe::Logits<double>& logits, const moe::Context&, moe::Routing<double>& routing) const {
    routing.resize(logits.rows() - missing, 1);
    std::ranges::fill(routing.experts(), expert);
    std::ranges::fill(routing.weights(), 1.0);
  }
};

struct ThrowingExpert {
  using Scalar = double;
  Index input_dim() const { return kModelDim; }
  Index output_dim() const { return kModelDim; }
  void forward(const moe::ConstMatrixRef<double>&, moe::MatrixRef<double> out, const moe::Context&) const {
    out.setZero();
    moe::fail("no, says the expert");
  }
};

/// Expects `message` and that the output is as it was.
template <class Layer>
void check_refused(const Layer& layer, const Matrix<double>& tokens, const moe::Step& step,
                   const std::string& message) {
  Matrix<double> out = Matrix<double>::Constant(tokens.rows(), kModelDim, 42);
  typename Layer::Workspace ws;
  CHECK_THROWS_WITH(layer.forward(tokens, step, out, ws), message);
  CHECK(test::same_bits(out, Matrix<double>::Constant(tokens.rows(), kModelDim, 42)));
}

const auto kTokens = test::random_matrix<double>(4, kModelDim);

}  // namespace

TEST_CASE("MoeLayer: parts that do not fit together are refused", "[layer][error]") {
  const auto pool = Pool::random(3, kModelDim, 5, 1);
  CHECK_THROWS_WITH(moe::MoeLayer(Router(4, kModelDim), TopKGate{}, pool),
                    "moe::MoeLayer: the router scores 4 experts, expected 3 as in the expert set");
  CHECK_THROWS_WITH(moe::MoeLayer(Router(3, 12), TopKGate{}, pool),
                    "moe::MoeLayer: the router reads 12 columns, expected model_dim = 11 of the experts");
  CHECK_THROWS_WITH(moe::MoeLayer(Router(3, kModelDim), TopKGate{.k = 4}, pool),
                    "moe::TopKGate: k is 4, expected 1 <= k <= num_experts = 3");
}

TEST_CASE("MoeLayer: tokens, output and step of other shapes are refused", "[layer][error]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{});
  check_refused(layer, test::random_matrix<double>(4, 32), {},
                "moe::MoeLayer::forward: tokens has 32 columns, expected model_dim = 11");
  moe::BasicWorkspace<double> ws;
  Matrix<double> narrow(4, 10), tall(5, kModelDim);
  CHECK_THROWS_WITH(layer.forward(kTokens, narrow, ws), "moe::MoeLayer::forward: out is [4, 10], expected [4, 11]");
  CHECK_THROWS_WITH(layer.forward(kTokens, tall, ws), "moe::MoeLayer::forward: out is [5, 11], expected [4, 11]");
  const std::vector<std::int64_t> three(3);
  const std::vector<std::uint8_t> five(5);
  moe::Step step;
  step.token_id = three;
  check_refused(layer, kTokens, step,
                "moe::MoeLayer::forward: step.token_id has 3 entries, expected 0 or num_tokens = 4");
  step = {};
  step.valid = five;
  check_refused(layer, kTokens, step, "moe::MoeLayer::forward: step.valid has 5 entries, expected 0 or num_tokens = 4");
}

TEST_CASE("MoeLayer: a NaN or infinite logit is refused and the output untouched", "[layer][error]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{});
  for (const double bad : {test::kNan<double>, HUGE_VAL}) {
    auto tokens = kTokens;
    tokens(2, 5) = bad;
    Matrix<double> out = Matrix<double>::Constant(4, kModelDim, 42);
    moe::BasicWorkspace<double> ws;
    CAPTURE(bad);
    CHECK_THROWS_AS(layer.forward(tokens, out, ws), std::invalid_argument);
    CHECK(test::same_bits(out, Matrix<double>::Constant(4, kModelDim, 42)));
  }
}

TEST_CASE("MoeLayer: a gate that routes other tokens or other experts is refused", "[layer][error]") {
  const auto pool = Pool::random(3, kModelDim, 5, 1);
  check_refused(moe::MoeLayer(Router(3, kModelDim), WrongGate{}, pool), kTokens, {},
                "moe::MoeLayer::forward: the gate routed 3 tokens, expected 4");
  check_refused(moe::MoeLayer(Router(3, kModelDim), WrongGate{.missing = 0, .expert = 3}, pool), kTokens, {},
                "moe::DispatchPlan::build: assignment 0 names expert 3, expected 0 <= expert < num_experts = 3");
}

TEST_CASE("MoeLayer: what an expert throws arrives and the output is untouched", "[layer][error]") {
  const moe::MoeLayer layer(Router(2, kModelDim), TopKGate{.k = 1}, moe::ExpertPool<ThrowingExpert>({{}, {}}));
  check_refused(layer, kTokens, {}, "no, says the expert");
}

TEST_CASE("MoeLayer: a layer works on after a refusal", "[layer][error]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{});
  moe::BasicWorkspace<double> ws;
  auto bad = kTokens;
  bad(0, 0) = test::kNan<double>;
  Matrix<double> out(4, kModelDim);
  CHECK_THROWS(layer.forward(bad, out, ws));
  layer.forward(kTokens, out, ws);
  CHECK(test::same_bits(out, test::forward(layer, kTokens)));
}

TEST_CASE("MoeLayer: backward refuses other shapes before it writes anything", "[layer][error]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{});
  auto gradient = moe::zeros_like(layer);
  decltype(gradient)::Tape tape;
  Matrix<double> out(4, kModelDim), dtokens = Matrix<double>::Constant(4, kModelDim, 42);
  layer.forward(kTokens, moe::Step{}, out, tape);
  const auto refused = [&](const Matrix<double>& tokens, const Matrix<double>& dout, moe::MatrixRef<double> dx,
                           const moe::RoutingGradient<double>& losses, const std::string& message) {
    tape.losses = losses;
    CHECK_THROWS_WITH(layer.backward(tokens, tape, dout, gradient, dx), "moe::MoeLayer::backward: " + message);
  };
  Matrix<double> narrow = Matrix<double>::Zero(4, 10);
  refused(kTokens.topRows(3), out, dtokens, {}, "tokens has 3 rows, expected 4 as in the forward pass of the tape");
  refused(narrow, out, dtokens, {}, "tokens is [4, 10], expected [4, 11]");
  refused(kTokens, narrow, dtokens, {}, "dout is [4, 10], expected [4, 11]");
  refused(kTokens, out, narrow, {}, "dtokens is [4, 10], expected [4, 11]");
  moe::RoutingGradient<double> losses;
  losses.weight.resize(5);
  refused(kTokens, out, dtokens, losses, "losses.weight has 5 entries, expected num_assignments = 8");
  losses.clear();
  losses.logits.setZero(4, 2);
  refused(kTokens, out, dtokens, losses, "losses.logits is [4, 2], expected [4, 3]");
  losses.clear();
  losses.probability.setZero(3, 3);
  refused(kTokens, out, dtokens, losses, "losses.probability is [3, 3], expected [4, 3]");
  CHECK(test::same_bits(dtokens, Matrix<double>::Constant(4, kModelDim, 42)));
  CHECK(test::num_nonzero(gradient) == 0);
}

TEST_CASE("MoeLayer: replay refuses tokens of another batch", "[layer][error]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{});
  decltype(moe::zeros_like(layer))::Tape tape;
  Matrix<double> out(4, kModelDim), three(3, kModelDim);
  layer.forward(kTokens, moe::Step{}, out, tape);
  CHECK_THROWS_WITH(layer.replay(kTokens.topRows(3), three, tape),
                    "moe::MoeLayer::replay: tokens has 3 rows, expected 4 as in the forward pass of the tape");
}

TEST_CASE("MoeLayer: a gate that cannot teach the router is refused before any gradient is written", "[layer][error]") {
  const auto layer = test::layer_of<moe::BasicMlp<moe::F64>>(3, TopKGate{.k = 1});
  const auto tokens = test::random_matrix<double>(4, kModelDim);
  moe::Matrix<double> out(4, kModelDim);
  auto gradient = moe::zeros_like(layer);
  decltype(layer)::Tape tape;
  layer.forward(tokens, moe::Step::train(1), out, tape);
  REQUIRE_THROWS_WITH(layer.backward(tokens, tape, tokens, gradient),
                      Catch::Matchers::ContainsSubstring("moe::TopKGate::backward: k is 1"));
  REQUIRE(moe::num_parameters(gradient) > 0);
  moe::visit(
      [](const std::string&, const auto& leaf) {
        for (const double value : moe::parameter_span(leaf)) REQUIRE(value == 0);
      },
      gradient);
}
