// SPDX-License-Identifier: MIT
// A gate of your own is a struct with `route`: here top-K whose bias steers the choice but not the weights
// (arXiv:2408.15664). It is float-only; the shipped gates are templates over the scalar.
#include <iostream>
#include <moe/moe.hpp>

struct BiasedTopKGate {
  moe::Index k = 2;
  Eigen::RowVectorXf bias = {};  // [num_experts], steers selection only
  static constexpr bool kPerToken = true;

  void route(const moe::Logits<float>& logits, const moe::Context&, moe::Routing<float>& routing) const {
    routing.resize(logits.rows(), k);
    for (moe::Index t = 0; t < logits.rows(); ++t) {
      const auto biased = [&](moe::Index e) { return logits(t, e) + bias(e); };
      moe::top_k(biased, logits.cols(), routing.experts(t));
      moe::softmax_at(logits.row(t), routing.experts(t), routing.weights(t));
    }
  }
};

int main() {
  constexpr moe::Index num_tokens = 512, model_dim = 32, num_experts = 8;
  moe::MoeLayer layer(moe::LinearRouter::random(num_experts, model_dim, 1),
                      BiasedTopKGate{.k = 2, .bias = Eigen::RowVectorXf::Zero(num_experts)},
                      moe::ExpertPool<moe::Mlp>::random(num_experts, model_dim, 64, 2));

  // Tokens with a common direction overload some experts; the bias evens the load out, without any gradient.
  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(num_tokens, model_dim).array() + 0.5f;
  moe::Matrix<float> output(num_tokens, model_dim);
  moe::Workspace workspace;
  for (int update = 0; update <= 200; ++update) {
    layer.forward(tokens, output, workspace);
    if (update % 50 == 0)
      std::cout << "update " << update << ": max / mean load " << moe::load_imbalance(workspace.plan()) << '\n';
    const float mean = static_cast<float>(workspace.plan().num_rows()) / static_cast<float>(num_experts);
    for (moe::Index e = 0; e < num_experts; ++e)
      layer.gate().bias(e) += static_cast<float>(workspace.plan().rows_of(e)) > mean ? -0.01f : 0.01f;
  }
}
