// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/block/moe_block.hpp"
#include "moe/io/checkpoint/weight_slice.hpp"
#include "moe/io/families/family.hpp"

// Long, as one walk names the tensors of every layout, for those who read and those who write.
namespace moe::inline MOE_ABI {

/// Where the tensors of a block are, before they are read.
struct BlockLocation {
  FamilyFormat format = {};
  std::string prefix = {};
  bool is_quantised = false;  ///< fused expert weights stored as blocks and scales (MXFP4), and so out x in
};

/// A tensor of a checkpoint with what it fills: parts of matrices, or a vector of numbers. What no slice has fills
/// nothing.
struct BoundTensor {
  std::string name;
  std::vector<Index> shape;
  std::vector<WeightSlice> slices = {};  ///< each with the matrix that it fills (`to` or `to_codes`), and no source
  Eigen::RowVectorXd* numbers = nullptr;
};

namespace detail {

/// The matrices of an expert, a GLU or an MLP. `up` of a GLU holds gates, then ups.
template <class Codec>
struct ExpertMatrices {
  PanelMatrix<Codec>* up;
  PanelMatrix<F32>* up_bias;
  PanelMatrix<Codec>* down;
  PanelMatrix<F32>* down_bias;
};

template <class Codec, class Product>
ExpertMatrices<Codec> matrices_of(BasicGlu<Codec, Product>& expert) {
  return {&expert.gate_up(), &expert.gate_up_bias(), &expert.down(), &expert.down_bias()};
}
template <class Codec, class Act>
ExpertMatrices<Codec> matrices_of(BasicMlp<Codec, Act>& expert) {
  return {&expert.up(), &expert.up_bias(), &expert.down(), &expert.down_bias()};
}

/// The experts that have weights.
template <class Pool>
Pool& weighted_experts(Pool& pool) {
  return pool;
}
template <class Codec>
ExpertPool<BasicGlu<Codec>>& weighted_experts(BasicGluAndIdentity<Codec>& experts) {
  return experts.template set<0>();
}

/// Lists the tensors of a block under the names and in the layout of a family.
template <class Codec>
class BlockBinder {
  using Matrices = ExpertMatrices<Codec>;

 public:
  BlockBinder(const MoeConfig& config, const BlockLocation& location)
      : config_(config), location_(location), format_(location.format) {}

  std::vector<BoundTensor> bind(BasicMoeBlock<Codec>& block) {
    std::visit([&](auto& layer) { bind_layer(layer); }, block.layer());
    return std::move(tensors_);
  }

  template <class G>
  void bind_router(LinearRouter& router, G& gate) {
    whole(format_.router, router.weight());
    if (config_.router_bias) whole(format_.router_bias, router.bias());
    if constexpr (std::is_same_v<G, TopKGate>) {
      if (!config_.selection_bias) return;
      BoundTensor& tensor = add(format_.selection_bias, {gate.selection_bias.size()});
      if (format_.selection_bias_rank == 2) tensor.shape.insert(tensor.shape.begin(), 1);
      tensor.numbers = &gate.selection_bias;
    }
  }
  std::vector<BoundTensor> take() { return std::move(tensors_); }

 private:
  BoundTensor& add(std::string_view name, std::vector<Index> shape) {
    if (name.empty())
      fail("moe::MoeConfig: family '", config_.family, "' has no tensor for a part that the configuration asks for");
    return tensors_.emplace_back(BoundTensor{location_.prefix + std::string(name), std::move(shape)});
  }

  /// Rows [first, first + outputs) of a matrix or bias, as a tensor of their own.
  template <class Matrix>
  void rows(std::string_view name, Matrix& matrix, Index first, Index outputs) {
    const Index inputs = matrix.inputs();
    const bool is_vector = matrix.shape().size() == 1;
    BoundTensor& tensor = add(name, is_vector ? std::vector<Index>{outputs} : std::vector<Index>{outputs, inputs});
    const WeightSlice slice{.outputs = outputs, .inputs = inputs, .output_stride = inputs, .input_stride = 1};
    tensor.slices.push_back(slice.into(matrix, first));
  }
  template <class Matrix>
  void whole(std::string_view name, Matrix& matrix) {
    rows(name, matrix, 0, matrix.outputs());
  }

  template <class Layer>
  void bind_layer(Layer& layer) {
    auto& inner = innermost(layer);
    auto& gate = inner.gate();
    if constexpr (requires { gate.gate; })
      bind_router(inner.router(), gate.gate);
    else
      bind_router(inner.router(), gate);
    std::vector<Matrices> experts;
    for (Index e = 0; e < config_.num_experts; ++e)
      experts.push_back(matrices_of(weighted_experts(inner.experts())[e]));
    bind_experts(experts);
    if constexpr (requires { layer.template branch<0>(); }) bind_branch(layer.template branch<0>());
  }

  void bind_branch(Offset& offset) { whole(format_.output_bias, offset.bias()); }
  void bind_branch(GatedExpert<BasicGlu<Codec>, F32>& shared) {
    whole(format_.shared_score, shared.gate().weight());
    bind_branch(shared.expert());
  }
  void bind_branch(BasicGlu<Codec>& shared) {
    if (format_.shared_up.empty()) {
      whole(format_.shared_gate, shared.gate_up());
    } else {
      rows(format_.shared_gate, shared.gate_up(), 0, shared.hidden_dim());
      rows(format_.shared_up, shared.gate_up(), shared.hidden_dim(), shared.hidden_dim());
    }
    whole(format_.shared_down, shared.down());
  }

  void bind_branch(BasicSquaredReluMlp<Codec>& shared) {
    whole(format_.shared_up, shared.up());
    whole(format_.shared_down, shared.down());
  }

  void bind_experts(const std::vector<Matrices>& experts) {
    switch (format_.layout) {
      case ExpertLayout::PerExpert:
        return per_expert(experts);
      case ExpertLayout::StackedRows:
        return stacked(experts);
      case ExpertLayout::FusedApart:
        return apart(experts);
      default:
        return fused(experts);
    }
  }

  void per_expert(const std::vector<Matrices>& experts) {
    const Index hidden = config_.hidden_dim;
    for (Index e = 0; e < static_cast<Index>(experts.size()); ++e) {
      const auto [up, up_bias, down, down_bias] = experts[static_cast<std::size_t>(e)];
      const auto name = [&](std::string_view pattern) { return numbered_name(pattern, e); };
      const bool gated = !format_.gate.empty();
      if (gated) rows(name(format_.gate), *up, 0, hidden);
      rows(name(format_.up), *up, gated ? hidden : 0, hidden);
      whole(name(format_.down), *down);
      if (!config_.expert_bias) continue;
      if (gated) fail("moe::MoeConfig: family '", config_.family, "' has gated experts with biases of their own");
      whole(name(format_.up_bias), *up_bias);
      whole(name(format_.down_bias), *down_bias);
    }
  }

  void stacked(const std::vector<Matrices>& experts) {
    const Index count = config_.num_experts, hidden = config_.hidden_dim, dim = config_.model_dim;
    const std::vector<Index> shape{count * hidden, dim};
    const auto fill = [&](std::string_view name, const WeightSlice& expert, auto member) {
      BoundTensor& tensor = add(name, shape);
      for (Index e = 0; e < count; ++e) {
        WeightSlice slice = expert.into(*(experts[static_cast<std::size_t>(e)].*member), expert.first_output);
        slice.first = e * hidden * dim;
        tensor.slices.push_back(slice);
      }
    };
    const WeightSlice gate{.outputs = hidden, .inputs = dim, .output_stride = dim, .input_stride = 1};
    fill(format_.gate, gate, &Matrices::up);
    WeightSlice up = gate;
    up.first_output = hidden;
    fill(format_.up, up, &Matrices::up);
    fill(format_.down, {.outputs = dim, .inputs = hidden, .output_stride = 1, .input_stride = dim}, &Matrices::down);
  }

  void apart(const std::vector<Matrices>& experts) {
    const Index count = config_.num_experts, hidden = config_.hidden_dim, dim = config_.model_dim;
    // A tensor [E, outputs, inputs], or [E, outputs] of biases, for rows from `first` on of every expert's matrix.
    const auto fill = [&](BoundTensor& tensor, auto member, Index first) {
      const Index outputs = tensor.shape[1], inputs = tensor.shape.size() > 2 ? tensor.shape[2] : 1;
      WeightSlice slice{.outputs = outputs, .inputs = inputs, .output_stride = inputs, .input_stride = 1};
      for (const Matrices& expert : experts) {
        tensor.slices.push_back(slice.into(*(expert.*member), first));
        slice.first += outputs * inputs;
      }
    };
    const bool gated = !format_.gate.empty();
    const Index first_up = gated ? hidden : 0;
    if (gated) fill(add(format_.gate, {count, hidden, dim}), &Matrices::up, 0);
    fill(add(format_.up, {count, hidden, dim}), &Matrices::up, first_up);
    fill(add(format_.down, {count, dim, hidden}), &Matrices::down, 0);
    if (!config_.expert_bias) return;
    if (gated) fill(add(format_.gate_bias, {count, hidden}), &Matrices::up_bias, 0);
    fill(add(format_.up_bias, {count, hidden}), &Matrices::up_bias, first_up);
    fill(add(format_.down_bias, {count, dim}), &Matrices::down_bias, 0);
  }

  void fused(const std::vector<Matrices>& experts) {
    const Index count = config_.num_experts, hidden = config_.hidden_dim, dim = config_.model_dim;
    using enum ExpertLayout;
    const bool out_in =
        format_.layout == FusedOutIn || format_.layout == FusedInterleavedOutIn || location_.is_quantised;
    const bool gated = !format_.gate.empty();
    const Index width = gated ? 2 * hidden : hidden;
    // A tensor [E, outputs, inputs] or [E, inputs, outputs]; [E, outputs] of biases.
    const auto fill = [&](std::string_view name, Index outputs, Index inputs, auto member) -> BoundTensor& {
      using Shape = std::vector<Index>;
      BoundTensor& tensor = add(name, out_in ? Shape{count, outputs, inputs} : Shape{count, inputs, outputs});
      for (Index e = 0; e < count; ++e) {
        const WeightSlice slice{.outputs = outputs,
                                .inputs = inputs,
                                .first = e * outputs * inputs,
                                .output_stride = out_in ? inputs : 1,
                                .input_stride = out_in ? 1 : outputs};
        tensor.slices.push_back(slice.into(*(experts[static_cast<std::size_t>(e)].*member)));
      }
      return tensor;
    };
    BoundTensor& up = fill(gated ? format_.gate : format_.up, width, dim, &Matrices::up);
    if (format_.identities_have_gates) up.shape.front() += config_.num_identity_experts;
    split(up);
    fill(format_.down, dim, hidden, &Matrices::down);
    if (!config_.expert_bias) return;
    BoundTensor& up_bias = fill(format_.up_bias, width, 1, &Matrices::up_bias);
    up_bias.shape = {count, width};
    split(up_bias);
    fill(format_.down_bias, dim, 1, &Matrices::down_bias).shape = {count, dim};
  }

  /// Gates and ups that stand in turns, as slices of their own.
  void split(BoundTensor& tensor) const {
    using enum ExpertLayout;
    if (format_.layout != FusedInterleaved && format_.layout != FusedInterleavedOutIn) return;
    std::vector<WeightSlice> halves;
    for (const WeightSlice& slice : tensor.slices)
      for (const Index side : {0, 1})
        halves.push_back(slice.every_output(2, side).at_output(side * config_.hidden_dim));
    tensor.slices = std::move(halves);
  }

  const MoeConfig& config_;
  const BlockLocation& location_;
  const FamilyFormat& format_;
  std::vector<BoundTensor> tensors_;
};

}  // namespace detail

/// The tensors of `block` at a place of a checkpoint, in the order of router, experts, shared expert. They point into
/// the block, which must outlive them and keep its layer.
template <class Codec>
std::vector<BoundTensor> bind_weights(BasicMoeBlock<Codec>& block, const BlockLocation& location) {
  return detail::BlockBinder<Codec>(block.config(), location).bind(block);
}

namespace detail {

/// Writes the elements of a slice that are among [first, first + values.size()) of its tensor.
inline void read_slice(const WeightSlice& slice, Index first, std::span<float> values) {
  constexpr Index kAtOnce = 256;  // of a panel, which stays in L1 for all its outputs
  const PanelMatrix<F32>& from = *slice.to;
  const Index begin = slice.first - first, count = std::ssize(values);
  const Index last = begin + (slice.outputs - 1) * slice.output_stride + (slice.inputs - 1) * slice.input_stride;
  if (begin >= count || last < 0) return;
  const bool is_whole = begin >= 0 && last < count;
  const auto put = [&](Index place, float value) {
    if (is_whole || (place >= 0 && place < count)) values[static_cast<std::size_t>(place)] = value;
  };
  if (slice.input_stride > slice.output_stride) {  // along the outputs, as values lie
    for (Index i = 0; i < slice.inputs; ++i)
      for (Index o = 0; o < slice.outputs; ++o)
        put(begin + o * slice.output_stride + i * slice.input_stride, from(slice.first_output + o, i));
    return;
  }
  for (Index at = 0; at < slice.inputs; at += kAtOnce)
    for (Index o = 0; o < slice.outputs; ++o) {
      const float* const row = &from(slice.first_output + o, at);
      const Index inputs = std::min(kAtOnce, slice.inputs - at);
      const Index place = begin + o * slice.output_stride + at * slice.input_stride;
      for (Index i = 0; i < inputs; ++i) put(place + i * slice.input_stride, row[i * PanelMatrix<F32>::kWidth]);
    }
}

}  // namespace detail

/// Writes elements [first, first + values.size()) of a bound tensor into `values`, in the layout of the tensor: what it
/// was loaded from, or a gradient; 0 where no slice is. Throws std::invalid_argument for elements that the tensor does
/// not have, and for weights in few bits, which have scales beside them.
inline void read_bound(const BoundTensor& tensor, Index first, std::span<float> values) {
  Index size = 1;
  for (const Index extent : tensor.shape) size *= extent;
  const Index count = std::ssize(values);
  if (first < 0 || first > size || count > size - first)
    fail("moe::read_bound: ", count, " values from ", first, " on for tensor '", tensor.name, "', expected ", size);
  std::fill(values.begin(), values.end(), 0.0f);
  if (tensor.numbers)
    for (Index i = 0; i < count; ++i)
      values[static_cast<std::size_t>(i)] = static_cast<float>((*tensor.numbers)(first + i));
  for (const WeightSlice& slice : tensor.slices) {
    if (!slice.to)
      fail("moe::read_bound: tensor '", tensor.name, "' is of weights in few bits, expected floats: see dequantise()");
    detail::read_slice(slice, first, values);
  }
}

/// All elements. Throws std::invalid_argument unless there is a value per element, and as above.
inline void read_bound(const BoundTensor& tensor, std::span<float> values) {
  Index size = 1;
  for (const Index extent : tensor.shape) size *= extent;
  if (static_cast<Index>(values.size()) != size)
    fail("moe::read_bound: ", values.size(), " values for tensor '", tensor.name, "', expected ", size);
  read_bound(tensor, 0, values);
}

}  // namespace moe::inline MOE_ABI
