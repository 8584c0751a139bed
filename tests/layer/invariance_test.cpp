// SPDX-License-Identifier: MIT
// What may change without changing a bit: the order of tokens and of experts, and the number of threads.
#include <numeric>

#include "layer/fixtures.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::TopKGate;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;

namespace {

/// 0, ..., n - 1 in a random order.
std::vector<Index> permutation(Index n, std::uint64_t seed) {
  std::vector<Index> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), Index{0});
  const moe::RandomField random(moe::Purpose::User, seed);
  std::ranges::sort(order, {}, [&](Index i) { return random.bits(i); });
  return order;
}

Matrix<double> permuted(const Matrix<double>& rows, const std::vector<Index>& order) {
  Matrix<double> result(rows.rows(), rows.cols());
  for (Index r = 0; r < rows.rows(); ++r) result.row(r) = rows.row(order[static_cast<std::size_t>(r)]);
  return result;
}

}  // namespace

TEST_CASE("MoeLayer: permuting tokens permutes outputs and input gradients, bit for bit", "[layer][property]") {
  const auto layer = test::layer_of<Glu>(5, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(33, kModelDim), dout = test::random_matrix<double>(33, kModelDim, 2);
  const test::TrainingPass pass(layer, tokens, dout);
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    const auto order = permutation(33, seed);
    const test::TrainingPass moved(layer, permuted(tokens, order), permuted(dout, order));
    CAPTURE(seed);
    CHECK(test::same_bits(moved.out, permuted(pass.out, order)));
    CHECK(test::same_bits(moved.dtokens, permuted(pass.dtokens, order)));
  }
}

TEST_CASE("MoeLayer: permuting experts with their router rows changes nothing, bit for bit", "[layer][property]") {
  const auto layer = test::layer_of<Glu>(8, TopKGate{.k = 3});
  const auto tokens = test::random_matrix<double>(33, kModelDim), dout = test::random_matrix<double>(33, kModelDim, 2);
  const test::TrainingPass pass(layer, tokens, dout);
  const auto order = permutation(8, 1);
  auto moved = layer;
  for (Index e = 0; e < 8; ++e) {
    const Index from = order[static_cast<std::size_t>(e)];
    moved.experts()[e] = layer.experts()[from];
    moved.router().bias()(e, 0) = layer.router().bias()(from, 0);
    for (Index i = 0; i < kModelDim; ++i) moved.router().weight()(e, i) = layer.router().weight()(from, i);
  }
  const test::TrainingPass moved_pass(moved, tokens, dout);
  CHECK(test::same_bits(moved_pass.out, pass.out));
  for (Index e = 0; e < 8; ++e) {
    CAPTURE(e);
    CHECK(test::same_parameters(moved_pass.gradient.experts()[e],
                                pass.gradient.experts()[order[static_cast<std::size_t>(e)]]));
  }
}

TEST_CASE("MoeLayer: the number of threads does not change a bit", "[layer][property]") {
  const auto layer = test::layer_of<Glu>(5, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(300, kModelDim);
  const auto dout = test::random_matrix<double>(300, kModelDim, 2);
  const test::TrainingPass serial(layer, tokens, dout);
  for (const Index workers : {2, 3, 8}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    const test::TrainingPass parallel(layer, tokens, dout);
    CAPTURE(workers);
    CHECK(test::same_bits(parallel.out, serial.out));
    CHECK(test::same_bits(parallel.dtokens, serial.dtokens));
    CHECK(test::same_parameters(parallel.gradient, serial.gradient));
  }
}

TEST_CASE("MoeLayer: inference, training and replay give the same output, bit for bit", "[layer][property]") {
  const auto layer = test::layer_of<Glu>(5, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(33, kModelDim);
  const auto expected = test::forward(layer, tokens);
  test::TrainingPass pass(layer, tokens, tokens);
  CHECK(test::same_bits(pass.out, expected));
  pass.out.setConstant(test::kNan<double>);
  layer.replay(tokens, pass.out, pass.tape);
  CHECK(test::same_bits(pass.out, expected));
}
