// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of serving, target moe::io (needs nlohmann-json): more experts than memory, and what tells
// beforehand what a cache will be worth. Start with serve/cached_experts.hpp. Every header also stands alone.

// Experts that stay in a file until they are asked for.
#include "moe/serve/cache_policy.hpp"
#include "moe/serve/cached_experts.hpp"
#include "moe/serve/expert_cache.hpp"
#include "moe/serve/expert_file.hpp"

// Experts whose precision comes from a file level by level, while others compute.
#include "moe/serve/load_schedule.hpp"
#include "moe/serve/nested_expert_file.hpp"
#include "moe/serve/nested_experts.hpp"
#include "moe/serve/pipelined_experts.hpp"

// Which experts come next, before they are asked for.
#include "moe/serve/expert_aware_batches.hpp"
#include "moe/serve/pre_gate.hpp"
#include "moe/serve/prefetch_predictor.hpp"

// Which experts tokens went to, and what that says.
#include "moe/serve/routing_trace.hpp"
#include "moe/serve/segment_routing.hpp"
#include "moe/serve/simulate_cache.hpp"
#include "moe/serve/trace_file.hpp"

// Where experts and copies of them go, and how many there should be.
#include "moe/serve/balance_experts.hpp"
#include "moe/serve/efficiency_leverage.hpp"
