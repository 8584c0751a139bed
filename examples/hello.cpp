// SPDX-License-Identifier: MIT
// A mixture-of-experts layer in a page: eight SwiGLU experts, two per token.
#include <iostream>
#include <moe/moe.hpp>

int main() {
  constexpr moe::Index num_tokens = 16, model_dim = 64, hidden_dim = 256, num_experts = 8;

  const moe::MoeLayer layer(moe::LinearRouter::random(num_experts, model_dim, /*seed=*/1), moe::TopKGate{.k = 2},
                            moe::ExpertPool<moe::Glu>::random(num_experts, model_dim, hidden_dim, /*seed=*/2));

  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(num_tokens, model_dim);
  moe::Matrix<float> output(num_tokens, model_dim);

  moe::Workspace workspace;                  // scratch: one per calling thread, reused call after call
  layer.forward(tokens, output, workspace);  // inference: the same as with moe::Step{}

  for (const moe::Index expert : workspace.routing.experts(0)) std::cout << "token 0 -> expert " << expert << '\n';
  std::cout << "load imbalance (max / mean) " << moe::load_imbalance(workspace.plan()) << '\n';
}
