// SPDX-License-Identifier: MIT
// Parts that published models need: the products of GPT-OSS and Kimi K3, the squares of Nemotron-H, an expert with a
// gate of its own, an offset.
#include <array>

#include "moe/expert/gated_expert.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/offset.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/gradient.hpp"

using Catch::Matchers::WithinAbs;
using moe::F64;
using moe::Index;
using moe::Matrix;
using Glu = moe::BasicGlu<F64>;
using ClampedGlu = moe::BasicGlu<F64, moe::ClampedSwiGlu>;
using SituGlu = moe::BasicGlu<F64, moe::SituGlu>;
using SquaredMlp = moe::BasicMlp<F64, moe::SquaredRelu>;
using Offset = moe::BasicOffset<F64>;
using Gated = moe::GatedExpert<Glu, F64>;

namespace {

constexpr Index kDim = 7;

/// Worst error of the gradients of <E(rows), c> by rows and parameters.
template <class E>
double expert_gradient_error(E expert, Matrix<double> rows) {
  const auto c = test::random_matrix<double>(rows.rows(), expert.output_dim(), 9);
  moe::Scratch scratch;
  const moe::Step step;
  const moe::Context context(step, scratch);
  typename E::Tape tape;
  Matrix<double> out(rows.rows(), expert.output_dim()), drows = test::nan_matrix<double>(rows.rows(), rows.cols());
  E gradient = moe::zeros_like(expert);
  expert.forward(rows, out, context, tape);
  expert.backward(rows, tape, c, drows, gradient, context);
  const auto loss = [&] {
    const Matrix<double> y = test::run(expert, rows);
    double sum = 0;
    for (Index r = 0; r < y.rows(); ++r)
      for (Index i = 0; i < y.cols(); ++i) sum += y(r, i) * c(r, i);
    return sum;
  };
  const double of_rows = test::gradient_error(loss, rows, drows);
  return std::max(of_rows, test::parameter_gradient_error(loss, expert, gradient));
}

Gated gated_expert() {
  return {test::random_expert<Glu>(kDim, 5, 3), test::random_expert<moe::BasicLinear<F64>>(1, kDim, 4, moe::Bias::Off)};
}

double clamped(const moe::ClampedSwiGlu& p, double gate, double up) {
  const double g = std::min(gate, p.limit), u = std::clamp(up, -p.limit, p.limit);
  return (u + p.up_offset) * g / (1 + std::exp(-p.alpha * g));
}

double situ(const moe::SituGlu& p, double gate, double up) {
  const double u = p.linear_beta == 0 ? up : p.linear_beta * std::tanh(up / p.linear_beta);
  return p.beta * std::tanh(gate / p.beta) / (1 + std::exp(-gate)) * u;
}

}  // namespace

TEST_CASE("ClampedSwiGlu: is the formula, inside and outside the limits", "[expert]") {
  const auto product = GENERATE(moe::ClampedSwiGlu{}, moe::ClampedSwiGlu{2.5, 1.1, -0.4});
  for (const double gate : {-100.0, -8.0, -1.0, 0.0, 0.3, 6.9, 7.1, 300.0})
    for (const double up : {-50.0, -7.1, -6.9, -1.0, 0.0, 2.0, 7.5}) {
      CAPTURE(gate, up);
      const double value = clamped(product, gate, up);
      // A few roundings of float on numbers of at most 8 * 7.
      CHECK_THAT(product.value(gate, up), WithinAbs(value, 1e-14));
      CHECK_THAT(product.value(static_cast<float>(gate), static_cast<float>(up)), WithinAbs(value, 3e-5));
      const double h = 1e-6;
      const auto slope = [&](double dg, double du) {
        return (clamped(product, gate + dg, up + du) - clamped(product, gate - dg, up - du)) / (2 * h);
      };
      CHECK_THAT(product.gate_derivative(gate, up), WithinAbs(slope(h, 0), 1e-7));
      CHECK_THAT(product.up_derivative(gate, up), WithinAbs(slope(0, h), 1e-7));
    }
}

TEST_CASE("ClampedSwiGlu: experts with biases have the gradients of central differences", "[expert]") {
  const auto expert = test::random_expert<ClampedGlu>(kDim, 5, 8, moe::Bias::Zero);
  CHECK(expert_gradient_error(expert, test::random_matrix<double>(6, kDim)) < 1e-6);
  ClampedGlu other(kDim, 5, moe::Bias::Zero, {.limit = 0.5, .alpha = 3, .up_offset = -2});
  test::randomise(other, 9);
  CHECK(expert_gradient_error(other, test::random_matrix<double>(6, kDim)) < 1e-6);
  CHECK_THROWS_AS((ClampedGlu(kDim, 5, moe::Bias::Zero, {.limit = 0})), std::invalid_argument);
}

TEST_CASE("SituGlu: is the formula, near silu(g) u at zero and bounded far out", "[expert]") {
  const auto product = GENERATE(moe::SituGlu{}, moe::SituGlu{0.5, 2}, moe::SituGlu{.linear_beta = 0});
  for (const double gate : {-60.0, -8.0, -1.0, 0.0, 0.3, 6.9, 300.0})
    for (const double up : {-50.0, -7.0, -1.0, 0.0, 2.0, 30.0}) {
      CAPTURE(product.beta, product.linear_beta, gate, up);
      const double value = situ(product, gate, up), size = 1 + std::abs(value);
      CHECK_THAT(product.value(gate, up), WithinAbs(value, 1e-14 * size));
      CHECK_THAT(product.value(static_cast<float>(gate), static_cast<float>(up)), WithinAbs(value, 3e-6 * size));
      CHECK(std::abs(value) <= product.beta * (product.linear_beta == 0 ? std::abs(up) : product.linear_beta));
      const double h = 1e-5;
      const auto slope = [&](double dg, double du) {
        return (situ(product, gate + dg, up + du) - situ(product, gate - dg, up - du)) / (2 * h);
      };
      CHECK_THAT(product.gate_derivative(gate, up), WithinAbs(slope(h, 0), 1e-8 * size));
      CHECK_THAT(product.up_derivative(gate, up), WithinAbs(slope(0, h), 1e-8 * size));
    }
  CHECK_THAT(product.value(1e-4, 1.0), WithinAbs(moe::Silu::value(1e-4), product.linear_beta == 2 ? 5e-6 : 1e-7));
}

TEST_CASE("SituGlu: a register has the bits of its numbers, and experts the gradients of central differences",
          "[expert][error]") {
  const auto numbers = test::random_matrix<float>(2, moe::simd::kLanes<float>, 4);
  std::array<float, 3 * moe::simd::kLanes<float>> found;
  const auto g = moe::simd::load_partial(numbers.row(0).data(), moe::simd::kLanes<float>, 0.0f);
  const auto u = moe::simd::load_partial(numbers.row(1).data(), moe::simd::kLanes<float>, 0.0f);
  const moe::SituGlu product;
  const auto keep = [&](std::size_t part, const auto& values) {
    moe::simd::store_partial(found.data() + part * moe::simd::kLanes<float>, values, moe::simd::kLanes<float>);
  };
  keep(0, product.value(g, u)), keep(1, product.gate_derivative(g, u)), keep(2, product.up_derivative(g, u));
  for (Index c = 0; c < moe::simd::kLanes<float>; ++c) {
    const float gate = numbers(0, c), up = numbers(1, c);
    const auto at = [&](Index part) { return found[static_cast<std::size_t>(part * moe::simd::kLanes<float> + c)]; };
    CHECK(test::same_bits(at(0), product.value(gate, up)));
    CHECK(test::same_bits(at(1), product.gate_derivative(gate, up)));
    CHECK(test::same_bits(at(2), product.up_derivative(gate, up)));
  }
  SituGlu expert(kDim, 5, moe::Bias::Zero, {.beta = 0.8, .linear_beta = 1.5});
  test::randomise(expert, 9);
  CHECK(expert_gradient_error(expert, test::random_matrix<double>(6, kDim)) < 1e-6);
  CHECK_THROWS_AS((SituGlu(kDim, 5, moe::Bias::Zero, {.beta = 0})), std::invalid_argument);
  CHECK_THROWS_AS((SituGlu(kDim, 5, moe::Bias::Zero, {.linear_beta = -1})), std::invalid_argument);
}

TEST_CASE("SquaredRelu: an Mlp is the formula, and has the gradients of central differences", "[expert]") {
  const auto expert = test::random_expert<SquaredMlp>(kDim, 5, 6, moe::Bias::Zero);
  const auto rows = test::random_matrix<double>(9, kDim), out = test::run(expert, rows);
  for (Index r = 0; r < rows.rows(); ++r)
    for (Index c = 0; c < kDim; ++c) {
      double sum = expert.down_bias()(c, 0);
      for (Index h = 0; h < 5; ++h) {
        double pre = expert.up_bias()(h, 0);
        for (Index i = 0; i < kDim; ++i) pre += rows(r, i) * expert.up()(h, i);
        if (pre > 0) sum += pre * pre * expert.down()(c, h);
      }
      CHECK_THAT(out(r, c), WithinAbs(sum, 1e-13));
    }
  CHECK(expert_gradient_error(expert, rows) < 1e-6);
}

TEST_CASE("GatedExpert: scales its expert by a sigmoid", "[expert]") {
  const Gated expert = gated_expert();
  const auto rows = test::random_matrix<double>(9, kDim);
  const auto plain = test::run(expert.expert(), rows), gated = test::run(expert, rows);
  for (Index r = 0; r < rows.rows(); ++r) {
    double score = 0;
    for (Index c = 0; c < kDim; ++c) score += rows(r, c) * expert.gate().weight()(0, c);
    for (Index c = 0; c < kDim; ++c) CHECK_THAT(gated(r, c), WithinAbs(plain(r, c) / (1 + std::exp(-score)), 1e-13));
  }
}

TEST_CASE("GatedExpert: gradients are central differences", "[expert]") {
  CHECK(expert_gradient_error(gated_expert(), test::random_matrix<double>(6, kDim)) < 1e-6);
}

TEST_CASE("GatedExpert: a gate of other dimensions is refused", "[expert][error]") {
  CHECK_THROWS_AS((Gated{Glu(kDim, 5), moe::BasicLinear<F64>(2, kDim)}), std::invalid_argument);
  CHECK_THROWS_AS((Gated{Glu(kDim, 5), moe::BasicLinear<F64>(1, kDim + 1)}), std::invalid_argument);
}

TEST_CASE("Offset: is added to every row whatever it holds; gradients are central differences", "[expert]") {
  Offset offset(kDim);
  test::randomise(offset, 5);
  const auto rows = test::random_matrix<double>(3, kDim);
  const auto out = test::run(offset, rows);
  for (Index r = 0; r < 3; ++r)
    for (Index c = 0; c < kDim; ++c) CHECK(out(r, c) == offset.bias()(c, 0));
  CHECK(expert_gradient_error(offset, rows) < 1e-6);
}
