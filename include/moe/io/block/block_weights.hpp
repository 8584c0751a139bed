// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/io/block/moe_block.hpp"
#include "moe/io/families/family_table.hpp"

namespace moe::inline MOE_ABI {

/// A part of a stored tensor and the weights that it holds:
///   matrix(first_output + o, i) = tensor[first + o * output_stride + i * input_stride],  o < outputs, all i
/// A bias has one input. So every layout of the published families is a list of these, to be read and to be written.
struct WeightPiece {
  PanelMatrix<F32>* matrix;
  Index first_output, outputs;
  Index first, output_stride, input_stride;
};

/// A tensor of a checkpoint with what it fills: the pieces of matrices, or a vector of numbers.
struct BoundTensor {
  std::string name;
  std::vector<Index> shape;
  std::vector<WeightPiece> pieces = {};
  Eigen::RowVectorXd* numbers = nullptr;
};

namespace detail {

/// The matrices of an expert, a GLU or an MLP. `up` of a GLU holds gates, then ups.
struct ExpertMatrices {
  PanelMatrix<F32>*up, *up_bias, *down, *down_bias;
};

template <class Product>
ExpertMatrices matrices_of(BasicGlu<F32, Product>& expert) {
  return {&expert.gate_up(), &expert.gate_up_bias(), &expert.down(), &expert.down_bias()};
}
inline ExpertMatrices matrices_of(ReluMlp& expert) {
  return {&expert.up(), &expert.up_bias(), &expert.down(), &expert.down_bias()};
}

/// The experts that have weights.
template <class Pool>
Pool& weighted_experts(Pool& pool) {
  return pool;
}
inline ExpertPool<Glu>& weighted_experts(GluAndIdentity& experts) { return experts.set<0>(); }

/// Lists the tensors of a block under the names and in the layout of a family.
class BlockBinder {
 public:
  BlockBinder(const MoeConfig& config, const FamilyFormat& format, std::string prefix, bool rows_are_outputs)
      : config_(config), format_(format), prefix_(std::move(prefix)), rows_are_outputs_(rows_are_outputs) {}

  std::vector<BoundTensor> bind(MoeBlock& block) {
    std::visit([&](auto& layer) { bind_layer(layer); }, block.layer());
    return std::move(tensors_);
  }

  template <class Gate>
  void bind_router(LinearRouter& router, Gate& gate) {
    whole(format_.router, router.weight());
    if (config_.router_bias) whole(format_.router_bias, router.bias());
    if constexpr (std::is_same_v<Gate, TopKGate>) {
      if (!config_.selection_bias) return;
      BoundTensor& tensor = add(format_.selection_bias, {gate.selection_bias.size()});
      if (config_.family == "ernie4_5_moe") tensor.shape.insert(tensor.shape.begin(), 1);
      tensor.numbers = &gate.selection_bias;
    }
  }
  std::vector<BoundTensor> take() { return std::move(tensors_); }

 private:
  using Matrix = PanelMatrix<F32>;

  BoundTensor& add(std::string_view name, std::vector<Index> shape) {
    if (name.empty())
      fail("moe::MoeConfig: family '", config_.family, "' has no tensor for a part that the configuration asks for");
    return tensors_.emplace_back(BoundTensor{prefix_ + std::string(name), std::move(shape)});
  }

  /// Rows [first, first + outputs) of a matrix or bias, as a tensor of their own.
  void rows(std::string_view name, Matrix& matrix, Index first, Index outputs) {
    const Index inputs = matrix.inputs();
    const bool is_vector = matrix.shape().size() == 1;
    BoundTensor& tensor = add(name, is_vector ? std::vector<Index>{outputs} : std::vector<Index>{outputs, inputs});
    tensor.pieces.push_back({&matrix, first, outputs, 0, inputs, 1});
  }
  void whole(std::string_view name, Matrix& matrix) { rows(name, matrix, 0, matrix.outputs()); }

  template <class Layer>
  void bind_layer(Layer& layer) {
    auto& inner = innermost(layer);
    auto& gate = inner.gate();
    if constexpr (requires { gate.gate; })
      bind_router(inner.router(), gate.gate);
    else
      bind_router(inner.router(), gate);
    std::vector<ExpertMatrices> experts;
    for (Index e = 0; e < config_.num_experts; ++e)
      experts.push_back(matrices_of(weighted_experts(inner.experts())[e]));
    bind_experts(experts);
    if constexpr (requires { layer.template branch<0>(); }) bind_branch(layer.template branch<0>());
  }

  void bind_branch(Offset& offset) { whole(format_.output_bias, offset.bias()); }
  void bind_branch(GatedExpert<Glu, F32>& shared) {
    whole(format_.shared_score, shared.gate().weight());
    bind_branch(shared.expert());
  }
  void bind_branch(Glu& shared) {
    if (format_.shared_up.empty()) {
      whole(format_.shared_gate, shared.gate_up());
    } else {
      rows(format_.shared_gate, shared.gate_up(), 0, shared.hidden_dim());
      rows(format_.shared_up, shared.gate_up(), shared.hidden_dim(), shared.hidden_dim());
    }
    whole(format_.shared_down, shared.down());
  }

  void bind_experts(const std::vector<ExpertMatrices>& experts) {
    switch (format_.layout) {
      case ExpertLayout::PerExpert:
        return per_expert(experts);
      case ExpertLayout::StackedRows:
        return stacked(experts);
      default:
        return fused(experts);
    }
  }

  void per_expert(const std::vector<ExpertMatrices>& experts) {
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

  void stacked(const std::vector<ExpertMatrices>& experts) {
    const Index count = config_.num_experts, hidden = config_.hidden_dim, dim = config_.model_dim, size = hidden * dim;
    BoundTensor gate = std::move(add(format_.gate, {count * hidden, dim})), up = gate, down = gate;
    up.name = prefix_ + std::string(format_.up), down.name = prefix_ + std::string(format_.down);
    for (Index e = 0; e < count; ++e) {
      const ExpertMatrices& expert = experts[static_cast<std::size_t>(e)];
      gate.pieces.push_back({expert.up, 0, hidden, e * size, dim, 1});
      up.pieces.push_back({expert.up, hidden, hidden, e * size, dim, 1});
      down.pieces.push_back({expert.down, 0, dim, e * size, 1, dim});
    }
    tensors_.back() = std::move(gate);
    tensors_.push_back(std::move(up));
    tensors_.push_back(std::move(down));
  }

  void fused(const std::vector<ExpertMatrices>& experts) {
    const Index count = config_.num_experts, hidden = config_.hidden_dim, dim = config_.model_dim;
    using enum ExpertLayout;
    const bool out_in = format_.layout == FusedOutIn || format_.layout == FusedInterleavedOutIn || rows_are_outputs_;
    const bool interleaved = format_.layout == FusedInterleaved || format_.layout == FusedInterleavedOutIn;
    using Shape = std::vector<Index>;
    BoundTensor up{prefix_ + std::string(format_.gate),
                   out_in ? Shape{count, 2 * hidden, dim} : Shape{count, dim, 2 * hidden}};
    BoundTensor down{prefix_ + std::string(format_.down),
                     out_in ? Shape{count, dim, hidden} : Shape{count, hidden, dim}};
    const Index up_out = out_in ? dim : 1, up_in = out_in ? 1 : 2 * hidden;
    const Index down_out = out_in ? hidden : 1, down_in = out_in ? 1 : dim;
    for (Index e = 0; e < count; ++e) {
      const ExpertMatrices& expert = experts[static_cast<std::size_t>(e)];
      halves(*expert.up, e * 2 * hidden * dim, up_out, up_in, interleaved, up);
      down.pieces.push_back({expert.down, 0, dim, e * hidden * dim, down_out, down_in});
    }
    tensors_.push_back(std::move(up));
    tensors_.push_back(std::move(down));
    if (config_.expert_bias) fused_biases(experts, interleaved);
  }

  void fused_biases(const std::vector<ExpertMatrices>& experts, bool interleaved) {
    const Index count = config_.num_experts, hidden = config_.hidden_dim, dim = config_.model_dim;
    BoundTensor up{prefix_ + std::string(format_.up_bias), {count, 2 * hidden}};
    BoundTensor down{prefix_ + std::string(format_.down_bias), {count, dim}};
    for (Index e = 0; e < count; ++e) {
      const ExpertMatrices& expert = experts[static_cast<std::size_t>(e)];
      halves(*expert.up_bias, e * 2 * hidden, 1, 1, interleaved, up);
      down.pieces.push_back({expert.down_bias, 0, dim, e * dim, 1, 1});
    }
    tensors_.push_back(std::move(up));
    tensors_.push_back(std::move(down));
  }

  /// Gates and ups of one expert: one block after the other, or in turn.
  void halves(Matrix& matrix, Index first, Index output_stride, Index input_stride, bool interleaved,
              BoundTensor& tensor) const {
    const Index hidden = config_.hidden_dim;
    const Index step = interleaved ? 2 * output_stride : output_stride;
    const Index second = first + (interleaved ? output_stride : hidden * output_stride);
    tensor.pieces.push_back({&matrix, 0, hidden, first, step, input_stride});
    tensor.pieces.push_back({&matrix, hidden, hidden, second, step, input_stride});
  }

  const MoeConfig& config_;
  const FamilyFormat& format_;
  std::string prefix_;
  bool rows_are_outputs_;
  std::vector<BoundTensor> tensors_;
};

}  // namespace detail

/// The tensors of `block` in the format of its family below `prefix`, in the order of router, experts, shared expert.
/// They point into the block, which must outlive them and keep its layer. `rows_are_outputs`: quantised expert weights
/// are stored out x in even where the family's plain ones are not.
inline std::vector<BoundTensor> bind_weights(MoeBlock& block, const FamilyFormat& format, std::string prefix,
                                             bool rows_are_outputs = false) {
  return detail::BlockBinder(block.config(), format, std::move(prefix), rows_are_outputs).bind(block);
}

/// Writes the weights of a bound tensor into `values`, in the layout of the tensor: what it was loaded from, or a
/// gradient. Throws std::invalid_argument unless there is a value per element.
inline void read_bound(const BoundTensor& tensor, std::span<float> values) {
  Index size = 1;
  for (const Index extent : tensor.shape) size *= extent;
  if (static_cast<Index>(values.size()) != size)
    fail("moe::read_bound: ", values.size(), " values for tensor '", tensor.name, "', expected ", size);
  if (tensor.numbers)
    for (Index i = 0; i < size; ++i) values[static_cast<std::size_t>(i)] = static_cast<float>((*tensor.numbers)(i));
  for (const WeightPiece& piece : tensor.pieces)
    for (Index o = 0; o < piece.outputs; ++o)
      for (Index i = 0; i < piece.matrix->inputs(); ++i)
        values[static_cast<std::size_t>(piece.first + o * piece.output_stride + i * piece.input_stride)] =
            (*piece.matrix)(piece.first_output + o, i);
}

}  // namespace moe::inline MOE_ABI
