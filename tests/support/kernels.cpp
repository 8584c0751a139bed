// SPDX-License-Identifier: MIT
#define MOE_TEST_KERNEL template
#define MOE_TEST_KERNELS_HERE
#include "support/kernels.hpp"
