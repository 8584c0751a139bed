// SPDX-License-Identifier: MIT
// Routers of the text model that say more than which expert: rows behind those of the experts, which alone are learned.
#pragma once

#include <moe/train/adam_w.hpp>
#include <moe/train/distillation.hpp>

#include "text.hpp"

namespace systems {

/// The router of the model's layer with `more` rows of zeros behind.
inline moe::LinearRouter with_rows(const TextModel& model, moe::Index more) {
  moe::LinearRouter router(kTextExperts + more, kTextDim, moe::Bias::Zero);
  for (moe::Index e = 0; e < kTextExperts; ++e)
    for (moe::Index c = 0; c < kTextDim; ++c) router.weight()(e, c) = model.layer().layer().router().weight()(e, c);
  return router;
}

/// Learns those rows: the model with `layer` in it, whose experts are frozen, is to say what the model itself says, and
/// price(tape) adds to its losses.
template <class Layer, class Price>
void learn_rows(const TextModel& model, Layer& layer, std::uint64_t updates, std::uint64_t seed, const Price& price) {
  const auto scores = [&](const moe::Matrix<float>& rows, const moe::Matrix<float>& of_layer) {
    moe::Matrix<float> out(rows.rows(), kCharacters);
    model.head().forward(rows + of_layer, out, moe::Step{});
    return out;
  };
  const Labelled data = trained_text(8000);
  moe::AdamW::State state(layer);
  typename Layer::Tape tape;
  moe::Matrix<float> out(256, kTextDim), dscores;
  for (std::uint64_t update = 0; update < updates; ++update) {
    const moe::Matrix<float> rows = draw_batch(data, 256, seed, update).rows;
    layer.forward(rows, moe::Step::train(update, seed), out, tape);
    const moe::Matrix<float> of_all = scores(rows, outputs(model.layer().layer(), rows));
    moe::distillation_loss<float>(scores(rows, out), of_all, 1, tape.step, dscores);
    price(tape);
    Layer gradient = moe::zeros_like(layer);
    layer.backward(rows, tape, dscores * model.head().weight().matrix(), gradient);
    for (moe::Index e = 0; e < kTextExperts; ++e) {
      gradient.router().bias()(e, 0) = 0;
      for (moe::Index c = 0; c < kTextDim; ++c) gradient.router().weight()(e, c) = 0;
    }
    moe::AdamW{.weight_decay = 0}.step(layer, gradient, state, 1e-2);
  }
}

}  // namespace systems
