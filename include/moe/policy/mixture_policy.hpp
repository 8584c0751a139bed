// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "moe/expert/concept.hpp"
#include "moe/layer/concept.hpp"
#include "moe/layer/separate_experts.hpp"
#include "moe/layer/structure.hpp"
#include "moe/policy/diagonal_mixture.hpp"

namespace moe::inline MOE_ABI {

/// What a MixturePolicy makes of the outputs of its experts.
struct PolicyOptions {
  Index action_dim = 1;                      ///< at least 1
  double min_log_std = -5, max_log_std = 2;  ///< log standard deviations are clipped to these; see DiagonalMixture
  ActionRange range = {.squash = Squash::Tanh, .scale = 1};  ///< of actions

  /// Throws std::invalid_argument unless every number is in its range.
  void validate() const {
    detail::checked_size("moe::MixturePolicy", "action_dim", action_dim, 1);
    if (!(min_log_std < max_log_std) || !std::isfinite(min_log_std) || !std::isfinite(max_log_std))
      fail("moe::MixturePolicy: min_log_std is ", min_log_std, " and max_log_std is ", max_log_std,
           ", expected finite numbers, the first below the second");
    range.validate();
  }
};

/// Which action of a mixture: a draw, or the mean of the component with the largest weight.
enum class ActionChoice { Sample, MostProbable };

/// A stochastic policy whose actions are a mixture of Gaussians (PMOE): the gate's weights are those of the components,
/// and expert k gives the mean and the log standard deviations of component k in its 2 * action_dim outputs. The layer
/// is any whose rows are those of SeparateExperts:
///   moe::MixturePolicy policy(moe::MoeLayer(moe::LinearRouter::random(4, 17, 1), moe::SoftmaxGate{},
///       moe::SeparateExperts(moe::ExpertPool<moe::Mlp>::random(4, {.input = 17, .hidden = 64, .output = 12}, 2))),
///       {.action_dim = 6});
///   policy.act(states, step, moe::ActionChoice::Sample, actions, ws);
/// To train it: forward() gives tape.mixture, a DiagonalMixture; a MixtureEstimator, log_density_backward() or a loss
/// of one's own makes the gradient of it, and backward() takes that through experts, gate and router. Optimisers and
/// files see the parameters of the layer. Weights are divided by their sum. A weight of at most 2^-100, or 2^-100 of
/// the sum, counts as 0 and gets no gradient; neither does a log standard deviation beyond its limits; a row without
/// weights that count, as of padding, has equal ones. From finite rows come finite means, deviations and gradients. A
/// weight below 0, as a gate of signed weights may give, is refused; one that is NaN or infinite makes all log weights
/// of its row NaN. Immutable in use, share freely. Same bits for any number of threads and, where kPerToken, whatever
/// else is in the batch. No allocation when warm, where the layer does not. Ren, Li, Ding, Pan & Dong, "Probabilistic
/// mixture-of-experts for efficient deep reinforcement learning" (arXiv:2104.09122).
template <class Layer>
class MixturePolicy {
  static_assert(InferenceLayer<Layer>,
                "moe::MixturePolicy: a layer needs `Scalar`, `kPerToken`, `input_dim()`, `output_dim()` and "
                "`forward(tokens, step, out, workspace)` (see moe/layer/concept.hpp)");

 public:
  using Scalar = typename Layer::Scalar;
  static constexpr bool kPerToken = Layer::kPerToken;
  static constexpr bool kCollective = kIsCollective<Layer>;

  struct Workspace {
    BasicWorkspace<Scalar> layer;
    Matrix<Scalar> out;
    DiagonalMixture<Scalar> mixture;  ///< of the last call
  };
  /// What forward leaves for backward.
  struct Tape {
    detail::TapeOf<Layer> layer;
    Matrix<Scalar> out, dout;
    DiagonalMixture<Scalar> mixture;
  };

  /// Throws std::invalid_argument for options out of range, and unless the layer gives num_experts() times
  /// 1 + 2 action_dim columns. Of a layer without num_experts() only a multiple of that is asked for, so that a wrong
  /// action_dim may pass as another number of components.
  MixturePolicy(Layer layer, PolicyOptions options) : layer_(std::move(layer)), options_(options) {
    options_.validate();
    const Index width = 1 + 2 * options_.action_dim, columns = layer_.output_dim();
    if constexpr (requires(const Layer& of) { of.num_experts(); }) {
      if (const Index count = layer_.num_experts(); count < 1 || columns != count * width)
        fail("moe::MixturePolicy: the layer gives ", columns,
             " columns, expected num_experts (1 + 2 action_dim) = ", count, " * ", width,
             ", as SeparateExperts around experts with 2 action_dim outputs gives");
    }
    if (columns < width || columns % width != 0)
      fail("moe::MixturePolicy: the layer gives ", columns,
           " columns, expected a multiple of 1 + 2 action_dim = ", width,
           ", as SeparateExperts around experts with 2 action_dim outputs gives");
  }

  Index state_dim() const { return layer_.input_dim(); }
  Index action_dim() const { return options_.action_dim; }
  Index num_components() const { return layer_.output_dim() / (1 + 2 * options_.action_dim); }
  Layer& layer() { return layer_; }
  const Layer& layer() const { return layer_; }
  const PolicyOptions& options() const { return options_; }

  /// The mixtures of states [num_states, state_dim], in inference: ws.mixture. Throws std::invalid_argument as the
  /// layer does, and for a weight below 0.
  const DiagonalMixture<Scalar>& mixture(const MatrixView<Scalar>& states, const Step& step, Workspace& ws) const {
    ws.out.resize(states.rows(), layer_.output_dim());
    layer_.forward(states, step, ws.out, ws.layer);
    read(ws.out, ws.mixture);
    return ws.mixture;
  }

  /// An action of each state: actions [num_states, action_dim], overwritten. Draws are those of
  /// DiagonalMixture::sample(). Throws std::invalid_argument on wrong shapes and as mixture() does.
  void act(const MatrixView<Scalar>& states, const Step& step, ActionChoice choice, MatrixRef<Scalar> actions,
           Workspace& ws) const {
    detail::require_shape("moe::MixturePolicy::act", "actions", actions, states.rows(), action_dim());
    mixture(states, step, ws);
    if (choice == ActionChoice::Sample)
      ws.mixture.sample(step, actions);
    else
      ws.mixture.most_probable(actions);
    for (Index t = 0; t < actions.rows(); ++t)
      for (Index d = 0; d < actions.cols(); ++d)
        actions(t, d) = static_cast<Scalar>(options_.range.action(static_cast<double>(actions(t, d))));
  }

  /// The mixtures of states, and what backward needs: tape.mixture. The step's spans must outlive backward. Throws
  /// std::invalid_argument as mixture() does.
  void forward(const MatrixView<Scalar>& states, const Step& step, Tape& tape) const
    requires TrainableLayer<Layer>
  {
    tape.out.resize(states.rows(), layer_.output_dim());
    layer_.forward(states, step, tape.out, tape.layer);
    read(tape.out, tape.mixture);
  }

  /// From the gradient of tape.mixture to `gradient`, accumulated into, and dstates [num_states, state_dim],
  /// overwritten. Throws std::invalid_argument on wrong shapes and as the layer does.
  void backward(const MatrixView<Scalar>& states, Tape& tape, const DiagonalMixture<Scalar>& dmixture,
                MixturePolicy& gradient, MatrixRef<Scalar> dstates) const
    requires TrainableLayer<Layer>
  {
    write_gradient(tape, dmixture);
    layer_.backward(states, tape.layer, tape.dout, gradient.layer_, dstates);
  }
  /// The same for states that nobody trains.
  void backward(const MatrixView<Scalar>& states, Tape& tape, const DiagonalMixture<Scalar>& dmixture,
                MixturePolicy& gradient) const
    requires SkipsTokenGradient<Layer>
  {
    write_gradient(tape, dmixture);
    layer_.backward(states, tape.layer, tape.dout, gradient.layer_);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.layer_...);
  }

 private:
  static constexpr double kLeastWeight = 0x1p-100;  // 1 / weight times a gradient is a number in float, too
  static constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

  double limited(Scalar log_std) const {
    return std::clamp(static_cast<double>(log_std), options_.min_log_std, options_.max_log_std);
  }
  /// What the weights of a row are compared with and divided by; NaN where one is no number.
  struct Total {
    double least = 0, sum = 0;
    bool counts(Scalar weight) const { return !(static_cast<double>(weight) <= least); }
  };
  static Total total_of(const Scalar* weight, Index count) {
    double all = 0;
    for (Index k = 0; k < count; ++k) all += static_cast<double>(weight[k]);
    if (!std::isfinite(all)) return {kNan, kNan};
    Total total{kLeastWeight * std::max(1.0, all), 0};
    for (Index k = 0; k < count; ++k)
      if (total.counts(weight[k])) total.sum += static_cast<double>(weight[k]);
    return total;
  }

  void read(const Matrix<Scalar>& out, DiagonalMixture<Scalar>& mixture) const {
    const Index count = num_components(), dim = action_dim();
    mixture.resize(out.rows(), count, dim);
    mixture.range = options_.range;
    for (Index t = 0; t < out.rows(); ++t) {
      const Scalar *const weight = out.row(t).data(), *from = weight + count;
      const Total total = total_of(weight, count);
      for (Index k = 0; k < count; ++k) {
        if (weight[k] < 0)
          fail("moe::MixturePolicy: weight ", k, " of row ", t, " is ", weight[k], ", expected none below 0");
        double log_weight = -std::log(static_cast<double>(count));
        if (total.sum != 0)
          log_weight = total.counts(weight[k]) ? std::log(static_cast<double>(weight[k])) - std::log(total.sum)
                                               : -std::numeric_limits<double>::infinity();
        mixture.log_weight(t, k) = static_cast<Scalar>(log_weight);
        for (Index d = 0; d < dim; ++d) mixture.mean(t, k * dim + d) = *from++;
        for (Index d = 0; d < dim; ++d) mixture.log_std(t, k * dim + d) = static_cast<Scalar>(limited(*from++));
      }
    }
  }

  /// tape.dout: with v_k = weight_k / sum, dweight_k = (dlog v_k - v_k sum_j dlog v_j) / weight_k.
  void write_gradient(Tape& tape, const DiagonalMixture<Scalar>& dmixture) const {
    constexpr const char* kName = "moe::MixturePolicy::backward";
    const Index count = num_components(), dim = action_dim();
    detail::require_shape(kName, "dmixture.log_weight", dmixture.log_weight, tape.out.rows(), count);
    detail::require_shape(kName, "dmixture.mean", dmixture.mean, tape.out.rows(), count * dim);
    detail::require_shape(kName, "dmixture.log_std", dmixture.log_std, tape.out.rows(), count * dim);
    tape.dout.setZero(tape.out.rows(), tape.out.cols());
    for (Index t = 0; t < tape.out.rows(); ++t) {
      const Scalar *const weight = tape.out.row(t).data(), *from = weight + count;
      Scalar *const dweight = tape.dout.row(t).data(), *to = dweight + count;
      const Total total = total_of(weight, count);
      double all = 0;
      for (Index k = 0; k < count; ++k)
        if (total.counts(weight[k])) all += static_cast<double>(dmixture.log_weight(t, k));
      for (Index k = 0; k < count; ++k) {
        if (const auto own = static_cast<double>(weight[k]); total.counts(weight[k]))
          dweight[k] = static_cast<Scalar>(static_cast<double>(dmixture.log_weight(t, k)) / own - all / total.sum);
        for (Index d = 0; d < dim; ++d) to[d] = dmixture.mean(t, k * dim + d);
        for (Index d = dim; d < 2 * dim; ++d)
          if (limited(from[d]) == static_cast<double>(from[d])) to[d] = dmixture.log_std(t, k * dim + d - dim);
        from += 2 * dim;
        to += 2 * dim;
      }
    }
  }

  Layer layer_;
  PolicyOptions options_;
};

/// The policy whose component i is component ids[i] of this one; see take_experts() of layers. Weights are those of a
/// softmax over the taken ones. Throws std::invalid_argument as that does.
template <class Layer>
MixturePolicy<Layer> take_experts(const MixturePolicy<Layer>& policy, ExpertIds ids) {
  return {take_experts(policy.layer(), ids), policy.options()};
}

}  // namespace moe::inline MOE_ABI
