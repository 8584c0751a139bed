// SPDX-License-Identifier: MIT
// Levels of experts to be loaded, where a few experts have most of the rows.
#pragma once

#include <algorithm>
#include <vector>

#include <moe/core/random.hpp>
#include <moe/serve/load_schedule.hpp>

namespace systems {

/// Rows that need each level of each expert: Pareto at the lowest, at most `most`, and fewer by lot from level to
/// level. The lowest level takes twice as long to load as the others, a row at its level 1 second.
inline std::vector<moe::LoadJob> heavy_tailed(moe::Index experts, moe::Index levels, moe::Index most,
                                              const moe::RandomField& random) {
  std::vector<moe::LoadJob> jobs;
  for (moe::Index e = 0; e < experts; ++e) {
    const double pareto = std::min(1 / (1 - random.uniform(e)), 1e6);
    moe::Index rows = std::min(most, 1 + static_cast<moe::Index>(pareto));
    for (moe::Index l = 0; l < levels && rows > 0; ++l) {
      const bool is_last = l + 1 == levels;
      const auto next = is_last ? 0 : static_cast<moe::Index>(random.below(static_cast<std::uint64_t>(rows) + 1, e, l));
      jobs.push_back({e, l, rows, l == 0 ? 2.0 : 1.0, static_cast<double>(rows - next)});
      rows = next;
    }
  }
  return jobs;
}

}  // namespace systems
