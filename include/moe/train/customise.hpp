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
/// which one answers. A MoeLayer as any other: each row goes to one expert with weight 1, and a local expert runs
/// for no other rows than those that it answers.
///   auto layer = moe::customise(head, moe::Linear::random(10, 96, /*seed=*/1));              // answers as the head
///   moe::fit_local(layer, {features(user.rows), user.labels});
///   moe::fit_gate(layer, {features(more.rows), more.labels}, {features(generic.rows), generic.labels});
///   layer.forward(features(rows), scores, workspace);     // workspace.routing.experts(t)[0]: who answered
/// What the experts read are the features that the deployed model computes anyway, so that the local expert and the
/// gating network may be tiny. A local expert starts as it is given: from one that is all zero only a linear one
/// learns. The gating network also sees how sure expert 0 is (ConfidenceRouter), for which that runs for every row; a
/// whole model as expert 0, which reads the inputs themselves, is better put beside a router of one's own. Nothing goes
/// backward through expert 0: any Expert will do, as one with weights in few bits or a whole layer (LayerExpert). It is
/// shared by copies: users of one device have a layer each, and the model lies once, see share_generic(). Zhang,
/// Davoodi & Hu, "Low-cost customization of deep networks by a local expert and a gating network" (arXiv:1811.00056).
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
  Index samples = 0;          ///< rows that train
  std::uint64_t updates = 0;  ///< each with all of them
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
  std::uint64_t updates = 300;  ///< of AdamW, each with half of the rows; >= 1
  double rate = 0.01;           ///< at first; falls to 0 along a cosine
  double weight_decay = 0.02;
  double max_generic_drop = 0.005;  ///< of accuracy on the generic rows that choose the threshold; in [0, 1]
};

/// How well rows are answered.
struct AnswerReport {
  double generic = 0;     ///< accuracy of expert 0 for all of them
  double customised = 0;  ///< of whom the gate chooses
  double bound = 0;       ///< share that some expert gets right: what the best of all gates would give
  double local = 0;       ///< share that local experts answer
};

struct GateFit {
  AnswerReport user = {}, generic = {};  ///< on the half of the rows that chooses the threshold
  Index informative = 0;  ///< of all rows, a local expert is right and expert 0 not; 0: the gate stays closed
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

  /// Parameters that are new, over those that were there. Throws std::invalid_argument where none were.
  double parameter_overhead() const {
    return ratio("moe::CustomisationCost::parameter_overhead", "parameters",
                 static_cast<double>(local.parameters + gate.parameters), static_cast<double>(generic.parameters));
  }
  /// The same of operations, of a row for which all local experts would run: it is at most that.
  double operation_overhead() const {
    return ratio("moe::CustomisationCost::operation_overhead", "multiply_adds",
                 local.multiply_adds + gate.multiply_adds, generic.multiply_adds);
  }

 private:
  static double ratio(const char* function, const char* what, double added, double before) {
    if (!(before > 0)) fail(function, ": generic.", what, " is ", before, ", expected more than 0");
    return added / before;
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

/// Throws for a layer that was moved from.
template <class R, class H, class L>
void require_parts(const char* function, const CustomisedLayer<R, H, L>& layer) {
  const Index deployed = layer.experts().template set<0>().size(), local = locals_of(layer).size();
  if (deployed != 1 || local < 1)
    fail(function, ": the layer has ", deployed, " deployed models and ", local,
         " local experts, expected 1 and at least 1 (it may have been moved from)");
}

/// Throws unless there are `least` rows that the layer reads, and classes that it knows.
template <class Layer, class S>
void require_rows(const char* function, const char* name, Index least, const Layer& layer,
                  const LabelledRows<S>& data) {
  const Index count = data.rows.rows();
  if (count < least) fail(function, ": ", count, " rows of the ", name, ", expected at least ", least);
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

/// What both fits ask of their options.
template <class Options>
void require_options(const char* function, const Options& options) {
  if (options.updates == 0) fail(function, ": updates is 0, expected at least 1");
  require_factor(function, "rate", options.rate);
  require_factor(function, "weight_decay", options.weight_decay);
}

/// Whether an expert keeps statistics of the batches that it is trained on, as Normalised does.
template <class L>
concept KeepsStatistics = requires(L& expert, const typename L::Tape& tape) { expert.update_statistics(tape); };

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

/// Those of `ids`.
template <class S>
Matrix<S> rows_at(const Matrix<S>& rows, std::span<const Index> ids) {
  Matrix<S> found(std::ssize(ids), rows.cols());
  for (Index t = 0; t < found.rows(); ++t) found.row(t) = rows.row(ids[static_cast<std::size_t>(t)]);
  return found;
}
template <class T>
std::vector<T> entries_at(const std::vector<T>& values, std::span<const Index> ids) {
  std::vector<T> found;
  for (const Index id : ids) found.push_back(values[static_cast<std::size_t>(id)]);
  return found;
}

/// Of all rows, the first num_user of which are the user's, at the gate of `layer` behind `router`. Of local experts
/// that a threshold may round to the same score any may be chosen: what is gained is taken from the worst.
///   right  [experts][rows]
template <class Layer, class R, class S>
std::vector<LocalAnswer> local_answers(const Layer& layer, const R& router, const Matrix<S>& rows,
                                       const std::vector<std::vector<std::uint8_t>>& right, Index num_user,
                                       double apart) {
  const Step step;
  Scratch scratch;
  const Context context(step, scratch);
  Matrix<S> logits(rows.rows(), router.num_experts()), p;
  router.logits(rows, context, logits);
  layer.gate().probabilities(logits, context, p);
  std::vector<LocalAnswer> found;
  for (Index t = 0; t < rows.rows(); ++t) {
    const S* const own = p.row(t).data();
    const auto best = static_cast<double>(*std::max_element(own + 1, own + p.cols()));
    const auto at = static_cast<std::size_t>(t);
    bool is_right = true;
    for (Index e = 1; e < p.cols(); ++e)
      if (static_cast<double>(own[e]) >= best - apart)
        is_right = is_right && right[static_cast<std::size_t>(e)][at] != 0;
    found.push_back({best - static_cast<double>(own[0]), Index{is_right ? 1 : 0} - Index{right[0][at]}, t < num_user});
  }
  return found;
}

/// Of the experts that are right and those that the layer asks, for `rows`, those from `first` on.
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
  for (std::size_t e = 0; e < locals.size(); ++e)
    if (const L& local = locals[e];
        local.input_dim() != generic.input_dim() || local.output_dim() != generic.output_dim())
      fail("moe::customise: local expert ", e, " maps ", local.input_dim(), " to ", local.output_dim(), ", expected ",
           generic.input_dim(), " to ", generic.output_dim(), " as the deployed model");
  TopKGate gate{.k = 1, .constant_weights = ConstantWeights::Accept};
  gate.selection_bias = Eigen::RowVectorXd::Constant(1 + std::ssize(locals), -kNeverLocal);
  gate.selection_bias(0) = 0;
  return {std::move(router), std::move(gate),
          Concatenated(ExpertPool(std::vector<Frozen<H>>(1, generic)), ExpertPool<L>(std::move(locals)))};
}

}  // namespace detail

/// A layer of `generic`, frozen, and local experts behind a closed gate: fit_gate() opens it, and until then all rows
/// are answered as `generic` does, bit for bit. But where scores of `generic` are not finite, neither is the confidence
/// that the default router reads, and the gate throws std::invalid_argument. `router` is the gating network, with a
/// logit for every expert; by default a linear one without knowledge, which reads the features and the confidence of
/// `generic`. Throws std::invalid_argument unless all read and give as many columns, and for no local expert.
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

/// Opens or closes the gate by hand: a local expert answers where its probability, the largest of theirs, is above that
/// of expert 0 by more than `threshold`: at -2 always, at 2 never. Throws std::invalid_argument unless it is finite.
template <class R, class H, class L>
void set_threshold(CustomisedLayer<R, H, L>& layer, double threshold) {
  detail::require_parts("moe::set_threshold", layer);
  if (!std::isfinite(threshold)) fail("moe::set_threshold: threshold is ", threshold, ", expected a finite number");
  layer.gate().selection_bias = Eigen::RowVectorXd::Constant(layer.num_experts(), -threshold);
  layer.gate().selection_bias(0) = 0;
}

/// Lets the default router see the very object that is expert 0: after load_parameters(), which gives both a copy of
/// what the file has for each, the model lies once again. Where users of a device share the model, save and load what
/// is theirs alone, and nothing is copied: layer.experts().set<1>(), layer.router().router() and layer.gate().
template <class R, class H, class L>
void share_generic(CustomisedLayer<ConfidenceRouter<R, H>, H, L>& layer) {
  detail::require_parts("moe::share_generic", layer);
  layer.router() = ConfidenceRouter<R, H>(std::move(layer.router().router()), detail::generic_of(layer));
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
  static_assert(!detail::KeepsStatistics<L>,
                "moe::fit_local: a local Expert with statistics of batches, as moe::Normalised, is not fitted here: "
                "its running statistics would stay as they are");
  detail::require_parts(kFunction, layer);
  detail::require_rows(kFunction, "user", 1, layer, user);
  detail::require_options(kFunction, options);
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
///   threshold  in [-1, 1], or below -1 by some roundings, which every row passes; or 2, which no row reaches
/// of which that is taken which gets most of the user's rows right while no more than a share of max_generic_drop of
/// the generic rows is lost: of those rows that have not trained the network. Every second row trains it, the others
/// choose the threshold, both with rows of each target and class, where there are two of them. In the file of a layer
/// it is the selection bias of its gate.
///   user     of all users of the layer, and none that fit_local() has seen, on which local experts look too good
///   generic  a few hundred rows of what the deployed model was trained for
/// Where no row tells in favour of a local expert the gate is closed, and GateFit::informative 0. Fits are functions of
/// their arguments, with the same bits on any number of threads. Throws std::invalid_argument, and leaves the layer as
/// it is, for less than 2 rows of the user or generic ones, rows or labels that do not fit, numbers that are not
/// finite, and options out of range.
template <class R, class H, class L>
GateFit fit_gate(CustomisedLayer<R, H, L>& layer, const LabelledRows<typename CustomisedLayer<R, H, L>::Scalar>& user,
                 const LabelledRows<typename CustomisedLayer<R, H, L>::Scalar>& generic,
                 const FitGateOptions& options = {}) {
  constexpr const char* kFunction = "moe::fit_gate";
  using S = typename R::Scalar;
  detail::require_parts(kFunction, layer);
  detail::require_rows(kFunction, "user", 2, layer, user);
  detail::require_rows(kFunction, "generic", 2, layer, generic);
  detail::require_options(kFunction, options);
  if (!(options.max_generic_drop >= 0 && options.max_generic_drop <= 1))
    fail(kFunction, ": max_generic_drop is ", options.max_generic_drop, ", expected 0 to 1");
  const Index num_user = user.rows.rows();
  Matrix<S> rows(num_user + generic.rows.rows(), layer.input_dim());
  rows.topRows(num_user) = user.rows;
  rows.bottomRows(generic.rows.rows()) = generic.rows;
  std::vector<Index> labels(user.labels.begin(), user.labels.end());
  labels.insert(labels.end(), generic.labels.begin(), generic.labels.end());
  std::vector<std::vector<std::uint8_t>> right = {
      detail::right_answers<Frozen<H>, S>(detail::generic_of(layer), rows, labels)};
  for (Index e = 0; e < detail::locals_of(layer).size(); ++e)
    right.push_back(detail::right_answers<L, S>(detail::locals_of(layer)[e], rows, labels));
  const std::vector<Index> targets = detail::gate_targets(right);
  const auto [train, held_out] = detail::gate_halves(targets, labels, num_user);
  const Matrix<S> held_rows = detail::rows_at(rows, held_out);
  const auto held_user = std::ranges::count_if(held_out, [&](Index t) { return t < num_user; });
  for (auto& of_expert : right) of_expert = detail::entries_at(of_expert, held_out);

  GateFit fit{.informative = std::ssize(targets) - std::ranges::count(targets, 0), .threshold = detail::kNeverLocal};
  if (fit.informative > 0) {
    constexpr double kApart = 8 * std::numeric_limits<S>::epsilon();
    R router = detail::fitted_router(layer.router(), detail::rows_at(rows, train), detail::entries_at(targets, train),
                                     options);
    auto local = detail::local_answers(layer, router, held_rows, right, held_user, kApart);
    const auto allowed =
        static_cast<Index>(options.max_generic_drop * static_cast<double>(held_rows.rows() - held_user) + 1e-9);
    fit.threshold = detail::best_threshold(std::move(local), allowed, kApart);
    layer.router() = std::move(router);
    fit.cost = {std::ssize(train), options.updates,
                3 * static_cast<double>(moe::num_parameters(layer.router())) * static_cast<double>(train.size()) *
                    static_cast<double>(options.updates)};
  }
  set_threshold(layer, fit.threshold);
  fit.user = detail::answers<S>(layer, held_rows.topRows(held_user), right, 0);
  fit.generic = detail::answers<S>(layer, held_rows.bottomRows(held_rows.rows() - held_user), right, held_user);
  return fit;
}

/// Size and cost of a layer; what makes its features is counted with expert 0. Throws std::invalid_argument for one
/// that was moved from.
///   moe::customisation_cost(layer, trunk).parameter_overhead()
template <class R, class H, class L, class... Features>
CustomisationCost customisation_cost(const CustomisedLayer<R, H, L>& layer, const Features&... features) {
  detail::require_parts("moe::customisation_cost", layer);
  CustomisationCost cost{.generic = detail::cost_of(detail::generic_of(layer)),
                         .local = detail::cost_of(detail::locals_of(layer)),
                         .gate = detail::cost_of_gate(layer.router())};
  ((cost.generic += detail::cost_of(features)), ...);
  return cost;
}

}  // namespace moe::inline MOE_ABI
