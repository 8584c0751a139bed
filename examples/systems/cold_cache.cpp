// SPDX-License-Identifier: MIT
// What a cache of experts waits for a disk, foretold from a trace of routings. Traces give hit rates before there is a
// cache (Liang et al., arXiv:2505.16056); a line through the seconds of some loads makes seconds of them. Here: 32 GLU
// experts of 64 x 1024 in BF16, INT4 or half of them in each, top-2, token by token, a quarter of the bytes in memory.
// Before every load the system forgets what it has read of the file, also ahead of what was asked for, so that all of
// them come from the disk; experts are decoded on the way. Loads are measured alone, in turns with the tokens, as disks
// and what else a machine does change by the minute. One thread. The time of a token is foretold as that of the layer
// in memory and what the cache waits. Hits and bytes are those of the simulation exactly. Single files are off by up to
// 20% where other programs load both cores and the disk, and all three together by less than 15%.
#include <array>
#include <memory>
#include <numeric>
#include <string>

#include <moe/compress/quantise.hpp>
#include <moe/expert/glu.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/structure.hpp>
#include <moe/router/linear.hpp>
#include <moe/serve/cached_experts.hpp>
#include <moe/serve/simulate_cache.hpp>

#include "support/cold_loads.hpp"
#include "support/page.hpp"
#include "support/prefetched_stack.hpp"

namespace {

using moe::Index;
using E = moe::BasicGlu<moe::Quantised>;

constexpr Index kExperts = 32, kDim = systems::kStackDim, kHidden = 1024;
constexpr std::array<const char*, 3> kFormats = {"both formats", "BF16", "INT4"};

moe::ExpertPool<E> experts_of(std::size_t format, std::uint64_t seed) {
  std::vector<E> experts;
  const auto floats = moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden, seed);
  for (Index e = 0; e < kExperts; ++e)
    experts.push_back(moe::quantise(
        floats[e], format == 1 || (format == 0 && e % 2 == 0) ? moe::WeightFormat::bf16() : moe::WeightFormat::int4()));
  return moe::ExpertPool<E>(std::move(experts));
}

/// Milliseconds of a token, one after the other, and their routings; after(t) is not in it.
template <class Layer, class After>
double time_of(const Layer& layer, const moe::Matrix<float>& tokens, moe::RoutingTrace& trace, const After& after) {
  moe::Workspace ws;
  moe::Matrix<float> out(1, tokens.cols());
  double sum = 0;
  for (Index t = 0; t < tokens.rows(); ++t) {
    sum += systems::milliseconds([&] { layer.forward(tokens.middleRows(t, 1), out, ws); });
    trace.add(ws.routing);
    after(t);
  }
  return sum / static_cast<double>(tokens.rows());
}

/// Of each format: ms per token waited, foretold and measured, then of all of it, hit rate; last, how many differ in
/// hits or bytes.
std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  moe::SerialExecutor serial;
  const moe::UseExecutor use(serial);
  std::filesystem::create_directories(page.cache());
  const auto path = page.cache() / "cold_cache.safetensors";
  const moe::Matrix<float> tokens = systems::topic_stream(page.amount<Index>(400, 40), seed);
  const double per_token = 1e3 / static_cast<double>(tokens.rows());
  std::vector<double> result;
  double differs = 0, all_foretold = 0, all_measured = 0;
  for (std::size_t format = 0; format < kFormats.size(); ++format) {
    const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kDim, seed), moe::TopKGate{.k = 2},
                              experts_of(format, seed));
    moe::save_parameters(path, layer.experts());
    systems::ColdLoads<E> loads(path, layer.experts()[0]);
    const std::vector<std::size_t>& bytes = loads.file().bytes();
    const std::size_t budget = std::accumulate(bytes.begin(), bytes.end(), std::size_t{0}) / 4;
    const auto cache = std::make_shared<moe::ExpertCache<E, moe::Lru>>(
        bytes, [&](Index e) { return loads.load(e); }, budget);
    const moe::CachedExperts<E> cached(layer.experts()[0], cache);
    moe::RoutingTrace trace(kExperts), again(kExperts);
    const double in_memory = time_of(layer, tokens, trace, [](Index) {});
    const double total =
        time_of(moe::with_experts(layer, cached), tokens, again, [&](Index t) { loads.measure(13 * t % kExperts); });
    const auto foretold = moe::simulate_cache(trace, bytes, budget, moe::Lru(), {.load_cost = loads.cost()});
    const moe::CacheStatistics done = cache->statistics();
    differs += done.hits == foretold.hits && done.loaded_bytes == foretold.loaded_bytes ? 0 : 1;
    const double waits = per_token * foretold.stall_seconds;
    all_foretold += in_memory + waits;
    all_measured += total;
    result.insert(result.end(), {waits, per_token * done.stall_seconds, in_memory + waits, total, done.hit_rate()});
  }
  std::filesystem::remove(path);
  result.insert(result.end(), {all_measured, all_foretold, differs});
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"cold_cache", "2505.16056", "moe/serve/simulate_cache.hpp"}, [](auto& page) {
    const auto samples = systems::seed_by_seed(page, numbers);
    page.table({"milliseconds of a token", "wait, foretold", "measured", "all, foretold", "measured", "hit rate"});
    for (std::size_t i = 0; i < kFormats.size(); ++i)
      page.row(kFormats[i],
               {samples[5 * i], samples[5 * i + 1], samples[5 * i + 2], samples[5 * i + 3], samples[5 * i + 4]});
    page.expect("runs whose hits or bytes are not as foretold", samples.back(), {.low = 0, .high = 0});
    page.claim("time of a token over what was foretold, all three files", samples[15] / samples[16],
               {.low = 0.85, .high = 1.15});
  });
}
