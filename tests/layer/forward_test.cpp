// SPDX-License-Identifier: MIT
#include <atomic>

#include "layer/fixtures.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "support/catch.hpp"

using moe::F32;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::TopKGate;
using test::kModelDim;
using test::Mat;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F32>;

namespace {

template <class E, class Codec>
void check_against_reference(Index num_tokens, Index num_experts, Index k) {
  using S = typename Codec::Scalar;
  const auto layer = test::layer_of<E, TopKGate, Codec>(num_experts, TopKGate{.k = k});
  const auto tokens = test::random_matrix<S>(num_tokens, kModelDim);
  moe::BasicWorkspace<S> ws;
  auto out = test::nan_matrix<S>(num_tokens, kModelDim);
  layer.forward(tokens, out, ws);
  const auto logits = test::Bounded<S>(tokens.template cast<double>())
                          .linear(test::in_double(layer.router().weight()), test::in_double(layer.router().bias()));
  CAPTURE(num_tokens, num_experts, k);
  CHECK(logits.worst(ws.logits.matrix()) <= 1);
  CHECK(ws.plan().num_rows() == num_tokens * k);
  CHECK(test::reference_of(layer, tokens.template cast<double>(), ws.routing).worst(out) <= 1);
}

/// Counts the rows that it computes.
struct Counting {
  using Scalar = double;
  std::atomic<Index>* rows;

  Index input_dim() const { return kModelDim; }
  Index output_dim() const { return kModelDim; }
  void forward(const moe::ConstMatrixRef<double>& in, moe::MatrixRef<double> out, const moe::Context&) const {
    *rows += in.rows();
    out = in;
  }
};

/// A router whose logits are the same for all tokens: its bias.
moe::BasicLinearRouter<F64> constant_router(const std::vector<double>& logits) {
  moe::BasicLinearRouter<F64> router(Index(logits.size()), kModelDim, moe::Bias::Zero);
  router.bias().write(std::span<const double>(logits));
  return router;
}

}  // namespace

TEST_CASE("MoeLayer: forward is the weighted sum of the chosen experts", "[layer]") {
  for (const Index num_experts : {1, 3, 8, 17})
    for (const Index k : {Index{1}, Index{2}, num_experts})
      for (const Index num_tokens : {0, 1, 2, 5, 6, 7, 33}) {
        if (k > num_experts) continue;
        check_against_reference<Glu, F64>(num_tokens, num_experts, k);
        check_against_reference<Mlp, F32>(num_tokens, num_experts, k);
      }
}

TEST_CASE("MoeLayer: one expert is the plain expert, bit for bit", "[layer]") {
  const auto layer = test::layer_of<Glu>(1, TopKGate{.k = 1});
  const auto tokens = test::random_matrix<double>(9, kModelDim);
  CHECK(test::same_bits(test::forward(layer, tokens), test::run(layer.experts()[0], tokens)));
}

TEST_CASE("MoeLayer: all experts renormalised are the dense mixture", "[layer]") {
  const auto sparse = test::layer_of<Glu>(5, TopKGate{.k = 5});
  const moe::MoeLayer dense(sparse.router(), moe::SoftmaxGate{}, sparse.experts());
  const auto tokens = test::random_matrix<double>(9, kModelDim);
  moe::BasicWorkspace<double> ws;
  Matrix<double> out(9, kModelDim);
  dense.forward(tokens, out, ws);
  // Weights of both come from a softmax over 5 logits, each within 16 ulp or so.
  test::Bounded<double> expected = test::reference_of(dense, tokens, ws.routing);
  expected.error += 32 * test::kUnitRoundoff<double> * 5 * Mat::Constant(9, kModelDim, test::largest(out) + 1);
  CHECK(expected.worst(test::forward(sparse, tokens)) <= 1);
}

TEST_CASE("MoeLayer: all tokens may go to one expert and leave the others empty", "[layer]") {
  const auto pool = test::layer_of<Glu>(4, TopKGate{}).experts();
  const moe::MoeLayer layer(constant_router({0, 1, 5, 2}), TopKGate{.k = 1}, pool);
  const auto tokens = test::random_matrix<double>(33, kModelDim);
  CHECK(test::same_bits(test::forward(layer, tokens), test::run(pool[2], tokens)));
}

TEST_CASE("MoeLayer: experts compute one row per assignment and not one more", "[layer]") {
  std::atomic<Index> rows = 0;
  const moe::ExpertPool<Counting> pool({Counting{&rows}, Counting{&rows}, Counting{&rows}});
  const moe::MoeLayer layer(moe::BasicLinearRouter<F64>::random(3, kModelDim, 1), TopKGate{.k = 2}, pool);
  test::forward(layer, test::random_matrix<double>(21, kModelDim));
  CHECK(rows == 42);
}

TEST_CASE("MoeLayer: a dropped choice contributes exactly nothing", "[layer]") {
  const auto pool = test::layer_of<Glu>(3, TopKGate{}).experts();
  const moe::WithCapacity<TopKGate> gate{.capacity = {.evaluation_factor = 0, .min_capacity = 4}};
  const moe::MoeLayer layer(constant_router({1, 3, 2}), gate, pool);  // everybody wants 1, then 2
  const auto tokens = test::random_matrix<double>(7, kModelDim);
  moe::BasicWorkspace<double> ws;
  auto out = test::nan_matrix<double>(7, kModelDim);
  layer.forward(tokens, out, ws);
  CHECK(ws.plan().num_rows() == 8);
  CHECK(test::reference_of(layer, tokens, ws.routing).worst(out) <= 1);
  CHECK(test::all_zero(out.bottomRows(3)));
}

TEST_CASE("MoeLayer: padding gives zeros and does not touch the other tokens, whatever it holds", "[layer]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{.k = 2});
  auto tokens = test::random_matrix<double>(8, kModelDim);
  const auto unpadded = test::forward(layer, tokens);
  const std::vector<std::uint8_t> valid = {0, 1, 1, 0, 1, 1, 1, 0};
  for (const Index t : {0, 3, 7}) tokens.row(t).setConstant(test::kNan<double>);
  moe::Step step;
  step.valid = valid;
  const auto out = test::forward(layer, tokens, step);
  for (Index t = 0; t < 8; ++t) {
    CAPTURE(t);
    CHECK((step.is_valid(t) ? test::same_bits(out.row(t), unpadded.row(t)) : test::all_zero(out.row(t))));
  }
}

TEST_CASE("MoeLayer: tokens and output may be maps, blocks, and tokens column-major", "[layer]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(6, kModelDim);
  const auto expected = test::forward(layer, tokens);
  moe::BasicWorkspace<double> ws;
  Matrix<double> out(6, kModelDim), frame = Matrix<double>::Constant(8, kModelDim + 5, 3);

  const Eigen::MatrixXd columns = tokens;
  layer.forward(columns, out, ws);
  CHECK(test::same_bits(out, expected));

  Matrix<double> wide = test::nan_matrix<double>(9, kModelDim + 4);
  wide.block(2, 3, 6, kModelDim) = tokens;
  layer.forward(wide.block(2, 3, 6, kModelDim), frame.block(1, 1, 6, kModelDim), ws);
  CHECK(test::same_bits(frame.block(1, 1, 6, kModelDim), expected));
  frame.block(1, 1, 6, kModelDim).setConstant(3);
  CHECK(test::same_bits(frame, Matrix<double>::Constant(8, kModelDim + 5, 3)));

  std::vector<double> memory(6 * kModelDim + 1);
  Eigen::Map<Matrix<double>> map(memory.data() + 1, 6, kModelDim);
  layer.forward(tokens, map, ws);
  CHECK(test::same_bits(map, expected));
  STATIC_REQUIRE(!std::is_convertible_v<Eigen::MatrixXd&, moe::MatrixRef<double>>);
}

TEST_CASE("MoeLayer: the output may be the tokens themselves", "[layer]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{.k = 2});
  auto tokens = test::random_matrix<double>(6, kModelDim);
  const auto expected = test::forward(layer, tokens);
  moe::BasicWorkspace<double> ws;
  layer.forward(tokens, tokens, ws);
  CHECK(test::same_bits(tokens, expected));
}

TEST_CASE("MoeLayer: a model dimension of one works in every storage order", "[layer]") {
  const moe::MoeLayer layer(moe::BasicLinearRouter<F64>::random(3, 1, 1), TopKGate{.k = 2},
                            moe::ExpertPool<Glu>::random(3, 1, 4, 2));
  const auto tokens = test::random_matrix<double>(6, 1);
  const auto expected = test::forward(layer, tokens);
  const Eigen::VectorXd column = tokens;
  Eigen::VectorXd out(6);
  moe::BasicWorkspace<double> ws;
  layer.forward(column, out, ws);
  CHECK(test::same_bits(out, expected));
}

TEST_CASE("MoeLayer: a workspace full of NaN and one that served another layer give the same bits", "[layer]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(6, kModelDim);
  const auto expected = test::forward(layer, tokens);
  moe::BasicWorkspace<double> ws;
  auto& stages = ws.scratch.get<moe::detail::RoutedRows<double>>().experts.get<moe::StageMemoryOf<Glu>>();
  for (auto& buffer : stages.hidden) test::poison(buffer, 32, 128);
  test::poison(ws.scratch.get<moe::detail::RoutedRows<double>>().rows, 32, 128);
  test::poison(ws.logits, 40, 40);
  Matrix<double> out = test::nan_matrix<double>(6, kModelDim);
  layer.forward(tokens, out, ws);
  CHECK(test::same_bits(out, expected));

  const auto other = test::layer_of<Glu>(17, TopKGate{.k = 5});
  Matrix<double> many(33, kModelDim);
  other.forward(test::random_matrix<double>(33, kModelDim), many, ws);
  layer.forward(tokens, out, ws);
  CHECK(test::same_bits(out, expected));
}
