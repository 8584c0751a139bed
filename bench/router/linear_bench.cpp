// SPDX-License-Identifier: MIT
// router/linear: logits = tokens W^T, beside Eigen's product.
#include "google.hpp"
#include "moe/router/linear.hpp"

namespace {

using bench::Index, bench::Shape;
using moe::Matrix;

/// What the product reads, writes and computes.
bench::Work work_of(const Shape& shape, Index tokens) {
  const auto rows = static_cast<double>(tokens), dim = static_cast<double>(shape.model_dim),
             experts = static_cast<double>(shape.num_experts);
  return {2 * rows * dim * experts, (rows * dim + rows * experts + dim * experts) * sizeof(float)};
}

void linear(benchmark::State& state, const Shape& shape) {
  const auto router = moe::LinearRouter::random(shape.num_experts, shape.model_dim, /*seed=*/1);
  const Matrix<float> tokens = Matrix<float>::Random(state.range(0), shape.model_dim);
  Matrix<float> logits(tokens.rows(), shape.num_experts);
  bench::measure(state, work_of(shape, tokens.rows()), [&] { router.logits(tokens, moe::Step{}, logits); });
}

void reference(benchmark::State& state, const Shape& shape) {
  const Matrix<float> weight = Matrix<float>::Random(shape.num_experts, shape.model_dim);
  const Matrix<float> tokens = Matrix<float>::Random(state.range(0), shape.model_dim);
  Matrix<float> logits(tokens.rows(), shape.num_experts);
  bench::measure(state, work_of(shape, tokens.rows()), [&] { logits.noalias() = tokens * weight.transpose(); });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Shape& shape : bench::kShapes) {
    bench::add("router/linear/" + shape.name, [&](auto& state) { linear(state, shape); });
    bench::add("router/linear/reference/" + shape.name, [&](auto& state) { reference(state, shape); });
  }
  return bench::run(argc, argv);
}
