// SPDX-License-Identifier: MIT
// Looking ahead: what a layer will ask for, guessed while the one before it computes, and prefetched; and requests put
// into batches by the experts that they need, as Read-ME does with one gate for all layers (arXiv:2410.19123). Here: 4
// layers of 16 GLU experts, top-2, of random weights; tokens around one of 8 topics, which lasts for 20 tokens in the
// mean; room for a quarter of the experts. Guesses: what the layer used for the token before; what followed upon the
// experts of the layer before, as counted so far; the gate of the next layer on the state that there is; the gates of
// all layers on the early state. A prefetch is waited for, so that hits are what guesses are worth, not this machine. A
// cache by itself knows the token before; a guess that is wrong half of the time evicts what is needed, and costs hits.
// Outputs have the bits of the layers in memory. Then requests for one of 8 experts by Zipf's law, in windows of 128.
#include <set>

#include <moe/serve/expert_aware_batches.hpp>
#include <moe/serve/pre_gate.hpp>

#include "support/page.hpp"
#include "support/prefetched_stack.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using systems::kStackExperts, systems::kStackLayers, systems::StackLayer;

/// Experts per batch of windows of 128 requests, as they come and by expert.
std::vector<double> batches(Index size, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  std::vector<moe::WaitingRequest> requests;
  for (Index i = 0; i < 128; ++i) {
    double rest = 2.717857 * random.uniform(i) - 1;  // the sum of 1 / (1 + e)
    Index e = 0;
    for (; rest > 0 && e < 7; ++e) rest -= 1.0 / static_cast<double>(e + 2);
    requests.push_back({.expert = e});
  }
  std::vector<std::vector<Index>> as_they_come;
  for (Index i = 0; i < 128; ++i) {
    if (i % size == 0) as_they_come.emplace_back();
    as_they_come.back().push_back(i);
  }
  const auto mean = [&](const std::vector<std::vector<Index>>& of) {
    double sum = 0;
    for (const auto& batch : of) {
      std::set<Index> experts;
      for (const Index i : batch) experts.insert(requests[static_cast<std::size_t>(i)].expert);
      sum += static_cast<double>(experts.size()) / static_cast<double>(of.size());
    }
    return sum;
  };
  return {mean(as_they_come), mean(moe::expert_aware_batches(requests, size))};
}

std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const std::vector<StackLayer> layers = systems::random_stack(seed);
  const Matrix<float> tokens = systems::topic_stream(page.amount<Index>(1000, 20), seed);
  std::vector<double> result;
  const auto nothing = [](Index, std::span<const Index>) {};
  const auto add = [&](const auto& guess, const auto& observe) {
    const auto of = systems::run_prefetched(layers, tokens, guess, observe);
    result.insert(result.end(), of.begin(), of.end());
  };
  const auto add_predictor = [&](auto predictor) {
    add([&](Index l, const auto&, const auto&, std::vector<Index>& out) { predictor.predict(l, out); },
        [&](Index l, std::span<const Index> used) { predictor.observe(l, used); });
  };
  add([](Index, const auto&, const auto&, std::vector<Index>& out) { out.clear(); }, nothing);
  add_predictor(moe::PreviousStep(kStackLayers));
  add_predictor(moe::NextLayerAffinity(kStackLayers, kStackExperts, 2));
  std::vector<const StackLayer*> pointers;
  std::vector<moe::LinearRouter> routers;
  for (const StackLayer& layer : layers) pointers.push_back(&layer), routers.push_back(layer.router());
  moe::NextLayerGate<StackLayer> next(pointers);
  add([&](Index l, const auto&, const Matrix<float>& hidden,
          std::vector<Index>& out) { next.look(hidden), next.predict(l, out); },
      nothing);
  const moe::PreGate gate(routers, moe::TopKGate{.k = 2}, kStackLayers);
  std::vector<moe::Routing<float>> routings;
  moe::KnownRoutings<float> known(routings);
  add(
      [&](Index l, const Matrix<float>& early, const auto&, std::vector<Index>& out) {
        if (l == 1) gate.route(early, moe::Step{}, routings);
        known.predict(l, out);
      },
      nothing);
  for (const Index size : {8, 32}) {
    std::vector<double> sum(2);
    for (std::uint64_t window = 0; window < 8; ++window)
      for (std::size_t i = 0; i < 2; ++i) sum[i] += batches(size, 8 * seed + window)[i] / 8;
    result.insert(result.end(), sum.begin(), sum.end());
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"read_me", "2410.19123", "moe/serve/prefetch_predictor.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
        page.table({"a quarter in memory, LRU", "recall", "precision", "MB in vain", "hit rate"});
        const char* names[] = {"no guess", "token before", "layer before", "next gate", "gates on the early state"};
        systems::Sample differs = samples[4];
        for (std::size_t i = 0; i < 5; ++i) {
          page.row(names[i], {samples[5 * i], samples[5 * i + 1], samples[5 * i + 2], samples[5 * i + 3]});
          for (std::size_t n = 0; n < differs.values.size(); ++n)
            differs.values[n] = std::max(differs.values[n], samples[5 * i + 4].values[n]);
        }
        page.table({"experts per batch", "as they come", "by expert"});
        page.row("of 8 requests", {samples[25], samples[26]});
        page.row("of 32 requests", {samples[27], samples[28]});
        page.expect("outputs that differ", differs, {.low = 0, .high = 0});
        page.expect("experts per batch of 8, by expert", samples[26], {.low = 1, .high = 1.7});
        page.claim("hit rate that the gate of the next layer adds", samples[18] - samples[3], {.low = 0.02, .high = 1});
      });
}
