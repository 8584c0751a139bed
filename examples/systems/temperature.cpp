// SPDX-License-Identifier: MIT
// The dense-to-sparse gate: training begins as a dense mixture, in which every expert learns and the gate sees what
// each of them does, and a falling temperature ends it with one expert per token. Nie et al., "EvoMoE: an evolutional
// mixture-of-experts training framework via dense-to-sparse gate" (arXiv:2112.14397).
// Here: eight clusters with a linear map each, eight linear experts, one expert per token from 70% of the training on.
// With a temperature that has fallen by then, the change is smooth; a dense softmax that is cut to one expert forgets
// most of what it knew. Not here: an end that is surely better. On a problem so small a plain top-1 gate is not far
// off.
#include <moe/expert/linear.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/dense_to_sparse.hpp>
#include <moe/layer/diversify.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/router/linear.hpp>
#include <moe/routing/balance/statistics.hpp>

#include "support/page.hpp"
#include "support/regression.hpp"
#include "support/train.hpp"

namespace {

using moe::Index;
using Gate = moe::DenseToSparseGate<>;
using Layer = moe::MoeLayer<moe::LinearRouter, Gate, moe::ExpertPool<moe::Linear>>;

constexpr Index kExperts = 8, kDim = 8, kBatch = 256;

/// Experts per token that training uses at an update.
double active_experts(const Layer& layer, const moe::Matrix<float>& rows, std::uint64_t update) {
  moe::Workspace ws;
  moe::Matrix<float> out(rows.rows(), layer.output_dim());
  layer.forward(rows, moe::Step::train(update), out, ws);
  return moe::mean_active_experts(ws.routing);
}

double error(Layer layer, moe::AtInference how, const systems::Regression& test) {
  layer.gate().at_inference = how;
  return systems::squared_error(systems::outputs(layer, test.rows), test);
}

using Experts = moe::ExpertPool<moe::Linear>;

Layer layer_of(Experts experts, const Gate& gate, std::uint64_t seed) {
  auto router = moe::LinearRouter::random(experts.size(), kDim, seed, moe::Bias::Zero);
  return Layer(std::move(router), gate, std::move(experts));
}

/// Phase 1 of EvoMoE: one expert that all tokens train, then copies of it, each with a tenth of the weights masked.
Experts diversified(const systems::Teacher& teacher, std::uint64_t seed, std::uint64_t updates) {
  Layer one = layer_of(Experts::random(1, 1, kDim, seed + 10), {}, seed);
  systems::train(one, {.updates = updates, .rate = 1e-2}, seed,
                 [&](std::uint64_t update) { return teacher.sample(kBatch, update); });
  return Experts(moe::diversify(one.experts()[0], kExperts, 0.1, seed));
}

enum class Start { Random, Diversified };

/// At the switch to one expert: squared error before and after, and their ratio; in the middle of the dense phase:
/// experts per token; at the end: squared error.
std::vector<double> run(const Gate& gate, Start start, std::uint64_t seed, std::uint64_t updates) {
  const systems::Teacher teacher({.clusters = kExperts, .dim = kDim}, seed);
  const systems::Regression test = teacher.sample(4000, updates);
  Layer layer = layer_of(
      start == Start::Random ? Experts::random(kExperts, 1, kDim, seed + 10) : diversified(teacher, seed, updates / 5),
      gate, seed);
  std::vector<double> numbers(5);
  systems::train(
      layer, {.updates = updates, .rate = 1e-2}, seed, [&](auto update) { return teacher.sample(kBatch, update); },
      [&](std::uint64_t update, double) {
        if (update + 1 == updates * 7 / 20) numbers[3] = active_experts(layer, test.rows, update);
        if (update + 1 != updates * 7 / 10) return;
        numbers[0] = error(layer, moe::AtInference::Dense, test);
        numbers[1] = error(layer, moe::AtInference::TopOne, test);
        numbers[2] = numbers[1] / numbers[0];
      });
  numbers[4] = error(layer, moe::AtInference::TopOne, test);
  return numbers;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"temperature", "2112.14397", "moe/gate/dense_to_sparse.hpp"}, [](systems::Page& page) {
        const auto updates = page.amount<std::uint64_t>(2500, 200), fall = updates * 7 / 10;
        const auto runs = [&](const moe::ExponentialSchedule& temperature, std::uint64_t hard_from,
                              Start start = Start::Random) {
          const Gate gate{.temperature = temperature, .hard_from = hard_from};
          return page.over_seeds([&](std::uint64_t seed) { return run(gate, start, seed, updates); });
        };
        const auto annealed = runs({.start = 1, .end = 0.02, .updates = fall}, fall);
        const auto evolved = runs({.start = 1, .end = 0.02, .updates = fall}, fall, Start::Diversified);
        const auto constant = runs({.start = 1, .end = 1, .updates = fall}, fall);
        const auto top_one = runs({.start = 1, .end = 1, .updates = fall}, 0);
        page.table({"squared error", "dense, at 70%", "top-1, at 70%", "ratio", "experts at 35%", "top-1, at the end"});
        page.row("temperature 1 to 0.02", annealed);
        page.row("the same, from one expert", evolved);
        page.row("temperature 1", constant);
        page.row("one expert from the beginning", {top_one[0], top_one[1], top_one[2], top_one[3], top_one[4]});
        page.expect("experts per token in the middle, temperature 1", constant[3], {.low = 2, .high = 8});
        page.expect("top-1 over dense error at the switch, temperature 1", constant[2], {.low = 10});
        page.claim("top-1 over dense error at the switch, falling temperature", annealed[2], {.low = 0.9, .high = 2});
      });
}
