// SPDX-License-Identifier: MIT
// Forward and backward of a layer, and of its naive twin: the loop over experts with Eigen.
#pragma once

#include <optional>

#include "google.hpp"
#include "layer_measurement.hpp"

namespace bench {

/// A layer, its twin, and gradients once they are asked for.
struct LayerAndTwin {
  Shape shape;
  PlainWeights weights;
  Layer layer;
  std::unique_ptr<Peer> twin;
  std::optional<Layer> layer_gradient;
  std::optional<PlainWeights> twin_gradient;

  explicit LayerAndTwin(const Shape& of_shape)
      : shape(of_shape),
        weights(random_weights(shape)),
        layer(layer_from(shape, weights)),
        twin(make_eigen_peer(shape, weights)) {}

  Layer& gradient() { return layer_gradient ? *layer_gradient : layer_gradient.emplace(zero_layer(shape)); }
  PlainWeights& gradient_of_twin() { return twin_gradient ? *twin_gradient : twin_gradient.emplace(shape); }
};

/// The layer of a shape. Only the last one is kept, as they take gigabytes; nullptr if memory does not suffice.
inline LayerAndTwin* layer_and_twin(const Shape& shape, Pass pass) {
  static std::unique_ptr<LayerAndTwin> last;
  if (last == nullptr || last->shape.name != shape.name) {
    last = nullptr;
    if (LayerBench::bytes_needed(shape, Peers::All, pass) > available_memory()) return nullptr;
    last = std::make_unique<LayerAndTwin>(shape);
  }
  return last.get();
}

/// Tokens of one benchmark, and where results go.
struct LayerInputs {
  Matrix<float> tokens, out, dout, dtokens;
  moe::Workspace workspace;
  Layer::Tape tape;
  Work work;

  LayerInputs(const LayerAndTwin& both, Pattern pattern, Index num_tokens, Pass pass)
      : tokens(routed_tokens(both.shape, pattern, num_tokens)),
        out(num_tokens, both.shape.model_dim),
        dout(Matrix<float>::Random(num_tokens, both.shape.model_dim)),
        dtokens(num_tokens, both.shape.model_dim) {
    both.layer.forward(tokens, out, workspace);
    work = work_of(both.shape, workspace.plan(), pass);
  }
};

/// Adds <name>/{forward,backward}/[reference/]<shape>/<pattern>. Backward is the backward pass alone.
inline void add_layer(const std::string& name, const Shape& shape, Pattern pattern) {
  const std::string where = shape.name + "/" + name_of(pattern);
  const auto with = [&](const std::string& what, Pass pass, const auto& body) {
    add(name + "/" + what + "/" + where, [=](benchmark::State& state) {
      LayerAndTwin* both = layer_and_twin(shape, pass);
      if (both == nullptr) return state.SkipWithError("not enough memory");
      LayerInputs in(*both, pattern, state.range(0), pass);
      body(state, *both, in);
    });
  };
  with("forward", Pass::Forward, [](benchmark::State& state, LayerAndTwin& both, LayerInputs& in) {
    measure(state, in.work, [&] { both.layer.forward(in.tokens, in.out, in.workspace); });
  });
  with("forward/reference", Pass::Forward, [](benchmark::State& state, LayerAndTwin& both, LayerInputs& in) {
    measure(state, in.work, [&] { both.twin->forward(in.tokens, in.out); });
  });
  with("backward", Pass::Backward, [](benchmark::State& state, LayerAndTwin& both, LayerInputs& in) {
    measure_after(
        state, in.work, [&] { both.layer.forward(in.tokens, moe::Step{}, in.out, in.tape); },
        [&] { both.layer.backward(in.tokens, in.tape, in.dout, both.gradient(), in.dtokens); });
  });
  with("backward/reference", Pass::Backward, [](benchmark::State& state, LayerAndTwin& both, LayerInputs& in) {
    measure_after(
        state, in.work, [&] { both.twin->forward_with_tape(in.tokens, in.out); },
        [&] { both.twin->backward(in.tokens, in.dout, both.gradient_of_twin(), in.dtokens); });
  });
}

}  // namespace bench
