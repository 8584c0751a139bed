// SPDX-License-Identifier: MIT
// A training loop: forward into a tape, a loss, backward into a gradient that is a layer itself, and one optimiser
// step. The task: each of four regions of the plane has a linear map of its own.
#include <cstdio>
#include <moe/moe.hpp>

int main() {
  constexpr moe::Index num_tokens = 256, model_dim = 4, num_experts = 4;
  constexpr std::uint64_t kUpdates = 600;
  using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Linear>>;
  Layer layer(moe::LinearRouter::random(num_experts, model_dim, 1, moe::RouterBias::Zero), moe::TopKGate{.k = 2},
              moe::ExpertPool<moe::Linear>::random(num_experts, model_dim, model_dim, 2));

  moe::Matrix<float> tokens = moe::Matrix<float>::Random(num_tokens, model_dim), target = tokens;
  for (moe::Index t = 0; t < num_tokens; ++t)
    target.row(t) *= tokens(t, 0) > 0 ? (tokens(t, 1) > 0 ? 2.0f : -1.0f) : (tokens(t, 1) > 0 ? 0.5f : -3.0f);

  Layer gradient = moe::zeros_like(layer);
  Layer::Tape tape;
  moe::AdamW::State<Layer> state(layer);
  const moe::AdamW adam{.weight_decay = 0};
  const moe::WithWarmUp rate{20, moe::CosineSchedule{.start = 2e-2, .end = 1e-3, .updates = kUpdates}};
  moe::Matrix<float> output(num_tokens, model_dim), doutput, dtokens(num_tokens, model_dim), probabilities;

  for (std::uint64_t update = 0; update < kUpdates; ++update) {
    const moe::Step step = moe::Step::train(update, /*seed=*/3);
    layer.forward(tokens, step, output, tape);
    doutput = (output - target) * (2.0f / static_cast<float>(num_tokens));

    moe::RoutingGradient<float> losses;  // auxiliary losses add their gradients here
    layer.gate().probabilities(tape.logits, step, probabilities);
    const double balance = moe::load_balancing_loss<float>(probabilities, tape.routing, step, /*weight=*/0.01, losses);

    moe::set_zero(gradient);
    layer.backward(tokens, tape, doutput, losses, gradient, dtokens);
    moe::clip_by_norm(gradient, 1.0);
    adam.step(layer, gradient, state, rate(update));
    if (update % 100 == 0 || update + 1 == kUpdates)
      std::printf("update %3d  squared error %.5f  balance %.3f\n", static_cast<int>(update),
                  static_cast<double>((output - target).squaredNorm()) / static_cast<double>(num_tokens), balance);
  }
}
