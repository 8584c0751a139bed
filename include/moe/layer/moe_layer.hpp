// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/core/overlap.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/layer/chunks.hpp"
#include "moe/layer/concept.hpp"
#include "moe/layer/trainable.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/routing/gradient.hpp"
#include "moe/routing/padding.hpp"

// Above 300 lines: inference, training, replay and backward are read together, and the checks of tapes, parts and
// overlaps stand beside the calls they guard.
namespace moe::inline MOE_ABI {

/// A mixture-of-experts layer: out[t] = sum over the chosen experts e of weight_e * expert_e(tokens[t]).
/// Three holes, each one small class: R turns tokens into logits, G decides who goes where, X computes: an expert set,
/// which becomes RoutedExperts<X>, or a Mixture of another kind. What happens between them is public, too: see
/// RoutedExperts for routings that come from elsewhere, several gates over the same experts, or a router that reads
/// other inputs. Immutable in forward, share freely between threads; all working memory is in the workspace or tape.
/// Parts may be replaced through their references by others of the same sizes; every call checks that the sizes of what
/// it uses agree.
///
/// Same bits for any number of threads and, where kPerToken, whatever else is in the batch. Shapes: tokens
/// [num_tokens, model_dim] row-major, out [num_tokens, output_dim]. A column-major argument is silently copied (Eigen).
template <class R, class G, class X>
class MoeLayer {
  static_assert(
      Router<R>,
      "moe::MoeLayer: a Router needs `Scalar`, `num_experts()`, `model_dim()` and "
      "`void logits(const ConstMatrixRef<S>&, const Context&, MatrixRef<S>) const` (see moe/router/concept.hpp)");
  static_assert(Mixture<X> || !detail::MeansMixture<X>,
                "moe::MoeLayer: a Mixture needs `Scalar`, `num_experts()`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const Routing<Scalar>&, const Context&, out) const` "
                "(see moe/layer/mixture.hpp)");
  static_assert(ExpertSet<X> || Mixture<X> || detail::MeansMixture<X>,
                "moe::MoeLayer: an ExpertSet needs `Scalar`, `size()`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const PlanView& plan, const Context&, RowBuffer<Scalar>& rows) const`; wrap "
                "experts in moe::ExpertPool (see moe/expert/expert_set.hpp)");

 public:
  using Scalar = typename R::Scalar;
  static_assert(std::is_same_v<Scalar, typename X::Scalar>,
                "moe::MoeLayer: the Router and the ExpertSet need the same Scalar");
  static_assert(HasRoute<G, Scalar>,
                "moe::MoeLayer: a Gate needs `void route(const Logits<S>&, const Context&, Routing<S>&) const` "
                "(see moe/gate/concept.hpp)");
  static_assert(StatesPerToken<G>,
                "moe::MoeLayer: a Gate needs `static constexpr bool kPerToken` (see moe/gate/concept.hpp)");

  using Workspace = BasicWorkspace<Scalar>;
  using MixtureType = detail::MixtureOf<X>;
  /// Whether a token's output depends on the token alone.
  static constexpr bool kPerToken = G::kPerToken && kIsPerToken<X>;
  static constexpr bool kCollective = kIsCollective<X>;
  static_assert(G::kPerToken || !kCollective,
                "moe::MoeLayer: experts over ranks need a Gate that decides token by token (kPerToken): one that looks "
                "at the batch, as capacities, balance and expert choice do, would see the tokens of its rank alone");
  /// Whether all parts can be trained through; see TrainableLayer.
  static constexpr bool kTrainable =
      DifferentiableRouter<R> && DifferentiableGate<G, Scalar> && DifferentiableMixture<MixtureType>;

  /// What forward leaves for backward. Caller-owned; several may be live. With panel experts a choice of an expert
  /// costs its pre-activations and its output: (2 hidden_dim + output_dim) * sizeof(S) bytes of a Glu, (hidden_dim +
  /// output_dim) * sizeof(S) of an Mlp, apart from the scratch.
  struct Tape {
    Matrix<Scalar> logits;
    Routing<Scalar> routing;
    Step step;
    /// Gradients of auxiliary losses: empty or zero after forward, added to by losses, read by backward.
    RoutingGradient<Scalar> losses;
    detail::TapeOf<R> router;
    detail::TapeOf<MixtureType> mixture;
    /// Working memory of both passes: with panel experts up to (3 hidden_dim + 2 output_dim) * sizeof(S) bytes a
    /// choice, which nobody reads afterwards. Layers that run one after the other share it:
    /// tape.scratch.borrow(memory).
    Scratch scratch;
    std::vector<Scalar> dweight;
    RowBuffer<Scalar> dtokens;  ///< where nobody asks for them, but the router writes them
    Matrix<Scalar> dlogits;
    /// Of the layer that filled it; 0 until its forward pass has ended.
    detail::ZeroWhenMoved<Index> input_dim = 0, output_dim = 0;
    detail::Exclusive use;  ///< by one thread at a time
  };

  /// Throws std::invalid_argument if the parts disagree on sizes or the gate refuses the number of experts.
  MoeLayer(R router, G gate, MixtureType mixture)
      : router_(std::move(router)), gate_(std::move(gate)), mixture_(std::move(mixture)) {
    if (router_.num_experts() != num_logits())
      fail("moe::MoeLayer: the router scores ", router_.num_experts(), " experts, expected ", num_logits(),
           " as in the expert set");
    if (router_.model_dim() != mixture_.input_dim())
      fail("moe::MoeLayer: the router reads ", router_.model_dim(),
           " columns, expected model_dim = ", mixture_.input_dim(), " of the experts");
    if constexpr (requires { gate_.validate(num_experts()); }) gate_.validate(num_experts());
  }
  MoeLayer(R router, G gate, X experts, WeightOn weight_on = WeightOn::Output)
    requires(!Mixture<X>)
      : MoeLayer(std::move(router), std::move(gate), MixtureType(std::move(experts), weight_on)) {}

  Index num_experts() const { return mixture_.num_experts(); }
  Index model_dim() const { return mixture_.input_dim(); }
  Index input_dim() const { return mixture_.input_dim(); }
  Index output_dim() const { return mixture_.output_dim(); }
  R& router() { return router_; }
  const R& router() const { return router_; }
  G& gate() { return gate_; }
  const G& gate() const { return gate_; }
  MixtureType& mixture() { return mixture_; }
  const MixtureType& mixture() const { return mixture_; }
  /// The experts of the mixture, where it has some.
  auto& experts()
    requires requires(MixtureType& mixture) { mixture.experts(); }
  {
    return mixture_.experts();
  }
  const auto& experts() const
    requires requires(const MixtureType& mixture) { mixture.experts(); }
  {
    return mixture_.experts();
  }

  /// Inference: the same as with Step{}.
  void forward(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Workspace& ws) const {
    forward(tokens, Step{}, out, ws);
  }

  /// One forward pass without gradients; `out` may be `tokens` itself, but not overlap other rows of it. Throws
  /// std::invalid_argument on wrong shapes or a NaN or +Inf logit; `out` is then untouched (with ws.max_tokens: from
  /// that chunk on). With parts that keep their working memory in the scratch, as all of this library do, it does not
  /// allocate when the workspace has seen sizes as large before; experts that are not panel experts keep memory of
  /// their own, and each must have had as many rows.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    constexpr const char* kFunction = "moe::MoeLayer::forward";
    require_shapes(kFunction, tokens, step, out);
    detail::require_same_or_apart(kFunction, "out", out, "tokens", tokens);
    const detail::ExclusiveUse use(kFunction, "workspace", ws.use);
    if (detail::goes_in_chunks<MoeLayer>(kFunction, tokens.rows(), ws))
      return detail::for_each_chunk<Scalar>(tokens, step, out, ws,
                                            [&](const auto&... chunk) { forward(chunk..., ws); });
    const Context context(step, ws.scratch);
    ws.logits.resize(tokens.rows(), num_logits());
    router_.logits(tokens, context, ws.logits);          // [T, E]
    gate_.route(ws.logits, context, ws.routing);         // who goes where, with which weight
    check_routing(tokens.rows(), step, ws.routing);      // padding reaches no expert
    mixture_.forward(tokens, ws.routing, context, out);  // grouped GEMM by expert, weighted sum per token
  }

  /// The same with what backward needs kept in `tape`; `out` must not overlap `tokens`, which backward reads again. The
  /// step's spans must outlive backward. With panel experts neither pass allocates while the number of tokens stays the
  /// same.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Tape& tape) const {
    constexpr const char* kFunction = "moe::MoeLayer::forward";
    const detail::ExclusiveUse use(kFunction, "tape", tape.use);
    const detail::ExclusiveUse of_scratch(kFunction, "tape.scratch", tape.scratch.use(), detail::Nested::Refused);
    start(kFunction, tokens, step, out, tape);
    tape.losses.clear(tokens.rows(), num_experts(), num_logits());
    score(tokens, tape);
    gate_.route(tape.logits, {step, tape.scratch}, tape.routing);
    finish(tokens, out, tape);
  }

  /// The same with choices made elsewhere, by another engine or in an earlier run: the gate weighs them anew from the
  /// logits, as it does its own, and backward follows. What its own forward has chosen gives its bits again.
  ///   moe::Routing<float> choices = moe::Routing<float>::from(num_tokens, ids, {}, num_experts);
  ///   layer.replay(tokens, step, choices, out, tape);
  ///   layer.backward(tokens, tape, dout, gradient, dtokens);
  /// Weights of `choices` are not read; what is marked as dropped stays so. Layers among the experts choose for
  /// themselves. Throws std::invalid_argument as forward,
  /// and for choices of other tokens or experts.
  void replay(const MatrixView<Scalar>& tokens, const Step& step, const Routing<Scalar>& choices, MatrixRef<Scalar> out,
              Tape& tape) const {
    constexpr const char* kFunction = "moe::MoeLayer::replay";
    detail::require_routing(kFunction, choices, tokens.rows(), num_experts());
    const detail::ExclusiveUse use(kFunction, "tape", tape.use);
    const detail::ExclusiveUse of_scratch(kFunction, "tape.scratch", tape.scratch.use(), detail::Nested::Refused);
    start(kFunction, tokens, step, out, tape);
    tape.losses.clear(tokens.rows(), num_experts(), num_logits());
    tape.routing = choices;
    score(tokens, tape);
    if constexpr (kTrainable) gate_.replay(tape.logits, {step, tape.scratch}, tape.routing);
    finish(tokens, out, tape);
  }

  /// The forward pass of `tape` again with its choices frozen: new logits and weights for the same experts, the
  /// gradients of losses as they are. Layers among the experts choose anew, and their losses are emptied. What gradient
  /// checks and recomputation call. Throws std::invalid_argument as
  /// forward, and for a tape of another batch or layer.
  void replay(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Tape& tape) const {
    constexpr const char* kFunction = "moe::MoeLayer::replay";
    require_tape(kFunction, tokens.rows(), tape);
    const detail::ExclusiveUse use(kFunction, "tape", tape.use);
    const detail::ExclusiveUse of_scratch(kFunction, "tape.scratch", tape.scratch.use(), detail::Nested::Refused);
    start(kFunction, tokens, tape.step, out, tape);
    score(tokens, tape);
    if constexpr (kTrainable) gate_.replay(tape.logits, {tape.step, tape.scratch}, tape.routing);
    finish(tokens, out, tape);
  }

  /// Gradient of the pass that `tape` recorded, selection frozen, with that of the losses in tape.losses.
  ///   dout       [num_tokens, output_dim]
  ///   gradient   a layer of this shape (zeros_like); accumulated into
  ///   dtokens    [num_tokens, model_dim], overwritten; must not overlap tokens or dout
  /// About twice the operations of forward. Throws std::invalid_argument, before it writes anything, on wrong shapes
  /// and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout, MoeLayer& gradient,
                MatrixRef<Scalar> dtokens) const {
    run_backward(tokens, tape, dout, gradient, &dtokens);
  }

  /// The same without dL/dtokens, for a first layer, whose tokens nobody trains: the same gradient in 0.66 of the time
  /// with Glu, 0.74 with Mlp (512 tokens, 8 experts 256 x 512, k = 2, one core, AVX-512). The input gradient of the
  /// experts' first stage is then not computed, unless weights are on the inputs, as dL/dweight is taken from it, or
  /// parts of one's own offer no backward without it.
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout,
                MoeLayer& gradient) const {
    run_backward(tokens, tape, dout, gradient, nullptr);
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass of so many tokens through a layer of these sizes,
  /// `gradient` is another layer of them, and the gate can teach its router (see TopKGate::constant_weights).
  void require_backward(Index num_tokens, const Tape& tape, const MoeLayer& gradient) const {
    constexpr const char* kFunction = "moe::MoeLayer::backward";
    require_parts(kFunction);
    require_tape(kFunction, num_tokens, tape);
    require_loss_shapes(tape);
    if (&gradient == this) fail(kFunction, ": gradient is the layer itself, expected one of its own (zeros_like)");
    detail::require_backward_of(kFunction, "gradient.router", router_, num_tokens, tape.router, gradient.router_);
    if constexpr (requires { gate_.require_backward(num_experts()); }) gate_.require_backward(num_experts());
    detail::require_gradient_of(kFunction, "gradient.gate", gate_, gradient.gate_);
    detail::require_backward_of(kFunction, "gradient.mixture", mixture_, tape.routing, tape.mixture, gradient.mixture_);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "router", self.router_...);
    visit_part(f, "gate", self.gate_...);
    visit_part(f, "experts", self.mixture_...);
  }

 private:
  /// Columns of logits: one per expert, unless the gate asks for more.
  Index num_logits() const { return detail::num_logits(gate_, num_experts()); }

  /// The checks and sizes that every forward pass into a tape begins with.
  void start(const char* function, const ConstMatrixRef<Scalar>& tokens, const Step& step, const MatrixRef<Scalar>& out,
             Tape& tape) const {
    static_cast<void>(detail::RequireTrainable<R, G, X>{});
    require_shapes(function, tokens, step, out);
    detail::require_apart(function, "out", out, "tokens", tokens);
    tape.input_dim = 0;
    tape.step = step;
    tape.logits.resize(tokens.rows(), num_logits());
  }

  /// What start() has refused in a sentence is not compiled: it would be refused again at length.
  void score(const ConstMatrixRef<Scalar>& tokens, Tape& tape) const {
    if constexpr (kTrainable) router_.logits(tokens, {tape.step, tape.scratch}, tape.logits, tape.router);
  }

  /// The mixture over tape.routing, with which the tape is whole.
  void finish(const ConstMatrixRef<Scalar>& tokens, MatrixRef<Scalar> out, Tape& tape) const {
    check_routing(tokens.rows(), tape.step, tape.routing);
    if constexpr (kTrainable) mixture_.forward(tokens, tape.routing, {tape.step, tape.scratch}, out, tape.mixture);
    tape.input_dim = input_dim();
    tape.output_dim = output_dim();
  }

  /// Both backward(); `dtokens` is nullptr where nobody asks for it.
  void run_backward(const ConstMatrixRef<Scalar>& tokens, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                    MoeLayer& gradient, MatrixRef<Scalar>* dtokens) const {
    static_cast<void>(detail::RequireTrainable<R, G, X>{});
    require_backward(tokens.rows(), tape, gradient);
    require_backward_shapes(tokens, dout, dtokens);
    const detail::ExclusiveUse use("moe::MoeLayer::backward", "tape", tape.use);
    const detail::ExclusiveUse of_scratch("moe::MoeLayer::backward", "tape.scratch", tape.scratch.use(),
                                          detail::Nested::Refused);
    if constexpr (kTrainable) backward_parts(tokens, tape, dout, gradient, dtokens);
  }

  /// From the mixture over the gate to the router.
  void backward_parts(const ConstMatrixRef<Scalar>& tokens, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                      MoeLayer& gradient, MatrixRef<Scalar>* dtokens) const {
    const Context context(tape.step, tape.scratch);
    tape.dweight.resize(static_cast<std::size_t>(tape.routing.num_assignments()));
    backward_mixture(tokens, tape, dout, gradient, dtokens);
    for (std::size_t a = 0; a < tape.losses.weight.size(); ++a) tape.dweight[a] += tape.losses.weight[a];
    gate_.backward(tape.logits, context, tape.routing, std::span<const Scalar>(tape.dweight), tape.losses.probability,
                   tape.dlogits, gradient.gate_);
    detail::require_shape("moe::MoeLayer::backward", "dlogits of the gate", tape.dlogits, tokens.rows(), num_logits());
    if (tape.losses.logits.size() != 0) tape.dlogits += tape.losses.logits;
    backward_router(tokens, tape, gradient, dtokens);
  }

  void backward_mixture(const ConstMatrixRef<Scalar>& tokens, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                        MoeLayer& gradient, MatrixRef<Scalar>* dtokens) const {
    const auto backward = [&](const auto&... all_or_no_tokens) {
      mixture_.backward(tokens, tape.routing, {tape.step, tape.scratch}, tape.mixture, dout, gradient.mixture_,
                        std::span(tape.dweight), all_or_no_tokens...);
    };
    if (dtokens != nullptr) return backward(*dtokens);
    if constexpr (MixtureSkipsTokenGradient<MixtureType>)
      backward();
    else
      backward(no_tokens(tape));
  }

  void backward_router(const ConstMatrixRef<Scalar>& tokens, Tape& tape, MoeLayer& gradient,
                       MatrixRef<Scalar>* dtokens) const {
    const Context context(tape.step, tape.scratch);
    const auto backward = [&](const auto&... all_or_no_tokens) {
      router_.backward(tokens, context, tape.router, tape.dlogits, gradient.router_, all_or_no_tokens...);
    };
    if (dtokens != nullptr) return backward(*dtokens);
    if constexpr (requires { router_.backward(tokens, context, tape.router, tape.dlogits, gradient.router_); })
      backward();
    else
      backward(no_tokens(tape));
  }

  /// Zeros for a part that insists on writing dL/dtokens.
  MatrixRef<Scalar> no_tokens(Tape& tape) const {
    tape.dtokens.resize(tape.logits.rows(), input_dim());
    tape.dtokens.matrix().setZero();  // routers add
    return tape.dtokens.matrix();
  }

  /// Parts may have been replaced since the constructor saw them, or moved away.
  void require_parts(const char* function) const {
    if (num_experts() == 0) fail(function, ": the layer has no experts: it has been moved from");
    if (router_.num_experts() != num_logits() || router_.model_dim() != input_dim())
      fail(function, ": the router maps ", router_.model_dim(), " columns to ", router_.num_experts(),
           " experts, expected ", input_dim(), " to ", num_logits(), " as the experts");
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

  void require_loss_shapes(const Tape& tape) const {
    constexpr const char* kFunction = "moe::MoeLayer::backward";
    const auto check = [&](const char* name, const Matrix<Scalar>& gradient, Index columns) {
      if (gradient.size() != 0) detail::require_shape(kFunction, name, gradient, tape.logits.rows(), columns);
    };
    check("losses.probability", tape.losses.probability, num_experts());
    check("losses.logits", tape.losses.logits, num_logits());
    const auto weights = std::ssize(tape.losses.weight);
    if (weights != 0 && weights != tape.routing.num_assignments())
      fail(kFunction, ": losses.weight has ", weights,
           " entries, expected num_assignments = ", tape.routing.num_assignments());
  }

  void require_tape(const char* function, Index num_tokens, const Tape& tape) const {
    if (tape.input_dim == 0) fail(function, ": the tape holds no forward pass that has ended");
    if (tape.logits.cols() != num_logits() || tape.input_dim != input_dim() || tape.output_dim != output_dim())
      fail(function, ": the tape is of a layer of ", tape.logits.cols(), " experts that maps ", tape.input_dim, " to ",
           tape.output_dim, ", expected ", num_logits(), " experts, ", input_dim(), " to ", output_dim());
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

  R router_;
  G gate_;
  MixtureType mixture_;
};

template <class R, class G, class X>
MoeLayer(R, G, X) -> MoeLayer<R, G, X>;
template <class R, class G, class X>
MoeLayer(R, G, X, WeightOn) -> MoeLayer<R, G, X>;

}  // namespace moe::inline MOE_ABI
