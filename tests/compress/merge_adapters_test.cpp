// SPDX-License-Identifier: MIT
// Adapters on experts in few bits, trained, and folded into their weights.
#include "moe/compress/merge_adapters.hpp"

#include "layer/fixtures.hpp"
#include "moe/layer/branches.hpp"
#include "moe/train/squared_error.hpp"
#include "moe/train/trainer.hpp"
#include "support/catch.hpp"
#include "support/low_rank.hpp"

using moe::Index;
using moe::Matrix;
using moe::Quantised;
using moe::TopKGate;
using moe::WeightFormat;

namespace {

constexpr Index kExperts = 4, kDim = 45, kHidden = 70;

template <class E = moe::Glu>
auto layer_of() {
  return moe::MoeLayer(moe::LinearRouter::random(kExperts, kDim, 3), TopKGate{.k = 2},
                       moe::ExpertPool<E>::random(kExperts, kDim, kHidden, 4, moe::Bias::Zero));
}

/// Codes and scales of all matrices.
std::vector<std::byte> bytes_of(const moe::ExpertPool<moe::BasicGlu<Quantised>>& pool) {
  std::vector<std::byte> bytes;
  for (Index e = 0; e < pool.size(); ++e)
    for (const auto* weight : {&pool[e].gate_up(), &pool[e].down()}) {
      const auto rows = weight->rows();
      for (const auto* part : {&rows.codes, &rows.scales, &rows.zeros})
        bytes.insert(bytes.end(), part->begin(), part->end());
    }
  return bytes;
}

}  // namespace

TEST_CASE("with_adapters: a layer in few bits keeps its bits, whatever the format", "[compress]") {
  const auto tokens = test::random_matrix<float>(41, kDim);
  for (const char* name : {"bf16", "fp8", "int8", "int4", "int4-zero", "mxfp4", "nvfp4", "3bit"}) {
    CAPTURE(name);
    const auto small = moe::quantise(layer_of(), WeightFormat::named(name));
    CHECK(test::same_bits(test::forward(moe::with_adapters(small, {}, 1), tokens), test::forward(small, tokens)));
    // and with an update those of the layer of decoded weights with it
    auto adapted = moe::with_experts(small, test::random_adapters(small.experts(), {.rank = 3}, 1));
    auto decoded = moe::with_adapters(moe::dequantise(small), {.rank = 3}, 1);
    moe::set_adapters(decoded, moe::adapters_of(adapted));
    const test::TrainingPass pass(adapted, tokens, tokens);
    const test::TrainingPass of_decoded(decoded, tokens, tokens);
    CHECK(test::same_bits(pass.out, of_decoded.out));
    CHECK(test::same_bits(pass.dtokens, of_decoded.dtokens));
    CHECK(test::flatten(pass.gradient) == test::flatten(of_decoded.gradient));
  }
}

TEST_CASE("LowRank: 20 steps of AdamW lower the loss and leave codes, scales and biases as they are", "[compress]") {
  const auto small = moe::quantise(layer_of(), WeightFormat::int4());
  auto layer = moe::with_adapters(small, {.rank = 4}, 1);
  const auto copy = layer;
  const auto tokens = test::random_matrix<float>(64, kDim), target = test::random_matrix<float>(64, kDim, 2);
  moe::Trainer trainer(layer, moe::AdamW{});
  std::vector<double> losses;
  for (std::uint64_t update = 0; update < 20; ++update) {
    const moe::Step step = moe::Step::train(update, 1);
    losses.push_back(trainer.accumulate(
        tokens, step, [&](const auto& out, auto& dout) { return moe::squared_error(out, target, step, dout); }));
    trainer.update(1e-2);
  }
  CHECK(losses.back() < 0.95 * losses.front());
  CHECK(bytes_of(moe::without_adapters(layer).experts()) == bytes_of(small.experts()));
  CHECK(test::flatten(moe::without_adapters(layer).experts()) == test::flatten(small.experts()));
  CHECK(&layer.experts()[0].base() == &copy.experts()[0].base());  // never copied
  CHECK(&trainer.state().second.experts()[0].base() == &copy.experts()[0].base());
}

TEMPLATE_TEST_CASE("merge_adapters: computes what the adapted expert does, within the bounds of both sums",
                   "[compress]", moe::Linear, moe::Mlp, moe::Glu) {
  const auto rows = test::random_matrix<float>(19, kDim);
  const auto expert = test::random_low_rank(TestType::random(kDim, kHidden, 1), {.rank = 5, .alpha = 7}, 2);
  const moe::LowRank<TestType> x = expert;
  const auto input = test::random_matrix<float>(19, x.input_dim());
  const auto exact = test::reference_of(x, input.template cast<double>());
  CHECK(exact.worst(test::run(x, input)) <= 1);
  // A rounding of each weight more: u |x| |W'|^T, which is below the bound of a sum of inputs + rank + 3 products.
  CHECK(exact.worst(test::run(moe::merge_adapters(x), input)) <= 1);
}

TEST_CASE("merge_adapters: every weight is W + alpha / rank * B A, rounded once; with no update W", "[compress]") {
  const auto expert =
      test::random_low_rank(moe::Glu::random(kDim, kHidden, 1), {.rank = 3, .alpha = 5, .targets = {"down"}}, 2);
  const moe::Glu merged = moe::merge_adapters(expert);
  const auto& update = expert.update("down");
  for (Index o = 0; o < kDim; ++o)
    for (Index i = 0; i < kHidden; ++i) {
      double sum = 0;
      for (Index j = 0; j < 3; ++j) sum += double(update.b(o, j)) * double(update.a(i, j));
      CHECK(merged.down()(o, i) == static_cast<float>(double(expert.base().down()(o, i)) + 5.0 / 3 * sum));
    }
  CHECK(test::same_bits(merged.gate_up().matrix(), expert.base().gate_up().matrix()));
}

TEST_CASE("merge_adapters: layers in few bits become floats, and formats again; branches stay", "[compress]") {
  const auto small = moe::quantise(layer_of<moe::Mlp>(), WeightFormat::int4());
  const moe::WithBranches whole(small, moe::Mlp::random(kDim, 9, 1));
  auto adapted = moe::with_adapters(whole, {.rank = 2}, 1);
  test::fill(adapted.layer().experts(), [](Index k) { return 0.01 * static_cast<double>(k % 7 - 3); });
  const auto merged = moe::merge_adapters(adapted);
  const auto tokens = test::random_matrix<float>(15, kDim);
  const Matrix<float> out = test::forward(adapted, tokens), again = test::forward(merged, tokens);
  // Outputs are sums of some hundred terms of order 1: 1e-4 is a hundred times their rounding.
  CHECK(test::largest(out - again) < 1e-4);
  const auto halves = moe::quantise(merged, WeightFormat::bf16());
  CHECK(test::largest(out - test::forward(halves, tokens)) < 0.05 * test::largest(out));
  CHECK(test::same_bits(test::forward(moe::without_adapters(adapted), tokens), test::forward(whole, tokens)));
}

TEST_CASE("merge_adapters: with a common factor it is that of the updates apart", "[compress]") {
  const auto layer = layer_of();
  auto adapted = moe::with_shared_adapters(layer, moe::SharedFactor::A, {.rank = 2}, 1);
  test::fill(adapted.experts(), [](Index k) { return 0.01 * static_cast<double>(k % 7 - 3); });
  auto apart = moe::with_adapters(layer, {}, 1);
  moe::set_adapters(apart, moe::adapters_of(adapted));
  CHECK(test::flatten(moe::merge_adapters(adapted)) == test::flatten(moe::merge_adapters(apart)));
}
