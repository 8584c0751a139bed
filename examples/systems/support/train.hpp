// SPDX-License-Identifier: MIT
// The training loop of the pages: AdamW, with a rate that falls to 0 along a cosine.
#pragma once

#include <cstdint>
#include <functional>
#include <type_traits>

#include <moe/layer/workspace.hpp>
#include <moe/numeric/schedule.hpp>
#include <moe/train/adam_w.hpp>
#include <moe/train/trainer.hpp>

namespace systems {

struct Training {
  std::uint64_t updates = 1000;
  double rate = 4e-3, weight_decay = 0, max_norm = 1e9, balance = 0;
};

/// What a cached model's name says of how it was trained (cache.hpp).
template <class Hash>
Hash& operator<<(Hash& hash, const Training& how) {
  return hash << how.updates << how.rate << how.weight_decay << how.max_norm << how.balance;
}

/// Told of every update that was made, and of its loss.
using Report = std::function<void(std::uint64_t update, double loss)>;

/// See train(). Not inline, so that support/relu_layer.hpp can say which of them are compiled once.
template <class Layer, class Data, class... Auxiliary>
void train_on(Layer& layer, const Training& how, std::uint64_t seed, const std::function<Data(std::uint64_t)>& batch,
              const Report& report, const Auxiliary&... auxiliary) {
  moe::Trainer trainer(layer, moe::AdamW{.weight_decay = how.weight_decay},
                       {.max_norm = how.max_norm, .balance = how.balance});
  const moe::CosineSchedule rate{.start = how.rate, .end = 0, .updates = how.updates};
  for (std::uint64_t update = 0; update < how.updates; ++update) {
    const Data data = batch(update);
    moe::Step step = moe::Step::train(update, seed);
    if constexpr (requires { data.key; }) step.key = data.key;
    const double loss = trainer.accumulate(
        data.rows, step, [&](const auto& out, auto& dout) { return loss_of(data, out, step, dout); }, auxiliary...);
    trainer.update(rate(update));
    if (report) report(update, loss);
  }
}

/// Trains on batch(update), a Labelled, a Regression or the like: something with `rows` and a loss_of(), and keys of
/// the rows if it has some. An auxiliary loss is what Trainer::accumulate() takes.
template <class Layer, class Batch, class... Auxiliary>
void train(Layer& layer, const Training& how, std::uint64_t seed, const Batch& batch, const Report& report = {},
           const Auxiliary&... auxiliary) {
  train_on<Layer, std::invoke_result_t<const Batch&, std::uint64_t>>(layer, how, seed, batch, report, auxiliary...);
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
