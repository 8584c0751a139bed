// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI::detail {

/// Default of a template parameter that nothing depends on: what has it is compiled where it is used. Compilers
/// instantiate all that the body of an `inline` function needs wherever its header is included, and a factorisation of
/// Eigen takes seconds.
struct WhenUsed {};

}  // namespace moe::inline MOE_ABI::detail
