// SPDX-License-Identifier: MIT
// Experts behind a batch normalisation, and experts with a gate on their features.
#include "moe/expert/normalised.hpp"

#include "moe/expert/feature_gated.hpp"
#include "moe/expert/film.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/routing/plan.hpp"
#include "moe/train/adam_w.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::Step;
using test::Diagonal;
using Mlp = moe::BasicMlp<moe::F64>;
using Normalised = moe::Normalised<Mlp>;
using Plain = moe::Normalised<Diagonal, moe::Identity>;
using FeatureGated = moe::FeatureGated<Mlp>;

namespace {

constexpr Index kInputs = 7, kHidden = 5, kOutputs = 3;

Mlp mlp(std::uint64_t seed) {
  Mlp expert(moe::Widths{.input = kInputs, .hidden = kHidden, .output = kOutputs});
  test::randomise(expert, seed);
  return expert;
}

/// All numbers random, variances positive.
Normalised normalised(std::uint64_t seed) {
  Normalised expert(mlp(seed));
  test::randomise(expert, seed + 50);
  for (double& variance : expert.variance()) variance = 0.5 + variance * variance;
  return expert;
}

FeatureGated feature_gated(Index gates, std::uint64_t seed) {
  FeatureGated expert(mlp(seed), {.rank = 2, .num_gates = gates}, seed);
  test::randomise(expert, seed + 70);
  return expert;
}

template <class E>
Matrix<double> run(const E& expert, const Matrix<double>& rows, const Step& step) {
  moe::Scratch scratch;
  auto out = test::nan_matrix<double>(rows.rows(), expert.output_dim());
  expert.forward(rows, out, {step, scratch});
  return out;
}

/// Worst error of the gradients of rows and parameters for L = <out, c> over valid rows.
template <class E>
double gradient_error(E expert, const Step& step, Index num_rows = 6) {
  auto rows = test::random_matrix<double>(num_rows, expert.input_dim(), 3);
  auto c = test::random_matrix<double>(num_rows, expert.output_dim(), 4);
  for (Index r = 0; r < num_rows; ++r)
    if (!step.is_valid(r)) c.row(r).setZero();
  auto drows = test::nan_matrix<double>(num_rows, expert.input_dim());
  Matrix<double> out(num_rows, expert.output_dim());
  typename E::Tape tape;
  E gradient = moe::zeros_like(expert);
  moe::Scratch scratch;
  expert.forward(rows, out, {step, scratch}, tape);
  expert.require_backward(num_rows, tape, gradient);
  expert.backward(rows, tape, c, drows, gradient, {step, scratch});
  const auto loss = [&] {
    const auto y = run(expert, rows, step);
    double sum = 0;
    for (Index r = 0; r < num_rows; ++r)
      for (Index k = 0; k < y.cols(); ++k) sum += y(r, k) * c(r, k);
    return sum;
  };
  std::string worst;
  const double of_rows = test::gradient_error(loss, rows, drows);
  const double of_parameters = test::parameter_gradient_error(loss, expert, gradient, &worst);
  UNSCOPED_INFO("rows " << of_rows << ", parameters " << of_parameters << ", worst " << worst);
  return std::max(of_rows, of_parameters);
}

Plain plain(moe::NormalisedOptions options) {
  return Plain(Diagonal{moe::RowVector<double>::LinSpaced(kOutputs, 0.5, 2)}, options);
}

}  // namespace

TEST_CASE("Normalised: rows of a batch of training have mean 0 and variance 1", "[expert]") {
  const auto rows = test::random_matrix<double>(40, kOutputs, 1, 3);
  const auto out = run(plain({.epsilon = 1e-9}), rows, Step::train(1));
  for (Index c = 0; c < kOutputs; ++c) {
    double sum = 0, squares = 0;
    for (Index r = 0; r < 40; ++r) sum += out(r, c), squares += out(r, c) * out(r, c);
    CHECK(std::abs(sum / 40) < 1e-14);         // 40 roundings of numbers around 1
    CHECK(std::abs(squares / 40 - 1) < 1e-8);  // epsilon / variance
  }
}

TEST_CASE("Normalised: computes what its formula says, with statistics of the batch and running ones", "[expert]") {
  const Normalised expert = normalised(1);
  const auto rows = test::random_matrix<double>(9, kInputs, 2);
  const auto valid = test::every_nth_padding(9, 4);
  Step training = Step::train(1);
  training.valid = valid;
  const Matrix<double> z = test::run(expert.expert(), rows);
  const auto trained = run(expert, rows, training), inferred = run(expert, rows, Step{});
  for (Index c = 0; c < kOutputs; ++c) {
    double mean = 0, variance = 0;
    for (Index r = 0; r < 9; ++r) mean += training.is_valid(r) ? z(r, c) / 6 : 0;
    for (Index r = 0; r < 9; ++r) variance += training.is_valid(r) ? (z(r, c) - mean) * (z(r, c) - mean) / 6 : 0;
    for (Index r = 0; r < 9; ++r) {
      const auto value = [&](double m, double v) {
        return reference::silu(expert.scale()(c) * (z(r, c) - m) / std::sqrt(v + 1e-5) + expert.shift()(c));
      };
      if (training.is_valid(r)) CHECK(std::abs(trained(r, c) - value(mean, variance)) < 1e-13);
      CHECK(std::abs(inferred(r, c) - value(expert.mean()(c), expert.variance()(c))) < 1e-13);
    }
  }
}

TEST_CASE("Normalised: gradients are central differences, through the statistics of the batch too", "[expert]") {
  CHECK(gradient_error(normalised(1), Step::train(1)) < 1e-7);
  CHECK(gradient_error(normalised(2), Step{}) < 1e-7);
  const auto valid = test::every_nth_padding(6, 3);
  Step padded = Step::train(1);
  padded.valid = valid;
  CHECK(gradient_error(normalised(3), padded) < 1e-7);
  CHECK(gradient_error(moe::Normalised(feature_gated(2, 4)), Step::train(1)) < 1e-7);
}

TEST_CASE("Normalised: inference gives a row the same bits alone and in any batch", "[expert][property]") {
  const moe::Normalised expert(feature_gated(2, 4));
  const auto rows = test::random_matrix<double>(21, kInputs, 2);
  const auto all = run(expert, rows, Step{});
  for (const Index r : {0, 8, 20}) CHECK(test::same_bits(run(expert, rows.middleRows(r, 1), Step{}), all.row(r)));
  CHECK(test::same_bits(run(expert, rows.bottomRows(9), Step{}), all.bottomRows(9)));
  CHECK(run(expert, rows.topRows(0), Step{}).rows() == 0);
  CHECK(run(expert, rows.topRows(0), Step::train(1)).rows() == 0);
}

TEST_CASE("Normalised: running statistics keep .9 of what they are, and no optimiser sees them", "[expert]") {
  Normalised expert = normalised(1);
  const Normalised before = expert;
  const auto rows = test::random_matrix<double>(9, kInputs, 2);
  Matrix<double> out(9, kOutputs), drows(9, kInputs);
  Normalised::Tape tape;
  moe::Scratch scratch;
  const Step step = Step::train(1);
  expert.forward(rows, out, {step, scratch}, tape);
  CHECK(test::same_parameters(expert, before));  // forward changes nothing
  expert.update_statistics(tape);
  for (Index c = 0; c < kOutputs; ++c) {
    CHECK(std::abs(expert.mean()(c) - (0.9 * before.mean()(c) + 0.1 * tape.statistics.mean(c))) < 1e-14);
    CHECK(std::abs(expert.variance()(c) - (0.9 * before.variance()(c) + 0.1 * tape.statistics.variance(c))) < 1e-14);
  }
  Normalised::Tape of_inference;
  const Normalised updated = expert;
  expert.forward(rows, out, Step{}, of_inference);
  expert.update_statistics(of_inference);
  CHECK(test::same_parameters(expert, updated));

  CHECK(moe::num_state(expert) == 2 * kOutputs);
  CHECK(moe::num_parameters(expert) == moe::num_parameters(expert.expert()) + 2 * kOutputs);
  Normalised gradient = moe::zeros_like(expert);
  expert.backward(rows, tape, out, drows, gradient, {step, scratch});
  moe::AdamW::State<Normalised> state(std::as_const(expert));
  moe::AdamW{}.step(expert, gradient, state, 0.1);
  CHECK(test::same_bits(expert.mean(), updated.mean()));
  CHECK(test::same_bits(expert.variance(), updated.variance()));
  CHECK(!test::same_bits(expert.scale(), updated.scale()));
}

TEST_CASE("Normalised: of a pool the experts that had rows are updated", "[expert]") {
  moe::ExpertPool<Normalised> pool({normalised(1), normalised(2), normalised(3)});
  const auto before = pool;
  const auto rows = test::random_matrix<double>(4, kInputs, 2);
  const auto routing = test::routing_of({{0, 2}, {2}, {2, 0}, {}});
  moe::DispatchPlan plan;
  plan.build(routing, 3);
  moe::RowBuffer<double> out;
  out.resize(plan.num_rows(), kOutputs);
  moe::ExpertPool<Normalised>::Tape tape;
  moe::Scratch scratch;
  const Step step = Step::train(1);
  pool.forward(rows, plan, {step, scratch}, out, tape);
  moe::update_statistics(pool, tape, plan);
  CHECK(!test::same_bits(pool[0].mean(), before[0].mean()));
  CHECK(test::same_bits(pool[1].mean(), before[1].mean()));
  CHECK(!test::same_bits(pool[2].variance(), before[2].variance()));
  moe::ExpertPool<Normalised> other({normalised(1)});
  CHECK_THROWS_WITH(moe::update_statistics(other, tape, plan), ContainsSubstring("of 3 and 3 experts, expected 1"));
}

TEST_CASE("Normalised: one row has no statistics, and options have ranges", "[expert][error]") {
  CHECK_THROWS_WITH(run(normalised(1), test::random_matrix<double>(1, kInputs, 2), Step::train(1)),
                    ContainsSubstring("moe::Normalised::forward: the expert has 1 row in training, expected none, or"));
  CHECK_THROWS_WITH(plain({.epsilon = 0}), ContainsSubstring("epsilon is 0, expected a value above 0"));
  CHECK_THROWS_WITH(plain({.momentum = 1}), ContainsSubstring("momentum is 1, expected 0 <= momentum < 1"));
  Normalised expert = normalised(1);
  expert.mean().resize(2);
  CHECK_THROWS_WITH(run(expert, test::random_matrix<double>(3, kInputs, 2), Step{}),
                    ContainsSubstring("has 2 entries, expected output_dim = 3"));
}

TEMPLATE_TEST_CASE("FeatureGated: fresh gates leave the expert as it is, bit for bit", "[expert]", moe::F32, moe::F64) {
  using S = typename TestType::Scalar;
  using E = moe::BasicMlp<TestType>;
  const auto base = E::random(kInputs, kHidden, 1);
  const auto rows = test::random_matrix<S>(9, kInputs, 2);
  for (const Index gates : {1, 2, 3, 7})
    CHECK(test::same_bits(test::run(moe::FeatureGated<E>(base, {.num_gates = gates}), rows), test::run(base, rows)));
}

TEST_CASE("FeatureGated: scales each input by the mean of sigmoids, times 2", "[expert]") {
  for (const Index gates : {1, 3}) {
    const FeatureGated expert = feature_gated(gates, 5);
    const auto rows = test::random_matrix<double>(9, kInputs, 2);
    Matrix<double> gated = Matrix<double>::Zero(9, kInputs);
    for (Index l = 0; l < gates; ++l) {
      const auto hidden = reference::linear(rows, test::in_double(expert.down(l).weight()));
      const auto score = reference::linear(hidden, test::in_double(expert.up(l).weight()));
      for (Index r = 0; r < 9; ++r)
        for (Index c = 0; c < kInputs; ++c)
          gated(r, c) += rows(r, c) * 2 / (1 + std::exp(-score(r, c))) / static_cast<double>(gates);
    }
    CHECK(test::largest(Matrix<double>(run(expert, rows, Step{}) - test::run(expert.expert(), gated))) < 1e-13);
  }
}

TEST_CASE("FeatureGated: gradients are central differences, and those of A are zero while B is", "[expert]") {
  CHECK(gradient_error(feature_gated(1, 6), Step{}) < 1e-8);
  CHECK(gradient_error(feature_gated(3, 7), Step{}) < 1e-8);
  const FeatureGated expert(mlp(1), {.rank = 2}, 1);
  const auto rows = test::random_matrix<double>(6, kInputs, 3);
  Matrix<double> out(6, kOutputs), drows(6, kInputs);
  FeatureGated::Tape tape;
  FeatureGated gradient = moe::zeros_like(expert);
  const moe::Context context{Step{}};
  expert.forward(rows, out, context, tape);
  expert.backward(rows, tape, out, drows, gradient, context);
  CHECK(test::num_nonzero(gradient.down(0)) == 0);
  CHECK(test::num_nonzero(gradient.up(0)) == kInputs * 2);
}

TEMPLATE_TEST_CASE("Normalised, FeatureGated, Film: backward without a gradient gives the rows the same bits",
                   "[expert]", Normalised, FeatureGated, moe::Normalised<FeatureGated>,
                   moe::Film<moe::BasicLinear<moe::F64>>) {
  const auto make = [] {
    if constexpr (std::is_same_v<TestType, Normalised>)
      return normalised(1);
    else if constexpr (std::is_same_v<TestType, FeatureGated>)
      return feature_gated(2, 1);
    else if constexpr (std::is_same_v<TestType, moe::Normalised<FeatureGated>>)
      return moe::Normalised(feature_gated(2, 1));
    else
      return moe::Film(test::random_expert<moe::BasicLinear<moe::F64>>(2 * kInputs, kInputs, 1));
  };
  static_assert(moe::SkipsGradient<TestType>);
  const TestType expert = make();
  const auto rows = test::random_matrix<double>(9, kInputs, 2);
  const auto dout = test::random_matrix<double>(9, expert.output_dim(), 3);
  for (const Step& step : {Step{}, Step::train(1)}) {
    Matrix<double> out(9, expert.output_dim());
    auto drows = test::nan_matrix<double>(9, kInputs), without = drows;
    typename TestType::Tape tape;
    moe::Scratch scratch;
    TestType gradient = moe::zeros_like(expert);
    expert.forward(rows, out, {step, scratch}, tape);
    expert.backward(rows, tape, dout, drows, gradient, {step, scratch});
    expert.require_backward(9, tape, moe::NoGradient{});
    expert.backward(rows, tape, dout, without, moe::NoGradient{}, {step, scratch});
    CHECK(test::same_bits(without, drows));
    CHECK(test::num_nonzero(gradient) > 0);
    CHECK_THROWS_AS(expert.require_backward(8, tape, moe::NoGradient{}), std::invalid_argument);
    const Matrix<double> fewer = rows.topRows(8), fewer_dout = dout.topRows(8);
    auto untouched = test::nan_matrix<double>(8, kInputs);
    CHECK_THROWS_AS(expert.backward(fewer, tape, fewer_dout, untouched, moe::NoGradient{}, {step, scratch}),
                    std::invalid_argument);
    CHECK(std::isnan(untouched(0, 0)));
  }
}

TEST_CASE("FeatureGated: numbers out of range, and tapes and gradients of others, are refused", "[expert][error]") {
  CHECK_THROWS_WITH(FeatureGated(mlp(1), {.rank = 0}), ContainsSubstring("rank is 0, expected at least 1"));
  CHECK_THROWS_WITH(FeatureGated(mlp(1), {.num_gates = 0}), ContainsSubstring("num_gates is 0, expected at least 1"));
  const FeatureGated expert = feature_gated(2, 1);
  FeatureGated::Tape tape;
  CHECK_THROWS_WITH(expert.require_backward(3, tape, feature_gated(2, 1)),
                    ContainsSubstring("tape has 0 gates, expected 2"));
  FeatureGated replaced = expert;
  replaced.up(1) = FeatureGated::Linear(kInputs, 3, moe::Bias::Off);
  CHECK_THROWS_WITH(run(replaced, test::random_matrix<double>(3, kInputs, 2), Step{}),
                    ContainsSubstring("gate 1 maps 7 to 2 and 3 to 7"));
}
