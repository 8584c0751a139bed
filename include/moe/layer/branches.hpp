// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <tuple>
#include <utility>

#include "moe/core/overlap.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/expert/concept.hpp"
#include "moe/layer/chunks.hpp"
#include "moe/layer/concept.hpp"

namespace moe::inline MOE_ABI {

/// A layer plus experts that every token visits: out = layer(tokens) + branch_1(tokens) + ... Shared experts
/// (DeepSeekMoE, arXiv:2401.06066) are branches of any Expert type, a residual connection is ScaledIdentity. Same
/// interface as the layer it wraps, so branches nest. Padding gets zeros, as from the layer, and has no part in any
/// gradient, whatever its rows hold. Immutable in forward, share freely.
template <class Layer, class... Branches>
class WithBranches {
  static_assert(InferenceLayer<Layer>,
                "moe::WithBranches: a layer needs `Scalar`, `kPerToken`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const Step&, out, BasicWorkspace<Scalar>&) const` (see moe/layer/concept.hpp)");
  static_assert((Expert<Branches> && ...),
                "moe::WithBranches: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
                "(see moe/expert/concept.hpp)");

 public:
  using Scalar = typename Layer::Scalar;
  using Workspace = BasicWorkspace<Scalar>;
  static constexpr bool kPerToken = Layer::kPerToken && (kIsPerToken<Branches> && ...);
  static constexpr bool kCollective = kIsCollective<Layer>;
  static_assert((std::is_same_v<Scalar, typename Branches::Scalar> && ...),
                "moe::WithBranches: the layer and its branches need the same Scalar");

  /// Whether the layer and all branches can be trained through; see TrainableLayer.
  static constexpr bool kTrainable = TrainableLayer<Layer> && (DifferentiableExpert<Branches> && ...);

  struct Tape {
    detail::TapeOf<Layer> layer;
    std::tuple<detail::TapeOf<Branches>...> branches;
    Step step;
    Scratch scratch;
    RowBuffer<Scalar> buffer;
    Matrix<Scalar> tokens, dout;  ///< with zeros for padding, where there is any
    bool is_whole = false;        ///< whether a forward pass has ended
    detail::Exclusive use;        ///< by one thread at a time
  };

  /// Throws std::invalid_argument if a branch has other dimensions than the layer.
  WithBranches(Layer layer, Branches... branches) : layer_(std::move(layer)), branches_(std::move(branches)...) {
    require_branches("moe::WithBranches");
  }

  Index num_experts() const { return layer_.num_experts(); }
  Index model_dim() const { return layer_.model_dim(); }
  Index input_dim() const { return layer_.input_dim(); }
  Index output_dim() const { return layer_.output_dim(); }
  Layer& layer() { return layer_; }
  const Layer& layer() const { return layer_; }
  template <std::size_t I>
  auto& branch() {
    return std::get<I>(branches_);
  }
  template <std::size_t I>
  const auto& branch() const {
    return std::get<I>(branches_);
  }

  /// Calls f(std::integral_constant I, branch<I>()) for every branch.
  template <class F>
  void for_each_branch(const F& f) const {
    for_each(f);
  }

  /// Inference: the same as with Step{}.
  void forward(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Workspace& ws) const {
    forward(tokens, Step{}, out, ws);
  }
  /// `out` may be `tokens` itself, which takes a copy of it, but not overlap other rows of it; errors as the layer's.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    constexpr const char* kFunction = "moe::WithBranches::forward";
    require_branches(kFunction);
    step.validate(kFunction, tokens.rows());
    detail::require_shape(kFunction, "out", out, tokens.rows(), output_dim());
    detail::require_same_or_apart(kFunction, "out", out, "tokens", tokens);
    const detail::ExclusiveUse use(kFunction, "workspace", ws.use);
    if (detail::goes_in_chunks<WithBranches>(kFunction, tokens.rows(), ws))
      return detail::for_each_chunk<Scalar>(tokens, step, out, ws,
                                            [&](const auto&... chunk) { forward(chunk..., ws); });
    if (!detail::overlap(out, tokens)) return run(tokens, step, out, ws);
    RowBuffer<Scalar>& apart = ws.scratch.template get<BranchScratch>().out;
    apart.resize(out.rows(), out.cols());
    run(tokens, step, apart.matrix(), ws);
    out = apart.matrix();
  }
  /// `out` must not overlap `tokens`, which backward reads again.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Tape& tape) const {
    static_cast<void>(RequireTrainable<Layer>{});
    require_branches("moe::WithBranches::forward");
    const detail::ExclusiveUse use("moe::WithBranches::forward", "tape", tape.use);
    layer_.forward(tokens, step, out, tape.layer);
    tape.is_whole = false;
    tape.step = step;
    if constexpr ((DifferentiableExpert<Branches> && ...))
      run_branches(without_padding(tokens, step, tape.tokens), out, tape);
  }

  /// Forward pass of the tape again with its choices frozen; see MoeLayer::replay.
  void replay(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Tape& tape) const {
    require_branches("moe::WithBranches::replay");
    require_whole("moe::WithBranches::replay", tape);
    const detail::ExclusiveUse use("moe::WithBranches::replay", "tape", tape.use);
    layer_.replay(tokens, out, tape.layer);
    tape.is_whole = false;
    run_branches(without_padding(tokens, tape.step, tape.tokens), out, tape);
  }

  /// A forward pass with choices made elsewhere; see MoeLayer::replay.
  void replay(const MatrixView<Scalar>& tokens, const Step& step, const Routing<Scalar>& choices, MatrixRef<Scalar> out,
              Tape& tape) const
    requires requires(const Layer& layer) { layer.replay(tokens, step, choices, out, tape.layer); }
  {
    require_branches("moe::WithBranches::replay");
    const detail::ExclusiveUse use("moe::WithBranches::replay", "tape", tape.use);
    layer_.replay(tokens, step, choices, out, tape.layer);
    tape.is_whole = false;
    tape.step = step;
    if constexpr ((DifferentiableExpert<Branches> && ...))
      run_branches(without_padding(tokens, step, tape.tokens), out, tape);
  }

  /// See MoeLayer::require_backward.
  void require_backward(Index num_tokens, const Tape& tape, const WithBranches& gradient) const {
    require_branches("moe::WithBranches::backward");
    require_whole("moe::WithBranches::backward", tape);
    detail::require_backward_of("moe::WithBranches::backward", "gradient of the layer", layer_, num_tokens, tape.layer,
                                gradient.layer_);
    for_each([&](auto i, const auto& branch) {
      detail::require_backward_of("moe::WithBranches::backward", "gradient of a branch", branch, num_tokens,
                                  std::get<i>(tape.branches), std::get<i>(gradient.branches_));
    });
  }

  /// See MoeLayer::backward.
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout, WithBranches& gradient,
                MatrixRef<Scalar> dtokens) const {
    require_backward(tokens.rows(), tape, gradient);
    const detail::ExclusiveUse use("moe::WithBranches::backward", "tape", tape.use);
    if constexpr (requires { tape.layer.step = tape.step; })
      tape.layer.step = tape.step;  // whose spans may have moved since: see LayerExpert
    layer_.backward(tokens, tape.layer, dout, gradient.layer_, dtokens);
    backward_branches(without_padding(tokens, tape.step, tape.tokens), tape,
                      without_padding(dout, tape.step, tape.dout), gradient, &dtokens);
  }
  /// The same without dL/dtokens; see MoeLayer::backward.
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout,
                WithBranches& gradient) const
    requires SkipsTokenGradient<Layer>
  {
    require_backward(tokens.rows(), tape, gradient);
    const detail::ExclusiveUse use("moe::WithBranches::backward", "tape", tape.use);
    if constexpr (requires { tape.layer.step = tape.step; }) tape.layer.step = tape.step;
    layer_.backward(tokens, tape.layer, dout, gradient.layer_);
    backward_branches(without_padding(tokens, tape.step, tape.tokens), tape,
                      without_padding(dout, tape.step, tape.dout), gradient, nullptr);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.layer_...);
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (visit_branch<I>(f, self...), ...);
    }(std::index_sequence_for<Branches...>{});
  }

 private:
  /// Says in a sentence what cannot be trained through. A class, as compilers look into it where it is named; a layer
  /// that knows which of its parts it is says so itself.
  template <class L>
  struct RequireTrainable {
    static_assert((DifferentiableExpert<Branches> && ...),
                  "moe::WithBranches: training needs branches with forward(..., tape), backward and visit "
                  "(inside moe::Frozen: backward that takes moe::NoGradient) (see moe/expert/concept.hpp)");
    static_assert(TrainableLayer<L> || !detail::kMayBeTrained<L>,
                  "moe::WithBranches: training needs a layer with forward(..., tape), backward and visit "
                  "(see moe/layer/concept.hpp)");
  };

  struct BranchScratch {
    Scratch scratch;        // apart from the layer's own experts, which may use the same types
    RowBuffer<Scalar> out;  // where the caller's is the tokens
  };
  struct Buffer {
    RowBuffer<Scalar> value;
  };

  /// Layer and branches may have been replaced since the constructor saw them.
  void require_branches(const char* function) const {
    for_each([&](auto i, const auto& branch) {
      if (branch.input_dim() != input_dim() || branch.output_dim() != output_dim())
        fail(function, ": branch ", i + 0, " maps ", branch.input_dim(), " to ", branch.output_dim(), ", expected ",
             input_dim(), " to ", output_dim(), " as the layer");
      if constexpr (requires { branch.require_parts(); }) branch.require_parts();
    });
  }

  static void require_whole(const char* function, const Tape& tape) {
    if (!tape.is_whole) fail(function, ": the tape holds no forward pass that has ended");
  }

  /// For experts that read every row: rows of padding may hold anything, and 0 * NaN is not 0.
  static ConstMatrixRef<Scalar> without_padding(const ConstMatrixRef<Scalar>& rows, const Step& step,
                                                Matrix<Scalar>& copy) {
    if (step.num_valid(rows.rows()) == rows.rows()) return rows;
    copy = rows;
    for (Index t = 0; t < rows.rows(); ++t)
      if (!step.is_valid(t)) copy.row(t).setZero();
    return copy;
  }

  void run(const ConstMatrixRef<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    layer_.forward(tokens, step, out, ws);
    Scratch& scratch = ws.scratch.template get<BranchScratch>().scratch;
    for_each([&](auto i, const auto& branch) {
      add(out, step_of_branch(step, i), scratch.get<Buffer>().value, scratch,
          [&](MatrixRef<Scalar> buffer, const Context& context) { branch.forward(tokens, buffer, context); });
    });
  }

  template <std::size_t I, class F, class... Self>
  static void visit_branch(F&& f, Self&... self) {
    visit_part(f, "branches." + std::to_string(I), std::get<I>(self.branches_)...);
  }

  template <class Body>
  void for_each(const Body& body) const {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (body(std::integral_constant<std::size_t, I>{}, std::get<I>(branches_)), ...);
    }(std::index_sequence_for<Branches...>{});
  }

  void run_branches(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Tape& tape) const {
    for_each([&](auto i, const auto& branch) {
      const auto forward = [&](MatrixRef<Scalar> buffer, const Context& context) {
        branch.forward(tokens, buffer, context, std::get<i>(tape.branches));
      };
      add(out, step_of_branch(tape.step, i), tape.buffer, tape.scratch, forward);
    });
    tape.is_whole = true;
  }

  /// `dtokens` is nullptr where nobody asks for it: branches that can then leave it out.
  void backward_branches(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout,
                         WithBranches& gradient, MatrixRef<Scalar>* dtokens) const {
    for_each([&](auto i, const auto& branch) {
      auto& branch_tape = std::get<i>(tape.branches);
      auto& branch_gradient = std::get<i>(gradient.branches_);
      const Step step = step_of_branch(tape.step, i);
      const auto backward = [&](MatrixRef<Scalar> buffer, const Context& context) {
        branch.backward(tokens, branch_tape, dout, buffer, branch_gradient, context);
      };
      if (dtokens != nullptr) return add(*dtokens, step, tape.buffer, tape.scratch, backward);
      const Context context(step, tape.scratch);
      if constexpr (SkipsRowGradient<std::remove_cvref_t<decltype(branch)>>) {
        branch.backward(tokens, branch_tape, dout, branch_gradient, context);
      } else {
        tape.buffer.resize(tokens.rows(), tokens.cols());
        backward(tape.buffer.matrix(), context);
      }
    });
  }

  /// Parts of the layer count from 0 up, branches from -1 down.
  static Step step_of_branch(const Step& step, std::size_t i) {
    return detail::step_of_part(step, -1 - static_cast<Index>(i));
  }

  /// to += what `fill` writes, except in rows of padding; both have the same shape.
  template <class Fill>
  static void add(MatrixRef<Scalar> to, const Step& step, RowBuffer<Scalar>& buffer, Scratch& scratch,
                  const Fill& fill) {
    buffer.resize(to.rows(), to.cols());
    const Context context(step, scratch);
    fill(buffer, context);
    if (step.valid.empty()) {
      to += buffer.matrix();
    } else {
      for (Index t = 0; t < to.rows(); ++t)
        if (step.is_valid(t)) to.row(t) += buffer.matrix().row(t);
    }
  }

  Layer layer_;
  std::tuple<Branches...> branches_;
};

}  // namespace moe::inline MOE_ABI
