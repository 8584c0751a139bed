// SPDX-License-Identifier: MIT
// Outputs that share memory with inputs: computed right, or refused by name.
#include "moe/core/overlap.hpp"

#include "layer/fixtures.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/offset.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/layer/branches.hpp"
#include "moe/router/noisy.hpp"
#include "moe/routing/balance/sinkhorn.hpp"
#include "moe/train/consistency.hpp"
#include "moe/train/cross_entropy.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Linear = moe::BasicLinear<F64>;
using Mlp = moe::BasicMlp<F64>;
using Gated = moe::GatedExpert<Glu, F64>;

namespace {

constexpr Index kTokens = 9;

Gated gated() { return {test::random_expert<Glu>(kModelDim, 5, 1), test::random_expert<Linear>(1, kModelDim, 2)}; }

auto branches() {
  return moe::WithBranches(test::layer_of<Mlp>(3, TopKGate{}), test::random_expert<Glu>(kModelDim, 5, 1),
                           moe::BasicScaledIdentity<F64>{kModelDim}, gated());
}

/// Rows [first, first + kTokens) of a larger matrix.
auto rows_of(Matrix<double>& all, Index first) { return all.middleRows(first, kTokens); }

/// forward() in place gives what it gives apart, in one go and in chunks; over shifted rows it is refused.
template <class Layer>
void check_forward(const Layer& layer) {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim);
  const auto expected = test::forward(layer, tokens);
  for (const Index max_tokens : {0, 4}) {
    CAPTURE(max_tokens);
    typename Layer::Workspace ws;
    ws.max_tokens = max_tokens;
    Matrix<double> all(kTokens + 1, kModelDim);
    rows_of(all, 0) = tokens;
    layer.forward(rows_of(all, 0), Step{}, rows_of(all, 0), ws);
    CHECK(test::same_bits(rows_of(all, 0), expected));
    rows_of(all, 0) = tokens;
    CHECK_THROWS_WITH(layer.forward(rows_of(all, 0), Step{}, rows_of(all, 1), ws),
                      ContainsSubstring("forward: out overlaps other rows of tokens, expected memory of its own"));
    CHECK(test::same_bits(rows_of(all, 0), tokens));
  }
}

/// What training reads again must not be overwritten.
template <class Layer>
void check_training(const Layer& layer) {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim);
  Matrix<double> all(kTokens + 1, kModelDim), out(kTokens, kModelDim);
  typename Layer::Tape tape;
  all.setZero();
  rows_of(all, 0) = tokens;
  for (const Index first : {0, 1}) {
    CHECK_THROWS_WITH(layer.forward(rows_of(all, 0), Step{}, rows_of(all, first), tape),
                      "moe::MoeLayer::forward: out overlaps tokens, expected memory of its own");
    layer.forward(rows_of(all, 0), Step{}, out, tape);
    CHECK_THROWS_WITH(layer.replay(rows_of(all, 0), rows_of(all, first), tape),
                      "moe::MoeLayer::replay: out overlaps tokens, expected memory of its own");
    auto gradient = moe::zeros_like(layer);
    CHECK_THROWS_WITH(layer.backward(rows_of(all, 0), tape, out, gradient, rows_of(all, first)),
                      "moe::MoeLayer::backward: dtokens overlaps tokens, expected memory of its own");
    CHECK_THROWS_WITH(layer.backward(tokens, tape, rows_of(all, 0), gradient, rows_of(all, first)),
                      "moe::MoeLayer::backward: dtokens overlaps dout, expected memory of its own");
    CHECK(test::num_nonzero(gradient) == 0);
  }
  CHECK(test::same_bits(rows_of(all, 0), tokens));
}

/// An expert's forward in place, and its drows over what backward reads, give what they give apart.
template <class E>
void check_expert(const E& expert) {
  const auto rows = test::random_matrix<double>(kTokens, kModelDim),
             dout = test::random_matrix<double>(kTokens, kModelDim, 2);
  const auto expected = test::run(expert, rows);
  moe::Scratch scratch;
  const Step step;
  const moe::Context context(step, scratch);
  Matrix<double> in_place = rows, out(kTokens, kModelDim), drows(kTokens, kModelDim);
  expert.forward(in_place, in_place, context);
  CHECK(test::same_bits(in_place, expected));

  typename E::Tape tape;
  E gradient = moe::zeros_like(expert), again = gradient;
  expert.forward(rows, out, context, tape);
  expert.backward(rows, tape, dout, drows, gradient, context);
  in_place = dout;
  expert.backward(rows, tape, in_place, in_place, again, context);
  CHECK(test::same_bits(in_place, drows));
  CHECK(test::same_parameters(again, gradient));
  again = moe::zeros_like(expert);
  in_place = rows;
  expert.backward(in_place, tape, dout, in_place, again, context);
  CHECK(test::same_bits(in_place, drows));
  CHECK(test::same_parameters(again, gradient));
}

}  // namespace

TEST_CASE("overlap: sees shared elements, and those only", "[core]") {
  Matrix<double> all(10, 8);
  const auto block = [&](Index r, Index c, Index rows, Index cols) { return all.block(r, c, rows, cols); };
  using moe::detail::overlap;
  CHECK(overlap(all, all));
  CHECK(overlap(block(0, 0, 5, 8), block(4, 7, 6, 1)));
  CHECK(overlap(block(0, 2, 10, 3), block(9, 4, 1, 4)));
  CHECK_FALSE(overlap(block(0, 0, 5, 8), block(5, 0, 5, 8)));
  CHECK_FALSE(overlap(block(0, 0, 10, 4), block(0, 4, 10, 4)));  // columns side by side
  CHECK_FALSE(overlap(block(0, 4, 10, 4), block(0, 0, 10, 4)));
  CHECK_FALSE(overlap(block(0, 0, 0, 8), all));
  CHECK_FALSE(overlap(block(0, 0, 10, 0), all));
  // Rows of another length over the same memory: one of 8 elements every 16 against one of 4 every 8.
  const Eigen::Map<const Matrix<double>, 0, Eigen::OuterStride<>> even(all.data(), 5, 8, Eigen::OuterStride<>(16));
  const Eigen::Map<const Matrix<double>, 0, Eigen::OuterStride<>> odd(all.data() + 8, 5, 4, Eigen::OuterStride<>(16));
  const Eigen::Map<const Matrix<double>, 0, Eigen::OuterStride<>> mixed(all.data() + 8, 2, 4, Eigen::OuterStride<>(8));
  CHECK_FALSE(overlap(even, odd));
  CHECK(overlap(even, mixed));
}

TEST_CASE("Layers: an output over the tokens is right, one over other rows refused", "[layer][error]") {
  check_forward(test::layer_of<Glu>(3, TopKGate{}));
  check_forward(branches());
  check_forward(moe::WithBranches(branches(), moe::BasicScaledIdentity<F64>{kModelDim, 0.5}));
}

TEST_CASE("Layers: training refuses outputs over what backward reads", "[layer][error]") {
  check_training(test::layer_of<Glu>(3, TopKGate{}));
  check_training(branches());
}

TEST_CASE("Experts: outputs may lie over inputs", "[expert]") {
  check_expert(test::random_expert<Glu>(kModelDim, 5, 1));
  check_expert(gated());
  check_expert(moe::BasicScaledIdentity<F64>{kModelDim, 0.5});
  check_expert([] {
    moe::BasicOffset<F64> offset(kModelDim);
    test::randomise(offset, 3);
    return offset;
  }());
  Matrix<double> all = test::random_matrix<double>(kTokens + 1, kModelDim);
  moe::Scratch scratch;
  const Step step;
  const moe::Context context(step, scratch);
  CHECK_THROWS_WITH((moe::BasicScaledIdentity<F64>{kModelDim}).forward(rows_of(all, 0), rows_of(all, 1), context),
                    ContainsSubstring("moe::ScaledIdentity::forward: out overlaps other rows of rows"));
  Gated::Tape tape;
  CHECK_THROWS_WITH(gated().forward(rows_of(all, 0), rows_of(all, 0), context, tape),
                    ContainsSubstring("moe::GatedExpert::forward: out overlaps rows"));
}

TEST_CASE("Routers and gates: outputs over inputs are refused", "[router][gate][error]") {
  const Index dim = 4;
  Matrix<double> square = test::random_matrix<double>(kTokens, dim);
  const auto before = square;
  CHECK_THROWS_WITH(moe::BasicLinearRouter<F64>(dim, dim).logits(square, moe::Step{}, square),
                    "moe::LinearRouter::logits: out overlaps tokens, expected memory of its own");
  const moe::BasicNoisyRouter<F64> noisy(dim, dim);
  CHECK_THROWS_WITH(noisy.logits(square, Step::train(1), square),
                    "moe::NoisyRouter::logits: out overlaps tokens, expected memory of its own");
  moe::BasicNoisyRouter<F64>::Tape tape;
  Matrix<double> logits(kTokens, dim);
  noisy.logits(square, Step::train(1), logits, tape);
  auto gradient = noisy;
  CHECK_THROWS_WITH(noisy.backward(square, Step::train(1), tape, logits, gradient, square),
                    "moe::NoisyRouter::backward: dtokens overlaps tokens, expected memory of its own");
  CHECK_THROWS_WITH(noisy.backward(square, Step::train(1), tape, logits, gradient, logits),
                    "moe::NoisyRouter::backward: dtokens overlaps dlogits, expected memory of its own");

  const moe::SoftmaxGate gate;
  moe::SoftmaxGate none;
  moe::Routing<double> routing;
  gate.route<double>(square, moe::Step{}, routing);
  const std::vector<double> dweight(static_cast<std::size_t>(routing.num_assignments()), 1.0);
  CHECK_THROWS_WITH(gate.probabilities<double>(square, moe::Step{}, square), ContainsSubstring("overlaps logits"));
  CHECK_THROWS_WITH(gate.backward<double>(square, moe::Step{}, routing, dweight, Matrix<double>(), square, none),
                    ContainsSubstring("overlaps logits"));
  CHECK_THROWS_WITH(gate.backward<double>(square, moe::Step{}, routing, dweight, logits, logits, none),
                    "moe::SoftmaxGate::backward: dlogits overlaps dprobability, expected memory of its own");
  CHECK(test::same_bits(square, before));
}

TEST_CASE("Losses: a gradient over the predictions is refused", "[train][error]") {
  Matrix<double> a = test::random_matrix<double>(3, 2), b = test::random_matrix<double>(3, 2, 2), da, db;
  const std::vector<Index> labels(3, 1);
  CHECK_THROWS_WITH(moe::cross_entropy<double>(a, labels, Step{}, a),
                    "moe::cross_entropy: dlogits overlaps logits, expected memory of its own");
  CHECK_THROWS_WITH(moe::symmetric_kl<double>(a, b, Step{}, b, db),
                    "moe::symmetric_kl: da overlaps b, expected memory of its own");
  CHECK_THROWS_WITH(moe::symmetric_kl<double>(a, b, Step{}, da, da),
                    "moe::symmetric_kl: da and db are one matrix, expected two");
  CHECK_THROWS_WITH(moe::squared_distance<double>(a, b, Step{}, da, a),
                    "moe::squared_distance: db overlaps a, expected memory of its own");
}

TEST_CASE("Kernels: rows over their own source are refused", "[kernel][error]") {
  moe::Routing<double> routing;
  routing.resize(kTokens, 1);
  std::ranges::fill(routing.experts(), 0);
  std::ranges::fill(routing.weights(), 1.0);
  moe::DispatchPlan plan;
  plan.build(routing, 1);
  moe::RowBuffer<double> rows;
  rows.resize(kTokens, kModelDim);
  rows.matrix().setZero();
  CHECK_THROWS_WITH(moe::kernel::dispatch<double>(rows.matrix(), plan, rows),
                    "moe::kernel::dispatch: rows overlaps tokens, expected memory of its own");
  CHECK_THROWS_WITH(moe::kernel::combine(rows, plan, routing, rows.matrix()),
                    "moe::kernel::combine: out overlaps rows, expected memory of its own");
  CHECK_THROWS_WITH(moe::kernel::combine_backward<double>(rows.matrix(), moe::RowBuffer<double>(), plan, routing,
                                                          kModelDim, routing.weights(), rows),
                    "moe::kernel::combine_backward: drows overlaps dout, expected memory of its own");
  const auto pool = moe::ExpertPool<Glu>::random(1, kModelDim, 5, 1);
  moe::RowBuffer<double> source;
  CHECK_THROWS_WITH(pool.forward(rows.matrix(), plan, moe::Step{}, source),
                    "moe::ExpertPool::forward: rows is [0, 0], expected at least [" + std::to_string(kTokens) + ", " +
                        std::to_string(pool.row_width()) + "]");
  rows.resize(kTokens, pool.row_width());
  CHECK_THROWS_WITH(pool.forward(rows.matrix().leftCols(kModelDim), plan, moe::Step{}, rows),
                    "moe::ExpertPool::forward: rows overlaps tokens, expected memory of its own");
  Matrix<double> logits = test::random_matrix<double>(3, 2);
  CHECK_THROWS_WITH(moe::sinkhorn<double>(logits, Step{}, {}, logits),
                    "moe::sinkhorn: plan overlaps logits, expected memory of its own");
}
