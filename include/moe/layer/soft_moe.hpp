// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/overlap.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/expert/expert_set.hpp"
#include "moe/layer/chunks.hpp"
#include "moe/layer/concept.hpp"
#include "moe/layer/soft_slots.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/router/concept.hpp"

namespace moe::inline MOE_ABI {

/// Soft mixture of experts: experts read slots, which are mixtures of tokens, and tokens get mixtures of slots, so that
/// nothing is chosen and nothing is dropped. With logits [num_tokens, slots] of the router, slots_per_expert of each
/// expert after another, and within each group of tokens (step.group_id: a sequence, an image):
///   D = softmax of the logits over tokens         slot = sum_t D[t, slot] tokens[t]
///   C = softmax of the logits over slots          out[t] = sum_slot C[t, slot] expert(slot)
///   moe::SoftMoeLayer layer(moe::LinearRouter::random(8 * 4, 64, 1), moe::ExpertPool<moe::Glu>::random(8, 64, 256,
///   2));
/// has 8 experts of 4 slots. The work of the experts is that of the slots of all groups, however many tokens they have.
/// A CosineRouter gives logits of normalised tokens and vectors with a learnt scale, as the paper has it. A logit of
/// -infinity keeps a token out of a slot. Padding is in no slot and gets zeros. What a token gets depends on its whole
/// group, later tokens too: not for autoregressive inference.
/// A layer as MoeLayer is, to which branches, trainers and files apply; it has no gate, so that losses of routings do
/// not. Draws of experts are keyed by the group and the number of a slot. Immutable in forward, share freely between
/// threads; all working memory is in the workspace or tape. Same bits for any number of threads. Beside router and
/// experts 2 * num_tokens * slots * (input_dim + output_dim) operations, three times as many in backward; D takes
/// groups * slots * (tokens of the largest group) scalars, so groups had better be of like sizes.
/// Puigcerver, Riquelme, Mustafa & Houlsby, "From sparse to soft mixtures of experts" (arXiv:2308.00951).
template <class R, class X>
class SoftMoeLayer {
  static_assert(Router<R>,
                "moe::SoftMoeLayer: a Router needs `Scalar`, `num_experts()`, `model_dim()` and "
                "`void logits(const ConstMatrixRef<S>&, const Context&, MatrixRef<S>) const` "
                "(see moe/router/concept.hpp)");
  static_assert(ExpertSet<X>,
                "moe::SoftMoeLayer: an ExpertSet needs `Scalar`, `size()`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const PlanView& plan, const Context&, RowBuffer<Scalar>& rows) const`; wrap "
                "experts in moe::ExpertPool (see moe/expert/expert_set.hpp)");

 public:
  using Scalar = typename R::Scalar;
  using Workspace = BasicWorkspace<Scalar>;
  static_assert(std::is_same_v<Scalar, typename X::Scalar>,
                "moe::SoftMoeLayer: the Router and the ExpertSet need the same Scalar");
  static_assert(
      !kIsCollective<X>,
      "moe::SoftMoeLayer: experts over ranks cannot have soft slots, which would mix the tokens of a rank alone");
  static constexpr bool kPerToken = false;
  /// Whether both parts can be trained through; see TrainableLayer.
  static constexpr bool kTrainable = DifferentiableRouter<R> && DifferentiableExpertSet<X>;

  /// What forward leaves for backward, and the working memory of backward. Caller-owned; several may be live.
  struct Tape {
    RowBuffer<Scalar> logits;
    Step step;
    detail::SoftSlots<Scalar> soft;
    detail::SoftSlotsGradient<Scalar> gradient;
    detail::TapeOf<R> router;
    detail::TapeOf<X> experts;
    Scratch scratch;
    Matrix<Scalar> dlogits;
    RowBuffer<Scalar> dtokens;  ///< where nobody asks for them, but the router writes them
    detail::ZeroWhenMoved<Index> input_dim = 0, output_dim = 0;  ///< of the layer that filled it; 0 until it has
    detail::Exclusive use;                                       ///< by one thread at a time
  };

  /// Throws std::invalid_argument unless the router reads what the experts read and has equally many logits for each.
  SoftMoeLayer(R router, X experts) : router_(std::move(router)), experts_(std::move(experts)) {
    require_parts("moe::SoftMoeLayer");
  }

  Index num_experts() const { return experts_.size(); }
  Index slots_per_expert() const { return router_.num_experts() / std::max<Index>(1, num_experts()); }
  Index model_dim() const { return experts_.input_dim(); }
  Index input_dim() const { return experts_.input_dim(); }
  Index output_dim() const { return experts_.output_dim(); }
  R& router() { return router_; }
  const R& router() const { return router_; }
  X& experts() { return experts_; }
  const X& experts() const { return experts_; }

  /// Inference: the same as with Step{}.
  void forward(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Workspace& ws) const {
    forward(tokens, Step{}, out, ws);
  }
  /// `out` may be `tokens` itself, but not overlap other rows of it. Throws std::invalid_argument on wrong shapes, a
  /// NaN or +infinity among the logits, which leave `out` untouched, and where ws.max_tokens is not 0. No allocation
  /// when the workspace has seen sizes as large before.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    constexpr const char* kFunction = "moe::SoftMoeLayer::forward";
    require_shapes(kFunction, tokens, step, out);
    detail::require_same_or_apart(kFunction, "out", out, "tokens", tokens);
    const detail::ExclusiveUse use(kFunction, "workspace", ws.use);
    static_cast<void>(detail::goes_in_chunks<SoftMoeLayer>(kFunction, tokens.rows(), ws));
    auto& [soft, scratch] = ws.scratch.template get<Memory>();
    ws.logits.resize(tokens.rows(), router_.num_experts());
    router_.logits(tokens, Context{step, scratch}, ws.logits);  // [T, slots]
    soft.build(kFunction, ws.logits, step, num_experts());      // D, C and the plan
    soft.dispatch_tokens(tokens);                               // slots = D^T tokens
    const Step of_slots = soft.step(step);
    soft.outputs.resize(soft.all_slots(), row_width(experts_));
    experts_.forward(soft.inputs, soft.plan, Context{of_slots, scratch}, soft.outputs);
    soft.combine_outputs(output_dim());  // out = C experts(slots)
    soft.of.scatter(soft.out, out);
  }

  /// The same with what backward needs kept in `tape`; `out` must not overlap `tokens`, which backward reads again. The
  /// step's spans must outlive backward.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Tape& tape) const
    requires kTrainable
  {
    constexpr const char* kFunction = "moe::SoftMoeLayer::forward";
    require_shapes(kFunction, tokens, step, out);
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    const detail::ExclusiveUse use(kFunction, "tape", tape.use);
    const detail::ExclusiveUse of_scratch(kFunction, "tape.scratch", tape.scratch.use(), detail::Nested::Refused);
    tape.input_dim = 0;
    tape.step = step;
    tape.logits.resize(tokens.rows(), router_.num_experts());
    router_.logits(tokens, Context{step, tape.scratch}, tape.logits, tape.router);
    detail::SoftSlots<Scalar>& soft = tape.soft;
    soft.build(kFunction, tape.logits, step, num_experts());
    soft.dispatch_tokens(tokens);
    const Step of_slots = soft.step(step);
    soft.outputs.resize(soft.all_slots(), row_width(experts_));
    experts_.forward(soft.inputs, soft.plan, Context{of_slots, tape.scratch}, soft.outputs, tape.experts);
    soft.combine_outputs(output_dim());
    soft.of.scatter(soft.out, out);
    tape.input_dim = input_dim();
    tape.output_dim = output_dim();
  }

  /// The forward pass of `tape` again, with its step: there are no choices to keep. What gradient checks and
  /// recomputation call.
  void replay(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Tape& tape) const
    requires kTrainable
  {
    require_tape("moe::SoftMoeLayer::replay", tokens.rows(), tape);
    forward(tokens, Step(tape.step), out, tape);
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass of so many tokens through a layer of these sizes,
  /// and `gradient` is another layer of them.
  void require_backward(Index num_tokens, const Tape& tape, const SoftMoeLayer& gradient) const
    requires kTrainable
  {
    constexpr const char* kFunction = "moe::SoftMoeLayer::backward";
    require_parts(kFunction);
    require_tape(kFunction, num_tokens, tape);
    if (&gradient == this) fail(kFunction, ": gradient is the layer itself, expected one of its own (zeros_like)");
    detail::require_backward_of(kFunction, "gradient.router", router_, num_tokens, tape.router, gradient.router_);
    detail::require_backward_of(kFunction, "gradient.experts", experts_, PlanView(tape.soft.plan), tape.experts,
                                gradient.experts_);
  }

  /// Gradient of the pass that `tape` recorded.
  ///   dout       [num_tokens, output_dim]
  ///   gradient   a layer of this shape (zeros_like); accumulated into
  ///   dtokens    [num_tokens, model_dim], overwritten; must not overlap tokens or dout
  /// Throws std::invalid_argument, before it writes anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout, SoftMoeLayer& gradient,
                MatrixRef<Scalar> dtokens) const
    requires kTrainable
  {
    run_backward(tokens, tape, dout, gradient, &dtokens);
  }
  /// The same without dL/dtokens, for a first layer, whose tokens nobody trains.
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout,
                SoftMoeLayer& gradient) const
    requires kTrainable
  {
    run_backward(tokens, tape, dout, gradient, nullptr);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "router", self.router_...);
    visit_part(f, "experts", self.experts_...);
  }

 private:
  struct Memory {
    detail::SoftSlots<Scalar> soft;
    Scratch scratch;  // apart: among the experts may be another such layer
  };

  /// `dtokens` is nullptr where nobody asks for it.
  void run_backward(const ConstMatrixRef<Scalar>& tokens, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                    SoftMoeLayer& gradient, MatrixRef<Scalar>* dtokens) const {
    require_backward(tokens.rows(), tape, gradient);
    require_backward_shapes(tokens, dout, dtokens);
    const detail::ExclusiveUse use("moe::SoftMoeLayer::backward", "tape", tape.use);
    const detail::ExclusiveUse of_scratch("moe::SoftMoeLayer::backward", "tape.scratch", tape.scratch.use(),
                                          detail::Nested::Refused);
    auto& soft = tape.soft;
    auto& of_slots = tape.gradient;
    const Step step = soft.step(tape.step);
    of_slots.backward_combine(dout, row_width(experts_), soft);
    of_slots.dinputs.resize(soft.all_slots(), input_dim());
    experts_.backward(soft.inputs, soft.plan, Context{step, tape.scratch}, tape.experts, of_slots.doutputs,
                      gradient.experts_, MatrixRef<Scalar>(of_slots.dinputs.matrix()));
    of_slots.backward_dispatch(soft);
    tape.dlogits.resize(tokens.rows(), soft.num_slots);
    of_slots.backward_logits(soft, tape.dlogits);
    if (dtokens != nullptr) {
      of_slots.backward_tokens(soft);
      soft.of.scatter(of_slots.dtokens, *dtokens);
    }
    backward_router(tokens, tape, gradient, dtokens);
  }

  void backward_router(const ConstMatrixRef<Scalar>& tokens, Tape& tape, SoftMoeLayer& gradient,
                       MatrixRef<Scalar>* dtokens) const {
    const Context context(tape.step, tape.scratch);
    const auto backward = [&](const auto&... all_or_no_tokens) {
      router_.backward(tokens, context, tape.router, tape.dlogits, gradient.router_, all_or_no_tokens...);
    };
    if (dtokens != nullptr) return backward(*dtokens);
    if constexpr (requires { router_.backward(tokens, context, tape.router, tape.dlogits, gradient.router_); }) {
      backward();
    } else {
      tape.dtokens.resize(tokens.rows(), input_dim());
      tape.dtokens.matrix().setZero();  // routers add
      backward(MatrixRef<Scalar>(tape.dtokens.matrix()));
    }
  }

  /// Parts may have been replaced since the constructor saw them, or moved away.
  void require_parts(const char* function) const {
    if (num_experts() == 0) fail(function, ": the layer has no experts: it has been moved from");
    if (router_.num_experts() < 1 || router_.num_experts() % num_experts() != 0)
      fail(function, ": the router has ", router_.num_experts(),
           " logits, expected a multiple of num_experts = ", num_experts(), ", one per slot");
    if (router_.model_dim() != input_dim())
      fail(function, ": the router reads ", router_.model_dim(), " columns, expected model_dim = ", input_dim(),
           " of the experts");
  }

  void require_shapes(const char* function, const ConstMatrixRef<Scalar>& tokens, const Step& step,
                      const MatrixRef<Scalar>& out) const {
    require_parts(function);
    detail::require_shape(function, "tokens", tokens, tokens.rows(), input_dim());
    detail::require_shape(function, "out", out, tokens.rows(), output_dim());
    step.validate(function, tokens.rows());
  }

  void require_backward_shapes(const ConstMatrixRef<Scalar>& tokens, const ConstMatrixRef<Scalar>& dout,
                               const MatrixRef<Scalar>* dtokens) const {
    constexpr const char* kFunction = "moe::SoftMoeLayer::backward";
    detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), input_dim());
    detail::require_shape(kFunction, "dout", dout, tokens.rows(), output_dim());
    if (dtokens == nullptr) return;
    detail::require_shape(kFunction, "dtokens", *dtokens, tokens.rows(), input_dim());
    detail::require_apart(kFunction, "dtokens", *dtokens, "tokens", tokens);
    detail::require_apart(kFunction, "dtokens", *dtokens, "dout", dout);
  }

  void require_tape(const char* function, Index num_tokens, const Tape& tape) const {
    if (tape.input_dim == 0) fail(function, ": the tape holds no forward pass that has ended");
    if (tape.logits.cols() != router_.num_experts() || tape.soft.plan.num_experts() != num_experts() ||
        tape.input_dim != input_dim() || tape.output_dim != output_dim())
      fail(function, ": the tape is of ", tape.soft.plan.num_experts(), " experts and ", tape.logits.cols(),
           " slots that map ", tape.input_dim, " to ", tape.output_dim, ", expected ", num_experts(), " and ",
           router_.num_experts(), ", ", input_dim(), " to ", output_dim());
    if (num_tokens != tape.logits.rows())
      fail(function, ": tokens has ", num_tokens, " rows, expected ", tape.logits.rows(),
           " as in the forward pass of the tape");
  }

  R router_;
  X experts_;
};

template <class R, class X>
SoftMoeLayer(R, X) -> SoftMoeLayer<R, X>;

}  // namespace moe::inline MOE_ABI
