// SPDX-License-Identifier: MIT
#include "format_table.hpp"

#include <cstdio>

namespace bench {

const char* const kFormatColumns =
    "bits: of a weight, with its share of scales. MiB: of the layer. error: root of the mean square by which outputs\n"
    "differ from those with floats, relative to these; of the last batch. / f32: time relative to floats in the same\n"
    "turn, below 1 is faster. GB/s: weights of the experts that tokens reach, router, and rows in and out; % read: of\n"
    "the bandwidth beside it. Weights are cold wherever floats would not fit the last-level cache. % FMA: of the peak\n"
    "of float arithmetic, whatever a peer computes with. All are medians over interleaved turns. Peers round tokens "
    "as\n"
    "they round weights, ours compute with the floats that codes stand for, unless it says +dot.\n";

namespace {

/// Below, the bandwidth is what matters.
constexpr Index kManyTokens = 64;

std::string label(const Timing& timing, const Entry& entry) { return entry.is_ours ? entry.weights : timing.name; }

void print_group(const CellResult& cell, const Timing& timing) {
  const bool is_many = cell.cell.tokens >= kManyTokens;
  const double rate = (is_many ? timing.work.flop : timing.work.bytes) / timing.seconds;
  std::printf("  %8.3f %5.2f %7.1f %6.1f", 1e3 * timing.seconds, timing.ratio, 1e-9 * rate,
              is_many ? timing.percent_of_peak : timing.percent_of_bandwidth);
}

}  // namespace

void print_formats(const std::vector<CellResult>& cells) {
  const CellResult &first = cells.front(), &last = cells.back();
  const Shape& shape = first.shape;
  std::printf("%s: %td experts, K %td, D %td, F %td, %s routing, %s, %d thread(s), %s\n", shape.name.c_str(),
              shape.num_experts, shape.k, shape.model_dim, shape.hidden_dim, name_of(first.cell.pattern),
              first.cell.pass == Pass::Forward ? "forward" : "backward", first.cell.threads, instruction_set().c_str());
  for (const CellResult& cell : cells) {
    const Measurement& m = cell.measurement;
    std::printf("  %td token(s): weights from %s, read limit %.1f GB/s, FMA peak %.1f GFLOP/s, %d turns\n",
                cell.cell.tokens, m.is_warm ? "the cache" : "memory", 1e-9 * m.limits.bytes, 1e-9 * m.limits.flop,
                m.repetitions);
    for (const std::string& name : cell.wrong)
      std::printf("  %s left out: its results differ too much from ours\n", name.c_str());
  }
  std::printf("%-13s %6s %8s %8s", "", "", "", "");
  for (const CellResult& cell : cells) std::printf("  %19td token(s)", cell.cell.tokens);
  std::printf("\n%-13s %6s %8s %8s", "weights", "bits", "MiB", "error");
  for (const CellResult& cell : cells)
    std::printf("  %8s %5s %7s %6s", "ms", "/ f32", cell.cell.tokens >= kManyTokens ? "GFLOP/s" : "GB/s",
                cell.cell.tokens >= kManyTokens ? "% FMA" : "% read");
  std::printf("\n");
  for (std::size_t i = 0; i < last.entries.size(); ++i) {
    const Entry& entry = last.entries[i];
    std::printf("%-13s %6.2f %8.1f %8.1e", label(last.measurement.timings[i], entry).c_str(), entry.bits,
                0x1p-20 * static_cast<double>(entry.bytes), entry.error);
    for (const CellResult& cell : cells)
      if (const Timing* const timing = cell.timing_of(last.measurement.timings[i].name)) print_group(cell, *timing);
    std::printf("\n");
  }
  std::fflush(stdout);
}

}  // namespace bench
