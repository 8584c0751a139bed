// SPDX-License-Identifier: MIT
// Decoder blocks around a mixture of experts: what they compute, their gradients, and what a row may depend on.
#include "moe/sequence/decoder_block.hpp"

#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/parameters.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::Sequences;
using moe::Step;

namespace {

constexpr Index kModel = 6, kMemory = 5;
const Sequences kTokens(std::vector<Index>{3, 1, 2}), kRows(std::vector<Index>{2, 0, 4});

template <class Codec = moe::F64>
auto block(std::uint64_t seed) {
  moe::DecoderBlock result(moe::MoeLayer(moe::BasicLinearRouter<Codec>::random(3, kModel, seed), moe::TopKGate{.k = 2},
                                         moe::ExpertPool<moe::BasicMlp<Codec>>::random(3, kModel, 4, seed)),
                           kMemory, {.num_heads = 2}, {.num_heads = 3, .zero_key = moe::ZeroKey::On}, seed);
  test::randomise(result, seed);
  return result;
}
using Block = decltype(block(1));

template <class B, class S = typename B::Scalar>
Matrix<S> run(const B& block, const Matrix<S>& tokens, const Sequences& of_tokens, const Matrix<S>& memory,
              const Sequences& of_memory) {
  typename B::Workspace ws;
  auto out = test::nan_matrix<S>(tokens.rows(), kModel);
  block.forward({tokens, of_tokens}, {memory, of_memory}, Step{}, out, ws);
  return out;
}

/// Its parts, one after the other.
Matrix<double> by_parts(const Block& b, const Matrix<double>& tokens, const Matrix<double>& memory) {
  Matrix<double> normal(tokens.rows(), kModel), out = normal, sum = tokens;
  const moe::Context context(Step{});
  moe::BasicWorkspace<double> ws;
  b.self_norm().forward(sum, normal, context);
  b.self_attention().forward({normal, kTokens}, {normal, kTokens}, out, context);
  sum += out;
  b.cross_norm().forward(sum, normal, context);
  b.cross_attention().forward({normal, kTokens}, {memory, kRows}, out, context);
  sum += out;
  b.layer_norm().forward(sum, normal, context);
  b.layer().forward(normal, out, ws);
  return sum + out;
}

}  // namespace

TEST_CASE(
    "DecoderBlock: is attention to itself, to the memory, and the layer, each behind a norm and beside a residual",
    "[sequence]") {
  const auto b = block(1);
  const auto tokens = test::random_matrix<double>(6, kModel, 1), memory = test::random_matrix<double>(6, kMemory, 2);
  // The same operations, but for how a sum of numbers below 8 may be contracted, in three places.
  CHECK(test::largest(Matrix<double>(run(b, tokens, kTokens, memory, kRows) - by_parts(b, tokens, memory))) < 1e-14);
}

TEST_CASE("DecoderBlock: gradients are central differences", "[sequence]") {
  auto b = block(2);
  auto tokens = test::random_matrix<double>(6, kModel, 1), memory = test::random_matrix<double>(6, kMemory, 2);
  const auto c = test::random_matrix<double>(6, kModel, 3);
  Block::Tape tape;
  Block gradient = moe::zeros_like(b);
  Matrix<double> out(6, kModel);
  auto dtokens = test::nan_matrix<double>(6, kModel), dmemory = test::nan_matrix<double>(6, kMemory);
  b.forward({tokens, kTokens}, {memory, kRows}, Step{}, out, tape);
  CHECK(test::same_bits(out, run(b, tokens, kTokens, memory, kRows)));
  b.backward({tokens, kTokens}, {memory, kRows}, tape, c, gradient, dtokens, dmemory);
  const auto loss = [&] { return run(b, tokens, kTokens, memory, kRows).cwiseProduct(c).eval().sum(); };
  CHECK(test::gradient_error(loss, tokens, dtokens) < 1e-7);
  CHECK(test::gradient_error(loss, memory, dmemory) < 1e-7);
  CHECK(test::parameter_gradient_error(loss, b, gradient) < 1e-7);
}

TEST_CASE("DecoderBlock: rows depend on their sequence alone", "[sequence][property]") {
  const auto b = block<moe::F32>(1);
  const auto tokens = test::random_matrix<float>(6, kModel, 1), memory = test::random_matrix<float>(6, kMemory, 2);
  const auto all = run(b, tokens, kTokens, memory, kRows);
  const Matrix<float> own = tokens.bottomRows(2), rows = memory.bottomRows(4);
  CHECK(test::same_bits(run(b, own, Sequences::equal(1, 2), rows, Sequences::equal(1, 4)), all.bottomRows(2)));
  const Matrix<float> none(0, kModel), no_rows(0, kMemory);
  CHECK(run(b, none, {}, no_rows, {}).rows() == 0);
}

TEST_CASE("DecoderBlock: rows and gradients have the same bits for any threads", "[sequence][property]") {
  const auto b = block(1);
  Sequences of_tokens, of_rows;
  for (Index i = 0; i < 64; ++i) of_tokens.push_back(13 + i % 7), of_rows.push_back(19 - i % 7);
  const auto tokens = test::random_matrix<double>(of_tokens.num_rows(), kModel, 1), c = tokens;
  const auto memory = test::random_matrix<double>(of_rows.num_rows(), kMemory, 2);
  struct Pass {
    Matrix<double> out, dtokens, dmemory;
    Block gradient;
  };
  const auto pass = [&](Index workers) {
    test::ThreadExecutor threads(workers);
    const moe::UseExecutor use(threads);
    Pass result{tokens, tokens, memory, moe::zeros_like(b)};
    Block::Tape tape;
    b.forward({tokens, of_tokens}, {memory, of_rows}, Step{}, result.out, tape);
    b.backward({tokens, of_tokens}, {memory, of_rows}, tape, c, result.gradient, result.dtokens, result.dmemory);
    return result;
  };
  const Pass one = pass(1), three = pass(3);
  CHECK(test::same_bits(one.out, three.out));
  CHECK(test::same_bits(one.dtokens, three.dtokens));
  CHECK(test::same_bits(one.dmemory, three.dmemory));
  CHECK(test::same_parameters(one.gradient, three.gradient));
}

TEST_CASE("DecoderBlock: gradients over what is still to be read, and tapes without a pass, are refused",
          "[sequence][error]") {
  const auto b = block(1);
  const auto tokens = test::random_matrix<double>(6, kModel, 1), c = test::random_matrix<double>(6, kModel, 3);
  auto memory = test::random_matrix<double>(6, kMemory, 2);
  Matrix<double> out(6, kModel), dtokens(6, kModel), dmemory(6, kMemory);
  Block::Tape tape;
  auto gradient = moe::zeros_like(b);
  b.forward({tokens, kTokens}, {memory, kRows}, Step{}, out, tape);
  const auto backward = [&](Block::Tape& of, moe::MatrixRef<double> dmemory_to) {
    b.backward({tokens, kTokens}, {memory, kRows}, of, c, gradient, dtokens, dmemory_to);
  };
  CHECK_THROWS_WITH(backward(tape, memory), ContainsSubstring("dmemory overlaps memory"));
  CHECK_THROWS_WITH(backward(tape, dtokens.leftCols(kMemory)), ContainsSubstring("dtokens overlaps dmemory"));
  Block::Tape moved = std::move(tape);
  CHECK_THROWS_WITH(backward(tape, dmemory), ContainsSubstring("the tape holds no forward pass that has ended"));
  CHECK(test::same_parameters(gradient, moe::zeros_like(b)));
  backward(moved, dmemory);
  CHECK(!test::same_parameters(gradient, moe::zeros_like(b)));
}

TEST_CASE("DecoderBlock: sizes, padding and foreign tapes are refused", "[sequence][error]") {
  auto b = block(1);
  const auto tokens = test::random_matrix<double>(6, kModel, 1), memory = test::random_matrix<double>(6, kMemory, 2);
  Matrix<double> out(6, kModel);
  Block::Workspace ws;
  Step padded;
  const std::vector<std::uint8_t> valid(6, 1);
  padded.valid = valid;
  CHECK_THROWS_WITH(b.forward({tokens, kTokens}, {memory, kRows}, padded, out, ws),
                    ContainsSubstring("step.valid has 6 entries, expected none: sequences need no padding"));
  CHECK_THROWS_WITH(run(b, tokens, kTokens, tokens, kRows), ContainsSubstring("memory is [6, 6], expected [6, 5]"));
  CHECK_THROWS_WITH(b.require_backward(kTokens, kRows, Block::Tape(), moe::zeros_like(b)),
                    ContainsSubstring("the tape holds no forward pass that has ended"));
  b.layer_norm() = moe::LayerNorm<double>(4);
  CHECK_THROWS_WITH(run(b, tokens, kTokens, memory, kRows),
                    ContainsSubstring("layer_norm has 4 columns, expected model_dim = 6"));
}
