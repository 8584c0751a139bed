// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/core/overlap.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/layer/chunks.hpp"
#include "moe/layer/concept.hpp"
#include "moe/layer/trainable.hpp"
#include "moe/layer/weight_on.hpp"
#include "moe/routing/padding.hpp"

// Above 300 lines: inference, training, replay and backward, with and without dL/dtokens and with weights on either
// side, are one method that is read together, and the checks of tapes, parts and overlaps stand beside the calls they
// guard.
namespace moe::inline MOE_ABI {

/// A mixture-of-experts layer: out[t] = sum over the chosen experts e of weight_e * expert_e(tokens[t]), or of
/// expert_e(weight_e * tokens[t]) with WeightOn::Input.
/// Three holes, each one small class: R turns tokens into logits, G decides who goes where, X computes. Immutable in
/// forward, share freely between threads; all working memory is in the workspace or tape. Parts may be replaced through
/// their references by others of the same sizes; every call checks that the sizes of what it uses agree.
///
/// Same bits for any number of threads and, where kPerToken, whatever else is in the batch. Shapes: tokens
/// [num_tokens, model_dim] row-major, out [num_tokens, output_dim]. A column-major argument is silently copied (Eigen).
template <class R, class G, class X>
class MoeLayer {
  static_assert(
      Router<R>,
      "moe::MoeLayer: a Router needs `Scalar`, `num_experts()`, `model_dim()` and "
      "`void logits(const ConstMatrixRef<S>&, const Step&, MatrixRef<S>) const` (see moe/router/concept.hpp)");
  static_assert(ExpertSet<X>,
                "moe::MoeLayer: an ExpertSet needs `Scalar`, `size()`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, plan, step, expert_out, scratch) const`; wrap experts in moe::ExpertPool "
                "(see moe/expert/pool.hpp)");

 public:
  using Scalar = typename R::Scalar;
  static_assert(std::is_same_v<Scalar, typename X::Scalar>,
                "moe::MoeLayer: the Router and the ExpertSet need the same Scalar");
  static_assert(HasRoute<G, Scalar>,
                "moe::MoeLayer: a Gate needs `void route(const Logits<S>&, const Step&, Routing<S>&) const` "
                "(see moe/gate/concept.hpp)");
  static_assert(StatesPerToken<G>,
                "moe::MoeLayer: a Gate needs `static constexpr bool kPerToken` (see moe/gate/concept.hpp)");

  using Workspace = BasicWorkspace<Scalar>;
  /// Whether a token's output depends on the token alone.
  static constexpr bool kPerToken = G::kPerToken && kIsPerToken<X>;

  /// What forward leaves for backward, and the working memory of backward. Caller-owned; several may be live.
  struct Tape {
    Matrix<Scalar> logits;
    Routing<Scalar> routing;
    DispatchPlan plan;
    RowBuffer<Scalar> expert_out;
    Step step;
    detail::TapeOf<R> router;
    detail::TapeOf<X> experts;
    std::vector<Scalar> dweight;
    RowBuffer<Scalar> dexpert_out, dtoken_rows;
    RowBuffer<Scalar> dtokens;  ///< where nobody asks for them, but the router writes them
    Matrix<Scalar> dlogits;
    detail::WeightedRows<Scalar> weighted;  ///< with WeightOn::Input
    /// Of the layer that filled it; 0 until its forward pass has ended.
    detail::ZeroWhenMoved<Index> input_dim = 0, output_dim = 0;
    WeightOn weight_on = WeightOn::Output;
    detail::Exclusive use;  ///< by one thread at a time
  };

  /// Throws std::invalid_argument if the parts disagree on sizes or the gate refuses the number of experts.
  MoeLayer(R router, G gate, X experts, WeightOn weight_on = WeightOn::Output)
      : router_(std::move(router)), gate_(std::move(gate)), experts_(std::move(experts)), weight_on_(weight_on) {
    if (router_.num_experts() != experts_.size())
      fail("moe::MoeLayer: the router scores ", router_.num_experts(), " experts, expected ", experts_.size(),
           " as in the expert set");
    if (router_.model_dim() != experts_.input_dim())
      fail("moe::MoeLayer: the router reads ", router_.model_dim(),
           " columns, expected model_dim = ", experts_.input_dim(), " of the experts");
    if constexpr (requires { gate_.validate(num_experts()); }) gate_.validate(num_experts());
  }

  Index num_experts() const { return experts_.size(); }
  Index model_dim() const { return experts_.input_dim(); }
  Index input_dim() const { return experts_.input_dim(); }
  Index output_dim() const { return experts_.output_dim(); }
  R& router() { return router_; }
  const R& router() const { return router_; }
  G& gate() { return gate_; }
  const G& gate() const { return gate_; }
  X& experts() { return experts_; }
  const X& experts() const { return experts_; }
  WeightOn weight_on() const { return weight_on_; }

  /// Inference: the same as with Step{}.
  void forward(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Workspace& ws) const {
    forward(tokens, Step{}, out, ws);
  }

  /// One forward pass without gradients; `out` may be `tokens` itself, but not overlap other rows of it. Throws
  /// std::invalid_argument on wrong shapes or a NaN or +Inf logit; `out` is then untouched (with ws.max_tokens: from
  /// that chunk on). Does not allocate when the workspace has seen sizes as large before.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    constexpr const char* kFunction = "moe::MoeLayer::forward";
    require_shapes(kFunction, tokens, step, out);
    detail::require_same_or_apart(kFunction, "out", out, "tokens", tokens);
    const detail::ExclusiveUse use(kFunction, "workspace", ws.use);
    if (detail::goes_in_chunks<MoeLayer>(kFunction, tokens.rows(), ws))
      return detail::for_each_chunk<Scalar>(tokens, step, out, ws,
                                            [&](const auto&... chunk) { forward(chunk..., ws); });
    ws.logits.resize(tokens.rows(), num_experts());
    logits(tokens, step, ws);                        // [T, E], by the router
    gate_.route(ws.logits, step, ws.routing);        // experts and weights per token
    check_routing(tokens.rows(), step, ws.routing);  // padding reaches no expert
    ws.plan.build(ws.routing, experts_.size());      // stable sort by expert
    if (weight_on_ == WeightOn::Input) return weigh_inputs(tokens, step, out, ws);
    experts_.forward(tokens, ws.plan, step, ws.expert_out, ws.scratch);  // grouped GEMM over routed rows
    kernel::combine(ws.expert_out, ws.plan, ws.routing, out);            // weighted sum per token
  }

  /// The same with what backward needs kept in `tape`; `out` must not overlap `tokens`, which backward reads again. The
  /// step's spans must outlive backward. With panel experts, and gates that allocate nothing, neither pass allocates
  /// while the number of tokens stays the same.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Tape& tape) const {
    static_cast<void>(detail::RequireTrainable<R, G, X>{});
    constexpr const char* kFunction = "moe::MoeLayer::forward";
    require_shapes(kFunction, tokens, step, out);
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    const detail::ExclusiveUse use(kFunction, "tape", tape.use);
    tape.input_dim = 0;
    tape.step = step;
    tape.logits.resize(tokens.rows(), num_experts());
    router_.logits(tokens, step, tape.logits, tape.router);
    gate_.route(tape.logits, step, tape.routing);
    check_routing(tokens.rows(), step, tape.routing);
    run_experts(tokens, out, tape);
  }

  /// The forward pass of `tape` again with its choices frozen: new logits and weights for the same experts. What
  /// gradient checks and recomputation call. Throws std::invalid_argument as forward, and for a tape of another batch
  /// or layer.
  void replay(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Tape& tape) const {
    static_cast<void>(detail::RequireTrainable<R, G, X>{});
    constexpr const char* kFunction = "moe::MoeLayer::replay";
    require_tape(kFunction, tokens.rows(), tape);
    require_shapes(kFunction, tokens, tape.step, out);
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    const detail::ExclusiveUse use(kFunction, "tape", tape.use);
    tape.input_dim = 0;
    router_.logits(tokens, tape.step, tape.logits, tape.router);
    gate_.replay(tape.logits, tape.step, tape.routing);
    run_experts(tokens, out, tape);
  }

  /// Gradient of the pass that `tape` recorded, selection frozen.
  ///   dout       [num_tokens, output_dim]      losses     gradients of auxiliary losses, or RoutingGradient{}
  ///   gradient   a layer of this shape (zeros_like); accumulated into
  ///   dtokens    [num_tokens, model_dim], overwritten; must not overlap tokens or dout
  /// About twice the operations of forward. Throws std::invalid_argument, before it writes anything, on wrong shapes
  /// and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout,
                const RoutingGradient<Scalar>& losses, MoeLayer& gradient, MatrixRef<Scalar> dtokens) const {
    run_backward(tokens, tape, dout, losses, gradient, &dtokens);
  }

  /// The same without dL/dtokens, for a first layer, whose tokens nobody trains: the same gradient in 0.66 of the time
  /// with Glu, 0.74 with Mlp (512 tokens, 8 experts 256 x 512, k = 2, one core, AVX-512). The input gradient of the
  /// experts' first stage is then not computed, unless weights are on the inputs, as dL/dweight is taken from it, or
  /// parts of one's own offer no backward without it.
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout,
                const RoutingGradient<Scalar>& losses, MoeLayer& gradient) const {
    run_backward(tokens, tape, dout, losses, gradient, nullptr);
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass of so many tokens through a layer of these sizes,
  /// `gradient` is another layer of them, and the gate can teach its router (see TopKGate::constant_weights).
  void require_backward(Index num_tokens, const Tape& tape, const MoeLayer& gradient) const {
    constexpr const char* kFunction = "moe::MoeLayer::backward";
    require_parts(kFunction);
    require_tape(kFunction, num_tokens, tape);
    if (&gradient == this) fail(kFunction, ": gradient is the layer itself, expected one of its own (zeros_like)");
    detail::require_backward_of(kFunction, "gradient.router", router_, num_tokens, tape.router, gradient.router_);
    if constexpr (requires { gate_.require_backward(num_experts()); }) gate_.require_backward(num_experts());
    detail::require_gradient_of(kFunction, "gradient.gate", gate_, gradient.gate_);
    detail::require_backward_of(kFunction, "gradient.experts", experts_, tape.plan, tape.experts, gradient.experts_);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "router", self.router_...);
    visit_part(f, "gate", self.gate_...);
    visit_part(f, "experts", self.experts_...);
  }

 private:
  /// router.logits(tokens, step, ws.logits), with working memory for a router that takes some.
  void logits(const MatrixView<Scalar>& tokens, const Step& step, Workspace& ws) const {
    if constexpr (requires(MatrixRef<Scalar> out) { router_.logits(tokens, step, out, ws.scratch); })
      router_.logits(tokens, step, ws.logits, ws.scratch);
    else
      router_.logits(tokens, step, ws.logits);
  }

  /// The end of a forward pass, with which its tape is whole.
  void run_experts(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Tape& tape) const {
    tape.plan.build(tape.routing, experts_.size());
    if (weight_on_ == WeightOn::Input) {
      const auto& rows = tape.weighted.build(tokens, tape.plan, tape.routing, tape.step);
      experts_.forward(rows.rows(), rows.plan(), rows.step(tape.step), tape.expert_out, tape.experts);
      kernel::combine_unweighted(tape.expert_out, tape.plan, tape.routing, out);
    } else {
      experts_.forward(tokens, tape.plan, tape.step, tape.expert_out, tape.experts);
      kernel::combine(tape.expert_out, tape.plan, tape.routing, out);
    }
    tape.input_dim = input_dim();
    tape.output_dim = output_dim();
    tape.weight_on = weight_on_;
  }

  /// The last two lines of forward for WeightOn::Input.
  void weigh_inputs(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    const auto& rows = ws.scratch.template get<detail::WeightedRows<Scalar>>().build(tokens, ws.plan, ws.routing, step);
    experts_.forward(rows.rows(), rows.plan(), rows.step(step), ws.expert_out, ws.scratch);
    kernel::combine_unweighted(ws.expert_out, ws.plan, ws.routing, out);
  }

  /// Both backward(); `dtokens` is nullptr where nobody asks for it.
  void run_backward(const ConstMatrixRef<Scalar>& tokens, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                    const RoutingGradient<Scalar>& losses, MoeLayer& gradient, MatrixRef<Scalar>* dtokens) const {
    static_cast<void>(detail::RequireTrainable<R, G, X>{});
    require_backward(tokens.rows(), tape, gradient);
    require_backward_shapes(tokens, dout, dtokens);
    require_loss_shapes(tape, losses);
    const detail::ExclusiveUse use("moe::MoeLayer::backward", "tape", tape.use);
    tape.dweight.resize(static_cast<std::size_t>(tape.routing.num_assignments()));
    backward_experts(tokens, tape, dout, gradient, dtokens);
    add(losses.weight, tape.dweight);
    gate_.backward(tape.logits, tape.step, tape.routing, std::span<const Scalar>(tape.dweight), losses.probability,
                   tape.dlogits, gradient.gate_);
    if (losses.logits.size() != 0) tape.dlogits += losses.logits;
    backward_router(tokens, tape, gradient, dtokens);
  }

  /// From dout to tape.dweight, gradient.experts_ and dtokens.
  void backward_experts(const ConstMatrixRef<Scalar>& tokens, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                        MoeLayer& gradient, MatrixRef<Scalar>* dtokens) const {
    const Index width = experts_.backward_width(tape.plan);
    if (weight_on_ == WeightOn::Input) {
      const auto& rows = tape.weighted;
      detail::gather_padded<Scalar>(dout, tape.plan, width, tape.dexpert_out);
      experts_.backward(rows.rows(), rows.plan(), rows.step(tape.step), tape.experts, tape.dexpert_out,
                        gradient.experts_, tape.dtoken_rows);
      detail::input_weight_gradient<Scalar>(tokens, tape.plan, tape.dtoken_rows, tape.dweight);
      if (dtokens != nullptr) kernel::combine(tape.dtoken_rows, tape.plan, tape.routing, *dtokens);
      return;
    }
    kernel::combine_backward<Scalar>(dout, tape.expert_out, tape.plan, tape.routing, width, std::span(tape.dweight),
                                     tape.dexpert_out);
    const auto backward = [&](auto&... dtoken_rows) {
      experts_.backward(tokens, tape.plan, tape.step, tape.experts, tape.dexpert_out, gradient.experts_,
                        dtoken_rows...);
    };
    if constexpr (requires {
                    experts_.backward(tokens, tape.plan, tape.step, tape.experts, tape.dexpert_out, gradient.experts_);
                  })
      if (dtokens == nullptr) return backward();
    backward(tape.dtoken_rows);
    if (dtokens != nullptr) kernel::combine_unweighted(tape.dtoken_rows, tape.plan, tape.routing, *dtokens);
  }

  void backward_router(const ConstMatrixRef<Scalar>& tokens, Tape& tape, MoeLayer& gradient,
                       MatrixRef<Scalar>* dtokens) const {
    const auto backward = [&](auto... all_or_no_tokens) {
      router_.backward(tokens, tape.step, tape.router, tape.dlogits, gradient.router_, all_or_no_tokens...);
    };
    if (dtokens != nullptr) return backward(*dtokens);
    if constexpr (requires { router_.backward(tokens, tape.step, tape.router, tape.dlogits, gradient.router_); }) {
      backward();
    } else {
      tape.dtokens.resize(tokens.rows(), tokens.cols());
      tape.dtokens.matrix().setZero();  // routers add
      backward(MatrixRef<Scalar>(tape.dtokens.matrix()));
    }
  }

  /// Parts may have been replaced since the constructor saw them, or moved away.
  void require_parts(const char* function) const {
    if (experts_.size() == 0) fail(function, ": the layer has no experts: it has been moved from");
    if (router_.num_experts() != experts_.size() || router_.model_dim() != experts_.input_dim())
      fail(function, ": the router maps ", router_.model_dim(), " columns to ", router_.num_experts(),
           " experts, expected ", experts_.input_dim(), " to ", experts_.size(), " as the experts");
  }

  void require_shapes(const char* function, const MatrixView<Scalar>& tokens, const Step& step,
                      const MatrixRef<Scalar>& out) const {
    require_parts(function);
    if (tokens.cols() != model_dim())
      fail(function, ": tokens has ", tokens.cols(), " columns, expected model_dim = ", model_dim());
    detail::require_shape(function, "out", out, tokens.rows(), output_dim());
    step.validate(function, tokens.rows());
  }

  void require_backward_shapes(const ConstMatrixRef<Scalar>& tokens, const ConstMatrixRef<Scalar>& dout,
                               const MatrixRef<Scalar>* dtokens) const {
    constexpr const char* kFunction = "moe::MoeLayer::backward";
    detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), model_dim());
    detail::require_shape(kFunction, "dout", dout, tokens.rows(), output_dim());
    if (dtokens == nullptr) return;
    detail::require_shape(kFunction, "dtokens", *dtokens, tokens.rows(), model_dim());
    detail::require_apart(kFunction, "dtokens", *dtokens, "tokens", tokens);
    detail::require_apart(kFunction, "dtokens", *dtokens, "dout", dout);
  }

  static void require_loss_shapes(const Tape& tape, const RoutingGradient<Scalar>& losses) {
    constexpr const char* kFunction = "moe::MoeLayer::backward";
    const auto check = [&](const char* name, const Matrix<Scalar>& gradient) {
      if (gradient.size() != 0)
        detail::require_shape(kFunction, name, gradient, tape.logits.rows(), tape.logits.cols());
    };
    check("losses.probability", losses.probability);
    check("losses.logits", losses.logits);
    const auto weights = static_cast<Index>(losses.weight.size());
    if (weights != 0 && weights != tape.routing.num_assignments())
      fail(kFunction, ": losses.weight has ", weights,
           " entries, expected num_assignments = ", tape.routing.num_assignments());
  }

  void require_tape(const char* function, Index num_tokens, const Tape& tape) const {
    if (tape.input_dim == 0) fail(function, ": the tape holds no forward pass that has ended");
    if (tape.logits.cols() != num_experts() || tape.input_dim != input_dim() || tape.output_dim != output_dim())
      fail(function, ": the tape is of a layer of ", tape.logits.cols(), " experts that maps ", tape.input_dim, " to ",
           tape.output_dim, ", expected ", num_experts(), " experts, ", input_dim(), " to ", output_dim());
    if (tape.weight_on != weight_on_)
      fail(function, ": the tape is of a layer with another WeightOn, expected that of this layer");
    if (num_tokens != tape.routing.num_tokens())
      fail(function, ": tokens has ", num_tokens, " rows, expected ", tape.routing.num_tokens(),
           " as in the forward pass of the tape");
  }

  /// Gates leave padding out by themselves; this holds for one that does not know about it, too.
  static void check_routing(Index num_tokens, const Step& step, Routing<Scalar>& routing) {
    if (routing.num_tokens() != num_tokens)
      fail("moe::MoeLayer::forward: the gate routed ", routing.num_tokens(), " tokens, expected ", num_tokens);
    drop_padding(step, routing);
  }

  static void add(const std::vector<Scalar>& from, std::vector<Scalar>& to) {
    for (std::size_t i = 0; i < from.size(); ++i) to[i] += from[i];
  }

  R router_;
  G gate_;
  X experts_;
  WeightOn weight_on_;
};

}  // namespace moe::inline MOE_ABI
