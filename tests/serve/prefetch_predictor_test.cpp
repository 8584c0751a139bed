// SPDX-License-Identifier: MIT
// Guesses of experts to come, and routings that are known before: how often they are right, and that no bit depends on
// them.
#include "moe/serve/prefetch_predictor.hpp"

#include <cmath>

#include "layer/fixtures.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/layer/structure.hpp"
#include "moe/serve/cached_experts.hpp"
#include "moe/serve/pre_gate.hpp"
#include "serve/traces.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::Matrix;
using moe::RoutingTrace;

namespace {

constexpr Index kLayers = 3, kExperts = 6, kDim = 8, kHidden = 11;

/// Layer l uses (e + 2 l) mod 6 where the first one uses e, which goes round.
std::vector<RoutingTrace> chain(Index tokens) {
  std::vector<RoutingTrace> layers(kLayers, RoutingTrace(kExperts));
  for (Index t = 0; t < tokens; ++t)
    for (Index l = 0; l < kLayers; ++l)
      layers[static_cast<std::size_t>(l)].add(std::vector<Index>{(t + 2 * l) % kExperts});
  return layers;
}

using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;

std::vector<Layer> stack() {
  std::vector<Layer> layers;
  for (std::uint64_t l = 0; l < kLayers; ++l)
    layers.emplace_back(moe::LinearRouter::random(kExperts, kDim, l), moe::TopKGate{.k = 2},
                        moe::ExpertPool<moe::Mlp>::random(kExperts, kDim, kHidden, 10 + l));
  return layers;
}

}  // namespace

TEST_CASE("NextLayerAffinity: a chain is known once it has been seen, chance is guessed no better than by chance",
          "[serve]") {
  const auto seen = chain(kExperts + 1), longer = chain(3 * kExperts);
  moe::NextLayerAffinity affinity(kLayers, kExperts, 1);
  moe::PredictionQuality quality = moe::measure_predictor(longer, affinity);
  // Wrong at each layer until the pair has been seen: 6 first tokens in layers 1 and 2, one more in layer 0.
  CHECK(quality.used == 3 * kExperts * kLayers);
  CHECK(quality.right == quality.used - 3 * kExperts - 1);
  CHECK(quality.guessed == quality.right);
  CHECK(quality.precision() == 1);
  const std::vector<RoutingTrace> random = {test::random_trace(4000, 10, 2, 1), test::random_trace(4000, 10, 2, 2)};
  quality = moe::measure_predictor(random, moe::NextLayerAffinity(2, 10, 3));
  CHECK(std::abs(quality.recall() - 0.3) < 4 * std::sqrt(0.3 * 0.7 / 16000));  // 3 of 10, whatever they are
  CHECK(quality.wasted_bytes(7) == 7 * static_cast<std::uint64_t>(quality.guessed - quality.right));
}

TEST_CASE("NextLayerAffinity: guesses are those of counts over all that was seen", "[serve][property]") {
  std::vector<RoutingTrace> layers;
  for (std::uint64_t l = 0; l < kLayers; ++l) layers.push_back(test::random_trace(60, kExperts, 2, l, 0.7));
  moe::NextLayerAffinity affinity(kLayers, kExperts, 2);
  std::vector<Index> guess;
  const auto used = [&](Index n) {  // n-th of all layers and tokens
    const auto ids = layers[static_cast<std::size_t>(n % kLayers)].experts(n / kLayers);
    return std::vector<Index>(ids.begin(), ids.end());
  };
  for (Index now = 0; now < 60 * kLayers; ++now) {
    std::vector<double> score(kExperts);
    for (const Index f : now > 0 ? used(now - 1) : std::vector<Index>{}) {
      std::vector<double> pairs(kExperts);
      double uses = 0;
      for (Index n = now - kLayers; n > 0; n -= kLayers) {
        if (std::ranges::count(used(n - 1), f) == 0) continue;
        ++uses;
        for (const Index e : used(n)) ++pairs[static_cast<std::size_t>(e)];
      }
      for (std::size_t e = 0; e < score.size() && uses > 0; ++e) score[e] += pairs[e] / uses;
    }
    affinity.predict(now % kLayers, guess);
    CAPTURE(now);
    double least = 1e300;
    for (const Index e : guess) least = std::min(least, score[static_cast<std::size_t>(e)]);
    const auto positive = std::ranges::count_if(score, [](double s) { return s > 0; });
    REQUIRE(std::ssize(guess) == std::min<Index>(2, positive));
    for (Index e = 0; e < kExperts; ++e)
      if (std::ranges::count(guess, e) == 0 && !guess.empty())
        CHECK(score[static_cast<std::size_t>(e)] <= least + 1e-12);
    affinity.observe(now % kLayers, used(now));
  }
}

TEST_CASE("PreviousStep: right where nothing changes", "[serve]") {
  const std::vector<RoutingTrace> layers = {test::random_trace(50, 7, 3, 1, 1.0)};  // stays
  const moe::PredictionQuality quality = moe::measure_predictor(layers, moe::PreviousStep(1));
  CHECK(quality.right == 49 * 3);
  CHECK(quality.guessed == 49 * 3);
  CHECK(quality.used == 50 * 3);
  CHECK_THROWS_AS(moe::measure_predictor(std::span<const RoutingTrace>(), moe::PreviousStep(1)), std::invalid_argument);
  const std::vector<RoutingTrace> uneven = {test::random_trace(5, 7, 3, 1), test::random_trace(6, 7, 3, 1)};
  CHECK_THROWS_AS(moe::measure_predictor(uneven, moe::PreviousStep(2)), std::invalid_argument);
  CHECK_THROWS_AS(moe::NextLayerAffinity(1, 0, 1), std::invalid_argument);
}

TEST_CASE("PreGate: routings of all layers from one state, which the mixtures then run", "[serve]") {
  const std::vector<Layer> layers = stack();
  std::vector<moe::LinearRouter> routers;
  for (const Layer& layer : layers) routers.push_back(layer.router());
  const moe::PreGate gate(routers, moe::TopKGate{.k = 2}, kLayers);
  const moe::PreGate shared(std::vector{routers[1]}, moe::TopKGate{.k = 2}, kLayers);
  const auto tokens = test::random_matrix<float>(9, kDim, 4);
  const moe::Step step;
  moe::Scratch scratch;
  std::vector<moe::Routing<float>> routings, alike;
  gate.route(tokens, {step, scratch}, routings);
  shared.route(tokens, {step, scratch}, alike);
  REQUIRE(std::ssize(routings) == kLayers);
  for (std::size_t l = 0; l < kLayers; ++l) {
    moe::Workspace ws;
    Matrix<float> expected(9, kDim), out(9, kDim);
    layers[l].forward(tokens, expected, ws);
    layers[l].mixture().forward(tokens, routings[l], {step, scratch}, out);
    CHECK(test::same_bits(out, expected));
    CHECK(std::ranges::equal(alike[l].experts(), routings[1].experts()));
    std::vector<Index> guess, used;
    moe::KnownRoutings<float>(routings).predict(static_cast<Index>(l), guess);
    moe::used_experts(ws.routing, used);
    CHECK(guess == used);
    moe::NextLayerGate<Layer> next({&layers[0], &layers[1], &layers[2]});  // on the very state that the layer gets
    next.look(tokens);
    next.predict(static_cast<Index>(l), guess);
    CHECK(guess == used);
  }
  CHECK(moe::num_parameters(gate) == kLayers * moe::num_parameters(routers[0]));
  CHECK_THROWS_AS(gate.route(Matrix<float>::Zero(2, kDim + 1), {step, scratch}, routings), std::invalid_argument);
  CHECK_THROWS_AS((moe::PreGate(routers, moe::TopKGate{}, 2)), std::invalid_argument);
  CHECK_THROWS_AS((moe::PreGate(std::vector{routers[0], moe::LinearRouter(2, kDim)}, moe::TopKGate{}, 2)),
                  std::invalid_argument);
}

TEST_CASE("Prefetching: no bit of a stack depends on guesses, and known routings load nothing in vain", "[serve]") {
  const std::vector<Layer> layers = stack();
  const std::size_t bytes = moe::memory_bytes(layers[0].experts()[0]);
  using Cache = moe::ExpertCache<moe::Mlp, moe::LeastStale>;
  using Cached = moe::CachedExperts<moe::Mlp, moe::LeastStale>;
  std::vector<moe::LinearRouter> routers;
  for (const Layer& layer : layers) routers.push_back(layer.router());
  const moe::PreGate gate(routers, moe::TopKGate{.k = 2}, kLayers);
  const auto run = [&](auto&& predictor, std::vector<moe::Routing<float>>& routings) {
    const auto cache = std::make_shared<Cache>(
        std::vector<std::size_t>(kLayers * kExperts, bytes),
        [&](Index e) { return layers[static_cast<std::size_t>(e / kExperts)].experts()[e % kExperts]; }, 8 * bytes,
        moe::LeastStale(kExperts), 3 * bytes);
    const moe::Step step;
    moe::Scratch scratch;
    moe::PredictionQuality quality;
    std::vector<Index> guess, used;
    for (std::uint64_t t = 0; t < 12; ++t) {
      const auto early = test::random_matrix<float>(1, kDim, t);
      gate.route(early, {step, scratch}, routings);
      Matrix<float> hidden = early, same = early, out(1, kDim);
      for (std::size_t l = 0; l < kLayers; ++l) {
        const Cached experts(layers[l].experts()[0], cache, static_cast<Index>(l) * kExperts, kExperts);
        moe::RoutedExperts<Cached>(experts).forward(hidden, routings[l], {step, scratch}, out);
        hidden = out;
        layers[l].mixture().forward(same, routings[l], {step, scratch}, out);
        same = out;
        moe::used_experts(routings[l], used);
        predictor.observe(static_cast<Index>(l), used);
        if (l + 1 == kLayers) continue;
        predictor.predict(static_cast<Index>(l) + 1, guess);
        moe::used_experts(routings[l + 1], used);
        quality.add(guess, used);
        Cached(layers[l].experts()[0], cache, static_cast<Index>(l + 1) * kExperts, kExperts).prefetch(guess);
        if (t % 2 == 0) cache->finish_prefetch();  // else it comes too late, or not
      }
      CAPTURE(t);
      REQUIRE(test::same_bits(hidden, same));
    }
    cache->finish_prefetch();
    const moe::CacheStatistics done = cache->statistics();
    CHECK(done.peak_bytes <= 8 * bytes);
    CHECK(done.hits + done.loads + done.awaited == done.requests);
    if (quality.recall() == 1) CHECK(done.prefetched_bytes == done.prefetched_bytes_used);
    return quality;
  };
  std::vector<moe::Routing<float>> routings;
  CHECK(run(moe::KnownRoutings<float>(routings), routings).recall() == 1);
  CHECK(run(moe::PreviousStep(kLayers), routings).recall() < 1);
  CHECK(run(moe::NextLayerAffinity(kLayers, kExperts, 2), routings).recall() < 1);
}

TEST_CASE("Predictors: layers and experts that are not there are refused", "[serve][error]") {
  using Refused = std::invalid_argument;
  CHECK_THROWS_AS(moe::PreviousStep(-1), Refused);
  const auto layers = chain(9);
  CHECK_THROWS_AS(moe::measure_predictor(layers, moe::NextLayerAffinity(kLayers - 1, kExperts, 1)), Refused);
  CHECK_THROWS_AS(moe::measure_predictor(layers, moe::NextLayerAffinity(kLayers, kExperts - 1, 1)), Refused);
  CHECK_THROWS_AS(moe::measure_predictor(layers, moe::PreviousStep(kLayers - 1)), Refused);
  moe::NextLayerAffinity affinity(kLayers, kExperts, 1);
  std::vector<Index> guess;
  CHECK_THROWS_AS(affinity.predict(kLayers, guess), Refused);
  CHECK_THROWS_AS(affinity.observe(-1, guess), Refused);
  const std::vector<Layer> stacked = stack();
  moe::NextLayerGate<Layer> gate({&stacked[0], &stacked[1]});
  CHECK_THROWS_AS(gate.predict(0, guess), Refused);  // has looked at nothing
  gate.look(test::random_matrix<float>(2, kDim, 4));
  CHECK_NOTHROW(gate.predict(1, guess));
  CHECK_THROWS_AS(gate.predict(2, guess), Refused);
  const std::vector<moe::Routing<float>> routings(2);
  CHECK_THROWS_AS(moe::KnownRoutings(routings).predict(2, guess), Refused);
}

namespace {

/// A gate that learns: its scale multiplies weights.
struct ScaledGate {
  static constexpr bool kPerToken = true;
  moe::Matrix<float> scale = moe::Matrix<float>::Ones(1, 3);
  void validate(Index num_experts) const { moe::TopKGate{.k = 2}.validate(num_experts); }
  void route(const moe::Logits<float>& logits, const moe::Context& context, moe::Routing<float>& routing) const {
    moe::TopKGate{.k = 2}.route(logits, context, routing);
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("scale", self.scale...);
  }
};

}  // namespace

TEST_CASE("PreGate: gates are checked and visited, layers draw noise of their own", "[serve]") {
  using Router = moe::LinearRouter;
  const std::vector<Router> one = {Router::random(kExperts, kDim, 1)};
  CHECK_THROWS_AS((moe::PreGate(one, moe::TopKGate{.k = 9}, kLayers)), std::invalid_argument);
  const moe::PreGate plain(one, moe::TopKGate{.k = 2}, kLayers);
  const moe::PreGate scaled(one, ScaledGate{}, kLayers);
  CHECK(moe::num_parameters(scaled) == moe::num_parameters(plain) + 3);

  const std::vector<Router> alike(kLayers, one.front());
  const moe::PreGate noisy(alike, moe::NoisyTopKGate{.top_k = {.k = 2}}, kLayers);
  const auto tokens = test::random_matrix<float>(40, kDim, 4);
  moe::Step step = moe::Step::train(3);
  moe::Scratch scratch;
  std::vector<moe::Routing<float>> routings, second;
  noisy.route(tokens, {step, scratch}, routings);
  CHECK_FALSE(std::ranges::equal(routings[0].experts(), routings[1].experts()));
  step.layer = 1;
  noisy.route(tokens, {step, scratch}, second);
  CHECK(std::ranges::equal(second[0].experts(), routings[1].experts()));
}
