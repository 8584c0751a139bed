// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/overlap.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/layer/chunks.hpp"
#include "moe/layer/concept.hpp"
#include "moe/layer/expert_mask.hpp"
#include "moe/layer/multi_gate_checks.hpp"
#include "moe/layer/multi_gate_tape.hpp"
#include "moe/layer/trainable.hpp"
#include "moe/layer/workspace.hpp"

// Long, as MoeLayer is: inference, training, replay and backward, each for gates that read the tokens and for gates
// that read something else.
namespace moe::inline MOE_ABI {

/// Several gates over one set of experts: with the gates g, h, ... of token t,
///   out[t] = [ sum_e weight_g,e expert_e(tokens[t]) | sum_e weight_h,e expert_e(tokens[t]) | ... ],
/// where each gate has a router of its own and chooses among the experts that the mask allows it. A token's row of an
/// expert is computed once, however many gates choose it. A full mask is MMoE; blocks are CGC and PLE, and levels
/// stack: the output of one, or columns of it, are the tokens of the next.
///   moe::ExpertMask mask = moe::ExpertMask::all(3, 8);
///   std::vector<moe::LinearRouter> routers;
///   for (moe::Index g = 0; g < 3; ++g)
///     routers.push_back(moe::LinearRouter::random(std::ssize(mask.experts(g)), 64, g));
///   moe::MultiGateLayer layer(routers, moe::SoftmaxGate{}, moe::ExpertPool<moe::Mlp>::random(8, 64, 128, 9), mask);
/// Router g scores the experts of gate g alone, in ascending order, and gate g sees them as experts 0, 1, ...: what the
/// mask forbids has no logit, no weight and no gradient. With one gate and a full mask this is MoeLayer, bit for bit.
///
/// Every token goes through every gate; or, with `gates_of_group`, through those of its step.group, in that order: one
/// each, where a token has one task or comes from one domain; or those of the tasks of a group, whose rows, read by the
/// second level of HoME, stand under the rows of other groups in one matrix. For gates that are not its own a token is
/// padding. The widest group says how many outputs a token has; those that it has no gates for are zero.
///
/// Draws of gate 0 are those of MoeLayer; the others draw as other layers do. Auxiliary losses of gate g belong into
/// tape.gates[g].losses, and a Trainer sees to all of them; those of layers among the experts are not found. Immutable
/// in forward, share freely. Same bits for any number of threads and, where kPerToken, whatever else is in the batch.
/// Costs the rows of the union of all choices, and per gate a router and a combine. Shapes: tokens [num_tokens,
/// input_dim], out [num_tokens, num_outputs * output_dim of the experts], both row-major.
/// Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts" (KDD 2018); Tang
/// et al., "Progressive Layered Extraction" (RecSys 2020); Wang et al., "HoME" (arXiv:2408.05430).
template <class R, class G, class X>
class MultiGateLayer {
  static_assert(
      Router<R>,
      "moe::MultiGateLayer: a Router needs `Scalar`, `num_experts()`, `model_dim()` and "
      "`void logits(const ConstMatrixRef<S>&, const Context&, MatrixRef<S>) const` (see moe/router/concept.hpp)");
  static_assert(ExpertSet<X>,
                "moe::MultiGateLayer: an ExpertSet needs `Scalar`, `size()`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const PlanView& plan, const Context&, RowBuffer<Scalar>& rows) const`; wrap "
                "experts in moe::ExpertPool (see moe/expert/expert_set.hpp)");

 public:
  using Scalar = typename R::Scalar;
  static_assert(std::is_same_v<Scalar, typename X::Scalar>,
                "moe::MultiGateLayer: the Router and the ExpertSet need the same Scalar");
  static_assert(HasRoute<G, Scalar> && StatesPerToken<G>,
                "moe::MultiGateLayer: a Gate needs `void route(const Logits<S>&, const Context&, Routing<S>&) const` "
                "and `static constexpr bool kPerToken` (see moe/gate/concept.hpp)");

  using Workspace = BasicWorkspace<Scalar>;
  using Inputs = MultiGateInputs<Scalar>;
  using InputGradients = MultiGateInputGradients<Scalar>;
  /// Whether a token's output depends on the token alone.
  static constexpr bool kPerToken = G::kPerToken && kIsPerToken<X>;
  static constexpr bool kCollective = kIsCollective<X>;
  static_assert(G::kPerToken || !kCollective,
                "moe::MultiGateLayer: experts over ranks need a Gate that decides token by token (kPerToken)");
  /// Whether all parts can be trained through; see TrainableLayer.
  static constexpr bool kTrainable =
      DifferentiableRouter<R> && DifferentiableGate<G, Scalar> && DifferentiableExpertSet<X>;

  /// See moe/layer/multi_gate_tape.hpp.
  using Tape = detail::MultiGateTape<R, X>;
  using GateTape = typename Tape::OfGate;

  /// One router and one gate per row of the mask. Throws std::invalid_argument if the parts disagree on sizes, a gate
  /// has no expert that it may choose or refuses their number, and for groups of gates that there are not.
  MultiGateLayer(std::vector<R> routers, std::vector<G> gates, X experts, ExpertMask mask,
                 std::vector<std::vector<Index>> gates_of_group = {})
      : routers_(std::move(routers)),
        gates_(std::move(gates)),
        experts_(std::move(experts)),
        mask_(std::move(mask)),
        gates_of_group_(std::move(gates_of_group)) {
    constexpr const char* kFunction = "moe::MultiGateLayer";
    detail::require_gate_parts(kFunction, *this);
    for (Index g = 0; g < num_gates(); ++g)
      if constexpr (requires { gate(g).validate(Index{}); }) gate(g).validate(std::ssize(mask_.experts(g)));
    build_groups(kFunction);
  }
  /// The same with a gate for all.
  MultiGateLayer(std::vector<R> routers, G gate, X experts, ExpertMask mask,
                 std::vector<std::vector<Index>> gates_of_group = {})
      : MultiGateLayer{std::move(routers), std::vector<G>(static_cast<std::size_t>(mask.num_gates()), std::move(gate)),
                       std::move(experts), std::move(mask), std::move(gates_of_group)} {}  // braces: in this order

  Index num_gates() const { return std::ssize(gates_); }
  Index num_routers() const { return std::ssize(routers_); }
  Index num_experts() const { return experts_.size(); }
  Index input_dim() const { return experts_.input_dim(); }
  /// Columns that the gates read.
  Index gate_dim() const { return routers_.empty() ? 0 : routers_.front().model_dim(); }
  /// Gates that a token goes through, at most.
  Index num_outputs() const { return num_outputs_; }
  Index output_dim() const { return num_outputs_ * experts_.output_dim(); }
  const ExpertMask& mask() const { return mask_; }
  /// None where every token goes through every gate.
  const std::vector<std::vector<Index>>& gates_of_group() const { return gates_of_group_; }
  R& router(Index g) { return routers_[static_cast<std::size_t>(g)]; }
  const R& router(Index g) const { return routers_[static_cast<std::size_t>(g)]; }
  G& gate(Index g) { return gates_[static_cast<std::size_t>(g)]; }
  const G& gate(Index g) const { return gates_[static_cast<std::size_t>(g)]; }
  X& experts() { return experts_; }
  const X& experts() const { return experts_; }

  /// Inference: the same as with Step{}.
  void forward(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Workspace& ws) const {
    forward(tokens, Step{}, out, ws);
  }
  /// One forward pass without gradients. Throws std::invalid_argument on wrong shapes, for a group of a valid token
  /// that there is not, and a NaN or +Inf logit; `out` is then untouched (with ws.max_tokens: from that chunk on). Does
  /// not allocate when the workspace has seen sizes as large before.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    forward(Inputs{tokens, tokens}, step, out, ws);
  }
  void forward(const Inputs& inputs, const Step& step, MatrixRef<Scalar> out, Workspace& ws) const {
    constexpr const char* kFunction = "moe::MultiGateLayer::forward";
    detail::require_gate_inputs(kFunction, *this, inputs, step, out);
    detail::require_same_or_apart(kFunction, "out", out, "tokens", inputs.tokens);
    detail::require_same_or_apart(kFunction, "out", out, "gate_tokens", inputs.gate_tokens);
    const detail::ExclusiveUse use(kFunction, "workspace", ws.use);
    if (detail::goes_in_chunks<MultiGateLayer>(kFunction, inputs.tokens.rows(), ws)) {
      Index first = 0;
      return detail::for_each_chunk<Scalar>(
          inputs.tokens, step, out, ws, [&](const auto& tokens, const Step& own, MatrixRef<Scalar> to) {
            forward(Inputs{tokens, inputs.gate_tokens.middleRows(first, tokens.rows())}, own, to, ws);
            first += tokens.rows();
          });
    }
    detail::require_token_groups(kFunction, gates_of_group_, step, inputs.tokens.rows());
    Memory& memory = ws.scratch.template get<Memory>();
    if (memory.gates.size() < gates_.size()) memory.gates.resize(gates_.size());  // never shrinks
    for (Index g = 0; g < num_gates(); ++g) {
      auto& [logits, routing, valid] = memory.gates[static_cast<std::size_t>(g)];
      const Context context(step_of_gate(step, g, inputs.tokens.rows(), valid), memory.of_gates);
      logits.resize(inputs.tokens.rows(), num_logits(g));
      router(g).logits(inputs.gate_tokens, context, logits);
      gate(g).route(logits, context, routing);
      detail::check_gate_routing(g, inputs.tokens.rows(), context.step, routing);
    }
    const auto routing_of = [&](Index g) -> const auto& { return memory.gates[static_cast<std::size_t>(g)].routing; };
    const auto gates_of = [&](Index t) { return gates_of_token(step, t); };
    memory.chosen.build(inputs.tokens.rows(), mask_, routing_of, gates_of);
    memory.rows.resize(memory.chosen.plan().num_rows(), row_width(experts_));
    experts_.forward(inputs.tokens, memory.chosen.plan(), Context{step, memory.of_experts}, memory.rows);
    memory.chosen.gate_rows(routing_of, memory.gate_rows);
    kernel::combine_gates<Scalar>(memory.rows, memory.gate_rows, gates_of, experts_.output_dim(), out);
  }

  /// The same with what backward needs kept in `tape`; `out` must not overlap the inputs, which backward reads again.
  /// The step's spans must outlive backward.
  void forward(const MatrixView<Scalar>& tokens, const Step& step, MatrixRef<Scalar> out, Tape& tape) const
    requires kTrainable
  {
    forward(Inputs{tokens, tokens}, step, out, tape);
  }
  void forward(const Inputs& inputs, const Step& step, MatrixRef<Scalar> out, Tape& tape) const
    requires kTrainable
  {
    constexpr const char* kFunction = "moe::MultiGateLayer::forward";
    run_forward(kFunction, inputs, step, out, tape, [&](Index g, GateTape& own, const Context& context) {
      own.losses.clear(own.logits.rows(), std::ssize(mask_.experts(g)), num_logits(g));
      gate(g).route(own.logits, context, own.routing);
    });
  }

  /// The forward pass of `tape` again with its choices frozen; see MoeLayer::replay.
  void replay(const MatrixView<Scalar>& tokens, MatrixRef<Scalar> out, Tape& tape) const
    requires kTrainable
  {
    replay(Inputs{tokens, tokens}, out, tape);
  }
  void replay(const Inputs& inputs, MatrixRef<Scalar> out, Tape& tape) const
    requires kTrainable
  {
    constexpr const char* kFunction = "moe::MultiGateLayer::replay";
    detail::require_gate_tape(kFunction, *this, inputs.tokens.rows(), tape);
    const Step step = tape.step;
    run_forward(kFunction, inputs, step, out, tape, [&](Index g, GateTape& own, const Context& context) {
      gate(g).replay(own.logits, context, own.routing);
    });
  }

  /// Gradient of the pass that `tape` recorded, selections frozen, with that of the losses of its gates.
  ///   dout       [num_tokens, output_dim]
  ///   gradient   a layer of this shape (zeros_like); accumulated into
  ///   dtokens    [num_tokens, input_dim], overwritten; must not overlap tokens or dout
  /// About twice the operations of forward. Throws std::invalid_argument, before it writes anything, on wrong shapes
  /// and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout, MultiGateLayer& gradient,
                MatrixRef<Scalar> dtokens) const
    requires kTrainable
  {
    run_backward({tokens, tokens}, tape, dout, gradient, &dtokens, &dtokens);
  }
  /// The same without dL/dtokens.
  void backward(const MatrixView<Scalar>& tokens, Tape& tape, const MatrixView<Scalar>& dout,
                MultiGateLayer& gradient) const
    requires kTrainable
  {
    run_backward({tokens, tokens}, tape, dout, gradient, nullptr, nullptr);
  }
  /// The same where gates read something else than experts: both gradients are overwritten, and lie apart.
  void backward(const Inputs& inputs, Tape& tape, const MatrixView<Scalar>& dout, MultiGateLayer& gradient,
                InputGradients dinputs) const
    requires kTrainable
  {
    detail::require_apart("moe::MultiGateLayer::backward", "the gradient of gate_tokens", dinputs.gate_tokens,
                          "that of tokens", dinputs.tokens);
    run_backward(inputs, tape, dout, gradient, &dinputs.tokens, &dinputs.gate_tokens);
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass of so many tokens through a layer of these sizes,
  /// `gradient` is another layer of them, and each gate can teach its router.
  void require_backward(Index num_tokens, const Tape& tape, const MultiGateLayer& gradient) const
    requires kTrainable
  {
    constexpr const char* kFunction = "moe::MultiGateLayer::backward";
    detail::require_gate_parts(kFunction, *this);
    detail::require_gate_tape(kFunction, *this, num_tokens, tape);
    if (&gradient == this) fail(kFunction, ": gradient is the layer itself, expected one of its own (zeros_like)");
    if (gradient.num_gates() != num_gates())
      fail(kFunction, ": gradient has ", gradient.num_gates(), " gates, expected ", num_gates());
    for (Index g = 0; g < num_gates(); ++g) {
      const GateTape& own = tape.gates[static_cast<std::size_t>(g)];
      detail::require_gate_losses(kFunction, *this, g, own);
      detail::require_backward_of(kFunction, "gradient of a router", router(g), num_tokens, own.router,
                                  gradient.router(g));
      if constexpr (requires { gate(g).require_backward(Index{}); })
        gate(g).require_backward(std::ssize(mask_.experts(g)));
      detail::require_gradient_of(kFunction, "gradient of a gate", gate(g), gradient.gate(g));
    }
    detail::require_backward_of(kFunction, "gradient.experts", experts_, tape.chosen.plan(), tape.experts,
                                gradient.experts_);
  }

  /// Calls f(part, tape.gates[g]) for every gate, where part.gate() is gate g: how for_each_routed() finds them.
  template <class F>
  void for_each_layer(Tape& tape, const F& f) const {
    for (Index g = 0; g < std::ssize(tape.gates); ++g) f(OneGate{&gate(g)}, tape.gates[static_cast<std::size_t>(g)]);
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if (((rest.num_gates() != first.num_gates()) || ...))
      fail("moe::MultiGateLayer::visit: the layers have different numbers of gates");
    for (Index g = 0; g < first.num_gates(); ++g) {
      visit_part(f, "router." + std::to_string(g), first.router(g), rest.router(g)...);
      visit_part(f, "gate." + std::to_string(g), first.gate(g), rest.gate(g)...);
    }
    visit_part(f, "experts", first.experts_, rest.experts_...);
  }

 private:
  struct OneGate {
    using Scalar = typename R::Scalar;
    const G* of;
    const G& gate() const { return *of; }
  };
  using Memory = detail::MultiGateMemory<Scalar>;

  Index num_logits(Index g) const { return detail::num_logits_of_gate(*this, g); }

  void build_groups(const char* function) {
    for (Index g = 0; g < num_gates(); ++g) all_gates_.push_back(g);
    num_outputs_ = gates_of_group_.empty() ? num_gates() : 0;
    for (std::size_t q = 0; q < gates_of_group_.size(); ++q) {
      const std::vector<Index>& own = gates_of_group_[q];
      num_outputs_ = std::max<Index>(num_outputs_, std::ssize(own));
      for (std::size_t i = 0; i < own.size(); ++i) {
        if (own[i] < 0 || own[i] >= num_gates())
          fail(function, ": group ", q, " names gate ", own[i], ", expected 0 <= gate < ", num_gates());
        if (std::count(own.begin(), own.end(), own[i]) != 1)
          fail(function, ": group ", q, " names gate ", own[i], " more than once, expected once");
      }
    }
    if (num_outputs_ == 0) fail(function, ": no group names a gate, expected at least 1");
  }

  /// The gates that token t goes through; none for padding.
  std::span<const Index> gates_of_token(const Step& step, Index t) const {
    if (!step.is_valid(t)) return {};
    return gates_of_group_.empty() ? all_gates_ : gates_of_group_[static_cast<std::size_t>(step.group(t))];
  }

  /// The step of gate g, in which the tokens that do not go through it are padding, and with draws of its own.
  Step step_of_gate(const Step& step, Index g, Index num_tokens, std::vector<std::uint8_t>& valid) const {
    Step own = g == 0 ? step : detail::step_of_part(step, num_experts() + g);  // experts draw as parts 0, 1, ...
    if (gates_of_group_.empty()) return own;
    valid.resize(static_cast<std::size_t>(num_tokens));
    for (Index t = 0; t < num_tokens; ++t)
      valid[static_cast<std::size_t>(t)] = std::ranges::count(gates_of_token(step, t), g) != 0 ? 1 : 0;
    own.valid = valid;
    return own;
  }

  /// The routers' logits, what `choose` makes of them, and the experts over all choices, with which the tape is whole.
  template <class Choose>
  void run_forward(const char* function, const Inputs& inputs, const Step& step, MatrixRef<Scalar> out, Tape& tape,
                   const Choose& choose) const {
    detail::require_gate_inputs(function, *this, inputs, step, out);
    detail::require_token_groups(function, gates_of_group_, step, inputs.tokens.rows());
    detail::require_apart(function, "out", out, "tokens", inputs.tokens);
    detail::require_apart(function, "out", out, "gate_tokens", inputs.gate_tokens);
    const detail::ExclusiveUse use(function, "tape", tape.use);
    const detail::ExclusiveUse of_scratch(function, "tape.scratch", tape.scratch.use(), detail::Nested::Refused);
    tape.input_dim = 0;
    tape.step = step;
    tape.gates.resize(gates_.size());
    for (Index g = 0; g < num_gates(); ++g) {
      GateTape& own = tape.gates[static_cast<std::size_t>(g)];
      own.step = step_of_gate(step, g, inputs.tokens.rows(), own.valid);
      const Context context(own.step, tape.scratch);
      own.logits.resize(inputs.tokens.rows(), num_logits(g));
      router(g).logits(inputs.gate_tokens, context, own.logits, own.router);
      choose(g, own, context);
      detail::check_gate_routing(g, inputs.tokens.rows(), own.step, own.routing);
    }
    const auto gates_of = [&](Index t) { return gates_of_token(step, t); };
    tape.chosen.build(inputs.tokens.rows(), mask_, routing_of(tape), gates_of);
    tape.rows.resize(tape.chosen.plan().num_rows(), row_width(experts_));
    Scratch& scratch = tape.scratch.template get<Memory>().of_experts;
    experts_.forward(inputs.tokens, tape.chosen.plan(), Context{step, scratch}, tape.rows, tape.experts);
    tape.chosen.gate_rows(routing_of(tape), tape.gate_rows);
    kernel::combine_gates<Scalar>(tape.rows, tape.gate_rows, gates_of, experts_.output_dim(), out);
    tape.input_dim = input_dim();
    tape.gate_dim = gate_dim();
    tape.output_dim = output_dim();
  }

  static auto routing_of(const Tape& tape) {
    return [&](Index g) -> const Routing<Scalar>& { return tape.gates[static_cast<std::size_t>(g)].routing; };
  }

  /// From the experts over the gates to the routers; gradients of inputs are nullptr where nobody asks for them, and
  /// one and the same where gates read the tokens.
  void run_backward(const Inputs& inputs, Tape& tape, const ConstMatrixRef<Scalar>& dout, MultiGateLayer& gradient,
                    MatrixRef<Scalar>* dtokens, MatrixRef<Scalar>* dgate_tokens) const {
    constexpr const char* kFunction = "moe::MultiGateLayer::backward";
    const Index num_tokens = inputs.tokens.rows();
    require_backward(num_tokens, tape, gradient);
    detail::require_shape(kFunction, "tokens", inputs.tokens, num_tokens, input_dim());
    detail::require_shape(kFunction, "gate_tokens", inputs.gate_tokens, num_tokens, gate_dim());
    detail::require_shape(kFunction, "dout", dout, num_tokens, output_dim());
    const auto check = [&](const MatrixRef<Scalar>& d, Index cols) {
      detail::require_shape(kFunction, "the gradient of an input", d, num_tokens, cols);
      detail::require_apart(kFunction, "the gradient of an input", d, "tokens", inputs.tokens);
      detail::require_apart(kFunction, "the gradient of an input", d, "gate_tokens", inputs.gate_tokens);
      detail::require_apart(kFunction, "the gradient of an input", d, "dout", dout);
    };
    if (dtokens != nullptr) check(*dtokens, input_dim());
    if (dgate_tokens != nullptr) check(*dgate_tokens, gate_dim());
    const detail::ExclusiveUse use(kFunction, "tape", tape.use);
    const detail::ExclusiveUse of_scratch(kFunction, "tape.scratch", tape.scratch.use(), detail::Nested::Refused);
    for (Index g = 0; g < num_gates(); ++g) {
      GateTape& own = tape.gates[static_cast<std::size_t>(g)];
      own.step = step_of_gate(tape.step, g, num_tokens, own.valid);  // spans may have moved since: see LayerExpert
      own.dweight.assign(static_cast<std::size_t>(own.routing.num_assignments()), Scalar{0});
    }
    backward_experts(inputs, tape, dout, gradient, dtokens);
    if (dgate_tokens != nullptr && dgate_tokens != dtokens) dgate_tokens->setZero();  // routers add
    for (Index g = 0; g < num_gates(); ++g) backward_gate(g, inputs, tape, gradient, dgate_tokens);
  }

  void backward_experts(const Inputs& inputs, Tape& tape, const ConstMatrixRef<Scalar>& dout, MultiGateLayer& gradient,
                        MatrixRef<Scalar>* dtokens) const {
    tape.chosen.gate_rows(routing_of(tape), tape.gate_rows);  // of this tape, should it be a copy
    auto& memory = tape.scratch.template get<Memory>();
    kernel::combine_gates_backward<Scalar>(
        dout, tape.rows, tape.gate_rows, [&](Index t) { return gates_of_token(tape.step, t); }, experts_.output_dim(),
        [&](Index g) { return std::span<Scalar>(tape.gates[static_cast<std::size_t>(g)].dweight); }, memory.rows);
    const Context context(tape.step, memory.of_experts);
    const auto backward = [&](const auto&... all_or_no_tokens) {
      experts_.backward(inputs.tokens, tape.chosen.plan(), context, tape.experts, memory.rows, gradient.experts_,
                        all_or_no_tokens...);
    };
    if (dtokens != nullptr) return backward(*dtokens);
    if constexpr (SetSkipsTokenGradient<X>)
      backward();
    else
      backward(no_tokens(tape, inputs.tokens.rows(), input_dim()));
  }

  void backward_gate(Index g, const Inputs& inputs, Tape& tape, MultiGateLayer& gradient,
                     MatrixRef<Scalar>* dgate_tokens) const {
    GateTape& own = tape.gates[static_cast<std::size_t>(g)];
    const Context context(own.step, tape.scratch);
    for (std::size_t a = 0; a < own.losses.weight.size(); ++a) own.dweight[a] += own.losses.weight[a];
    gate(g).backward(own.logits, context, own.routing, std::span<const Scalar>(own.dweight), own.losses.probability,
                     own.dlogits, gradient.gate(g));
    detail::require_shape("moe::MultiGateLayer::backward", "dlogits of the gate", own.dlogits, own.logits.rows(),
                          num_logits(g));
    if (own.losses.logits.size() != 0) own.dlogits += own.losses.logits;
    const auto backward = [&](const auto&... all_or_no_tokens) {
      router(g).backward(inputs.gate_tokens, context, own.router, own.dlogits, gradient.router(g), all_or_no_tokens...);
    };
    if (dgate_tokens != nullptr) return backward(*dgate_tokens);
    if constexpr (requires {
                    router(g).backward(inputs.gate_tokens, context, own.router, own.dlogits, gradient.router(g));
                  })
      backward();
    else
      backward(no_tokens(tape, inputs.tokens.rows(), gate_dim()));
  }

  /// Zeros for a part that insists on writing dL/dtokens.
  static MatrixRef<Scalar> no_tokens(Tape& tape, Index num_tokens, Index cols) {
    tape.dtokens.resize(num_tokens, cols);
    tape.dtokens.matrix().setZero();
    return tape.dtokens.matrix();
  }

  std::vector<R> routers_;
  std::vector<G> gates_;
  X experts_;
  ExpertMask mask_;
  std::vector<std::vector<Index>> gates_of_group_;  // none: every token goes through all_gates_
  std::vector<Index> all_gates_;
  detail::ZeroWhenMoved<Index> num_outputs_ = 0;
};

template <class R, class G, class X>
MultiGateLayer(std::vector<R>, std::vector<G>, X, ExpertMask) -> MultiGateLayer<R, G, X>;
template <class R, class G, class X>
MultiGateLayer(std::vector<R>, std::vector<G>, X, ExpertMask, std::vector<std::vector<Index>>)
    -> MultiGateLayer<R, G, X>;
template <class R, class G, class X>
MultiGateLayer(std::vector<R>, G, X, ExpertMask) -> MultiGateLayer<R, G, X>;
template <class R, class G, class X>
MultiGateLayer(std::vector<R>, G, X, ExpertMask, std::vector<std::vector<Index>>) -> MultiGateLayer<R, G, X>;

}  // namespace moe::inline MOE_ABI
