// SPDX-License-Identifier: MIT
// A dense network resists pruning, although each input uses few of its hidden units: cut into experts, of which a
// router that is trained alone chooses half, it keeps its accuracy. He et al., "Understanding and harnessing sparsity
// in unified multimodal models", 2025; partitions after Zhang et al., "MoEfication" (arXiv:2110.01786). Here: a
// classifier of digits with one ReLU layer of 512 units. Half of them are active: those with the highest scores for all
// inputs (static), or 4 of 8 parts for each one, by a router that is fitted to how much each part does, and then tuned
// below the classifier with everything else frozen.
#include <moe/compress/dense_to_mixture.hpp>
#include <moe/expert/frozen.hpp>
#include <moe/layer/structure.hpp>

#include "support/dense_digits.hpp"
#include "support/page.hpp"

namespace {

using moe::Index;
using systems::DigitsModel;
using systems::ReluMlp;
using Mixture = moe::DenseMixture<ReluMlp>;

constexpr Index kParts = 8, kChosen = 4;

template <class Model>
double accuracy(const Model& model) {
  const systems::Labelled& test = systems::digits().test;
  return systems::accuracy(systems::outputs(model, test.rows), test.labels);
}

/// The mixture below the head: with the router as fitted, and after a hundred updates of the router alone.
std::vector<double> routed(const systems::Page& page, const DigitsModel& dense, const moe::NeuronSplit& split,
                           std::uint64_t seed) {
  const systems::Labelled& data = systems::digits().train;
  Mixture layer = moe::dense_to_mixture(dense.layer().experts()[0], split, kChosen);
  moe::fit_router(layer, data.rows);
  std::vector<moe::Frozen<ReluMlp>> frozen;
  for (Index e = 0; e < kParts; ++e) frozen.emplace_back(layer.experts()[e]);
  systems::WithHead model(moe::with_experts(layer, moe::ExpertPool(std::move(frozen))), moe::Frozen(dense.head()));
  const double fitted = accuracy(model);
  const systems::Training how{.updates = page.amount<std::uint64_t>(400, 20), .rate = 2e-3};
  train(model, how, seed, [&](std::uint64_t update) { return systems::draw_batch(data, 64, seed + 5, update); });
  return {fitted, accuracy(model)};
}

std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const DigitsModel dense = systems::dense_digits(page, seed);
  const ReluMlp& expert = dense.layer().experts()[0];
  const moe::Matrix<float> activity = moe::hidden_activity(expert, systems::digits().train.rows);
  const std::vector<double> scores = moe::neuron_scores(activity);
  const moe::SplitOptions parts{.num_parts = kParts, .seed = seed};
  std::vector<double> result = {accuracy(dense)};
  const Index half = expert.hidden_dim() / 2;
  result.push_back(accuracy(with_units(dense, moe::snake_split(scores, {.num_parts = 1, .num_shared = half}).shared)));
  for (const moe::NeuronSplit& split :
       {moe::snake_split(scores, parts), moe::coactivation_split(activity, parts), moe::random_split(scores, parts)}) {
    const std::vector<double> both = routed(page, dense, split, seed);
    result.insert(result.end(), both.begin(), both.end());
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"unified_sparsity", "2110.01786", "moe/compress/dense_to_mixture.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
        page.table({"accuracy, half of the units", "router fitted", "router tuned"});
        page.row("all units", {samples[0]});
        page.row("static: the highest scores", {samples[1]});
        page.row("4 of 8 parts, dealt by score", {samples[2], samples[3]});
        page.row("4 of 8 parts, by co-activation", {samples[4], samples[5]});
        page.row("4 of 8 parts, drawn at random", {samples[6], samples[7]});
        page.expect("dealt by score above static", samples[3] - samples[1], {.low = 0.05});
        page.claim("accuracy of parts by co-activation above static pruning", samples[5] - samples[1], {.low = 0.05});
      });
}
