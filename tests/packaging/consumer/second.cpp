// SPDX-License-Identifier: MIT
// Includes everything once more: a definition in a header that is not inline would be a link error.
#include "second.hpp"

moe::Index busiest_expert(const moe::DispatchPlan& plan) {
  moe::Index busiest = 0;
  for (moe::Index e = 1; e < plan.num_experts(); ++e)
    if (plan.rows_of(e) > plan.rows_of(busiest)) busiest = e;
  return busiest;
}
