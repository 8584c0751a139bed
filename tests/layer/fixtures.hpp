// SPDX-License-Identifier: MIT
// Layers for tests, and what they have to compute.
#pragma once

#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "support/experts.hpp"

namespace test {

template <class E, class Gate = moe::TopKGate, class Codec = moe::F64>
using Layer = moe::MoeLayer<moe::BasicLinearRouter<Codec>, Gate, moe::ExpertPool<E>>;

inline constexpr Index kModelDim = 11, kHiddenDim = 9;

/// num_experts random experts and a random router, biases included; `options` go to the experts.
template <class E, class Gate, class Codec = moe::F64, class... Options>
Layer<E, Gate, Codec> layer_of(Index num_experts, Gate gate, Options... options) {
  std::vector<E> experts;
  for (Index e = 0; e < num_experts; ++e)
    experts.push_back(random_expert<E>(kModelDim, kHiddenDim, std::uint64_t(100 * e + 1), options...));
  auto router = moe::BasicLinearRouter<Codec>::random(num_experts, experts[0].input_dim(), 7, moe::Bias::Zero);
  randomise(router, 8);
  return {std::move(router), std::move(gate), moe::ExpertPool<E>(std::move(experts))};
}

/// The output for a given routing: sum of weight times expert over the kept slots. Rows of dropped tokens are zero.
template <class E, class Gate, class Codec>
auto reference_of(const Layer<E, Gate, Codec>& layer, const Mat& tokens,
                  const moe::Routing<typename Codec::Scalar>& routing) {
  using S = typename Codec::Scalar;
  Bounded<S> out{Mat(Mat::Zero(tokens.rows(), layer.output_dim()))};
  for (Index t = 0; t < tokens.rows(); ++t) {
    const auto slots = routing.experts(t).size();
    for (std::size_t s = 0; s < slots; ++s) {
      if (routing.dropped(t)[s]) continue;
      const Bounded<S> y = reference_of(layer.experts()[routing.experts(t)[s]], Mat(tokens.row(t)));
      const auto w = static_cast<double>(routing.weights(t)[s]);
      out.value.row(t) += w * y.value;
      out.error.row(t) += std::abs(w) * (y.error + gamma<S>(Index(slots)) * (magnitude(y.value) + y.error));
    }
  }
  return out;
}

/// What a forward pass at inference gives.
template <class Layer, class S = typename Layer::Scalar>
moe::Matrix<S> forward(const Layer& layer, const moe::Matrix<S>& tokens, const moe::Step& step = {}) {
  typename Layer::Workspace ws;
  auto out = nan_matrix<S>(tokens.rows(), layer.output_dim());
  layer.forward(tokens, step, out, ws);
  return out;
}

/// Empties the working memory of a tape and of the layer below branches: nothing in it may be missed.
template <class Tape>
void forget_scratch(Tape& tape) {
  if constexpr (requires { tape.layer; }) forget_scratch(tape.layer);
  if constexpr (requires { tape.scratch; }) tape.scratch = moe::Scratch{};
}

/// A forward and a backward pass with dout = `dout`.
template <class Layer>
struct TrainingPass {
  using S = typename Layer::Scalar;
  moe::Matrix<S> out, dtokens;
  typename Layer::Tape tape;
  Layer gradient;

  TrainingPass(const Layer& layer, const moe::Matrix<S>& tokens, const moe::Matrix<S>& dout, const moe::Step& step = {})
      : out(nan_matrix<S>(tokens.rows(), layer.output_dim())),
        dtokens(nan_matrix<S>(tokens.rows(), layer.input_dim())),
        gradient(moe::zeros_like(layer)) {
    layer.forward(tokens, step, out, tape);
    forget_scratch(tape);
    layer.backward(tokens, tape, dout, gradient, dtokens);
  }
};

/// Where the losses of a tape add up their gradients, also below branches.
template <class Tape>
auto& losses_of(Tape& tape) {
  if constexpr (requires { tape.losses; })
    return tape.losses;
  else
    return losses_of(tape.layer);
}

}  // namespace test
