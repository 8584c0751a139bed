// SPDX-License-Identifier: MIT
// Self-contrast: a trained layer is run twice, by its own gate (strong) and by one that sends each token to the second
// best expert alone (weak), and the scores go on from the weak through the strong ones. No training, no second model.
// Shi et al., "Unchosen experts can contribute too" (arXiv:2405.14507), which gains on reasoning with Mixtral.
// Here: both layers share one router and Frozen experts; digits and prose, with beta chosen on other rows, away from
// the weak scores and, for comparison, towards them. It does not help here, which is printed; what is claimed is the
// price, one expert more per token. Not here: decoding, where the gain of the paper is.
#include <algorithm>
#include <array>
#include <chrono>

#include <moe/expert/frozen.hpp>
#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/rank.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/router/linear.hpp>
#include <moe/train/self_contrast.hpp>

#include "support/digits.hpp"
#include "support/text.hpp"
#include "support/train.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using Pool = moe::ExpertPool<systems::ReluMlp>;
template <class G>
using Layer = moe::MoeLayer<moe::LinearRouter, G, moe::Frozen<Pool>>;

/// head(layer(x) + residual * x), with the experts of `trained` and another gate.
template <class G>
Matrix<float> scores(const systems::ReluLayer& trained, const G& gate, const moe::Linear& head, float residual,
                     const Matrix<float>& rows) {
  const Layer<G> layer(trained.router(), gate, moe::Frozen(trained.experts()));
  const Matrix<float> hidden = systems::outputs(layer, rows) + residual * rows;
  Matrix<float> out(rows.rows(), head.output_dim());
  moe::Scratch scratch;
  head.forward(hidden, out, {moe::Step{}, scratch});
  return out;
}

/// Accuracies on the second half of the rows of the strong pass, of the weak, and of both at the beta that is best on
/// the first half: away from the weak pass, and towards it (negative beta).
std::vector<double> compare(const Matrix<float>& strong, const Matrix<float>& weak, const systems::Labelled& data) {
  const auto count = static_cast<std::ptrdiff_t>(data.labels.size()), half = count / 2;
  Matrix<float> out;
  const auto accuracies = [&](double beta) -> std::array<double, 2> {
    if (beta < 0)
      out = static_cast<float>(1 + beta) * strong - static_cast<float>(beta) * weak;
    else
      moe::self_contrast<float>(strong, weak, {.beta = beta}, out);
    const std::vector<Index> best = systems::predictions(out), &labels = data.labels;
    return {systems::agreement({best.begin(), best.begin() + half}, {labels.begin(), labels.begin() + half}),
            systems::agreement({best.begin() + half, best.end()}, {labels.begin() + half, labels.end()})};
  };
  std::vector<double> numbers = {accuracies(0)[1], accuracies(-1)[1]};
  for (const double sign : {1.0, -1.0}) {
    const std::array betas = {0.1, 0.3, 0.5, 0.7, 0.9};
    const double best = sign * std::ranges::max(betas, {}, [&](double beta) { return accuracies(sign * beta)[0]; });
    numbers.insert(numbers.end(), {accuracies(best)[1], best});
  }
  return numbers;
}

std::vector<double> run(const systems::ReluLayer& layer, const moe::Linear& head, float residual,
                        const systems::Labelled& data) {
  return compare(scores(layer, layer.gate(), head, residual, data.rows),
                 scores(layer, moe::RankGate{}, head, residual, data.rows), data);
}

/// Time of both passes and their contrast over that of the strong one and over 1 + 1/k: fastest of runs in turns.
double cost(Index k, std::uint64_t seed, std::size_t runs) {
  constexpr Index kExperts = 8, kDim = 128, kHidden = 256, kTokens = 1024;
  const auto router = moe::LinearRouter::random(kExperts, kDim, seed);
  const moe::Frozen experts(Pool::random(kExperts, kDim, kHidden, seed));
  const Layer<moe::TopKGate> strong(router, moe::TopKGate{.k = k}, experts);
  const Layer<moe::RankGate> weak(router, moe::RankGate{}, experts);
  const Matrix<float> rows = systems::blobs({.count = kTokens, .dim = kDim}, seed, 1).rows;
  Matrix<float> of_strong(kTokens, kDim), of_weak = of_strong, out;
  moe::Workspace ws, ws_weak;
  std::array<std::vector<double>, 2> seconds;
  for (std::size_t run = 0; run < 2 * runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    if (run % 2 == 0) {
      strong.forward(rows, of_strong, ws);
    } else {
      weak.forward(rows, of_weak, ws_weak);
      moe::self_contrast<float>(of_strong, of_weak, {}, out);
    }
    seconds[run % 2].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return (1 + std::ranges::min(seconds[1]) / std::ranges::min(seconds[0])) / (1 + 1 / static_cast<double>(k));
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"self_contrast", "2405.14507", "moe/gate/rank.hpp"}, [](systems::Page& page) {
    page.table({"accuracy", "top-2", "second alone", "away", "beta", "towards", "beta"});
    page.row("digits", page.over_seeds([&](std::uint64_t seed) {
      const auto model = systems::digits16(page, seed);
      return run(model.layer(), model.head(), 0, systems::digits().test);
    }));
    page.row("prose", page.over_seeds([&](std::uint64_t seed) {
      const auto model = systems::text_model(page, seed);
      return run(model.layer().layer(), model.head(), 1,
                 systems::text_from(systems::text().prose, -systems::Text::kHeldOut, systems::Text::kHeldOut));
    }));
    const auto over = page.over_seeds([&](std::uint64_t seed) -> std::vector<double> {  // on one core each
      return {cost(2, seed, page.amount<std::size_t>(60, 1)), cost(4, seed, page.amount<std::size_t>(60, 1))};
    });
    page.table({"cost of both passes", "over 1 + 1/k"});
    page.row("top-2", {over[0]});
    page.row("top-4", {over[1]});
    page.claim("cost of both passes over 1.5 times that of top-2", over[0], {.low = 0.85, .high = 1.15});
  });
}
