// SPDX-License-Identifier: MIT
// Top-p routing: a token gets as many experts as it takes for their probabilities to sum to p, so that one of which the
// router is not sure costs more. An entropy loss keeps routers from flattening, which would buy all of them.
// Huang et al., "Harder tasks need more experts" (arXiv:2403.07652).
// Here: tokens near one of eight centres, each with a map of its own, or midway between two or four, whose target is
// the mean of their maps: there k follows the difficulty. On digits, and in a trained model of text whose top-2 gate is
// exchanged, it is printed how k goes with the loss of a token, and not claimed. Not here: many layers.
#include <moe/expert/linear.hpp>
#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/gate/top_p.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/router/linear.hpp>
#include <moe/routing/balance/entropy.hpp>
#include <moe/routing/balance/statistics.hpp>

#include "support/between_centres.hpp"
#include "support/digits.hpp"
#include "support/rank_correlation.hpp"
#include "support/text.hpp"
#include "support/train.hpp"

namespace {

using moe::Index;
template <class G, class E>
using Layer = moe::MoeLayer<moe::LinearRouter, G, moe::ExpertPool<E>>;

constexpr Index kExperts = 8, kBatch = 128;

template <class G, class Batch>
Layer<G, moe::Linear> trained(const G& gate, Index outputs, double entropy, std::uint64_t seed, std::uint64_t updates,
                              const Batch& batch) {
  const Index dim = batch(0).rows.cols();
  Layer<G, moe::Linear> layer(moe::LinearRouter::random(kExperts, dim, seed, moe::Bias::Zero), gate,
                              moe::ExpertPool<moe::Linear>::random(kExperts, outputs, dim, seed + 1));
  systems::train(layer, {.updates = updates, .rate = 1e-2, .balance = 0.01}, seed, batch, systems::Report{},
                 [&](const moe::RoutedPass<float>& pass) {
                   return moe::entropy_loss<float>(pass.probability, pass.step, entropy, pass.losses);
                 });
  return layer;
}

/// Numbers of experts per token, and how they go with something of the token.
std::vector<double> experts_of(const moe::Routing<float>& routing, const std::vector<double>& of) {
  std::vector<double> count, numbers = {moe::mean_active_experts(routing)};
  for (Index t = 0; t < routing.num_tokens(); ++t) count.push_back(static_cast<double>(routing.experts(t).size()));
  numbers.push_back(systems::rank_correlation(of, count));
  for (const Index centres : systems::kMeansOf) {
    double sum = 0, tokens = 0;
    for (std::size_t t = 0; t < count.size(); ++t)
      if (of[t] == static_cast<double>(centres)) sum += count[t], ++tokens;
    numbers.push_back(tokens == 0 ? 0 : sum / tokens);
  }
  return numbers;
}

template <class G>
std::vector<double> on_mixture(const G& gate, double entropy, std::uint64_t seed, std::uint64_t updates) {
  const auto batch = [&](std::uint64_t part) { return systems::between_centres(kBatch, seed, part); };
  const auto layer = trained(gate, 1, entropy, seed, updates, batch);
  const systems::Regression test = systems::between_centres(4000, seed, updates);
  moe::Workspace ws;
  moe::Matrix<float> out(test.rows.rows(), 1);
  layer.forward(test.rows, out, ws);
  auto numbers = experts_of(ws.routing, {test.key.begin(), test.key.end()});
  numbers.push_back(systems::squared_error(out, test));
  return numbers;
}

/// Scores are head(x + layer(x)), or without a head layer(x).
template <class L>
std::vector<double> judge(const L& layer, const systems::Labelled& test, const moe::Linear* head = nullptr) {
  moe::Workspace ws;
  moe::Matrix<float> out(test.size(), layer.output_dim()), scores(test.size(), head ? head->output_dim() : 0);
  layer.forward(test.rows, out, ws);
  if (head) head->forward(test.rows + out, scores, {moe::Step{}, ws.scratch});
  const auto numbers = experts_of(ws.routing, systems::losses(head ? scores : out, test.labels));
  return {numbers[0], numbers[1], systems::accuracy(head ? scores : out, test.labels)};
}

template <class G>
std::vector<double> on_digits(const G& gate, double entropy, std::uint64_t seed, std::uint64_t updates) {
  const auto batch = [&](std::uint64_t part) { return draw_batch(systems::digits().train, kBatch, seed, part); };
  return judge(trained(gate, systems::kDigits, entropy, seed, updates, batch), systems::digits().test);
}

template <class G>
std::vector<double> on_prose(const systems::Page& page, const G& gate, std::uint64_t seed) {
  const auto test = systems::text_from(systems::text().prose, -systems::Text::kHeldOut, 4000);
  const systems::TextModel model = systems::text_model(page, seed);
  const auto& layer = model.layer().layer();
  return judge(Layer<G, systems::ReluMlp>(layer.router(), gate, layer.experts()), test, &model.head());
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"top_p", "2403.07652", "moe/gate/top_p.hpp"}, [](systems::Page& page) {
    const auto updates = page.amount<std::uint64_t>(2000, 50), few = updates / 5;
    const moe::TopPGate gate{.p = 0.9}, less{.p = 0.4}, summed{.p = 0.4, .normalise = moe::Normalise::Sum};
    const auto with = page.over_seeds([&](auto seed) { return on_mixture(gate, 0.1, seed, updates); });
    const auto without = page.over_seeds([&](auto seed) { return on_mixture(gate, 0, seed, updates); });
    page.table({"mixture", "experts/token", "rank correlation", "of one centre", "of two", "of four", "squared error"});
    page.row("top-p 0.9, entropy loss", with);
    page.row("without the entropy loss", without);
    page.row("top-2", page.over_seeds([&](auto seed) { return on_mixture(moe::TopKGate{}, 0, seed, updates); }));

    page.table({"by the loss of a token", "experts/token", "rank correlation", "accuracy"});
    page.row("digits, top-p 0.4", page.over_seeds([&](auto seed) { return on_digits(less, 0.02, seed, few); }));
    page.row("digits, top-2", page.over_seeds([&](auto seed) { return on_digits(moe::TopKGate{}, 0, seed, few); }));
    page.row("prose, top-2 made top-p 0.4", page.over_seeds([&](auto seed) { return on_prose(page, summed, seed); }));
    page.row("prose, top-2", page.over_seeds([&](auto seed) { return on_prose(page, moe::TopKGate{}, seed); }));
    page.expect("experts that the entropy loss saves per token", without[0] - with[0], {.low = 0});
    page.expect("experts of four centres less those of two", with[4] - with[3], {.low = 0});
    page.expect("experts of two centres less those of one", with[3] - with[2], {.low = 0});
    page.claim("rank correlation of difficulty and experts per token", with[1], {.low = 0.6});
  });
}
