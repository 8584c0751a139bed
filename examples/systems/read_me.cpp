// SPDX-License-Identifier: MIT
// Looking ahead: what a layer will ask for, guessed while the one before it computes, and prefetched; and requests put
// into batches by the experts that they need, as Read-ME does with one gate for all layers (arXiv:2410.19123). Here: 4
// layers of 16 GLU experts, top-2, of random weights; tokens around one of 8 topics, which lasts for 20 tokens in the
// mean; room for a quarter of the experts. Guesses: what the layer used for the token before; what followed upon the
// experts of the layer before, as counted so far; the gate of the next layer on the state that there is; the gates of
// all layers on the early state; then what is right, and what is always wrong. A prefetch is waited for, so that hits
// are what guesses are worth, not this machine. A cache by itself knows the token before. Guesses that are wrong half
// of the time would evict what is needed: the cache keeps an account of what they bring and cost, so that none makes
// steps load more than 257/256 of what they load without, and 6 experts. Outputs have the bits of the layers in memory.
// Then requests for one of 8 experts by Zipf's law, in windows of 128.
#include <moe/serve/expert_aware_batches.hpp>
#include <moe/serve/pre_gate.hpp>

#include "support/page.hpp"
#include "support/prefetched_stack.hpp"
#include "support/zipf_batches.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using systems::kStackExperts, systems::kStackLayers, systems::StackLayer;

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
  const auto truth = systems::experts_of(layers, tokens);
  for (const bool is_right : {true, false}) {
    std::size_t seen = 0;
    add(
        [&](Index, const auto&, const auto&, std::vector<Index>& out) {
          out.clear();
          for (Index e = 0; e < kStackExperts && out.size() < 2; ++e)
            if (std::ranges::binary_search(truth[seen], e) == is_right) out.push_back(e);
        },
        [&](Index, std::span<const Index>) { ++seen; });
  }
  for (const Index size : {8, 32}) {
    std::vector<double> sum(2);
    for (std::uint64_t window = 0; window < 8; ++window)
      for (std::size_t i = 0; i < 2; ++i) sum[i] += systems::zipf_batches(size, 8 * seed + window)[i] / 8;
    result.insert(result.end(), sum.begin(), sum.end());
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"read_me", "2410.19123", "moe/serve/prefetch_predictor.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
        page.table({"a quarter in memory, LRU", "recall", "precision", "MB in vain", "hit rate", "ms waited"});
        const char* names[] = {"no guess",     "token before", "layer before", "next gate", "gates on the early state",
                               "always right", "always wrong"};
        systems::Sample differs = samples[6], beyond = differs, least = differs;
        for (std::size_t i = 0; i < 7; ++i) {
          const auto of = [&](std::size_t number) -> const systems::Sample& { return samples[7 * i + number]; };
          page.row(names[i], {of(0), of(1), of(2), of(3), of(5)});
          for (std::size_t n = 0; n < differs.values.size(); ++n) {
            differs.values[n] = std::max(differs.values[n], of(6).values[n]);
            beyond.values[n] = std::max(beyond.values[n], of(4).values[n] - samples[4].values[n] * 257 / 256 - 6);
            least.values[n] = std::min(least.values[n], of(3).values[n] - samples[3].values[n]);
          }
        }
        page.table({"experts per batch", "as they come", "by expert"});
        page.row("of 8 requests", {samples[49], samples[50]});
        page.row("of 32 requests", {samples[51], samples[52]});
        page.expect("outputs that differ", differs, {.low = 0, .high = 0});
        page.expect("loads beyond what wrong guesses may cost", beyond, {.low = 0, .high = 0});
        page.expect("least hit rate that guesses add", least,
                    {.low = -0.002, .high = 0});  // 1/256 of .22, and 6 of 8000
        page.expect("experts per batch of 8, by expert", samples[50], {.low = 1, .high = 1.7});
        page.claim("hit rate that the gate of the next layer adds", samples[24] - samples[3], {.low = 0.08, .high = 1});
      });
}
