// SPDX-License-Identifier: MIT
#include "moe/core/abi.hpp"
