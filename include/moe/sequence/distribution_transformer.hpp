// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/expert/concept.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/sequence/decoder_block.hpp"
#include "moe/sequence/mixture_parameters.hpp"

// Long, as its forward pass in inference and in training, and backward, are read together.
namespace moe::inline MOE_ABI {

struct DistributionTransformerOptions {
  Index dim = 1;           ///< of the parameter that the mixtures are of
  Index data_dim = 1;      ///< columns of a row of data
  Index hidden_dim = 128;  ///< of the networks that embed components and data
  Index num_heads = 4;
  ZeroKey zero_key = ZeroKey::On;  ///< beside the data; Off: n equal rows are as one
};

/// Amortised Bayesian inference: a Gaussian mixture as prior and rows of data in, the posterior as a Gaussian mixture
/// of as many components out. A token per component and one per row of data, embedded by a network each; decoder
/// blocks, in which components see each other and then the data of their problem, with mixtures of experts for
/// feed-forward networks; and a linear head whose output is added to the prior's row of numbers
/// (mixture_parameters.hpp):
///   row' = row + W norm(h) + b,  W and b being 0 at first
/// so that an untrained one leaves the prior as it is, and one without data does always, to the bit. Data rows are a
/// set: there is no code of positions. They see a zero key, too (ZeroKey), without which n equal rows would be as one.
/// Training minimises mixture_nll() of parameters drawn from the prior that the data were drawn from, which is
/// E KL(posterior || output) and a constant:
///   Tape tape;  auto gradient = moe::zeros_like(model);  // then, per update:
///   model.forward({priors, components}, {data, rows}, step, out, tape);
///   moe::mixture_nll<float>(out, components, truth, dout);
///   model.backward({priors, components}, {data, rows}, tape, dout, gradient, dpriors);
///   moe::clip_by_norm(gradient, 1);  adam.step(model, gradient, state, rate(update));
///   moe::set_zero(gradient);
/// A problem's bits depend on it alone where the layers are kPerToken, gradients on no number of threads. Immutable in
/// forward, share freely. Whittle, Ziomek, Rawling & Osborne, "Distribution transformers" (arXiv:2502.02463), who
/// decode prior and posterior by one head and teach it the prior; here what is learned is the change.
template <class Layer>
class DistributionTransformer {
 public:
  using Scalar = typename Layer::Scalar;
  using Codec = CodecOf<Scalar>;
  using Block = DecoderBlock<Layer>;
  using Batch = SequenceRows<Scalar>;
  using Workspace = BasicWorkspace<Scalar>;
  using Embedding = BasicMlp<Codec, Gelu>;
  using Head = BasicLinear<Codec>;
  static constexpr bool kPerToken = Block::kPerToken;
  static constexpr bool kCollective = kIsCollective<Block>;

  struct Tape {
    typename Embedding::Tape of_components, of_data;
    std::vector<typename Block::Tape> blocks;
    std::vector<RowBuffer<Scalar>> tokens;  ///< what goes into every block, and what comes out of the last
    RowBuffer<Scalar> data, normal, change;
    typename LayerNorm<Scalar>::Tape norm;
    typename Head::Tape head;
    RowBuffer<Scalar> dchange, dtokens, dnext, ddata, dmemory;
    Step step;
    Scratch scratch;
    detail::ZeroWhenMoved<bool> is_whole = false;  ///< whether a forward pass has ended
  };

  /// Random but for the head, which is zero. The layers map model_dim to model_dim, one per block. Throws
  /// std::invalid_argument for no layers, and sizes that are below 1 or do not fit together.
  DistributionTransformer(const DistributionTransformerOptions& options, std::vector<Layer> layers, std::uint64_t seed)
      : options_(checked(options)),
        components_(embedding(mixture_row_size(options.dim), options, layers, seed)),
        data_(embedding(options.data_dim, options, layers, seed + 1)),
        norm_(components_.output_dim()),
        head_(mixture_row_size(options.dim), components_.output_dim()) {
    for (Layer& layer : layers) {
      const AttentionOptions self{.num_heads = options.num_heads};
      const AttentionOptions cross{.num_heads = options.num_heads, .zero_key = options.zero_key};
      blocks_.emplace_back(std::move(layer), data_.output_dim(), self, cross, seed + 2 + 2 * blocks_.size());
    }
    require_parts(kName);
  }

  const DistributionTransformerOptions& options() const { return options_; }
  Index model_dim() const { return norm_.input_dim(); }
  Index row_size() const { return head_.output_dim(); }
  std::vector<Block>& blocks() { return blocks_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  Head& head() { return head_; }
  const Head& head() const { return head_; }

  /// priors: rows of mixtures (write_rows), a sequence per problem; data [rows, data_dim], as many sequences, which may
  /// be empty; out as the priors' rows, apart from them. Throws std::invalid_argument for other shapes. No allocation
  /// when warm.
  void forward(const Batch& priors, const Batch& data, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    Tape& tape = ws.scratch.template get<Buffers>().tape;
    run(priors, data, step, out, tape, ws.scratch,
        [&](std::size_t l, const Batch& tokens, const Batch& memory, RowBuffer<Scalar>& to) {
          blocks_[l].forward(tokens, memory, step, to, ws);
        });
  }
  void forward(const Batch& priors, const Batch& data, const Step& step, MatrixRef<Scalar> out, Tape& tape) const {
    tape.is_whole = false;
    tape.step = step;
    if (tape.blocks.size() != blocks_.size()) tape.blocks = std::vector<typename Block::Tape>(blocks_.size());
    run(priors, data, step, out, tape, tape.scratch,
        [&](std::size_t l, const Batch& tokens, const Batch& memory, RowBuffer<Scalar>& to) {
          blocks_[l].forward(tokens, memory, step, to, tape.blocks[l]);
        });
    tape.is_whole = true;
  }

  /// Gradient of the pass that `tape` recorded: `gradient` is added to, dpriors, as the priors' rows, overwritten, so
  /// that a chain of updates can be trained through; it may be dout. Throws std::invalid_argument for a tape or
  /// gradient of another model or other problems, and wrong shapes.
  void backward(const Batch& priors, const Batch& data, Tape& tape, const MatrixView<Scalar>& dout,
                DistributionTransformer& gradient, MatrixRef<Scalar> dpriors) const {
    constexpr const char* kFunction = "moe::DistributionTransformer::backward";
    require_backward(kFunction, priors, data, tape, gradient);
    detail::require_shape(kFunction, "dout", dout, priors.rows.rows(), row_size());
    detail::require_shape(kFunction, "dpriors", dpriors, priors.rows.rows(), row_size());
    detail::require_same_or_apart(kFunction, "dpriors", dpriors, "dout", dout);
    const Context context(tape.step, tape.scratch);
    const Index rows = priors.rows.rows(), n = model_dim();
    tape.dchange.resize(rows, row_size());
    tape.dtokens.resize(rows, n);
    tape.dnext.resize(rows, n);
    tape.ddata.resize(data.rows.rows(), n);
    tape.dmemory.resize(data.rows.rows(), n);
    for_each_row(priors, data, [&](Index r, bool has_data) {
      for (Index c = 0; c < row_size(); ++c) tape.dchange.row(r)[c] = has_data ? dout(r, c) : Scalar{0};
    });
    head_.backward(tape.normal, tape.head, tape.dchange, tape.dtokens, gradient.head_, context);
    norm_.backward(tape.tokens.back(), tape.norm, tape.dtokens, tape.dtokens, gradient.norm_, context);
    tape.ddata.matrix().setZero();
    for (std::size_t l = blocks_.size(); l-- > 0; std::swap(tape.dtokens, tape.dnext)) {
      blocks_[l].backward({tape.tokens[l], priors.sequences}, {tape.data, data.sequences}, tape.blocks[l], tape.dtokens,
                          gradient.blocks_[l], tape.dnext, tape.dmemory);
      tape.ddata.matrix() += tape.dmemory.matrix();
    }
    data_.backward(data.rows, tape.of_data, tape.ddata, gradient.data_, context);
    components_.backward(priors.rows, tape.of_components, tape.dtokens, tape.dchange, gradient.components_, context);
    dpriors = tape.dchange.matrix() + dout;
  }

  /// The posterior of one problem: data [rows, data_dim], no rows for none. Allocates the mixture.
  template <class T>
  GaussianMixture<T> posterior(const GaussianMixture<T>& prior, const MatrixView<Scalar>& data, Workspace& ws) const {
    if (prior.dim() != options_.dim)
      fail("moe::DistributionTransformer::posterior: the prior has ", prior.dim(), " dimensions, expected ",
           options_.dim);
    if (data.rows() == 0) return prior;
    OneProblem& one = ws.scratch.template get<OneProblem>();
    one.prior.resize(prior.size(), row_size());
    one.posterior.resize(prior.size(), row_size());
    write_rows<Scalar>(prior, one.prior);
    for (auto [sequences, length] : {std::pair{&one.components, prior.size()}, std::pair{&one.data, data.rows()}}) {
      sequences->clear();
      sequences->push_back(length);
    }
    forward({one.prior, one.components}, {data, one.data}, Step{}, one.posterior, ws);
    return read_rows<T>(one.posterior.matrix(), options_.dim);
  }

  /// The layers of the blocks and their tapes, for losses of routers: for_each_routed(model, tape, f).
  template <class F>
  void for_each_layer(Tape& tape, F&& f) const {
    for (std::size_t l = 0; l < blocks_.size(); ++l) f(blocks_[l].layer(), tape.blocks[l].layer);
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    visit_part(f, "components", first.components_, rest.components_...);
    visit_part(f, "data", first.data_, rest.data_...);
    for (std::size_t l = 0; l < first.blocks_.size(); ++l)
      visit_part(f, "blocks." + std::to_string(l), first.blocks_[l], rest.blocks_[l]...);
    visit_part(f, "norm", first.norm_, rest.norm_...);
    visit_part(f, "head", first.head_, rest.head_...);
  }

 private:
  static constexpr const char* kName = "moe::DistributionTransformer";
  struct Buffers {
    Tape tape;
  };
  struct OneProblem {
    RowBuffer<Scalar> prior, posterior;
    Sequences components, data;
  };

  static const DistributionTransformerOptions& checked(const DistributionTransformerOptions& options) {
    detail::checked_size(kName, "dim", options.dim, 1);
    detail::checked_size(kName, "data_dim", options.data_dim, 1);
    detail::checked_size(kName, "hidden_dim", options.hidden_dim, 1);
    return options;
  }
  static Embedding embedding(Index inputs, const DistributionTransformerOptions& options,
                             const std::vector<Layer>& layers, std::uint64_t seed) {
    if (layers.empty()) fail(kName, ": there are no layers, expected one per block");
    return Embedding::random(
        Widths{.input = inputs, .hidden = options.hidden_dim, .output = layers.front().input_dim()}, seed);
  }

  /// Parts may have been replaced through their references.
  void require_parts(const char* function) const {
    for (std::size_t l = 0; l < blocks_.size(); ++l)
      if (blocks_[l].model_dim() != model_dim() || blocks_[l].memory_dim() != data_.output_dim())
        fail(function, ": block ", l, " maps ", blocks_[l].model_dim(), " columns beside a memory of ",
             blocks_[l].memory_dim(), ", expected ", model_dim(), " and ", data_.output_dim());
    if (head_.input_dim() != model_dim() || head_.output_dim() != components_.input_dim())
      fail(function, ": the head maps ", head_.input_dim(), " columns to ", head_.output_dim(), ", expected ",
           model_dim(), " to ", components_.input_dim());
  }
  void require_batches(const char* function, const Batch& priors, const Batch& data) const {
    require_parts(function);
    detail::require_sequences(function, "priors", priors, row_size());
    detail::require_sequences(function, "data", data, data_.input_dim());
    if (priors.sequences.size() != data.sequences.size())
      fail(function, ": the data are of ", data.sequences.size(), " problems, expected ", priors.sequences.size(),
           " as the priors");
  }
  void require_backward(const char* function, const Batch& priors, const Batch& data, const Tape& tape,
                        const DistributionTransformer& gradient) const {
    require_batches(function, priors, data);
    if (!tape.is_whole || tape.blocks.size() != blocks_.size() || gradient.blocks_.size() != blocks_.size())
      fail(function, ": the tape and the gradient are of ", tape.is_whole ? tape.blocks.size() : 0, " and ",
           gradient.blocks_.size(), " blocks, expected ", blocks_.size(), " and a forward pass that has ended");
    if (&gradient == this) fail(function, ": gradient is the model itself, expected one of its own (zeros_like)");
    for (std::size_t l = 0; l < blocks_.size(); ++l)
      blocks_[l].require_backward(priors.sequences, data.sequences, tape.blocks[l], gradient.blocks_[l]);
    components_.require_backward(priors.rows.rows(), tape.of_components, gradient.components_);
    data_.require_backward(data.rows.rows(), tape.of_data, gradient.data_);
    head_.require_backward(priors.rows.rows(), tape.head, gradient.head_);
    norm_.require_backward(priors.rows.rows(), tape.norm, gradient.norm_);
  }

  /// Calls body(row, whether its problem has data) for every component.
  template <class Body>
  static void for_each_row(const Batch& priors, const Batch& data, const Body& body) {
    for (Index i = 0; i < priors.sequences.size(); ++i)
      for (Index r = priors.sequences.begin(i); r < priors.sequences.end(i); ++r) body(r, data.sequences.length(i) > 0);
  }

  template <class RunBlock>
  void run(const Batch& priors, const Batch& data, const Step& step, MatrixRef<Scalar> out, Tape& tape,
           Scratch& scratch, const RunBlock& run_block) const {
    constexpr const char* kFunction = "moe::DistributionTransformer::forward";
    require_batches(kFunction, priors, data);
    detail::require_shape(kFunction, "out", out, priors.rows.rows(), row_size());
    detail::require_apart(kFunction, "out", out, "priors", priors.rows);
    const Context context(step, scratch);
    tape.tokens.resize(blocks_.size() + 1);
    for (RowBuffer<Scalar>& tokens : tape.tokens) tokens.resize(priors.rows.rows(), model_dim());
    tape.data.resize(data.rows.rows(), data_.output_dim());
    tape.normal.resize(priors.rows.rows(), model_dim());
    tape.change.resize(priors.rows.rows(), row_size());
    components_.forward(priors.rows, tape.tokens[0], context, tape.of_components);
    data_.forward(data.rows, tape.data, context, tape.of_data);
    for (std::size_t l = 0; l < blocks_.size(); ++l)
      run_block(l, Batch{tape.tokens[l], priors.sequences}, Batch{tape.data, data.sequences}, tape.tokens[l + 1]);
    norm_.forward(tape.tokens.back(), tape.normal, context, tape.norm);
    head_.forward(tape.normal, tape.change, context, tape.head);
    for_each_row(priors, data, [&](Index r, bool has_data) {
      for (Index c = 0; c < row_size(); ++c)
        out(r, c) = has_data ? priors.rows(r, c) + tape.change.row(r)[c] : priors.rows(r, c);
    });
  }

  DistributionTransformerOptions options_;
  Embedding components_, data_;
  std::vector<Block> blocks_;
  LayerNorm<Scalar> norm_;
  Head head_;
};

}  // namespace moe::inline MOE_ABI
