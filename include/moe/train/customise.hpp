// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/memory_bytes.hpp"
#include "moe/expert/concatenated.hpp"
#include "moe/expert/frozen.hpp"
#include "moe/expert/pool.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/numeric/schedule.hpp"
#include "moe/router/linear.hpp"
#include "moe/router/none.hpp"
#include "moe/train/adam_w.hpp"
#include "moe/train/confidence_router.hpp"
#include "moe/train/cross_entropy.hpp"
#include "moe/train/local_answers.hpp"
#include "moe/train/trainer.hpp"

// Long, as what is fitted, to what, and what it costs are read together: the layer, its local experts, its gate.
namespace moe::inline MOE_ABI {

/// A deployed classifier made fit for a user by few samples of his, without a change to what it does for others: expert
/// 0 is the classifier, frozen; experts 1, 2, ... are local ones, of one user or of several; a gating network decides
/// which one answers. A MoeLayer as any other: each row goes to one expert with weight 1, and only that one runs.
///   auto layer = moe::customise(head, moe::Linear(10, 96));                                  // answers as the head
///   moe::fit_local(layer, {features(user.rows), user.labels});
///   moe::fit_gate(layer, {features(more.rows), more.labels}, {features(generic.rows), generic.labels});
///   layer.forward(features(rows), scores, workspace);     // workspace.routing.experts(t)[0]: who answered
/// What the experts read are the features that the deployed model computes anyway, so that the local expert and the
/// gating network may be tiny. It also sees how sure expert 0 is (ConfidenceRouter), for which that runs for every row;
/// a whole model as expert 0, which reads the inputs themselves, is better put beside a router of one's own. Nothing
/// goes backward through expert 0: any Expert will do, as one with weights in few bits or a whole layer (LayerExpert).
/// It is shared by copies: users of one device have a layer each, and the model lies once. Zhang, Davoodi & Hu,
/// "Low-cost customization of deep networks by a local expert and a gating network" (arXiv:1811.00056).
template <class R, class H, class L>
using CustomisedLayer = MoeLayer<R, TopKGate, Concatenated<ExpertPool<Frozen<H>>, ExpertPool<L>>>;

/// Rows [num_rows, input_dim] and the class of each. Refers to the caller's memory.
template <class S>
struct LabelledRows {
  ConstMatrixRef<S> rows;
  std::span<const Index> labels;
};

/// What a fit has cost.
struct FitCost {
  Index samples = 0;          ///< rows
  std::uint64_t updates = 0;  ///< each with all rows
  double multiply_adds = 0;   ///< per row and update 3 for every parameter: forward, and twice as much back
};

struct FitLocalOptions {
  Index expert = 1;             ///< which one: 1 to num_experts - 1
  std::uint64_t updates = 300;  ///< of AdamW, each with all rows; >= 1
  double rate = 0.01;           ///< at first; falls to 0 along a cosine
  double weight_decay = 0.02;
  double emphasis = 0;  ///< rows that expert 0 gets wrong weigh 1 + emphasis, others 1; >= 0
};

struct LocalFit {
  double loss = 0;              ///< cross-entropy of the last update
  double generic_accuracy = 0;  ///< of expert 0 on the rows of the fit
  double local_accuracy = 0;    ///< of the local expert on the same rows, which it has seen
  FitCost cost = {};
};

struct FitGateOptions {
  std::uint64_t updates = 300;  ///< of AdamW, each with all rows; >= 1
  double rate = 0.01;           ///< at first; falls to 0 along a cosine
  double weight_decay = 0.02;
  double max_generic_drop = 0.005;  ///< of accuracy on the generic rows; in [0, 1]
};

/// How well rows are answered.
struct AnswerReport {
  double generic = 0;     ///< accuracy of expert 0 for all of them
  double customised = 0;  ///< of whom the gate chooses
  double bound = 0;       ///< share that some expert gets right: what the best of all gates would give
  double local = 0;       ///< share that local experts answer
};

struct GateFit {
  AnswerReport user = {}, generic = {};  ///< on the rows of the fit
  Index informative = 0;  ///< rows that a local expert gets right and expert 0 does not; 0: the gate stays closed
  double threshold = 0;   ///< see fit_gate()
  FitCost cost = {};
};

/// Size and cost of a part of a layer.
struct PartCost {
  Index parameters = 0;      ///< scalars that a file of it has
  std::size_t bytes = 0;     ///< in memory, with the padding of panels
  double multiply_adds = 0;  ///< per row: one for every entry of a matrix, which is right for Linear, Mlp and Glu

  PartCost& operator+=(const PartCost& other) {
    parameters += other.parameters;
    bytes += other.bytes;
    multiply_adds += other.multiply_adds;
    return *this;
  }
};

/// Of a CustomisedLayer: expert 0, with what makes its features; all local experts; the gating network, which runs
/// expert 0 once more where it asks for its confidence.
struct CustomisationCost {
  PartCost generic = {}, local = {}, gate = {};

  /// Parameters that are new, over those that were there.
  double parameter_overhead() const {
    return static_cast<double>(local.parameters + gate.parameters) / static_cast<double>(generic.parameters);
  }
};

namespace detail {

template <class T>
PartCost cost_of(const T& part) {
  PartCost cost{.bytes = memory_bytes(part)};
  visit_all(
      [&](const std::string&, const auto& leaf) {
        cost.parameters += parameter_size(leaf);
        if (parameter_shape(leaf).size() == 2) cost.multiply_adds += static_cast<double>(parameter_size(leaf));
      },
      part);
  return cost;
}

template <class R, class H, class L>
const Frozen<H>& generic_of(const CustomisedLayer<R, H, L>& layer) {
  return layer.experts().template set<0>()[0];
}
template <class R, class H, class L>
const ExpertPool<L>& locals_of(const CustomisedLayer<R, H, L>& layer) {
  return layer.experts().template set<1>();
}

/// Local experts are chosen where the probability of the best of them is above that of expert 0 by more than this.
template <class Layer>
void set_threshold(Layer& layer, double threshold) {
  layer.gate().selection_bias = Eigen::RowVectorXd::Constant(layer.num_experts(), -threshold);
  layer.gate().selection_bias(0) = 0;
}

/// Throws unless there are rows that the layer reads, and classes that it knows.
template <class Layer, class S>
void require_rows(const char* function, const char* name, const Layer& layer, const LabelledRows<S>& data) {
  const Index count = data.rows.rows();
  if (count == 0) fail(function, ": 0 rows of the ", name, ", expected at least 1");
  require_shape(function, name, data.rows, count, layer.input_dim());
  if (std::ssize(data.labels) != count)
    fail(function, ": ", data.labels.size(), " labels of the ", name, ", expected ", count, " as there are rows");
  for (Index t = 0; t < count; ++t) {
    const Index label = data.labels[static_cast<std::size_t>(t)];
    if (label < 0 || label >= layer.output_dim())
      fail(function, ": label ", t, " of the ", name, " is ", label,
           ", expected 0 to num_classes - 1 = ", layer.output_dim() - 1);
    for (Index c = 0; c < data.rows.cols(); ++c)
      if (!std::isfinite(data.rows(t, c)))
        fail(function, ": row ", t, " of the ", name, " has ", data.rows(t, c), ", expected finite numbers");
  }
}

inline void require_updates(const char* function, std::uint64_t updates) {
  if (updates == 0) fail(function, ": updates is 0, expected at least 1");
}

/// `router` trained to score targets[t] highest for row t; experts that do nothing stand below it.
template <class R>
R fitted_router(R router, const Matrix<typename R::Scalar>& rows, std::span<const Index> targets,
                const FitGateOptions& options) {
  using S = typename R::Scalar;
  using Idle = BasicScaledIdentity<CodecOf<S>>;
  static_assert(DifferentiableRouter<R>,
                "moe::fit_gate: a Router that is fitted needs logits(..., tape), backward and visit "
                "(see moe/router/concept.hpp)");
  const std::vector<double> weights = balanced_weights(targets);
  const auto num_experts = static_cast<std::size_t>(router.num_experts());
  MoeLayer layer(std::move(router), TopKGate{.k = 1, .constant_weights = ConstantWeights::Accept},
                 ExpertPool<Idle>(std::vector<Idle>(num_experts, Idle{rows.cols(), 0})));
  Trainer trainer(layer, AdamW{.weight_decay = options.weight_decay});
  const CosineSchedule rate{.start = options.rate, .end = 0, .updates = options.updates};
  Matrix<S> dlogits;
  for (std::uint64_t update = 0; update < options.updates; ++update) {
    trainer.accumulate(
        rows, Step::train(update),
        [](const auto&, auto& doutput) {
          doutput.setZero();
          return 0.0;
        },
        [&](const RoutedPass<S>& pass) {
          const double loss = cross_entropy<S>(pass.logits, targets, weights, pass.step, dlogits);
          accumulator("moe::fit_gate", "losses.logits", pass.losses.logits, dlogits.rows(), dlogits.cols()) += dlogits;
          return loss;
        });
    trainer.update(rate(update));
  }
  return std::move(layer.router());
}

template <class R, class H>
ConfidenceRouter<R, H> fitted_router(ConfidenceRouter<R, H> router, const Matrix<typename R::Scalar>& rows,
                                     std::span<const Index> targets, const FitGateOptions& options) {
  const Step step;
  Scratch scratch;
  RowBuffer<typename R::Scalar> inputs;
  router.inputs(rows, Context(step, scratch), inputs);
  router.router() = fitted_router(router.router(), Matrix<typename R::Scalar>(inputs.matrix()), targets, options);
  return router;
}

/// What a gating network has of its own, and what it costs per row.
template <class R>
PartCost cost_of_gate(const R& router) {
  return cost_of(router);
}
template <class R, class H>
PartCost cost_of_gate(const ConfidenceRouter<R, H>& router) {
  PartCost cost = cost_of(router.router());
  cost.multiply_adds += cost_of(router.generic()).multiply_adds;
  return cost;
}

/// Of all rows, the first num_user of which are the user's, at the gate of `layer` behind `router`.
///   right  [experts][rows]
template <class Layer, class R, class S>
std::vector<LocalAnswer> local_answers(const Layer& layer, const R& router, const Matrix<S>& rows,
                                       const std::vector<std::vector<std::uint8_t>>& right, Index num_user) {
  const Step step;
  Scratch scratch;
  const Context context(step, scratch);
  Matrix<S> logits(rows.rows(), router.num_experts()), p;
  router.logits(rows, context, logits);
  layer.gate().probabilities(logits, context, p);
  std::vector<LocalAnswer> found;
  for (Index t = 0; t < rows.rows(); ++t) {
    const S* const own = p.row(t).data();
    const Index best = std::max_element(own + 1, own + p.cols()) - own;
    const auto at = static_cast<std::size_t>(t);
    found.push_back({static_cast<double>(own[best]) - static_cast<double>(own[0]),
                     Index{right[static_cast<std::size_t>(best)][at]} - Index{right[0][at]}, t < num_user});
  }
  return found;
}

/// Of the experts that are right and those that the layer asks, for the rows from `first` on.
template <class S, class Layer>
AnswerReport answers(const Layer& layer, const ConstMatrixRef<S>& rows,
                     const std::vector<std::vector<std::uint8_t>>& right, Index first) {
  BasicWorkspace<S> ws;
  Matrix<S> out(rows.rows(), layer.output_dim());
  layer.forward(rows, Step{}, out, ws);
  AnswerReport report;
  for (Index t = 0; t < rows.rows(); ++t) {
    const auto chosen = static_cast<std::size_t>(ws.routing.experts(t)[0]);
    const auto at = static_cast<std::size_t>(first + t);
    const bool any = std::ranges::any_of(right, [&](const auto& of_expert) { return of_expert[at] != 0; });
    report.generic += right[0][at];
    report.customised += right[chosen][at];
    report.bound += any ? 1 : 0;
    report.local += chosen > 0 ? 1 : 0;
  }
  for (double* sum : {&report.generic, &report.customised, &report.bound, &report.local})
    *sum /= static_cast<double>(rows.rows());
  return report;
}

template <class H, class L, class R>
CustomisedLayer<R, H, L> customised(const Frozen<H>& generic, std::vector<L> locals, R router) {
  if (locals.empty()) fail("moe::customise: 0 local experts, expected at least 1");
  TopKGate gate{.k = 1, .constant_weights = ConstantWeights::Accept};
  gate.selection_bias = Eigen::RowVectorXd::Constant(1 + std::ssize(locals), -kNeverLocal);
  gate.selection_bias(0) = 0;
  return {std::move(router), std::move(gate),
          Concatenated(ExpertPool(std::vector<Frozen<H>>(1, generic)), ExpertPool<L>(std::move(locals)))};
}

}  // namespace detail

/// A layer of `generic`, frozen, and local experts behind a closed gate: fit_gate() opens it, and until then all rows
/// are answered as `generic` does, bit for bit. `router` is the gating network, with a logit for every expert; by
/// default a linear one without knowledge, which reads the features and the confidence of `generic`. Throws
/// std::invalid_argument unless all read and give as many columns, and for no local expert.
template <Expert H, Expert L, Router R>
CustomisedLayer<R, H, L> customise(H generic, std::vector<L> locals, R router) {
  return detail::customised(Frozen<H>(std::move(generic)), std::move(locals), std::move(router));
}
template <Expert H, Expert L>
auto customise(H generic, std::vector<L> locals) {
  using Gating = BasicLinearRouter<CodecOf<typename H::Scalar>>;
  using Confident = ConfidenceRouter<Gating, H>;
  const Frozen<H> shared(std::move(generic));
  Gating gating(1 + std::ssize(locals), shared.input_dim() + Confident::kColumns, Bias::Zero);
  return detail::customised(shared, std::move(locals), Confident(std::move(gating), shared));
}
template <Expert H, Expert L>
auto customise(H generic, L local) {
  std::vector<L> locals;
  locals.push_back(std::move(local));
  return customise(std::move(generic), std::move(locals));
}

/// Trains a local expert on some samples of a user, 5 to 20 per class, by cross-entropy; everything else stays. Where
/// the gate is open it should be fitted anew. Fits are functions of their arguments, with the same bits on any number
/// of threads. Throws std::invalid_argument, and leaves the layer as it is, for no rows, rows or labels that do not fit
/// it, numbers that are not finite, and options out of range.
template <class R, class H, class L>
LocalFit fit_local(CustomisedLayer<R, H, L>& layer, const LabelledRows<typename CustomisedLayer<R, H, L>::Scalar>& user,
                   const FitLocalOptions& options = {}) {
  constexpr const char* kFunction = "moe::fit_local";
  using S = typename R::Scalar;
  static_assert(DifferentiableExpert<L>,
                "moe::fit_local: a local Expert needs forward(..., tape), backward and visit "
                "(see moe/expert/concept.hpp)");
  detail::require_rows(kFunction, "user", layer, user);
  detail::require_updates(kFunction, options.updates);
  if (options.expert < 1 || options.expert >= layer.num_experts())
    fail(kFunction, ": expert is ", options.expert, ", expected 1 to num_experts - 1 = ", layer.num_experts() - 1);
  detail::require_factor(kFunction, "emphasis", options.emphasis);
  L& local = layer.experts().template set<1>()[options.expert - 1];
  const std::vector<std::uint8_t> before =
      detail::right_answers<Frozen<H>, S>(detail::generic_of(layer), user.rows, user.labels);
  std::vector<double> weights;
  for (const std::uint8_t right : before) weights.push_back(right ? 1 : 1 + options.emphasis);

  MoeLayer alone(BasicNoRouter<CodecOf<S>>(1, layer.input_dim()), TopKGate{.k = 1},
                 ExpertPool<L>(std::vector<L>(1, local)));
  Trainer trainer(alone, AdamW{.weight_decay = options.weight_decay});
  const CosineSchedule rate{.start = options.rate, .end = 0, .updates = options.updates};
  LocalFit fit{.generic_accuracy = detail::share(before)};
  for (std::uint64_t update = 0; update < options.updates; ++update) {
    const Step step = Step::train(update);
    fit.loss = trainer.accumulate(user.rows, step, [&](const auto& scores, auto& dscores) {
      return cross_entropy<S>(scores, user.labels, weights, step, dscores);
    });
    trainer.update(rate(update));
  }
  local = alone.experts()[0];
  fit.local_accuracy = detail::share(detail::right_answers<L, S>(local, user.rows, user.labels));
  fit.cost = {user.rows.rows(), options.updates,
              3 * static_cast<double>(moe::num_parameters(local)) * static_cast<double>(user.rows.rows()) *
                  static_cast<double>(options.updates)};
  return fit;
}

/// Trains the gating network: a local expert is to answer where it is right and expert 0 wrong, expert 0 everywhere
/// else. By cross-entropy, targets weighed so that each of them counts alike. Then the threshold: a local expert
/// answers where the probability that the network gives it is above that of expert 0 by more than
///   threshold  in [-1, 1]; or 2, which no row reaches
/// of which that is taken which gets most of the user's rows right while no more than a share of max_generic_drop of
/// the generic rows is lost. In the file of a layer it is the selection bias of its gate.
///   user     of all users of the layer, and none that fit_local() has seen, on which local experts look too good
///   generic  a few hundred rows of what the deployed model was trained for
/// Where no row tells in favour of a local expert the gate is closed, and GateFit::informative 0. Fits are functions of
/// their arguments, with the same bits on any number of threads. Throws std::invalid_argument, and leaves the layer as
/// it is, for no rows of the user or no generic ones, rows or labels that do not fit, numbers that are not finite, and
/// options out of range.
template <class R, class H, class L>
GateFit fit_gate(CustomisedLayer<R, H, L>& layer, const LabelledRows<typename CustomisedLayer<R, H, L>::Scalar>& user,
                 const LabelledRows<typename CustomisedLayer<R, H, L>::Scalar>& generic,
                 const FitGateOptions& options = {}) {
  constexpr const char* kFunction = "moe::fit_gate";
  using S = typename R::Scalar;
  detail::require_rows(kFunction, "user", layer, user);
  detail::require_rows(kFunction, "generic rows", layer, generic);
  detail::require_updates(kFunction, options.updates);
  if (!(options.max_generic_drop >= 0 && options.max_generic_drop <= 1))
    fail(kFunction, ": max_generic_drop is ", options.max_generic_drop, ", expected 0 to 1");
  const Index num_user = user.rows.rows(), num_generic = generic.rows.rows();
  Matrix<S> rows(num_user + num_generic, layer.input_dim());
  rows.topRows(num_user) = user.rows;
  rows.bottomRows(num_generic) = generic.rows;
  std::vector<Index> labels(user.labels.begin(), user.labels.end());
  labels.insert(labels.end(), generic.labels.begin(), generic.labels.end());
  std::vector<std::vector<std::uint8_t>> right = {
      detail::right_answers<Frozen<H>, S>(detail::generic_of(layer), rows, labels)};
  for (Index e = 0; e < detail::locals_of(layer).size(); ++e)
    right.push_back(detail::right_answers<L, S>(detail::locals_of(layer)[e], rows, labels));
  const std::vector<Index> targets = detail::gate_targets(right);

  GateFit fit{.informative = std::ssize(targets) - std::ranges::count(targets, 0), .threshold = detail::kNeverLocal};
  if (fit.informative > 0) {
    R router = detail::fitted_router(layer.router(), rows, targets, options);
    auto local = detail::local_answers(layer, router, rows, right, num_user);
    const auto allowed = static_cast<Index>(options.max_generic_drop * static_cast<double>(num_generic) + 1e-9);
    fit.threshold = detail::best_threshold(std::move(local), allowed, 8 * std::numeric_limits<S>::epsilon());
    layer.router() = std::move(router);
    fit.cost = {rows.rows(), options.updates,
                3 * static_cast<double>(moe::num_parameters(layer.router())) * static_cast<double>(rows.rows()) *
                    static_cast<double>(options.updates)};
  }
  detail::set_threshold(layer, fit.threshold);
  fit.user = detail::answers<S>(layer, user.rows, right, 0);
  fit.generic = detail::answers<S>(layer, generic.rows, right, num_user);
  return fit;
}

/// Size and cost of a layer; what makes its features is counted with expert 0.
///   moe::customisation_cost(layer, trunk).parameter_overhead()
template <class R, class H, class L, class... Features>
CustomisationCost customisation_cost(const CustomisedLayer<R, H, L>& layer, const Features&... features) {
  CustomisationCost cost{.generic = detail::cost_of(detail::generic_of(layer)),
                         .local = detail::cost_of(detail::locals_of(layer)),
                         .gate = detail::cost_of_gate(layer.router())};
  ((cost.generic += detail::cost_of(features)), ...);
  return cost;
}

}  // namespace moe::inline MOE_ABI
