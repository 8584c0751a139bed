// SPDX-License-Identifier: MIT
// OTP, online top-any pruning, the dynamic half of MC#: a small router says how many of its experts a token needs; it
// alone is learned, from the outputs with all of them and a price per expert. Huang et al. (arXiv:2510.10962).
// Here: the text model, top-2. Beside it, at as many active experts: the ratio rule, which skips the second expert
// where it weighs little (arXiv:2410.06270), and by lot. OTP is better than the lot, and the rule, which learns
// nothing, is better than OTP. Not here: more than two experts per token, where there is more to choose.
#include <algorithm>
#include <numbers>
#include <span>
#include <utility>

#include <moe/expert/frozen.hpp>
#include <moe/gate/wrap/top_any.hpp>
#include <moe/gate/wrap/top_any_loss.hpp>

#include "support/page.hpp"
#include "support/router_rows.hpp"
#include "support/text.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using systems::TextModel;
using Gate = moe::TopAnyGate<moe::TopKGate>;
using Masked = moe::MoeLayer<moe::LinearRouter, Gate, moe::Frozen<moe::ExpertPool<systems::ReluMlp>>>;

Matrix<float> scores(const TextModel& model, const Matrix<float>& rows, const Matrix<float>& of_layer) {
  Matrix<float> out(rows.rows(), systems::kCharacters);
  model.head().forward(rows + of_layer, out, moe::Step{});
  return out;
}

/// Router rows for masks behind those of experts, which alone are learned.
Masked with_masks(const TextModel& model, double price, std::uint64_t updates, std::uint64_t seed) {
  const systems::ReluLayer& full = model.layer().layer();
  const Index k = full.gate().k;
  Masked layer(systems::with_rows(model, k),
               Gate{full.gate(), k, {.start = 1, .end = 0.2, .updates = updates}, moe::SkippedWeight::Shared},
               moe::Frozen(full.experts()));
  systems::learn_rows(model, layer, updates, seed, [&](Masked::Tape& tape) {
    moe::kept_choices_loss(layer.gate(), tape.logits, tape.routing, {tape.step, tape.scratch}, price, tape.losses);
  });
  return layer;
}

double bits(const TextModel& model, const systems::Labelled& data, const moe::Routing<float>& routing) {
  Matrix<float> out(data.size(), systems::kTextDim), none;
  model.layer().layer().mixture().forward(data.rows, routing, moe::Step{}, out);
  return loss_of(data, scores(model, data.rows, out), {}, none) / std::numbers::ln2;
}

moe::Routing<float> routed(const auto& layer, const Matrix<float>& rows) {
  Matrix<float> logits(rows.rows(), layer.router().num_experts());
  moe::Routing<float> routing;
  layer.router().logits(rows, moe::Step{}, logits);
  layer.gate().route(logits, moe::Step{}, routing);
  return routing;
}

/// Bits per character of two experts and of one; for each price the share of choices that stay, OTP, the ratio, by lot.
std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const TextModel model = systems::text_model(page, seed);
  const systems::Labelled& held = systems::held_out_text();
  const moe::Routing<float> two = routed(model.layer().layer(), held.rows);
  /// Without the second expert of the `skipped` tokens for which score(t) is least.
  const auto without = [&](const auto& score, Index skipped) {
    std::vector<std::pair<double, Index>> order;
    for (Index t = 0; t < held.size(); ++t) order.emplace_back(static_cast<double>(score(t)), t);
    std::ranges::sort(order);
    moe::Routing<float> routing = two;
    for (const auto& [value, t] : std::span(order).first(static_cast<std::size_t>(skipped))) {
      routing.weights(t)[0] += routing.weights(t)[1];
      routing.drop(routing.begin(t) + 1, moe::kDroppedBySkipping);
    }
    return bits(model, held, routing);
  };
  const auto ratio = [&](Index t) { return two.weights(t)[1] / two.weights(t)[0]; };
  const auto lot = [&](Index t) { return moe::RandomField(moe::Purpose::User, seed).uniform(t); };
  std::vector<double> result = {bits(model, held, two), without(lot, held.size())};
  for (const double price : {0.2, 0.3}) {
    const Masked layer = with_masks(model, price, page.amount<std::uint64_t>(500, 10), seed);
    const moe::Routing<float> masked = routed(layer, held.rows);
    const Index skipped = std::ranges::count(masked.dropped(), moe::kDroppedByMask);
    const double left = 1 - 0.5 * static_cast<double>(skipped) / static_cast<double>(held.size());
    result.insert(result.end(), {left, bits(model, held, masked), without(ratio, skipped), without(lot, skipped)});
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"top_any", "2510.10962", "moe/gate/wrap/top_any.hpp"}, [](systems::Page& page) {
    const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
    page.table({"bits per character", "choices left", "OTP", "ratio rule", "by lot", "all two", "all one"});
    page.row("price 0.2", {samples[2], samples[3], samples[4], samples[5], samples[0], samples[1]});
    page.row("price 0.3", {samples[6], samples[7], samples[8], samples[9], samples[0], samples[1]});
    page.expect("choices left, price 0.3", samples[6], {.low = 0.55, .high = 0.85});
    page.claim("bits per character of OTP above as many by lot, price 0.3", samples[7] - samples[9], {.high = -0.015});
  });
}
