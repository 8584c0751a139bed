// SPDX-License-Identifier: MIT
// Fine-grained experts beside a shared one: every expert is cut into m parts of which m times as many are chosen, which
// costs nothing and multiplies what can be combined; an expert that all tokens visit takes what they have in common.
// Dai et al., "DeepSeekMoE: towards ultimate expert specialization" (arXiv:2401.06066).
// Here: clusters with a map each, and one that all share. Without the shared expert a trained layer is several times
// worse, as the paper has it, but here no worse than without each token's best routed one. Not here: groups of devices.
#include <array>

#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/branches.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/layer/structure.hpp>
#include <moe/router/linear.hpp>

#include "support/page.hpp"
#include "support/regression.hpp"
#include "support/train.hpp"

namespace {

using moe::Index;
using Expert = moe::BasicMlp<moe::F32, moe::Relu>;
using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<Expert>>;
using WithShared = moe::WithBranches<Layer, Expert>;

constexpr Index kDim = 8, kBatch = 128;
constexpr systems::Clusters kTask = {.clusters = 32, .dim = kDim, .outputs = kDim, .offset = 1, .common = 2};

Layer layer_of(Index num_experts, Index hidden, Index k, std::uint64_t seed) {
  return {moe::LinearRouter::random(num_experts, kDim, seed, moe::Bias::Zero),
          moe::TopKGate{.k = k, .normalise = moe::Normalise::Off},
          moe::ExpertPool<Expert>::random(num_experts, kDim, hidden, seed + 10)};
}

/// The same function by experts of a quarter of the size: the largest difference, relative to the largest output.
double change_by_splitting(const Layer& layer, const moe::Matrix<float>& rows) {
  constexpr Index kParts = 4;
  std::vector<Expert> parts;
  std::vector<Index> ids;
  for (Index e = 0; e < layer.num_experts(); ++e)
    for (Expert& part : moe::split_expert(layer.experts()[e], kParts)) {
      parts.push_back(std::move(part));
      ids.push_back(e);
    }
  moe::TopKGate gate = layer.gate().duplicate(kParts, layer.num_experts());  // which shares the weights out: undone
  gate.scale *= static_cast<double>(kParts);
  const Layer fine(layer.router().take(ids), gate, moe::ExpertPool<Expert>(std::move(parts)));
  const moe::Matrix<float> before = systems::outputs(layer, rows);
  return (systems::outputs(fine, rows) - before).cwiseAbs().maxCoeff() / before.cwiseAbs().maxCoeff();
}

/// Error of what is left of the layer, with one more routed expert, without the shared one, or without the best one.
std::array<double, 2> ablated(const WithShared& model, const systems::Regression& test) {
  Layer routed = model.layer();
  routed.gate().k += 1;
  moe::Workspace ws;
  moe::Matrix<float> out(test.rows.rows(), kDim), shared = out;
  routed.forward(test.rows, out, ws);
  const double without_shared = systems::squared_error(out, test);
  moe::Routing<float> routing = ws.routing;
  for (Index t = 0; t < out.rows(); ++t) routing.weights(t)[0] = 0;
  const moe::Step step;
  routed.mixture().forward(test.rows, routing, {step, ws.scratch}, out);
  model.branch<0>().forward(test.rows, shared, {step, ws.scratch});
  return {without_shared, systems::squared_error(out + shared, test)};
}

/// Errors of experts of 64, 32 and 16 units, at equal cost; with a shared expert; and ablated.
std::vector<double> errors(std::uint64_t seed, std::uint64_t updates) {
  const systems::Teacher teacher(kTask, seed);
  const systems::Regression test = teacher.sample(4000, updates);
  const auto trained = [&](auto model) {
    systems::train(model, {.updates = updates, .rate = 1e-2, .balance = 0.01}, seed,
                   [&](std::uint64_t update) { return teacher.sample(kBatch, update); });
    return model;
  };
  std::vector<double> numbers;
  for (const Index m : {1, 2, 4})
    numbers.push_back(
        systems::squared_error(systems::outputs(trained(layer_of(4 * m, 64 / m, m, seed)), test.rows), test));
  const WithShared model = trained(WithShared(layer_of(15, 16, 3, seed), Expert::random(kDim, 16, seed + 99)));
  numbers.push_back(systems::squared_error(systems::outputs(model, test.rows), test));
  for (const double error : ablated(model, test)) numbers.push_back(error);
  return numbers;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"fine_grained", "2401.06066", "moe/layer/branches.hpp"}, [](systems::Page& page) {
        const auto updates = page.amount<std::uint64_t>(2000, 100);
        const auto e = page.over_seeds([&](std::uint64_t seed) { return errors(seed, updates); });
        page.table({"equal parameters and cost", "squared error"});
        constexpr std::array kNames = {"1 of 4 experts",
                                       "2 of 8",
                                       "4 of 16",
                                       "3 of 15 and a shared one",
                                       "without it, 4 of 15",
                                       "without the best of 4 of 15"};
        for (std::size_t i = 0; i < kNames.size(); ++i) page.row(kNames[i], {e[i]});
        const auto change = page.over_seeds([&](std::uint64_t seed) {
          const auto rows = systems::Teacher(kTask, seed).sample(1000, 0).rows;
          return std::vector{change_by_splitting(layer_of(8, 64, 2, seed), rows)};
        });
        page.expect("change of the outputs by cutting experts in four", change[0], {.low = 0, .high = 1e-6});
        page.claim("error without the shared expert over error with it", e[4] / e[3], {.low = 2});
      });
}
