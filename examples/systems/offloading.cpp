// SPDX-License-Identifier: MIT
// More experts than memory: a layer whose experts lie in a file four times as large as what may stay in memory, decoded
// token by token. Policies say what leaves: LRU, LFU, the oracle of the next 16 tokens, and Belady's bound, which knows
// all that comes. Liang et al., "Not all models suit expert offloading: on local routing consistency of
// mixture-of-expert models" (arXiv:2505.16056). Here: 32 GLU experts of 96 x 192, top-2; tokens around one of 8 topics,
// which lasts for 20 tokens in the mean. Outputs have the bits of the layer in memory, hits are those of the
// simulation. Times are of this machine, with the file in the page cache of the system: what is waited for is decoding.
// "Mapped" decodes each expert whenever a token has it. Not here: prefetching, which needs a guess.
#include <chrono>
#include <cstdio>
#include <fstream>

#include <moe/compress/quantise.hpp>
#include <moe/expert/glu.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/structure.hpp>
#include <moe/router/linear.hpp>
#include <moe/serve/cached_experts.hpp>
#include <moe/serve/simulate_cache.hpp>

#include "support/page.hpp"

namespace {

using moe::Index;
using E = moe::BasicGlu<moe::Quantised>;

constexpr Index kExperts = 32, kDim = 96, kHidden = 192, kTopics = 8;

moe::Matrix<float> stream(Index tokens, std::uint64_t seed) {
  const moe::RandomField centre(moe::Purpose::User, seed, 1), own(moe::Purpose::User, seed, 2);
  moe::Matrix<float> rows(tokens, kDim);
  for (Index t = 0, topic = 0; t < tokens; ++t) {
    if (own.uniform(t, -1) < 0.05) topic = static_cast<Index>(own.below(kTopics, t, -2));
    for (Index c = 0; c < kDim; ++c) rows(t, c) = static_cast<float>(centre.normal(topic, c) + 0.5 * own.normal(t, c));
  }
  return rows;
}

/// Tokens per second, one token at a time; leaves outputs and choices.
template <class Layer>
double decode(const Layer& layer, const moe::Matrix<float>& tokens, moe::Matrix<float>& out, moe::RoutingTrace& trace) {
  moe::Workspace ws;
  out.resize(tokens.rows(), kDim);
  const auto since = std::chrono::steady_clock::now();
  for (Index t = 0; t < tokens.rows(); ++t) {
    layer.forward(tokens.middleRows(t, 1), out.middleRows(t, 1), ws);
    trace.add(ws.routing);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - since;
  return static_cast<double>(tokens.rows()) / seconds.count();
}

/// Writes a script for gnuplot: hits against the number of experts that fit.
void draw(const moe::RoutingTrace& trace) {
  std::ofstream script("offloading.svg.gp");
  script << "set terminal svg size 640,400 background '#ffffff'\nset output 'offloading.svg'\nset key bottom right\n"
            "set xlabel 'experts in memory, of 32'\nset ylabel 'hit rate'\n$hits << END";
  for (Index c = 1; c <= kExperts; ++c) {
    script << '\n' << c;
    const auto add = [&](const auto& policy) { script << ' ' << moe::simulate_cache(trace, c, policy).hit_rate(); };
    add(moe::Lru()), add(moe::Lfu()), add(moe::SegmentOracle(trace, 16)), add(moe::Belady(trace));
  }
  script << "\nEND\nplot for [i=2:5] $hits u 1:i w lp t word('LRU LFU oracle Belady', i - 1)\n";
}

/// Per format and store: tokens per second, hits, MB decoded and ms waited per token; last, how many stores are wrong.
std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const moe::Matrix<float> tokens = stream(page.amount<Index>(400, 40), seed);
  const moe::MoeLayer floats(moe::LinearRouter::random(kExperts, kDim, seed), moe::TopKGate{.k = 2},
                             moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden, seed));
  std::vector<double> result;
  double differs = 0;  // 1 for each store whose outputs, hits or bytes are not as they should be
  std::filesystem::create_directories(page.cache());
  for (const moe::WeightFormat& format : {moe::WeightFormat::bf16(), moe::WeightFormat::int4()}) {
    const auto layer = moe::quantise(floats, format);
    const auto path = page.cache() / ("offloading-" + std::to_string(seed) + ".safetensors");
    moe::save_parameters(path, layer.experts());
    const auto file = [&] { return moe::ExpertFile<E>(path, layer.experts()[0]); };
    moe::Matrix<float> expected, out;
    const auto bytes = file().bytes();
    moe::RoutingTrace trace(kExperts), again(kExperts);
    const double resident = decode(layer, tokens, expected, trace);
    const double mapped = decode(moe::with_experts(layer, moe::MappedExperts<E>(file())), tokens, out, again);
    const std::size_t budget = bytes[0] * kExperts / 4;
    const double mb = 1e-6 * static_cast<double>(bytes[0]);
    differs += out == expected ? 0 : 1;
    result.insert(result.end(), {resident, 1, 0, 0, mapped, 0, mb * static_cast<double>(trace.num_choices()), 0});
    const auto run = [&]<class P>(const P& policy) {
      const auto cached = moe::CachedExperts<E, P>::from_file(file(), budget, policy);
      const double rate = decode(moe::with_experts(layer, cached), tokens, out, again);
      const moe::CacheStatistics done = cached.cache().statistics();
      const bool as_said = done.hits == moe::simulate_cache(trace, bytes, budget, policy).hits;
      differs += out == expected && done.peak_bytes <= budget && as_said ? 0 : 1;
      result.insert(result.end(), {rate, done.hit_rate(), mb * static_cast<double>(done.loads),
                                   1e3 * done.stall_seconds / static_cast<double>(tokens.rows())});
    };
    run(moe::Lru()), run(moe::Lfu()), run(moe::SegmentOracle(trace, 16)), run(moe::Belady(trace));
    if (seed == page.first_seed()) draw(trace);
    std::filesystem::remove(path);
  }
  result.push_back(differs);
  std::fprintf(stderr, "offloading, seed %d: done\n", static_cast<int>(seed));
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"offloading", "2505.16056", "moe/serve/cached_experts.hpp"}, [](auto& page) {
    const auto runs = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
    page.table({"a quarter in memory", "tokens / s", "hit rate", "MB decoded", "ms waited / token"});
    const char* stores[] = {"in memory", "mapped", "LRU", "LFU", "next 16 tokens", "Belady"};
    for (std::size_t i = 0; i < 12; ++i)
      page.row((i < 6 ? "BF16, " : "INT4, ") + std::string(stores[i % 6]),
               {runs[4 * i], runs[4 * i + 1], runs[4 * i + 2], runs[4 * i + 3]});
    page.expect("outputs, hits or budgets that differ", runs.back(), {.low = 0, .high = 0});
    page.claim("hit rate of LRU over that of Belady, a quarter fits", runs[9] / runs[21], {.low = 0.85, .high = 1});
  });
}
