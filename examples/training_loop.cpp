// SPDX-License-Identifier: MIT
// A training loop: a trainer holds the gradient, the tape and the state of the optimiser; a batch is accumulated by its
// loss, and an update clips and steps. The task: each of four regions of the plane has a linear map of its own.
#include <cstdio>
#include <moe/moe.hpp>

int main() {
  constexpr moe::Index num_tokens = 256, model_dim = 4, num_experts = 4;
  constexpr std::uint64_t kUpdates = 600;
  moe::MoeLayer layer(moe::LinearRouter::random(num_experts, model_dim, 1, moe::Bias::Zero), moe::TopKGate{.k = 2},
                      moe::ExpertPool<moe::Linear>::random(num_experts, model_dim, model_dim, 2));

  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(num_tokens, model_dim);
  moe::Matrix<float> target = tokens;
  for (moe::Index t = 0; t < num_tokens; ++t)
    target.row(t) *= tokens(t, 0) > 0 ? (tokens(t, 1) > 0 ? 2.0f : -1.0f) : (tokens(t, 1) > 0 ? 0.5f : -3.0f);

  moe::Trainer trainer(layer, moe::AdamW{.weight_decay = 0}, {.max_norm = 1.0, .balance = 0.01});
  const moe::WithWarmUp rate{20, moe::CosineSchedule{.start = 2e-2, .end = 1e-3, .updates = kUpdates}};
  for (std::uint64_t update = 0; update < kUpdates; ++update) {
    const moe::Step step = moe::Step::train(update, /*seed=*/3);
    const double loss = trainer.accumulate(tokens, step, [&](const auto& output, auto& doutput) {
      return moe::squared_error(output, target, step, doutput);
    });
    trainer.update(rate(update));
    if (update % 100 == 0 || update + 1 == kUpdates)
      std::printf("update %3d  squared error %.5f  balance %.3f\n", static_cast<int>(update), loss,
                  trainer.auxiliary().balance);
  }
}
