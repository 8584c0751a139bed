// SPDX-License-Identifier: MIT
// Balance without a loss: a bias per expert steers who is chosen and is never seen by the weights, and after each
// update a controller moves it by a fixed rate, down for experts with more than their share and up for the others. Wang
// et al., "Auxiliary-loss-free load balancing strategy for mixture-of-experts" (arXiv:2408.15664), used by DeepSeek-V3
// (arXiv:2412.19437). The bias is state and no parameter, so that weight decay leaves it alone. Here: clusters of
// inputs that a router would share out unevenly. Not here: what balance is for, speed; it costs or gains little of the
// error.
#include <array>

#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/router/linear.hpp>
#include <moe/routing/balance/selection_bias.hpp>
#include <moe/routing/balance/statistics.hpp>
#include <moe/train/trainer.hpp>

#include "support/page.hpp"
#include "support/regression.hpp"
#include "support/train.hpp"

namespace {

using moe::Index;
using Expert = moe::BasicMlp<moe::F32, moe::Relu>;
using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<Expert>>;

constexpr Index kExperts = 16, kDim = 8, kBatch = 128;
constexpr systems::Clusters kTask = {.clusters = 32, .dim = kDim, .outputs = kDim, .offset = 1, .common = 2};

/// Most loaded expert over the mean, less 1, over the last tenth of a training with this rate of the controller, and
/// the squared error at its end.
std::vector<double> trained(double rate, std::uint64_t seed, std::uint64_t updates) {
  const systems::Teacher teacher(kTask, seed);
  Layer layer{moe::LinearRouter::random(kExperts, kDim, seed, moe::Bias::Zero),
              moe::TopKGate{.k = 4, .score = moe::Score::Sigmoid},
              moe::ExpertPool<Expert>::random(kExperts, kDim, 16, seed + 10)};
  moe::Trainer trainer(layer, moe::AdamW{.weight_decay = 0.1});
  Eigen::ArrayXd load = Eigen::ArrayXd::Zero(kExperts);
  for (std::uint64_t update = 0; update < updates; ++update) {
    const systems::Regression data = teacher.sample(kBatch, update);
    const moe::Step step = moe::Step::train(update, seed);
    trainer.accumulate(data.rows, step, [&](const auto& out, auto& dout) { return loss_of(data, out, step, dout); });
    trainer.update(3e-3);
    const auto count = moe::tokens_per_expert(trainer.tape().routing, kExperts);
    moe::update_selection_bias(count, rate, layer.gate().selection_bias);
    if (update >= updates - updates / 10)
      for (Index e = 0; e < kExperts; ++e) load(e) += static_cast<double>(count[static_cast<std::size_t>(e)]);
  }
  const systems::Regression test = teacher.sample(4000, updates);
  return {load.maxCoeff() / load.mean() - 1, systems::squared_error(systems::outputs(layer, test.rows), test)};
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"selection_bias", "2408.15664", "moe/routing/balance/selection_bias.hpp"}, [](systems::Page& page) {
        const auto updates = page.amount<std::uint64_t>(2000, 100);
        std::vector<std::vector<systems::Sample>> all;
        page.table({"rate of the controller", "max / mean - 1", "squared error"});
        for (const double rate : {0.0, 1e-3, 1e-2}) {
          all.push_back(page.over_seeds([&](std::uint64_t seed) { return trained(rate, seed, updates); }));
          page.row(std::array{"0", "0.001", "0.01"}[all.size() - 1], all.back());
        }
        page.expect("max / mean - 1 without the controller", all[0][0], {.low = 0.3});
        page.claim("max / mean - 1 of the loads, rate 0.001", all[1][0], {.low = 0, .high = 0.1});
      });
}
