// SPDX-License-Identifier: MIT
// FSSDP: experts are sharded over ranks, one owner each, and the busy ones come to other ranks for an iteration, so
// that nobody waits for the rank that has them. Qing et al., "Hecate" (arXiv:2502.02581). Here: loads of 32 experts on
// 8 ranks by a Pareto distribution of shape 1.2, and what is left of their imbalance; then two ranks that are threads
// of this machine behind a network of 200 us and 50 MB/s that is made up, measured, beside a model of costs that is
// fitted to exchanges and products alone. What that model says of more ranks is no measurement: 8 on a node, which
// copy through memory, 4 experts on a rank. Where an owner has to send its expert to a thousand ranks itself, copies
// cost more than they save: that calls for trees, which are not here. Picture: fssdp.svg.
#include <cstdio>

#include "support/page.hpp"
#include "support/rank_loads.hpp"
#include "support/rank_times.hpp"

namespace {

using moe::Index;
using moe::mpi::Placement;
using moe::mpi::Topology;
using systems::copied, systems::kCopies, systems::RankBench, systems::Sample, systems::ShardsBy;

/// Per number of copies: imbalance in order, by load, and the share of a full gather that copies are.
std::vector<double> imbalances(const systems::Page& page, std::uint64_t seed) {
  std::vector<double> result;
  const auto draws = page.amount<std::uint64_t>(1000, 20);
  for (const Index copies : kCopies) {
    double in_order = 0, by_load = 0;
    for (std::uint64_t draw = 0; draw < draws; ++draw) {
      const std::vector<double> loads = systems::pareto_loads(32, 10000 * seed + draw);
      in_order +=
          moe::mpi::rank_imbalance(systems::of_ranks(loads, copies, ShardsBy::Order)) / static_cast<double>(draws);
      by_load +=
          moe::mpi::rank_imbalance(systems::of_ranks(loads, copies, ShardsBy::Load)) / static_cast<double>(draws);
    }
    const auto loads = systems::pareto_loads(32, seed);
    result.insert(result.end(),
                  {in_order, by_load,
                   moe::mpi::gather_volume(copied(Placement::contiguous(32, 8), loads, {.ranks = 8}, copies))});
  }
  return result;
}

/// Measured and predicted seconds of two ranks without copies, the same with two, then what the model was fitted to.
std::vector<double> two_ranks(const RankBench& bench, const std::vector<double>& loads, moe::mpi::CostModel& model) {
  model = bench.fit();
  std::vector<double> result;
  for (const Index copies : {0, 2}) {
    const Placement placement = copied(Placement::contiguous(8, 2), loads, {.ranks = 2}, copies);
    result.push_back(1e3 * bench.measure(loads, placement));
    result.push_back(1e3 * bench.predict(model, loads, placement).total());
  }
  std::fprintf(stderr, "fssdp: measured %.1f and %.1f ms\n", result[0], result[2]);
  const auto& [alpha, beta] = model.between_nodes;
  result.insert(result.end(), {1e6 * alpha, 1e-6 / beta, 1e-9 / model.compute.per_amount});
  return result;
}

/// By the model: seconds of a step without copies over those with 1, 2 and 4.
std::vector<double> speed_ups(const moe::mpi::CostModel& model, const RankBench& bench, Index ranks,
                              std::uint64_t seed) {
  const std::vector<double> loads = systems::pareto_loads(4 * ranks, seed);
  const Topology topology{.ranks = ranks, .ranks_per_node = 8};
  moe::mpi::RankMatrix rows(ranks, 4 * ranks);
  double sum = 0;
  for (const double load : loads) sum += load;
  for (Index e = 0; e < rows.cols(); ++e)
    rows.col(e).setConstant(static_cast<double>(bench.tokens * bench.kChoices) * loads[static_cast<std::size_t>(e)] /
                            sum);
  std::vector<double> seconds;
  for (const Index copies : kCopies)
    seconds.push_back(moe::mpi::step_time(model, topology, bench.work(), rows,
                                          copied(Placement::contiguous(4 * ranks, ranks), loads, topology, copies))
                          .total());
  return {seconds[0] / seconds[1], seconds[0] / seconds[2], seconds[0] / seconds[3]};
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"fssdp", "2502.02581", "moe/mpi/fully_sharded_experts.hpp"}, [](systems::Page& page) {
        const auto even = page.over_seeds([&](std::uint64_t seed) { return imbalances(page, seed); });
        page.table({"8 ranks, max / mean", "shards in order", "shards by load", "share of a full gather"});
        std::vector<std::array<double, 2>> means;
        for (std::size_t i = 0; i < kCopies.size(); ++i) {
          page.row(std::to_string(kCopies[i]) + " of 32 on all", {even[3 * i], even[3 * i + 1], even[3 * i + 2]});
          means.push_back({even[3 * i].mean(), even[3 * i + 1].mean()});
        }
        systems::draw_ranks("fssdp.svg", means, page.first_seed());

        const RankBench bench{.tokens = page.amount<Index>(512, 64), .repeats = page.amount<Index>(15, 2)};
        const std::vector<double> loads = {8, 3, 1, 1, 1, 1, 1, 1};
        moe::mpi::CostModel model;
        std::vector<Sample> times(7);
        for (int run = 0; run < page.amount(5, 1); ++run) {  // one after the other: they are timed
          const std::vector<double> numbers = two_ranks(bench, loads, model);
          for (std::size_t i = 0; i < numbers.size(); ++i) times[i].values.push_back(numbers[i]);
        }
        page.table({"2 ranks, threads of this machine", "measured ms", "predicted ms", "predicted / measured"});
        page.row("no copies (expert parallelism)", {times[0], times[1], times[1] / times[0]});
        page.row("2 of 8 on both", {times[2], times[3], times[3] / times[2]});
        page.table({"fitted to", "us / message", "MB / s", "GFLOP / s of a rank"});
        page.row("exchanges, experts alone", {times[4], times[5], times[6]});

        page.table({"model, not measured", "x faster, 1 on all", "2 on all", "4 on all"});
        for (const Index ranks : {Index{8}, Index{64}, page.amount<Index>(1024, 128)}) {
          const auto gains = page.over_seeds([&](std::uint64_t seed) { return speed_ups(model, bench, ranks, seed); });
          page.row("model, " + std::to_string(ranks) + " ranks", gains);
        }
        page.expect("max / mean, none copied", even[0], {.low = 2.69, .high = 2.89});
        page.expect("max / mean, 1 copied", even[3], {.low = 1.62, .high = 1.74});
        page.expect("max / mean, 2 copied", even[6], {.low = 1.38, .high = 1.5});
        page.expect("predicted over measured time, no copies", times[1] / times[0], {.low = 0.8, .high = 1.2});
        page.expect("predicted over measured time, 2 on both", times[3] / times[2], {.low = 0.8, .high = 1.2});
        page.claim("max / mean, 4 copied", even[9], {.low = 1.23, .high = 1.31});
      });
}
