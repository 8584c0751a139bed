// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <cstdio>
#include <fstream>

#include "clock.hpp"
#include "result_json.hpp"

namespace bench {

namespace {

bool is_plain(const CellResult& result) {
  return result.cell.pass == Pass::Forward && result.cell.pattern == Pattern::Uniform;
}

/// Speed-up of all threads over one, of each layer that was measured with both, beside that of the FMA loop.
void print_scaling(const std::vector<CellResult>& cells) {
  if (all_threads() == 1) return;
  std::printf("\nAll threads over one\n");
  for (const CellResult& one : cells) {
    if (one.cell.threads != 1 || !is_plain(one)) continue;
    for (const CellResult& all : cells)
      if (all.cell.threads != 1 && is_plain(all) && all.shape.name == one.shape.name &&
          all.cell.tokens == one.cell.tokens)
        std::printf("  %-17s %6td tokens: %.2f, FMA loop %.2f\n", one.shape.name.c_str(), one.cell.tokens,
                    one.ours().seconds / all.ours().seconds, all.measurement.limits.flop / one.measurement.limits.flop);
  }
}

/// Medians over the cells that ran on that many threads.
void print_limits(const std::vector<CellResult>& cells) {
  std::printf("\nLimits, medians of this run\n");
  for (int threads = 1; threads <= all_threads(); threads += std::max(1, all_threads() - 1)) {
    std::vector<double> peak, memory, cache;
    for (const CellResult& result : cells) {
      if (result.cell.threads != threads) continue;
      peak.push_back(1e-9 * result.measurement.limits.flop);
      (result.measurement.is_warm ? cache : memory).push_back(1e-9 * result.measurement.limits.bytes);
    }
    if (peak.empty()) continue;
    std::printf("  %d thread(s): FMA %.0f GFLOP/s", threads, median(peak));
    if (!memory.empty()) std::printf(", reading from memory %.1f GB/s", median(memory));
    if (!cache.empty()) std::printf(", from the cache %.1f GB/s", median(cache));
    std::printf("\n");
  }
}

nlohmann::json to_json(const ShareResult& s) {
  return {
      {"shape", s.shape},       {"tokens", s.tokens},     {"threads", s.threads},         {"router_percent", s.router},
      {"gate_percent", s.gate}, {"plan_percent", s.plan}, {"combine_percent", s.combine}, {"percent", s.sum()}};
}
nlohmann::json to_json(const PlanResult& p) {
  return {{"tokens", p.tokens},
          {"experts", p.experts},
          {"k", p.k},
          {"nanoseconds_per_token", p.nanoseconds},
          {"naive_nanoseconds_per_token", p.naive_nanoseconds},
          {"speedup", p.speedup}};
}
nlohmann::json to_json(const MovementResult& m) {
  return {{"shape", m.shape},
          {"tokens", m.tokens},
          {"dispatch_gbps", m.dispatch_gbps},
          {"combine_gbps", m.combine_gbps},
          {"memcpy_gbps", m.memcpy_gbps},
          {"dispatch_percent", m.dispatch_percent},
          {"combine_percent", m.combine_percent},
          {"combine_speedup_over_scatter_add", m.combine_speedup}};
}

void write(const nlohmann::json& json, const std::string& path) {
  std::ofstream file(path);
  file << json.dump(2) << '\n';
  if (!file) moe::fail_environment("bench: cannot write ", path);
}

template <class Results>
nlohmann::json list_of(const Results& results) {
  nlohmann::json list = nlohmann::json::array();
  for (const auto& result : results) list.push_back(to_json(result));
  return list;
}

}  // namespace

void print_header() {
  std::printf("%s, %d thread(s), last-level cache %td MiB, compiled for %s\n", processor_name().c_str(), all_threads(),
              last_level_cache() >> 20, instruction_set().c_str());
  for (const std::string& peer : peer_kernels()) std::printf("peer %s\n", peer.c_str());
  std::printf(
      "\nms: medians of interleaved repetitions. x peer: best peer's time / ours. %% limit: of max(FLOP / peak,\n"
      "bytes / bandwidth), both measured beside each repetition; bound: which of them (F, B). bwd follows its\n"
      "forward: some of its weights may be cached. Peers store weights as plain matrices%s.\n\n"
      "%-17s %-4s %3s %6s %-8s %10s %10s %10s %-9s %7s %7s %5s %8s %7s\n",
      onednn_copies_weights() ? ", oneDNN in its blocks" : "", "shape", "pass", "thr", "tokens", "routing", "ours ms",
      "Eigen ms", "peer ms", "best peer", "x peer", "% limit", "bound", "GFLOP/s", "GB/s");
}

void print_row(const CellResult& result) {
  const Measurement& m = result.measurement;
  const Timing &ours = result.ours(), *naive = result.naive(), *best = result.best_peer();
  std::printf("%-17s %-4s %3d %6td %-8s %10.3f %10.3f %10.3f %-9s %7.2f %7.1f %5s %8.1f %7.1f\n",
              result.shape.name.c_str(), result.cell.pass == Pass::Forward ? "fwd" : "bwd", result.cell.threads,
              result.cell.tokens, name_of(result.cell.pattern), 1e3 * ours.seconds, naive ? 1e3 * naive->seconds : 0.0,
              best ? 1e3 * best->seconds : 0.0, best ? best->name.c_str() : "-", best ? best->ratio : 0.0,
              ours.percent_of_limit, m.is_bound_by_flop() ? "F" : "B", 1e-9 * m.work.flop / ours.seconds,
              1e-9 * m.work.bytes / ours.seconds);
  for (const std::string& name : result.wrong)
    std::printf("  %s left out: its results differ from ours\n", name.c_str());
  std::fflush(stdout);
}

void print_rest(const Report& report) {
  print_limits(report.cells);
  print_scaling(report.cells);
  std::printf("\nShare of the forward pass around the experts: router + gate + plan + combine\n");
  for (const ShareResult& s : report.shares)
    std::printf("  %-17s %6td tokens, %d thread(s): %.1f + %.1f + %.1f + %.1f = %.1f%%\n", s.shape.c_str(), s.tokens,
                s.threads, s.router, s.gate, s.plan, s.combine, s.sum());
  std::printf("\nLogits to plan, 1 thread\n%8s %8s %4s %12s %12s %8s\n", "tokens", "experts", "k", "ns/token", "naive",
              "speedup");
  for (const PlanResult& p : report.plans)
    std::printf("%8td %8td %4td %12.1f %12.1f %8.2f\n", p.tokens, p.experts, p.k, p.nanoseconds, p.naive_nanoseconds,
                p.speedup);
  std::printf("\nRows to experts and back, 1 thread, GB/s read and written\n%-17s %7s %9s %9s %8s %11s %10s %19s\n",
              "shape", "tokens", "dispatch", "combine", "memcpy", "dispatch %", "combine %", "combine/scatter-add");
  for (const MovementResult& m : report.movements)
    std::printf("%-17s %7td %9.1f %9.1f %8.1f %11.0f %10.0f %19.2f\n", m.shape.c_str(), m.tokens, m.dispatch_gbps,
                m.combine_gbps, m.memcpy_gbps, m.dispatch_percent, m.combine_percent, m.combine_speedup);
  std::fflush(stdout);
}

void write_json(const Report& report, const std::string& path) {
  const nlohmann::json json = {{"machine", machine_json()},
                               {"cells", list_of(report.cells)},
                               {"shares", list_of(report.shares)},
                               {"plans", list_of(report.plans)},
                               {"movements", list_of(report.movements)}};
  write(json, path);
}

void write_formats_json(const std::vector<CellResult>& cells, const std::string& path) {
  write(formats_json(cells), path);
}

}  // namespace bench
