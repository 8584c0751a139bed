// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/expert/concept.hpp"
#include "moe/layer/concept.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/sequence/attention.hpp"
#include "moe/sequence/layer_norm.hpp"

namespace moe::inline MOE_ABI {

/// A decoder block before whose parts rows are normalised, with residuals around them, and with any layer of this
/// library, a mixture of experts, in place of the feed-forward network:
///   a = x + self_attention(norm(x));  b = a + cross_attention(norm(a), memory);  out = b + layer(norm(b))
/// The memory is read as it is. Rows need no padding, as sequences may be of any lengths; step.valid has to be empty.
///   moe::DecoderBlock block(moe::MoeLayer(...), /*memory_dim=*/64, {.num_heads = 4}, {.num_heads = 4}, /*seed=*/1);
/// A row's bits depend on the rows and the memory of its sequence alone where the layer is kPerToken, gradients on no
/// number of threads. Immutable in forward, share freely; no allocation when warm. Vaswani et al., "Attention is all
/// you need" (arXiv:1706.03762); norms first: Xiong et al. (arXiv:2002.04745).
template <class Layer>
class DecoderBlock {
  static_assert(TrainableLayer<Layer> && InferenceLayer<Layer>,
                "moe::DecoderBlock: a layer needs `Scalar`, `Tape`, `kPerToken`, `input_dim()`, `output_dim()`, "
                "forward with a workspace and with a tape, `backward` and `visit` (see moe/layer/concept.hpp)");

 public:
  using Scalar = typename Layer::Scalar;
  using Attention = BasicMultiHeadAttention<CodecOf<Scalar>>;
  using Norm = LayerNorm<Scalar>;
  using Batch = SequenceRows<Scalar>;
  using Workspace = BasicWorkspace<Scalar>;
  static constexpr bool kPerToken = Layer::kPerToken;
  static constexpr bool kCollective = kIsCollective<Layer>;

  struct Tape {
    /// A part of the block, its input behind the norm, and the sum that it added to.
    struct Branch {
      typename Norm::Tape norm;
      RowBuffer<Scalar> normal, sum;
    };
    Branch of_self, of_cross, of_layer;
    typename Attention::Tape self_attention, cross_attention;
    typename Layer::Tape layer;
    Step step;
    RowBuffer<Scalar> dout, dnormal, dkeys;
    Scratch scratch;
    detail::ZeroWhenMoved<bool> is_whole = false;  ///< whether a forward pass has ended
  };

  /// Random attention of these options. Throws std::invalid_argument for sizes that do not fit together.
  DecoderBlock(Layer layer, Index memory_dim, const AttentionOptions& self, const AttentionOptions& cross,
               std::uint64_t seed)
      : self_norm_(layer.input_dim()),
        cross_norm_(layer.input_dim()),
        layer_norm_(layer.input_dim()),
        self_attention_(Attention::random(layer.input_dim(), layer.input_dim(), self, seed)),
        cross_attention_(Attention::random(layer.input_dim(), memory_dim, cross, seed + 1)),
        layer_(std::move(layer)) {
    require_parts("moe::DecoderBlock");
  }

  Index model_dim() const { return layer_.input_dim(); }
  Index memory_dim() const { return cross_attention_.memory_dim(); }
  Norm& self_norm() { return self_norm_; }
  const Norm& self_norm() const { return self_norm_; }
  Norm& cross_norm() { return cross_norm_; }
  const Norm& cross_norm() const { return cross_norm_; }
  Norm& layer_norm() { return layer_norm_; }
  const Norm& layer_norm() const { return layer_norm_; }
  Attention& self_attention() { return self_attention_; }
  const Attention& self_attention() const { return self_attention_; }
  Attention& cross_attention() { return cross_attention_; }
  const Attention& cross_attention() const { return cross_attention_; }
  Layer& layer() { return layer_; }
  const Layer& layer() const { return layer_; }

  /// out [tokens, model_dim], apart from the tokens and the memory. Throws std::invalid_argument for wrong shapes,
  /// padding, and as the parts do.
  void forward(const Batch& tokens, const Batch& memory, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    Buffers& buffers = ws.scratch.template get<Buffers>();
    run(tokens, memory, step, out, buffers.tape, ws.scratch,
        [&](const RowBuffer<Scalar>& rows) { layer_.forward(rows, step, out, ws); });
  }
  /// The same with what backward needs kept in `tape`; the rows and the spans of the step must outlive it.
  void forward(const Batch& tokens, const Batch& memory, const Step& step, MatrixRef<Scalar> out, Tape& tape) const {
    tape.is_whole = false;
    tape.step = step;
    run(tokens, memory, step, out, tape, tape.scratch,
        [&](const RowBuffer<Scalar>& rows) { layer_.forward(rows, step, out, tape.layer); });
    tape.is_whole = true;
  }

  /// Throws std::invalid_argument unless the tape is of such sequences through a block of these sizes, which are those
  /// of `gradient`, too.
  void require_backward(const Sequences& tokens, const Sequences& memory, const Tape& tape,
                        const DecoderBlock& gradient) const {
    constexpr const char* kFunction = "moe::DecoderBlock::backward";
    require_parts(kFunction);
    if (!tape.is_whole) fail(kFunction, ": the tape holds no forward pass that has ended");
    self_attention_.require_backward(tokens, tokens, tape.self_attention, gradient.self_attention_);
    cross_attention_.require_backward(tokens, memory, tape.cross_attention, gradient.cross_attention_);
    self_norm_.require_backward(tokens.num_rows(), tape.of_self.norm, gradient.self_norm_);
    cross_norm_.require_backward(tokens.num_rows(), tape.of_cross.norm, gradient.cross_norm_);
    layer_norm_.require_backward(tokens.num_rows(), tape.of_layer.norm, gradient.layer_norm_);
    detail::require_backward_of(kFunction, "gradient of the layer", layer_, tokens.num_rows(), tape.layer,
                                gradient.layer_);
  }

  /// Gradient of the pass that `tape` recorded, with that of the losses of the layer's routers: `gradient` is added to,
  /// dtokens [tokens, model_dim] and dmemory [memory, memory_dim] are overwritten, apart from each other, dmemory from
  /// the memory, too. Throws std::invalid_argument, before anything is written, for wrong shapes and as
  /// require_backward().
  void backward(const Batch& tokens, const Batch& memory, Tape& tape, const MatrixView<Scalar>& dout,
                DecoderBlock& gradient, MatrixRef<Scalar> dtokens, MatrixRef<Scalar> dmemory) const {
    constexpr const char* kFunction = "moe::DecoderBlock::backward";
    require_backward(tokens.sequences, memory.sequences, tape, gradient);
    detail::require_sequences(kFunction, "tokens", tokens, model_dim());
    detail::require_sequences(kFunction, "memory", memory, memory_dim());
    detail::require_shape(kFunction, "dout", dout, tokens.rows.rows(), model_dim());
    detail::require_shape(kFunction, "dtokens", dtokens, tokens.rows.rows(), model_dim());
    detail::require_shape(kFunction, "dmemory", dmemory, memory.rows.rows(), memory_dim());
    detail::require_apart(kFunction, "dmemory", dmemory, "memory", memory.rows);
    detail::require_apart(kFunction, "dtokens", dtokens, "dmemory", dmemory);
    const Context context(tape.step, tape.scratch);
    for (RowBuffer<Scalar>* buffer : {&tape.dout, &tape.dnormal, &tape.dkeys})
      buffer->resize(tokens.rows.rows(), model_dim());
    tape.dout.matrix() = dout;
    const auto pass_norm = [&](const Norm& norm, auto& branch, Norm& norm_gradient) {
      norm.backward(branch.sum, branch.norm, tape.dnormal, tape.dnormal, norm_gradient, context);
      tape.dout.matrix() += tape.dnormal.matrix();
    };
    layer_.backward(tape.of_layer.normal, tape.layer, tape.dout, gradient.layer_, tape.dnormal);
    pass_norm(layer_norm_, tape.of_layer, gradient.layer_norm_);
    cross_attention_.backward({tape.of_cross.normal, tokens.sequences}, memory, tape.cross_attention, tape.dout,
                              tape.dnormal, dmemory, gradient.cross_attention_, context);
    pass_norm(cross_norm_, tape.of_cross, gradient.cross_norm_);
    const Batch own{tape.of_self.normal, tokens.sequences};
    self_attention_.backward(own, own, tape.self_attention, tape.dout, tape.dnormal, tape.dkeys,
                             gradient.self_attention_, context);
    tape.dnormal.matrix() += tape.dkeys.matrix();
    pass_norm(self_norm_, tape.of_self, gradient.self_norm_);
    dtokens = tape.dout.matrix();
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "self_norm", self.self_norm_...);
    visit_part(f, "self_attention", self.self_attention_...);
    visit_part(f, "cross_norm", self.cross_norm_...);
    visit_part(f, "cross_attention", self.cross_attention_...);
    visit_part(f, "layer_norm", self.layer_norm_...);
    visit_part(f, "layer", self.layer_...);
  }

 private:
  /// A tape without that of the layer, which inference has no use for.
  struct Shared {
    typename Tape::Branch of_self, of_cross, of_layer;
    typename Attention::Tape self_attention, cross_attention;
  };
  struct Buffers {
    Shared tape;
  };

  /// Parts may have been replaced through their references.
  void require_parts(const char* function) const {
    const Index n = model_dim();
    const auto require = [&](const char* name, Index width) {
      if (width != n) fail(function, ": ", name, " has ", width, " columns, expected model_dim = ", n);
    };
    require("the output of the layer", layer_.output_dim());
    require("self_norm", self_norm_.input_dim());
    require("cross_norm", cross_norm_.input_dim());
    require("layer_norm", layer_norm_.input_dim());
    require("self_attention", self_attention_.model_dim());
    require("what self_attention reads", self_attention_.memory_dim());
    require("cross_attention", cross_attention_.model_dim());
  }

  /// All but the layer, whose output `run_layer` writes to `out`; T holds what a tape does of the other parts.
  template <class T, class RunLayer>
  void run(const Batch& tokens, const Batch& memory, const Step& step, MatrixRef<Scalar> out, T& tape, Scratch& scratch,
           const RunLayer& run_layer) const {
    constexpr const char* kFunction = "moe::DecoderBlock::forward";
    require_parts(kFunction);
    detail::require_sequences(kFunction, "tokens", tokens, model_dim());
    detail::require_sequences(kFunction, "memory", memory, memory_dim());
    detail::require_shape(kFunction, "out", out, tokens.rows.rows(), model_dim());
    detail::require_apart(kFunction, "out", out, "tokens", tokens.rows);
    detail::require_apart(kFunction, "out", out, "memory", memory.rows);
    if (!step.valid.empty())
      fail(kFunction, ": step.valid has ", step.valid.size(), " entries, expected none: sequences need no padding");
    const Context context(step, scratch);
    const auto start = [&](auto& branch, const Norm& norm, const auto& sum) {
      branch.sum.resize(out.rows(), out.cols());
      branch.normal.resize(out.rows(), out.cols());
      branch.sum.matrix() = sum;
      norm.forward(branch.sum, branch.normal, context, branch.norm);
    };
    start(tape.of_self, self_norm_, tokens.rows);
    const Batch own{tape.of_self.normal, tokens.sequences};
    self_attention_.forward(own, own, out, context, tape.self_attention);
    start(tape.of_cross, cross_norm_, tape.of_self.sum.matrix() + out);
    cross_attention_.forward({tape.of_cross.normal, tokens.sequences}, memory, out, context, tape.cross_attention);
    start(tape.of_layer, layer_norm_, tape.of_cross.sum.matrix() + out);
    run_layer(tape.of_layer.normal);
    out += tape.of_layer.sum.matrix();
  }

  Norm self_norm_, cross_norm_, layer_norm_;
  Attention self_attention_, cross_attention_;
  Layer layer_;
};

}  // namespace moe::inline MOE_ABI
