// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI {

/// What the weight of a choice multiplies: the output of the expert, out = sum_e w_e f_e(x), or its input,
/// out = sum_e f_e(w_e x), through which the router learns via the expert (Llama 4).
enum class WeightOn { Output, Input };

}  // namespace moe::inline MOE_ABI
