// SPDX-License-Identifier: MIT
// Four layers that share a cache of experts, and a stream of tokens through them with guesses of what comes next.
#pragma once

#include <memory>
#include <vector>

#include <moe/expert/glu.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/router/linear.hpp>
#include <moe/serve/cached_experts.hpp>
#include <moe/serve/prefetch_predictor.hpp>

namespace systems {

using StackLayer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Glu>>;

inline constexpr moe::Index kStackLayers = 4, kStackExperts = 16, kStackDim = 64;

/// Around one of 8 topics, which lasts for 20 tokens in the mean.
inline moe::Matrix<float> topic_stream(moe::Index tokens, std::uint64_t seed) {
  const moe::RandomField centre(moe::Purpose::User, seed, 1), own(moe::Purpose::User, seed, 2);
  moe::Matrix<float> rows(tokens, kStackDim);
  for (moe::Index t = 0, topic = 0; t < tokens; ++t) {
    if (own.uniform(t, -1) < 0.05) topic = static_cast<moe::Index>(own.below(8, t, -2));
    for (moe::Index c = 0; c < kStackDim; ++c)
      rows(t, c) = static_cast<float>(centre.normal(topic, c) + 0.5 * own.normal(t, c));
  }
  return rows;
}

/// Layers of random weights, top-2.
inline std::vector<StackLayer> random_stack(std::uint64_t seed) {
  std::vector<StackLayer> layers;
  for (std::uint64_t l = 0; l < kStackLayers; ++l)
    layers.emplace_back(moe::LinearRouter::random(kStackExperts, kStackDim, 10 * seed + l), moe::TopKGate{.k = 2},
                        moe::ExpertPool<moe::Glu>::random(kStackExperts, kStackDim, 96, 10 * seed + l));
  return layers;
}

/// What each layer asks for, token after token: [token * layers + layer].
inline std::vector<std::vector<moe::Index>> experts_of(const std::vector<StackLayer>& layers,
                                                       const moe::Matrix<float>& tokens) {
  std::vector<std::vector<moe::Index>> result;
  moe::Workspace ws;
  moe::Matrix<float> out(1, kStackDim);
  for (moe::Index t = 0; t < tokens.rows(); ++t) {
    moe::Matrix<float> hidden = tokens.row(t);
    for (const StackLayer& layer : layers) {
      layer.forward(hidden, out, ws);
      moe::used_experts(ws.routing, result.emplace_back());
      hidden += out;
    }
  }
  return result;
}

/// Recall, precision, MB loaded in vain, hit rate, loads of steps, ms that they waited; and 1 if an output differs from
/// that of the layers in memory. guess(l, early, hidden, known, out) fills in what layer l is thought to ask for.
template <class Guess, class Observe>
std::vector<double> run_prefetched(const std::vector<StackLayer>& layers, const moe::Matrix<float>& tokens,
                                   const Guess& guess, const Observe& observe) {
  using Cached = moe::CachedExperts<moe::Glu>;
  const std::size_t bytes = moe::memory_bytes(layers[0].experts()[0]);
  const auto cache = std::make_shared<Cached::Cache>(
      std::vector<std::size_t>(kStackLayers * kStackExperts, bytes),
      [&](moe::Index e) { return layers[static_cast<std::size_t>(e / kStackExperts)].experts()[e % kStackExperts]; },
      static_cast<std::size_t>(kStackLayers * kStackExperts / 4) * bytes, moe::Lru(), 4 * bytes);
  std::vector<moe::RoutedExperts<Cached>> served;
  for (moe::Index l = 0; l < kStackLayers; ++l)
    served.emplace_back(Cached(layers[0].experts()[0], cache, l * kStackExperts, kStackExperts));
  moe::PredictionQuality quality;
  moe::Workspace ws;
  std::vector<moe::Index> expected, used;
  double differs = 0;
  for (moe::Index t = 0; t < tokens.rows(); ++t) {
    const moe::Matrix<float> early = tokens.row(t);
    moe::Matrix<float> hidden = early, out(1, kStackDim), same(1, kStackDim);
    for (moe::Index l = 0; l < kStackLayers; ++l) {
      const StackLayer& layer = layers[static_cast<std::size_t>(l)];
      layer.forward(hidden, same, ws);  // as it is in memory, and where its choices are known from
      moe::used_experts(ws.routing, used);
      if (l > 0) quality.add(expected, used);
      served[static_cast<std::size_t>(l)].forward(hidden, ws.routing, moe::Step{}, out);
      differs += out == same ? 0 : 1;
      observe(l, used);
      if (l + 1 == kStackLayers) break;
      guess(l + 1, early, hidden, expected);
      served[static_cast<std::size_t>(l + 1)].experts().prefetch(expected);
      cache->finish_prefetch();
      hidden += out;
    }
  }
  const moe::CacheStatistics done = cache->statistics();
  return {quality.recall(),
          quality.precision(),
          1e-6 * static_cast<double>(done.wasted_bytes()),
          done.hit_rate(),
          static_cast<double>(done.loads),
          1e3 * done.stall_seconds,
          differs};
}

}  // namespace systems
