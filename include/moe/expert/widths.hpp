// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Sizes of an expert with one hidden layer, by name, each at least 1: for experts whose output is wider or narrower
/// than their input.
///   moe::Mlp expert(moe::Widths{.input = 64, .hidden = 256, .output = 10});
///   auto experts = moe::ExpertPool<moe::Glu>::random(8, {.input = 64, .hidden = 256, .output = 10}, /*seed=*/1);
struct Widths {
  Index input = 0, hidden = 0, output = 0;
};

namespace detail {

/// Widths that a constructor has checked. Throws std::invalid_argument for what is too small or too large.
struct CheckedWidths {
  Index input, hidden, output;

  CheckedWidths(const char* type, const Widths& widths)
      : input(checked_size(type, "input", widths.input, 1)),
        hidden(checked_size(type, "hidden", widths.hidden, 1)),
        output(checked_size(type, "output", widths.output, 1)) {}
  /// Output as wide as input. Sizes of 0 are fine.
  CheckedWidths(const char* type, Index model_dim, Index hidden_dim)
      : input(checked_size(type, "model_dim", model_dim)),
        hidden(checked_size(type, "hidden_dim", hidden_dim)),
        output(input) {}
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
