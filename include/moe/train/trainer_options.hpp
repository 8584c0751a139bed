// SPDX-License-Identifier: MIT
#pragma once

#include <limits>

#include "moe/train/sgd.hpp"

namespace moe::inline MOE_ABI {

/// What a Trainer does beside the task's loss.
struct TrainerOptions {
  double max_norm = std::numeric_limits<double>::infinity();  ///< gradients are clipped to this norm; > 0
  double balance = 0;  ///< weight of load_balancing_loss(), of each micro-batch by itself; >= 0
  double z_loss = 0;   ///< weight of z_loss(); >= 0

  /// Throws std::invalid_argument unless every number is in its range.
  void validate() const {
    if (!(max_norm > 0)) fail("moe::Trainer: max_norm is ", max_norm, ", expected a value above 0");
    detail::require_factor("moe::Trainer", "balance", balance);
    detail::require_factor("moe::Trainer", "z_loss", z_loss);
  }
};

/// Auxiliary losses of one pass, before their weights; 0 where not asked for.
struct AuxiliaryLosses {
  double balance = 0;  ///< load_balancing_loss()
  double z_loss = 0;
  double other = 0;  ///< what the function given to accumulate() returned
};

/// What became of an update.
struct UpdateResult {
  bool taken = false;        ///< false: NonFinite::Skip, and the gradient was not finite
  double gradient_norm = 0;  ///< before clipping
};

}  // namespace moe::inline MOE_ABI
