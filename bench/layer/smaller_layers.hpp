// SPDX-License-Identifier: MIT
// Layers with fewer weights or active experts beside the layer that they were: the reference is our own.
#pragma once

#include <memory>

#include "google.hpp"
#include "layer_measurement.hpp"
#include "moe/compress/compress_auxiliary.hpp"
#include "moe/compress/sparsify.hpp"

namespace bench {

/// 80% zeros in every matrix, and the same layer without them; that of all choices, and the first of which run.
struct SmallerLayers {
  std::string name;
  Layer dense, zeros;
  decltype(moe::skip_zeros(std::declval<const Layer&>())) sparse;
  decltype(moe::compress_auxiliary(std::declval<const Layer&>(), 1)) compressed;

  explicit SmallerLayers(const Shape& shape)
      : name(shape.name),
        dense(random_layer(shape)),
        zeros(moe::mask_weights(dense,
                                [](const moe::ExpertMatrix&, const auto& weights) {
                                  const std::vector<float> ones(static_cast<std::size_t>(weights.inputs()), 1.0f);
                                  return moe::wanda(weights, ones, 0.8);
                                })),
        sparse(moe::skip_zeros(zeros)),
        compressed(moe::compress_auxiliary(dense, dense.gate().k / 2)) {
    compressed.mixture().theta().array() += 0.25f;
  }

  static constexpr Index kCopies = 3;  // of the weights, and a third of one

  double sparse_expert_bytes() const {
    const auto& experts = sparse.experts();
    double sum = 0;
    for (Index e = 0; e < experts.size(); ++e)
      sum += static_cast<double>(experts[e].gate_up().bytes() + experts[e].down().bytes());
    return sum / static_cast<double>(experts.size());
  }
};

/// Of the last shape asked for; nullptr if memory does not suffice.
inline SmallerLayers* smaller_layers(const Shape& shape) {
  static std::unique_ptr<SmallerLayers> last;
  if (last == nullptr || last->name != shape.name) {
    last = nullptr;
    if ((SmallerLayers::kCopies + 1) * shape.weight_bytes() > available_memory()) return nullptr;
    last = std::make_unique<SmallerLayers>(shape);
  }
  return last.get();
}

/// Adds <name>/{sparse,compressed}/[reference/]<shape>/uniform: forward passes. Bytes of sparse weights are those that
/// are stored; operations are those of the dense layer.
inline void add_smaller(const std::string& name, const Shape& shape) {
  const auto with = [&](const std::string& what, const auto& layer_of, const auto& bytes_of) {
    add(name + "/" + what + "/" + shape.name + "/uniform", [=](benchmark::State& state) {
      const SmallerLayers* const all = smaller_layers(shape);
      if (all == nullptr) return state.SkipWithError("not enough memory");
      const auto& layer = layer_of(*all);
      const Matrix<float> tokens = routed_tokens(shape, Pattern::Uniform, state.range(0));
      Matrix<float> out(tokens.rows(), shape.model_dim);
      moe::Workspace workspace;
      layer.forward(tokens, out, workspace);
      const Work work = work_of(shape, workspace.plan(), Pass::Forward, bytes_of(*all));
      measure(state, work, [&] { layer.forward(tokens, out, workspace); });
    });
  };
  const auto floats = [bytes = static_cast<double>(shape.expert_bytes())](const SmallerLayers&) { return bytes; };
  with(
      "sparse", [](const SmallerLayers& all) -> const auto& { return all.sparse; },
      [](const SmallerLayers& all) { return all.sparse_expert_bytes(); });
  with(
      "sparse/reference", [](const SmallerLayers& all) -> const auto& { return all.zeros; }, floats);
  with(
      "compressed", [](const SmallerLayers& all) -> const auto& { return all.compressed; }, floats);
  with(
      "compressed/reference", [](const SmallerLayers& all) -> const auto& { return all.dense; }, floats);
}

}  // namespace bench
