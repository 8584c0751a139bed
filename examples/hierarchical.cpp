// SPDX-License-Identifier: MIT
// Layers nest: an outer layer chooses one of three inner layers, each a mixture of its own, beside a shared expert that
// every token visits.
#include <iostream>
#include <moe/moe.hpp>
#include <vector>

int main() {
  constexpr moe::Index num_tokens = 8, model_dim = 32, hidden_dim = 64, num_groups = 3, group_size = 4;

  using Inner = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Glu>>;
  using Group = moe::LayerExpert<Inner>;
  std::vector<Group> groups;
  for (std::uint64_t g = 0; g < num_groups; ++g)
    groups.emplace_back(Inner(moe::LinearRouter::random(group_size, model_dim, 10 + g), moe::TopKGate{.k = 2},
                              moe::ExpertPool<moe::Glu>::random(group_size, model_dim, hidden_dim, 20 + g)));

  const moe::WithBranches layer(
      moe::MoeLayer(moe::LinearRouter::random(num_groups, model_dim, 1),
                    moe::TopKGate::switch_transformer(),  // its weight is the probability: the router can learn
                    moe::ExpertPool<Group>(groups)),
      moe::Glu::random(model_dim, hidden_dim, 2));

  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(num_tokens, model_dim);
  moe::Matrix<float> output(num_tokens, model_dim);
  moe::Workspace workspace;
  layer.forward(tokens, output, workspace);

  for (moe::Index t = 0; t < num_tokens; ++t)
    std::cout << "token " << t << " -> group " << workspace.routing.experts(t)[0] << " with weight "
              << workspace.routing.weights(t)[0] << '\n';
  std::cout << moe::num_parameters(layer) << " parameters, " << num_groups * group_size << " experts and one shared\n";
}
