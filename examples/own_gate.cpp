// SPDX-License-Identifier: MIT
// A gate of your own is a struct with `route`: here top-K whose bias steers the choice but not the weights
// (arXiv:2408.15664). It is float-only and does not train; below it is one that does.
#include <cmath>
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

// The rule of one token makes a trainable gate, moe::TokenGate<SoftplusRule>: the library adds the loops over tokens,
// threads, masks, padding, checks, replay and backward. Here: the k best experts, each with weight softplus(logit) / k,
// so that experts do not compete for the sum of the weights.
struct SoftplusRule {
  moe::Index k = 2;

  moe::Index choices(moe::Index /*num_experts*/) const { return k; }
  template <class S>
  moe::Index select(const moe::Token<S>& token, std::span<moe::Index> chosen) const {
    moe::top_k(token.logits.data(), std::ssize(token.logits), chosen);
    return std::isfinite(token.logits[std::size_t(chosen.back())]) ? k : -1;  // -1: too many are masked
  }
  template <class S>
  void probabilities(const moe::Token<S>& token, std::span<S> p) const {
    for (std::size_t e = 0; e < p.size(); ++e) p[e] = moe::Softplus::value(token.logits[e]);
  }
  template <class S>
  void weigh(const moe::Token<S>& token, std::span<const moe::Index> experts, std::span<S> weights) const {
    for (std::size_t s = 0; s < weights.size(); ++s)
      weights[s] = moe::Softplus::value(token.logits[std::size_t(experts[s])]) / static_cast<S>(k);
  }
  template <class S>
  void backward(const moe::Token<S>& token, const moe::Choices<S>& choices, std::span<S> d) const {
    for (std::size_t s = 0; s < choices.size(); ++s)
      d[std::size_t(choices.expert(s))] += choices.dweight(s) / static_cast<S>(k);
    for (std::size_t e = 0; e < d.size(); ++e) d[e] *= moe::Softplus::derivative(token.logits[e]);
  }
};

int main() {
  constexpr moe::Index num_tokens = 512, model_dim = 32, num_experts = 8;
  const auto router = moe::LinearRouter::random(num_experts, model_dim, 1);
  const auto experts = moe::ExpertPool<moe::Mlp>::random(num_experts, model_dim, 64, 2);

  // Tokens with a common direction overload some experts; the bias evens the load out, without any gradient.
  moe::MoeLayer layer(router, BiasedTopKGate{.k = 2, .bias = Eigen::RowVectorXf::Zero(num_experts)}, experts);
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

  // The trainable one learns to double its tokens.
  moe::MoeLayer trained(router, moe::TokenGate{SoftplusRule{.k = 2}}, experts);
  moe::Trainer trainer(trained, moe::AdamW{.weight_decay = 0});
  const moe::Matrix<float> target = 2 * tokens;
  for (std::uint64_t update = 0; update <= 200; ++update) {
    const moe::Step step = moe::Step::train(update, 1);
    const double loss = trainer.accumulate(
        tokens, step, [&](const auto& out, auto& dout) { return moe::squared_error(out, target, step, dout); });
    if (update % 50 == 0) std::cout << "update " << update << ": squared error " << loss << '\n';
    trainer.update(0.003);
  }
}
