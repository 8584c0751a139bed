// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <concepts>
#include <limits>
#include <type_traits>
#include <utility>

#include "moe/core/overlap.hpp"
#include "moe/expert/concept.hpp"
#include "moe/layer/concept.hpp"
#include "moe/routing/balance/load_balancing.hpp"
#include "moe/routing/balance/z_loss.hpp"
#include "moe/train/adam_w.hpp"
#include "moe/train/clip.hpp"
#include "moe/train/concept.hpp"
#include "moe/train/routed_pass.hpp"
#include "moe/train/sgd.hpp"

namespace moe::inline MOE_ABI {

/// What a Trainer does beside the task's loss.
struct TrainerOptions {
  double max_norm = std::numeric_limits<double>::infinity();  ///< gradients are clipped to this norm; > 0
  double balance = 0;  ///< weight of load_balancing_loss(), of each micro-batch by itself; >= 0
  double z_loss = 0;   ///< weight of z_loss(); >= 0

  /// Throws std::invalid_argument unless every number is in its range.
  void validate() const {
    if (!(max_norm > 0)) fail("moe::Trainer: max_norm is ", max_norm, ", expected a value above 0");
    detail::require_factor("moe::Trainer", "balance", balance);
    detail::require_factor("moe::Trainer", "z_loss", z_loss);
  }
};

/// Auxiliary losses of one pass, before their weights; 0 where not asked for.
struct AuxiliaryLosses {
  double balance = 0;  ///< load_balancing_loss()
  double z_loss = 0;
  double other = 0;  ///< what the function given to accumulate() returned
};

/// What became of an update.
struct UpdateResult {
  bool taken = false;        ///< false: NonFinite::Skip, and the gradient was not finite
  double gradient_norm = 0;  ///< before clipping
};

/// What one training step needs beside the layer, and the step itself:
///   moe::Trainer trainer(layer, moe::AdamW{.weight_decay = 0}, {.max_norm = 1.0, .balance = 0.01});
///   for (std::uint64_t update = 0; update < kUpdates; ++update) {
///     const moe::Step step = moe::Step::train(update, seed);
///     const double loss = trainer.accumulate(tokens, step, [&](const auto& output, auto& doutput) {
///       return moe::squared_error(output, target, step, doutput);
///     });
///     trainer.update(rate(update));
///   }
/// Several accumulate() before an update() are micro-batches: their gradients add up, each times its scale. With a
/// scale of (valid tokens of the part) / (valid tokens of all parts), means over tokens become those of the whole
/// batch; random draws do, too, where the parts have the step.token_id of the whole, while a capacity is that of the
/// part. So does the load-balancing loss once it knows what all parts choose, which takes a forward pass over them
/// beforehand (see count_choices()), given to it by hand, with options.balance = 0:
///   trainer.accumulate(part.tokens, part.step, loss_of(part), [&](const moe::RoutedPass<float>& pass) {
///     return moe::load_balancing_loss<float>(pass.probability, pass.routing, pass.step, /*weight=*/0.01, pass.losses,
///                                            {.counts = counts});
///   }, scale_of(part));
/// The same bits as the loop written out with forward, backward, clip_by_norm and step, for any number of threads.
/// Auxiliary losses are those of all routers that for_each_routed() finds: the layer's own, also below branches, those
/// of layers among its experts, and those of the layers that a stack of one's own names in `for_each_layer`, each with
/// the same weight.
///
/// With experts over ranks the gradients of what all ranks have are summed before update(), and clipped by the norm of
/// the whole, as moe/mpi/clip.hpp shows; balance is then that of the tokens of a rank.
///
/// Refers to the layer, which must stay where it is; everything else is the trainer's own: gradient, optimiser state,
/// tape. May be moved, not copied. Not thread-safe; one layer, one trainer. While batches keep their size it allocates
/// what forward, backward, the losses and the optimiser do: names, shapes and partial sums.
template <class Layer, class Optimiser = AdamW>
class Trainer {
  static_assert(!std::is_const_v<Layer>, "moe::Trainer: the layer is const, expected one that training may change");
  static_assert(TrainableLayer<std::remove_const_t<Layer>>,
                "moe::Trainer: a Layer needs `Scalar`, `Tape`, `input_dim()`, `output_dim()`, `forward(..., tape)`, "
                "`backward` and `visit` (see moe/layer/concept.hpp)");
  static_assert(OptimiserOf<Optimiser, std::remove_const_t<Layer>>,
                "moe::Trainer: an Optimiser needs `template <class Layer> struct State` and "
                "`bool step(Layer&, const Layer& gradient, State<Layer>&, double learning_rate) const` "
                "(see moe/train/concept.hpp)");

 public:
  using Scalar = typename Layer::Scalar;
  using Tape = typename Layer::Tape;
  using State = typename Optimiser::template State<Layer>;

  /// Throws std::invalid_argument for numbers out of range, or an auxiliary loss of a layer without a router.
  explicit Trainer(Layer& layer, Optimiser optimiser = {}, TrainerOptions options = {})
      : layer_(&layer),
        optimiser_(std::move(optimiser)),
        options_(options),
        gradient_(zeros_like(layer)),
        state_(std::as_const(layer)) {
    require_options();
    if constexpr (requires { optimiser_.validate(); }) optimiser_.validate();
  }
  Trainer(Trainer&&) = default;
  Trainer& operator=(Trainer&&) = default;

  /// Forward, the task's loss and the auxiliary losses of the options, and backward: the gradient of scale * (loss +
  /// auxiliary losses) is added up. Returns the loss, before the scale.
  ///   tokens  [num_tokens, input_dim]
  ///   loss    double(const Matrix<Scalar>& output, Matrix<Scalar>& doutput): the value of a loss of output
  ///           [num_tokens, output_dim] and its gradient, written over doutput of the same shape, whose rows of padding
  ///           become zero afterwards; doutput is NaN before
  /// Throws std::invalid_argument as forward and backward do, and what `loss` throws; nothing is added up then. Where a
  /// part of one's own throws in the middle of backward, what was accumulated is lost with it: discard() is called.
  template <class Loss>
  double accumulate(const MatrixView<Scalar>& tokens, const Step& step, Loss&& loss, double scale = 1) {
    forward(tokens, step, scale);
    const double value = value_of(loss, step);
    if constexpr (kHasGate)
      if (options_.balance != 0 || options_.z_loss != 0)
        add_losses(options_.balance != 0, [](const RoutedPass<Scalar>&) { return 0.0; });
    backward(tokens, scale);
    return value;
  }

  /// The same with auxiliary losses of one's own, beside those of the options.
  ///   auxiliary  double(const RoutedPass<Scalar>&): adds gradients to its `losses`, times weights of its own; called
  ///              for every router that for_each_routed() finds
  template <class Loss, class Auxiliary>
    requires(!std::convertible_to<Auxiliary, double>)
  double accumulate(const MatrixView<Scalar>& tokens, const Step& step, Loss&& loss, Auxiliary&& auxiliary,
                    double scale = 1) {
    static_assert(
        kHasGate,
        "moe::Trainer: auxiliary losses need a layer that shows its router's part: `gate()` with `tape.logits` "
        "and `tape.routing`, as MoeLayer, `layer()` with `tape.layer`, as WithBranches, or `for_each_layer`, as a "
        "stack "
        "(see moe/train/routed_pass.hpp)");
    static_assert(std::is_invocable_r_v<double, Auxiliary&, const RoutedPass<Scalar>&>,
                  "moe::Trainer: an auxiliary loss is `double(const moe::RoutedPass<Scalar>& pass)` "
                  "(see moe/train/routed_pass.hpp)");
    forward(tokens, step, scale);
    const double value = value_of(loss, step);
    add_losses(true, auxiliary);
    backward(tokens, scale);
    return value;
  }

  /// Clips what has been accumulated, takes a step of the optimiser and starts a new gradient. A gradient that is not
  /// finite is treated as the optimiser's non_finite says, Refuse without one; it is the norm that tells, so that the
  /// optimiser need not look again. Throws std::invalid_argument for nothing accumulated, a learning rate that the
  /// optimiser refuses or a gradient that is not finite: layer and state are as they were, and so is the gradient, but
  /// clipped where the norm was finite; discard() it, or call update() again.
  UpdateResult update(double learning_rate) {
    if (!has_gradient_) fail("moe::Trainer::update: nothing was accumulated since the last update, expected a batch");
    const double norm = clip_by_norm(gradient_, options_.max_norm);
    const bool taken = accepts(norm) && take_step(learning_rate);
    discard();
    return {taken, norm};
  }

  /// Forgets what has been accumulated, as after a batch that update() refused.
  void discard() {
    set_zero(gradient_);
    has_gradient_ = false;
  }

  const Layer& layer() const { return *layer_; }
  const Optimiser& optimiser() const { return optimiser_; }
  /// May be changed between batches.
  TrainerOptions& options() { return options_; }
  const TrainerOptions& options() const { return options_; }
  /// What has been accumulated: to be added up over ranks, or masked, before update().
  Layer& gradient() { return gradient_; }
  const Layer& gradient() const { return gradient_; }
  /// Of the optimiser; to be saved and restored with the layer.
  State& state() { return state_; }
  const State& state() const { return state_; }
  /// Of the last accumulate().
  const Tape& tape() const { return tape_; }
  const Matrix<Scalar>& output() const { return output_; }
  const AuxiliaryLosses& auxiliary() const { return auxiliary_; }

 private:
  static constexpr bool kHasGate = detail::finds_gate<Layer, Tape>();

  void require_options() const {
    options_.validate();
    if (!kHasGate && (options_.balance != 0 || options_.z_loss != 0))
      fail("moe::Trainer: balance is ", options_.balance, " and z_loss is ", options_.z_loss,
           ", expected 0 with a layer that shows no gate and tape of its router");
    if (kIsCollective<Layer> && std::isfinite(options_.max_norm))
      fail("moe::Trainer: max_norm is ", options_.max_norm,
           ", expected infinity with experts over ranks, each of which has a norm of its own (see moe/mpi/clip.hpp)");
  }

  void forward(const ConstMatrixRef<Scalar>& tokens, const Step& step, double scale) {
    constexpr const char* kName = "moe::Trainer::accumulate";
    require_options();
    if (const auto factor = static_cast<Scalar>(scale); !std::isfinite(factor) || (factor == 0 && scale != 0))
      fail(kName, ": scale is ", scale, ", expected a number that the scalar of the layer holds");
    detail::require_apart(kName, "tokens", tokens, "output() of the trainer", output_);
    output_.resize(tokens.rows(), layer_->output_dim());
    layer_->forward(tokens, step, output_, tape_);
    auxiliary_ = {};
  }

  template <class Loss>
  double value_of(Loss& loss, const Step& step) {
    static_assert(std::is_invocable_r_v<double, Loss&, const Matrix<Scalar>&, Matrix<Scalar>&>,
                  "moe::Trainer: a loss is `double(const moe::Matrix<Scalar>& output, moe::Matrix<Scalar>& doutput)` "
                  "(see moe/train/squared_error.hpp)");
    doutput_.setConstant(output_.rows(), output_.cols(), std::numeric_limits<Scalar>::quiet_NaN());
    const double value = loss(std::as_const(output_), doutput_);
    detail::require_shape("moe::Trainer::accumulate", "doutput", doutput_, output_.rows(), output_.cols());
    for (Index t = 0; t < doutput_.rows() && !step.valid.empty(); ++t)
      if (!step.is_valid(t)) doutput_.row(t).setZero();
    return value;
  }

  template <class Auxiliary>
  void add_losses(bool needs_probability, Auxiliary&& auxiliary) {
    detail::visit_gates(*layer_, tape_, [&](const auto& gate, const detail::RoutingOfTape<Scalar>& routed) {
      const auto& [logits, routing, step, losses] = routed;
      if (needs_probability) gate.probabilities(logits, Context{step, scratch_}, probability_);
      if (options_.balance != 0)
        auxiliary_.balance += load_balancing_loss<Scalar>(probability_, routing, step, options_.balance, losses);
      if (options_.z_loss != 0) auxiliary_.z_loss += z_loss<Scalar>(logits, step, options_.z_loss, losses);
      auxiliary_.other += auxiliary(RoutedPass<Scalar>{logits, probability_, routing, step, losses});
    });
  }

  void backward(const ConstMatrixRef<Scalar>& tokens, double scale) {
    if (scale != 1) {
      const auto factor = static_cast<Scalar>(scale);
      doutput_ *= factor;
      detail::visit_gates(*layer_, tape_, [&](const auto&, const detail::RoutingOfTape<Scalar>& routed) {
        routed.losses.probability *= factor;
        routed.losses.logits *= factor;
        for (Scalar& weight : routed.losses.weight) weight *= factor;
      });
    }
    if constexpr (requires { layer_->require_backward(tokens.rows(), tape_, gradient_); })
      layer_->require_backward(tokens.rows(), tape_, gradient_);  // before anything is written
    try {
      if constexpr (SkipsTokenGradient<Layer>) {
        layer_->backward(tokens, tape_, doutput_, gradient_);
      } else {
        detail::require_apart("moe::Trainer::accumulate", "tokens", tokens, "a buffer of the trainer", dtokens_);
        dtokens_.resize(tokens.rows(), tokens.cols());
        layer_->backward(tokens, tape_, doutput_, gradient_, dtokens_);
      }
    } catch (...) {
      discard();
      throw;
    }
    has_gradient_ = true;
  }

  /// Whether a step may be taken with a gradient of this norm.
  bool accepts(double norm) const {
    if (std::isfinite(norm)) return true;
    NonFinite policy = NonFinite::Refuse;
    if constexpr (requires { policy = optimiser_.non_finite; }) policy = optimiser_.non_finite;
    if (policy == NonFinite::Refuse) {
      constexpr const char* kName = "moe::Trainer::update";
      detail::accepts_gradient(kName, policy, gradient_);  // names the parameter
      fail(kName, ": the norm of the gradient is ", norm, ", expected a finite number");
    }
    return policy == NonFinite::Apply;
  }

  bool take_step(double learning_rate) {
    if constexpr (std::copy_constructible<Optimiser> && requires { optimiser_.non_finite = NonFinite::Apply; }) {
      Optimiser unchecked = optimiser_;
      unchecked.non_finite = NonFinite::Apply;
      return unchecked.step(*layer_, gradient_, state_, learning_rate);
    } else {
      return optimiser_.step(*layer_, gradient_, state_, learning_rate);
    }
  }

  Layer* layer_;
  Optimiser optimiser_;
  TrainerOptions options_;
  Layer gradient_;
  State state_;
  bool has_gradient_ = false;
  Tape tape_;
  Matrix<Scalar> output_, doutput_, dtokens_, probability_;
  Scratch scratch_;
  AuxiliaryLosses auxiliary_;
};

}  // namespace moe::inline MOE_ABI
