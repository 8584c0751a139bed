// SPDX-License-Identifier: MIT
// Interleaved repetitions: each contestant runs beside its own measurement of the limits, and comparisons are medians
// of ratios within a repetition, so that a machine that changes its speed changes both sides.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "limits.hpp"

namespace bench {

/// What one call has to compute and to move at least.
struct Work {
  double flop = 0, bytes = 0;
};

/// One of several ways to do the same. `set` selects one of the prepared inputs.
struct Contestant {
  std::string name;
  std::function<void(Index set)> prepare;  ///< timed apart, between the flush and each run; may be empty
  std::function<void(Index set)> run;
  std::vector<Work> work = {};        ///< of its calls, where they move or compute something else than others do
  const LimitMeter* meter = nullptr;  ///< where its working set is of another size; as warm as the others' or as cold
};

/// Medians over the repetitions.
struct Timing {
  std::string name;
  double seconds = 0, prepare_seconds = 0;
  double ratio = 0;                                      ///< its time / the first contestant's
  double percent_of_limit = 0;                           ///< 100 max(flop / peak, bytes / bandwidth) / time
  double percent_of_peak = 0, percent_of_bandwidth = 0;  ///< the two that this is the larger of
  Limits limits = {};                                    ///< beside it
  Work work = {};                                        ///< mean over the sets
};

struct Measurement {
  std::vector<Timing> timings = {};  ///< in the order of the contestants
  Limits limits = {};                ///< those of the first contestant
  Work work = {};                    ///< the same
  int repetitions = 0;
  bool is_warm = false;  ///< weights (and gradients) fit the last-level cache
  bool is_bound_by_flop() const { return work.flop / limits.flop > work.bytes / limits.bytes; }
};

/// How long to measure: until `seconds` are over, but within these numbers of repetitions.
struct Effort {
  double seconds = 3;
  int least = 5, most = 31;
};

/// work[set] is that of one call on input set; the sets are used in turn, so that small batches reach other experts.
/// Warm working sets (see LimitMeter) are read once before the clock starts, and run for some milliseconds each time.
Measurement interleave(const std::vector<Contestant>& contestants, const std::vector<Work>& work,
                       const LimitMeter& meter, const Effort& effort);

}  // namespace bench
