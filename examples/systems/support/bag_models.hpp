// SPDX-License-Identifier: MIT
// Models that score the frames of bags, and how they are trained from labels of bags alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <moe/expert/frozen.hpp>
#include <moe/gate/softmax.hpp>
#include <moe/router/none.hpp>
#include <moe/train/sgd.hpp>
#include <moe/train/temporal_splatting.hpp>

#include "bags.hpp"
#include "relu_layer.hpp"

namespace systems {

using Scorer = moe::MoeLayer<moe::NoRouter, moe::SoftmaxGate, moe::ExpertPool<ReluMlp>>;  // of one expert
using Fusion = moe::MoeLayer<moe::LinearRouter, moe::SoftmaxGate, moe::Frozen<moe::ExpertPool<moe::Linear>>>;

/// How to train; with `splat`, from a third of the epochs on.
struct Weak {
  std::uint64_t epochs = 60;
  double rate = 0.02;
  bool splat = true;
  moe::SplatOptions options = {};
};

/// One bag per update, of those without an event and those of one class, or of all.
template <class Layer>
Layer trained(Layer layer, const moe::Matrix<float>& rows, const BagSet& data, const Weak& how, moe::Index kind = -1) {
  moe::Trainer trainer(layer, moe::Sgd{}, {.max_norm = 5});
  for (std::uint64_t epoch = 0; epoch < how.epochs; ++epoch)
    for (moe::Index b = 0; b < data.size(); ++b) {
      if (data.is_positive(b) && kind >= 0 && data.classes[static_cast<std::size_t>(b)] != kind) continue;
      const moe::Index sizes[] = {kFrames};
      const std::uint8_t labels[] = {data.is_positive(b)};
      const moe::Bags bag{sizes, labels};
      trainer.accumulate(rows.middleRows(b * kFrames, kFrames), moe::Step::train(epoch, 0),
                         [&](const moe::Matrix<float>& out, moe::Matrix<float>& dout) {
                           double loss = moe::mil_top_k_loss<float>(out, bag, kFrames / 3, dout);
                           if (how.splat && 3 * epoch >= how.epochs)
                             loss += 2 * moe::splatting_loss<float>(
                                             out, moe::splat_targets<float>(out, bag, how.options), bag, 2, dout);
                           return loss;
                         });
      trainer.update(how.rate);
    }
  return layer;
}

inline Scorer fresh_scorer(moe::Index features, std::uint64_t seed) {
  return {moe::NoRouter(1, features), moe::SoftmaxGate{},
          moe::ExpertPool<ReluMlp>::random(1, {.input = features, .hidden = 32, .output = 1}, seed)};
}

/// [features, score of each expert].
inline moe::Matrix<float> with_scores(const moe::Matrix<float>& rows, const std::vector<Scorer>& experts) {
  moe::Matrix<float> all(rows.rows(), rows.cols() + kBagClasses);
  all.leftCols(rows.cols()) = rows;
  for (moe::Index c = 0; c < kBagClasses; ++c)
    all.col(rows.cols() + c) = outputs(experts[static_cast<std::size_t>(c)], rows);
  return all;
}

/// Expert c gives the score of class c, the gate weighs them by features and scores.
inline Fusion fusion(moe::Index features) {
  std::vector<moe::Linear> experts(kBagClasses, moe::Linear(1, features + kBagClasses));
  for (moe::Index c = 0; c < kBagClasses; ++c) experts[static_cast<std::size_t>(c)].weight().set(0, features + c, 1);
  return {moe::LinearRouter(kBagClasses, features + kBagClasses, moe::Bias::Zero), moe::SoftmaxGate{},
          moe::Frozen(moe::ExpertPool<moe::Linear>(experts))};
}

/// Share of right targets above one half, and of the frames of events that have one.
inline std::vector<double> quality(const Scorer& scorer, const BagSet& data, const moe::SplatOptions& options) {
  const moe::Matrix<float> scores = outputs(scorer, data.rows);
  double right = 0, claimed = 0, events = 0;
  for (moe::Index b = 0; b < data.size(); ++b) {
    if (!data.is_positive(b)) continue;
    const moe::Index sizes[] = {kFrames};
    const std::uint8_t labels[] = {1};
    const auto targets =
        moe::splat_targets<float>(scores.middleRows(b * kFrames, kFrames), {sizes, labels}, options).values;
    for (moe::Index t = 0; t < kFrames; ++t) {
      const double is_event = static_cast<double>(data.truth(b * kFrames + t, 0));
      const double claims = targets[static_cast<std::size_t>(t)] > 0.5 ? 1 : 0;
      right += is_event * claims, claimed += claims, events += is_event;
    }
  }
  return {right / std::max(claimed, 1.0), right / events};
}

}  // namespace systems
