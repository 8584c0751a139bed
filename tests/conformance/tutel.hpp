// SPDX-License-Identifier: MIT
// The gates, losses and the cosine router of Tutel.
#pragma once

#include <moe/router/cosine.hpp>
#include <moe/routing/balance/importance.hpp>
#include <moe/routing/balance/load.hpp>

#include "routers.hpp"

namespace check {

inline void check_tutel_cosine(Variant& v) {
  const Matrix<float> tokens = v.matrix("input"), weight = v.matrix("w_cosine_projector_weight", kAny, tokens.cols());
  const bool with_bias = v.has("w_cosine_projector_bias");
  const auto bias = with_bias ? v.numbers("w_cosine_projector_bias", weight.rows()) : std::vector<float>{};
  const Matrix<float> columns = v.matrix("w_sim_matrix", weight.rows());
  moe::CosineRouter router(columns.cols(), weight.cols(), weight.rows(), with_bias ? moe::Bias::Zero : moe::Bias::Off);
  router.projection() = linear_router(weight, bias);
  router.vectors().write(span_of(Matrix<float>(columns.transpose())));
  router.temperature() = static_cast<double>(v.numbers("w_temperature", 1)[0]);
  require_size("logits", tokens.rows(), columns.cols());
  Matrix<float> logits(tokens.rows(), columns.cols());
  router.logits(tokens, moe::Step{}, logits);
  v.near("logits", logits);
  v.same_fact("d_model", weight.cols());
  v.same_fact("proj_dim", weight.rows());
}

/// The mean of the two losses. Load compares scores, which are probabilities, with the k-th largest noisy logit.
inline void check_tutel_losses(Variant& v) {
  const Matrix<float> scores = v.matrix("scores_wo_noise");
  const Index tokens = scores.rows(), experts = scores.cols();
  const Matrix<float> best = v.matrix("topk_logits", tokens);
  const Index k = best.cols();
  if (k > experts) moe::fail_environment(k, " choices among ", experts, " experts");
  const moe::CvOptions cv{moe::Variance::Sample, 1e-10};
  moe::RoutingGradient<float> ignored;
  const double importance = moe::importance_loss<float>(scores, moe::Step{}, 0, ignored, cv);
  // Of the noisy logits only the k best are in the file, and only they matter.
  Matrix<float> noisy = Matrix<float>::Constant(tokens, experts + 1, -std::numeric_limits<float>::infinity());
  noisy.leftCols(k) = best;
  const double deviation = v.number("gate_noise", 1) / static_cast<double>(experts);
  if (!(deviation > 0)) moe::fail_environment("gate_noise / experts is ", deviation, ", expected > 0");
  const Matrix<float> spread = Matrix<float>::Constant(tokens, experts + 1, static_cast<float>(deviation));
  Matrix<float> clean = Matrix<float>::Constant(tokens, experts + 1, -std::numeric_limits<float>::infinity());
  clean.leftCols(experts) = scores;
  auto load = moe::expert_load<float>({clean, noisy, spread}, k, moe::Step{}, moe::LoadThreshold::KthLargest);
  load.pop_back();  // of the masked expert, which makes room for k = experts
  v.near("loss", (importance + moe::detail::squared_cv(load, cv, 0)) / 2);
  if (v.has("logits") && v.has("noise")) {  // what the rest was made of
    const Matrix<float> logits = v.matrix("logits", tokens, experts), noise = v.matrix("noise", tokens, experts);
    v.near("scores_wo_noise", softmax_of(logits));
    const Matrix<float> sum = logits + noise * static_cast<float>(deviation);
    const Routing chosen = routed(moe::TopKGate{.k = k}, sum);
    Matrix<float> largest(tokens, k);
    for (Index t = 0; t < tokens; ++t)
      for (Index s = 0; s < k; ++s) largest(t, s) = sum(t, chosen.experts(t)[static_cast<std::size_t>(s)]);
    v.near("topk_logits", largest);
  }
}

inline void check_tutel_gate(Variant& v) {
  const Matrix<float> scores = v.matrix("scores");
  const Index tokens = scores.rows(), experts = scores.cols(), k = v.integer("k", 2);
  const moe::conventions::TutelOptions tutel{.factor = v.number("capacity_factor", 1),
                                             .alignment = v.integer("alignment", 1),
                                             .normalise = v.flag("normalize_gate", true) && k > 1,
                                             .by_score = v.flag("batch_prioritized_routing", false)};
  const auto options = moe::conventions::tutel(tutel);
  options.validate();
  // The softmax of the logarithms of probabilities is the probabilities.
  Routing routing = routed(moe::TopKGate{.k = k, .normalise = moe::Normalise::Off}, scores.array().log());
  v.same("indices", experts_of(routing));
  moe::RoutingGradient<float> ignored;
  v.near("gshard_loss",
         moe::load_balancing_loss<float>(scores, routing, moe::Step{}, 0, ignored, {moe::CountedChoices::First}));
  const auto slots = moe::buffer_slots(options, experts, moe::Step{}, routing);
  v.same("locations", {slots.begin(), slots.end()});

  const Integers counts = counts_of(routing, experts);
  moe::CapacityDemand demand{tokens, tokens * k};
  auto exact = options;
  exact.multiple = 1;
  const Index needed = *std::max_element(counts.begin(), counts.end());
  const Index limit = tutel.factor == 0 ? needed : moe::expert_capacity(exact, moe::Phase::Training, demand, experts);
  const Index capacity = tutel.factor > 0 ? limit : std::min(needed, limit);
  const Index aligned = (capacity + tutel.alignment - 1) / tutel.alignment * tutel.alignment;
  v.same("capacity", {aligned});
  v.same_fact("capacity", aligned);

  Routing normalised = routing;  // before drops: the gates in the file
  if (tutel.normalise) moe::renormalise_weights(normalised, std::numeric_limits<float>::epsilon());
  v.near("gates", weights_of(normalised));
  moe::apply_capacity(options, experts, moe::Step::train(0), routing);
  v.same("kept", kept_of(routing));
  v.same_fact("tokens", tokens);
  v.same_fact("n_experts", experts);
}

inline void check_tutel(Variant& v) {
  if (v.has("w_sim_matrix")) return check_tutel_cosine(v);
  if (v.has("scores_wo_noise")) return check_tutel_losses(v);
  if (v.has("scores")) return check_tutel_gate(v);
  moe::fail_environment("no rule for this variant");
}

}  // namespace check
