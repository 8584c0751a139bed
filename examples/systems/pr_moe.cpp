// SPDX-License-Identifier: MIT
// PR-MoE: a fixed MLP beside one routed expert in place of a second routed one (residual), which halves what is
// dispatched, and more experts in the last layers than in the first (pyramid), a number per layer at run time.
// Rajbhandari et al., "DeepSpeed-MoE" (arXiv:2201.05596): 460 blocks of an expert's size, not 1536, at the same loss.
// Here: clusters with a map each, and one that all share. One residual layer does what top-2 does. Four of them with 32
// experts in all, spread evenly or not, do not reach a stack of four times as many: with a cluster each, experts are
// what this problem wants. Not here: learned weights of the two branches, and distillation.
#include <array>

#include "support/page.hpp"
#include "support/relu_layer.hpp"
#include "support/stack.hpp"

namespace {

using moe::Index;
using Expert = systems::ReluMlp;
using Layer = systems::ReluLayer;
using Residual = moe::WithBranches<Layer, Expert, moe::ScaledIdentity>;  // routed + fixed + x

constexpr Index kDim = 8, kHidden = 16, kBatch = 128;
constexpr systems::Clusters kTask = {.clusters = 32, .dim = kDim, .outputs = kDim, .offset = 1, .common = 2};

Layer routed(Index num_experts, Index k, std::uint64_t seed) {
  return {moe::LinearRouter::random(num_experts, kDim, seed, moe::Bias::Zero),
          moe::TopKGate{.k = k, .normalise = moe::Normalise::Off},
          moe::ExpertPool<Expert>::random(num_experts, kDim, kHidden, seed + 10)};
}

Residual residual(Index num_experts, std::uint64_t seed) {
  return {routed(num_experts, 1, seed), Expert::random(kDim, kHidden, seed + 20), moe::ScaledIdentity{kDim}};
}

using Stack = systems::Stack<Residual>;

Stack stack_of(const std::vector<Index>& num_experts, std::uint64_t seed) {
  Stack stack;
  for (const Index count : num_experts) stack.layers.push_back(residual(count, seed += 100));
  return stack;
}

template <class Model>
double trained_error(Model model, std::uint64_t seed, std::uint64_t updates) {
  const systems::Teacher teacher(kTask, seed);
  systems::train(model, {.updates = updates, .rate = 1e-2}, seed,
                 [&](std::uint64_t update) { return teacher.sample(kBatch, update); });
  const systems::Regression test = teacher.sample(4000, updates);
  return systems::squared_error(systems::outputs(model, test.rows), test);
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"pr_moe", "2201.05596", "moe/layer/branches.hpp"}, [](systems::Page& page) {
    const auto updates = page.amount<std::uint64_t>(2000, 100);
    const auto plain = [](Index k, std::uint64_t seed) {
      return systems::WithResidual(routed(8, k, seed), moe::ScaledIdentity{kDim});
    };
    const auto one = page.over_seeds([&](std::uint64_t seed) -> std::vector<double> {
      return {trained_error(plain(1, seed), seed, updates), trained_error(plain(2, seed), seed, updates),
              trained_error(Stack{{residual(8, seed)}}, seed, updates)};
    });
    page.table({"8 experts", "squared error", "rows dispatched"});
    for (std::size_t i = 0; i < 3; ++i)
      page.row(std::array{"top-1", "top-2", "top-1 and a fixed one"}[i], {one[i], {{i == 1 ? 2.0 : 1.0}}});

    const std::vector<std::vector<Index>> pyramids = {{8, 8, 8, 8}, {4, 4, 8, 16}, {16, 8, 4, 4}};
    const auto four = page.over_seeds([&](std::uint64_t seed) {
      std::vector<double> numbers;
      for (const auto& counts : pyramids) numbers.push_back(trained_error(stack_of(counts, seed), seed, updates / 2));
      systems::Stack<systems::WithResidual> standard;
      for (std::uint64_t l = 1; l <= 4; ++l)
        standard.layers.push_back({routed(32, 2, seed + 100 * l), moe::ScaledIdentity{kDim}});
      numbers.push_back(trained_error(standard, seed, updates / 2));
      return numbers;
    });
    page.table({"four layers", "squared error", "blocks of an expert's size"});
    for (std::size_t i = 0; i < 4; ++i)
      page.row(std::array{"residual, 8 8 8 8", "residual, 4 4 8 16", "residual, 16 8 4 4", "top-2, 32 32 32 32"}[i],
               {four[i], {{i < 3 ? 36.0 : 128.0}}});

    // The paper's 350M model: 12 layers, two of them with twice as many experts, and a fixed one in each.
    std::vector<Index> paper(12, 32);
    paper[10] = paper[11] = 64;
    double blocks = 0;
    for (const Residual& layer : stack_of(paper, 1).layers) blocks += static_cast<double>(layer.num_experts()) + 1;
    page.expect("blocks of PR-MoE-32/64, of 12 layers of 128", {{blocks / (12 * 128)}},
                {.low = 0.2994, .high = 0.2996});
    page.expect("error of the residual layer over that of top-1", one[2] / one[0], {.high = 1});
    page.claim("error of the residual layer over that of top-2", one[2] / one[1], {.low = 0.8, .high = 1.05});
  });
}
