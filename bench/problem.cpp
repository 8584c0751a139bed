// SPDX-License-Identifier: MIT
#include "problem.hpp"

#include <cmath>

#include "moe/core/parallel.hpp"

namespace bench {

namespace {

/// U(-bound, bound) from a linear congruential generator.
template <class Values>
void fill_uniform(Values&& values, Index count, double bound, std::uint64_t seed) {
  std::uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  const auto scale = static_cast<float>(bound * 0x1p-23);
  for (Index i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    values[i] = scale * static_cast<float>(static_cast<std::int32_t>(state >> 40) - (1 << 23));
  }
}

/// Panels of the [inputs, outputs] matrix at `plain`.
void copy_into(moe::PanelMatrix<moe::F32>& panels, const float* plain) {
  for (Index i = 0; i < panels.inputs(); ++i)
    for (Index o = 0; o < panels.outputs(); ++o) panels(o, i) = plain[i * panels.outputs() + o];
}

double bound_for(Index inputs) { return 1.0 / std::sqrt(static_cast<double>(inputs)); }

void draw_router(const Shape& shape, Matrix<float>& router) {
  if (shape.model_dim >= shape.num_experts)
    router.setIdentity();
  else
    fill_uniform(router.data(), router.size(), bound_for(shape.model_dim), 1);
}

void draw_expert(const Shape& shape, Index expert, moe::AlignedBuffer<float>& gate_up,
                 moe::AlignedBuffer<float>& down) {
  const auto seed = static_cast<std::uint64_t>(2 * expert + 2);
  fill_uniform(gate_up.data(), gate_up.size(), bound_for(shape.model_dim), seed);
  fill_uniform(down.data(), down.size(), bound_for(shape.hidden_dim), seed + 1);
}

moe::AlignedBuffer<float> plain_gate_up(const Shape& shape) {
  return moe::AlignedBuffer<float>::in_huge_pages(shape.model_dim * 2 * shape.hidden_dim);
}
moe::AlignedBuffer<float> plain_down(const Shape& shape) {
  return moe::AlignedBuffer<float>::in_huge_pages(shape.hidden_dim * shape.model_dim);
}

}  // namespace

PlainWeights::PlainWeights(const Shape& shape)
    : router(Matrix<float>::Zero(shape.model_dim, shape.num_experts)),
      gate_up(static_cast<std::size_t>(shape.num_experts)),
      down(static_cast<std::size_t>(shape.num_experts)) {
  moe::parallel_for(shape.num_experts, [&](Index expert, Index) {
    const auto e = static_cast<std::size_t>(expert);
    gate_up[e] = plain_gate_up(shape);
    down[e] = plain_down(shape);
  });
}

void PlainWeights::set_zero() {
  router.setZero();
  moe::parallel_for(static_cast<Index>(down.size()), [&](Index expert, Index) {
    const auto e = static_cast<std::size_t>(expert);
    std::ranges::fill(gate_up[e].span(), 0.0f);
    std::ranges::fill(down[e].span(), 0.0f);
  });
}

void PlainWeights::forget_experts() {
  gate_up = {};
  down = {};
}

PlainWeights random_weights(const Shape& shape) {
  PlainWeights weights(shape);
  draw_router(shape, weights.router);
  moe::parallel_for(shape.num_experts, [&](Index expert, Index) {
    const auto e = static_cast<std::size_t>(expert);
    draw_expert(shape, expert, weights.gate_up[e], weights.down[e]);
  });
  return weights;
}

Layer zero_layer(const Shape& shape) {
  std::vector<moe::Glu> experts;
  experts.reserve(static_cast<std::size_t>(shape.num_experts));
  for (Index e = 0; e < shape.num_experts; ++e) experts.emplace_back(shape.model_dim, shape.hidden_dim);
  return Layer(moe::LinearRouter(shape.num_experts, shape.model_dim),
               moe::TopKGate{.k = shape.k, .constant_weights = moe::ConstantWeights::Accept},  // timed, not trained
               moe::ExpertPool<moe::Glu>(std::move(experts)));
}

Layer layer_from(const Shape& shape, const PlainWeights& weights) {
  Layer layer = zero_layer(shape);
  copy_into(layer.router().weight(), weights.router.data());
  moe::parallel_for(shape.num_experts, [&](Index e, Index) {
    copy_into(layer.experts()[e].gate_up(), weights.gate_up[static_cast<std::size_t>(e)].data());
    copy_into(layer.experts()[e].down(), weights.down[static_cast<std::size_t>(e)].data());
  });
  return layer;
}

Layer random_layer(const Shape& shape) {
  Layer layer = zero_layer(shape);
  Matrix<float> router = Matrix<float>::Zero(shape.model_dim, shape.num_experts);
  draw_router(shape, router);
  copy_into(layer.router().weight(), router.data());
  moe::parallel_for(shape.num_experts, [&](Index e, Index) {
    moe::AlignedBuffer<float> gate_up = plain_gate_up(shape), down = plain_down(shape);
    draw_expert(shape, e, gate_up, down);
    copy_into(layer.experts()[e].gate_up(), gate_up.data());
    copy_into(layer.experts()[e].down(), down.data());
  });
  return layer;
}

Matrix<float> routed_tokens(const Shape& shape, Pattern pattern, Index num_tokens, Index first_token) {
  Matrix<float> tokens(num_tokens, shape.model_dim);
  fill_uniform(tokens.data(), tokens.size(), 1.0, static_cast<std::uint64_t>(first_token) + 12345);
  if (shape.model_dim >= shape.num_experts)
    tokens.leftCols(shape.num_experts) =
        routing_logits(pattern, num_tokens, shape.num_experts, /*seed=*/1, first_token);
  return tokens;
}

}  // namespace bench
