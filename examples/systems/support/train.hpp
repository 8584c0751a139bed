// SPDX-License-Identifier: MIT
// The training loop of the pages: AdamW, with a rate that falls to 0 along a cosine.
#pragma once

#include <cstdint>

#include <moe/layer/workspace.hpp>
#include <moe/numeric/schedule.hpp>
#include <moe/train/adam_w.hpp>
#include <moe/train/trainer.hpp>

namespace systems {

struct Training {
  std::uint64_t updates = 1000;
  double rate = 4e-3, weight_decay = 0, max_norm = 1e9, balance = 0;
};

struct NoReport {
  void operator()(std::uint64_t, double) const {}
};

/// Trains on batch(update), a Labelled or a Regression, whose keys, if it has some, are those of the step;
/// report(update, loss) is told of every update that was made. An auxiliary loss is what Trainer::accumulate() takes.
template <class Layer, class Batch, class Report = NoReport, class... Auxiliary>
void train(Layer& layer, const Training& how, std::uint64_t seed, const Batch& batch, const Report& report = {},
           const Auxiliary&... auxiliary) {
  moe::Trainer trainer(layer, moe::AdamW{.weight_decay = how.weight_decay},
                       {.max_norm = how.max_norm, .balance = how.balance});
  const moe::CosineSchedule rate{.start = how.rate, .end = 0, .updates = how.updates};
  for (std::uint64_t update = 0; update < how.updates; ++update) {
    const auto data = batch(update);
    moe::Step step = moe::Step::train(update, seed);
    if constexpr (requires { data.key; }) step.key = data.key;
    const double loss = trainer.accumulate(
        data.rows, step, [&](const auto& out, auto& dout) { return loss_of(data, out, step, dout); }, auxiliary...);
    trainer.update(rate(update));
    report(update, loss);
  }
}

/// What a layer makes of the rows, in inference.
template <class Layer>
moe::Matrix<float> outputs(const Layer& layer, const moe::Matrix<float>& rows) {
  moe::Workspace ws;
  moe::Matrix<float> out(rows.rows(), layer.output_dim());
  layer.forward(rows, moe::Step{}, out, ws);
  return out;
}

}  // namespace systems
