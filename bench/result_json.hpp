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

/// The keys of moe_bench_shape --json. Without peers, theirs are null.
inline nlohmann::json to_json(const CellResult& result) {
  const Measurement& m = result.measurement;
  const Timing &ours = result.ours(), *naive = result.naive(), *best = result.best_peer();
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
                         {"weights", "f32"},
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
                         {"naive_milliseconds", milliseconds(naive)},
                         {"best_peer", best ? nlohmann::json(best->name) : nlohmann::json()},
                         {"best_peer_milliseconds", milliseconds(best)},
                         {"speedup_over_best_peer", best ? nlohmann::json(best->ratio) : nlohmann::json()},
                         {"wrong_peers", result.wrong},
                         {"repetitions", m.repetitions}};
  if (result.cell.pass == Pass::Backward) json["forward_milliseconds"] = 1e3 * ours.prepare_seconds;
  for (const Timing& timing : m.timings)
    json["contestants"].push_back({{"name", timing.name},
                                   {"milliseconds", 1e3 * timing.seconds},
                                   {"ratio", timing.ratio},
                                   {"percent_of_limit", timing.percent_of_limit}});
  return json;
}

}  // namespace bench
