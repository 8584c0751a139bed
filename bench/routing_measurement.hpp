// SPDX-License-Identifier: MIT
// The parts of a layer around its experts, against what one writes without a library; one thread.
#pragma once

#include <vector>

#include "layer_measurement.hpp"

namespace bench {

/// From logits to the rows of each expert: gate and plan, against std::partial_sort, std::exp and a counting sort.
struct PlanResult {
  Index tokens = 0, experts = 0, k = 0;
  double nanoseconds = 0, naive_nanoseconds = 0;  ///< per token
  double speedup = 0;                             ///< median of the ratios within a repetition
};
std::vector<PlanResult> measure_plans();

/// Rows to experts and back. GB/s counts bytes read and written, of memcpy too.
struct MovementResult {
  std::string shape;
  Index tokens = 0;
  double dispatch_gbps = 0, combine_gbps = 0, memcpy_gbps = 0;
  double dispatch_percent = 0, combine_percent = 0;  ///< of memcpy, medians of ratios
  double combine_speedup = 0;                        ///< over adding each expert's rows to their tokens
};
std::vector<MovementResult> measure_movement(Index most_tokens);

/// Percent of a layer's forward time that each part around the experts takes: medians of the shares within a pass, with
/// weights as cold or warm as where layers are measured.
struct ShareResult {
  std::string shape;
  Index tokens = 0;
  int threads = 1;
  double router = 0, gate = 0, plan = 0, combine = 0;
  double sum() const { return router + gate + plan + combine; }
};
ShareResult measure_share(const Shape& shape, const Layer& layer, Index tokens, int threads);

}  // namespace bench
