// SPDX-License-Identifier: MIT
#pragma once

/// The version of the library: the only place that states it. CMake reads these three numbers.
#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 2
#define MOE_VERSION_PATCH 0
