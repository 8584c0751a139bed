// SPDX-License-Identifier: MIT
// Results as JSON: one flat object per cell, and what they depend on.
#pragma once

#include <nlohmann/json.hpp>

#include "layer_measurement.hpp"
#include "peers/kernels.hpp"

namespace bench {

/// Where and how the program was built and runs.
inline nlohmann::json machine_json() {
  return {{"processor", processor_name()},
          {"instruction_set", instruction_set()},
          {"last_level_cache_bytes", last_level_cache()},
          {"peers", peer_kernels()},
          {"compiler", std::string(__VERSION__)}};
}

/// The keys of moe_bench_shape --json. Without peers, or float weights beside others, theirs are null.
inline nlohmann::json to_json(const CellResult& result) {
  const Measurement& m = result.measurement;
  const Timing &ours = result.ours(), *naive = result.naive(), *best = result.best_peer(), *floats = result.floats();
  const Entry& entry = result.entries.front();
  const auto milliseconds = [](const Timing* timing) {
    return timing ? nlohmann::json(1e3 * timing->seconds) : nlohmann::json();
  };
  nlohmann::json json = {{"shape", result.shape.name},
                         {"model_dim", result.shape.model_dim},
                         {"hidden_dim", result.shape.hidden_dim},
                         {"experts", result.shape.num_experts},
                         {"k", result.shape.k},
                         {"tokens", result.cell.tokens},
                         {"threads", result.cell.threads},
                         {"weights", entry.weights},
                         {"bits_per_weight", entry.bits},
                         {"layer_bytes", entry.bytes},
                         {"output_error", entry.error},
                         {"routing", name_of(result.cell.pattern)},
                         {"pass", result.cell.pass == Pass::Forward ? "forward" : "backward"},
                         {"milliseconds", 1e3 * ours.seconds},
                         {"gflops", 1e-9 * m.work.flop / ours.seconds},
                         {"gbps", 1e-9 * m.work.bytes / ours.seconds},
                         {"peak_gflops", 1e-9 * m.limits.flop},
                         {"read_gbps", 1e-9 * m.limits.bytes},
                         {"percent_of_limit", ours.percent_of_limit},
                         {"limit", m.is_bound_by_flop() ? "flop" : "bandwidth"},
                         {"weights_from", m.is_warm ? "cache" : "memory"},
                         {"flop", m.work.flop},
                         {"bytes", m.work.bytes},
                         {"f32_milliseconds", milliseconds(floats)},
                         {"speedup_over_f32", floats ? nlohmann::json(floats->ratio) : nlohmann::json()},
                         {"naive_milliseconds", milliseconds(naive)},
                         {"best_peer", best ? nlohmann::json(best->name) : nlohmann::json()},
                         {"best_peer_milliseconds", milliseconds(best)},
                         {"speedup_over_best_peer", best ? nlohmann::json(best->ratio) : nlohmann::json()},
                         {"wrong_peers", result.wrong},
                         {"repetitions", m.repetitions}};
  if (result.cell.pass == Pass::Backward) json["forward_milliseconds"] = 1e3 * ours.prepare_seconds;
  for (std::size_t i = 0; i < m.timings.size(); ++i) {
    const Timing& timing = m.timings[i];
    const Entry& who = result.entries[i];
    json["contestants"].push_back({{"name", timing.name},
                                   {"weights", who.weights},
                                   {"bits_per_weight", who.bits},
                                   {"layer_bytes", who.bytes},
                                   {"output_error", who.error},
                                   {"milliseconds", 1e3 * timing.seconds},
                                   {"tokens_per_second", static_cast<double>(result.cell.tokens) / timing.seconds},
                                   {"ratio", timing.ratio},
                                   {"gflops", 1e-9 * timing.work.flop / timing.seconds},
                                   {"gbps", 1e-9 * timing.work.bytes / timing.seconds},
                                   {"peak_gflops", 1e-9 * timing.limits.flop},
                                   {"read_gbps", 1e-9 * timing.limits.bytes},
                                   {"percent_of_limit", timing.percent_of_limit},
                                   {"percent_of_peak", timing.percent_of_peak},
                                   {"percent_of_bandwidth", timing.percent_of_bandwidth}});
  }
  return json;
}

/// The same for the cells of tables of formats: {"machine": ..., "cells": [...]}.
inline nlohmann::json formats_json(const std::vector<CellResult>& cells) {
  nlohmann::json json = {{"machine", machine_json()}, {"cells", nlohmann::json::array()}};
  for (const CellResult& cell : cells) json["cells"].push_back(to_json(cell));
  return json;
}

}  // namespace bench
