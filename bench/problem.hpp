// SPDX-License-Identifier: MIT
// One layer twice, with equal weights: ours, and plain row-major matrices for the peers. And tokens to route.
#pragma once

#include <vector>

#include "moe/expert/glu.hpp"
#include "moe/expert/pool.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "routing_patterns.hpp"
#include "shapes.hpp"

namespace bench {

using moe::Matrix;
using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Glu>>;

/// Row-major [inputs, outputs], as x W is written: what the GEMM libraries run fastest with at few rows.
struct PlainWeights {
  Matrix<float> router;                            // [model_dim, num_experts]
  std::vector<moe::AlignedBuffer<float>> gate_up;  // per expert [model_dim, 2 * hidden_dim], gates first
  std::vector<moe::AlignedBuffer<float>> down;     // per expert [hidden_dim, model_dim]

  explicit PlainWeights(const Shape& shape);  ///< zeros
  void set_zero();
  void forget_experts();  ///< and their memory
};

/// Weights as a new layer has them, drawn by a generator that is fast rather than good: gigabytes in a second.
PlainWeights random_weights(const Shape& shape);

/// Copies into the panels that our kernels read.
Layer layer_from(const Shape& shape, const PlainWeights& weights);

/// The same layer as layer_from(shape, random_weights(shape)), without plain matrices of all experts on the way.
Layer random_layer(const Shape& shape);

/// Zeros, for gradients.
Layer zero_layer(const Shape& shape);

/// Tokens that a layer with random_weights routes by the pattern. The router's weights are unit vectors, so a token's
/// first num_experts values are its logits, exactly: every library chooses the same experts. The rest is U(-1, 1).
/// With fewer dimensions than experts the router is random and the pattern uniform, whatever is asked for.
Matrix<float> routed_tokens(const Shape& shape, Pattern pattern, Index num_tokens, Index first_token = 0);

}  // namespace bench
