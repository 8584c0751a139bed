// SPDX-License-Identifier: MIT
// What the results depend on: processor, caches, memory, instruction set, threads.
#pragma once

#include <string>

#include "moe/core/matrix.hpp"

namespace bench {

using moe::Index;

/// Bytes of the last-level cache that this core can use.
Index last_level_cache();

/// Bytes of memory that can be allocated without swapping.
Index available_memory();

std::string processor_name();

/// The instruction set that the program is compiled for: "AVX-512", "AVX2", ...
std::string instruction_set();

/// Threads that parallel loops use from now on, ours and the peers'. No effect without OpenMP.
void set_threads(int threads);

/// Threads of the machine; 1 without OpenMP.
int all_threads();

}  // namespace bench
