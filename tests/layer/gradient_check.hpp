// SPDX-License-Identifier: MIT
// Gradients of whole layers against central differences, selection frozen by replay.
#pragma once

#include "layer/fixtures.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"

namespace test {

template <class A, class B>
double dot(const A& a, const B& b) {
  double sum = 0;
  for (Index r = 0; r < a.rows(); ++r)
    for (Index c = 0; c < a.cols(); ++c) sum += a(r, c) * b(r, c);
  return sum;
}

/// No auxiliary loss.
struct NoLoss {
  template <class Layer>
  double operator()(const Layer&, typename Layer::Tape&, moe::RoutingGradient<double>&) const {
    return 0;
  }
};

/// Worst error of dL/dtokens and of dL/dparameter for L = <out, c> + auxiliary(layer, tape, gradient), relative as in
/// gradient_error.
template <class Layer, class Auxiliary = NoLoss>
double layer_gradient_error(Layer layer, const moe::Step& step, Index num_tokens = 7, const Auxiliary& auxiliary = {}) {
  auto tokens = random_matrix<double>(num_tokens, layer.input_dim(), 3);
  const auto c = random_matrix<double>(num_tokens, layer.output_dim(), 4);
  auto out = nan_matrix<double>(num_tokens, layer.output_dim());
  auto dtokens = nan_matrix<double>(num_tokens, layer.input_dim());
  typename Layer::Tape tape;
  layer.forward(tokens, step, out, tape);
  auxiliary(layer, tape, losses_of(tape));
  forget_scratch(tape);
  Layer gradient = moe::zeros_like(layer);
  layer.backward(tokens, tape, c, gradient, dtokens);
  const auto loss = [&] {
    layer.replay(tokens, out, tape);
    moe::RoutingGradient<double> ignored;
    return dot(out, c) + auxiliary(layer, tape, ignored);
  };
  std::string name;
  const double of_tokens = gradient_error(loss, tokens, dtokens);
  const double of_parameters = parameter_gradient_error(loss, layer, gradient, &name);
  UNSCOPED_INFO("tokens " << of_tokens << ", parameters " << of_parameters << ", worst " << name);
  return std::max(of_tokens, of_parameters);
}

}  // namespace test
