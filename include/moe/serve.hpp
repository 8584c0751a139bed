// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of serving, target moe::io (needs nlohmann-json): which experts tokens went to, and what tells
// beforehand what a cache will be worth. Start with serve/routing_trace.hpp. Every header also stands alone.

// Which experts tokens went to, and what that says.
#include "moe/serve/routing_trace.hpp"
#include "moe/serve/segment_routing.hpp"
#include "moe/serve/trace_file.hpp"
