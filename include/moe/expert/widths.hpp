// SPDX-License-Identifier: MIT
#pragma once

#include <numeric>
#include <span>
#include <vector>

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

/// make(units) for each of `parts` runs of consecutive hidden units, as even as can be, which together are all of them.
/// Throws std::invalid_argument unless 1 <= parts <= hidden.
template <class Make>
auto split_hidden(const char* function, Index hidden, Index parts, const Make& make) {
  if (parts < 1 || parts > hidden)
    fail(function, ": parts is ", parts, ", expected 1 <= parts <= hidden_dim = ", hidden);
  std::vector<decltype(make(std::span<const Index>()))> made;
  made.reserve(static_cast<std::size_t>(parts));
  const Index width = hidden / parts, wider = hidden % parts;  // the first `wider` parts have one unit more
  std::vector<Index> units;
  for (Index p = 0, first = 0; p < parts; ++p) {
    units.resize(static_cast<std::size_t>(width + (p < wider ? 1 : 0)));
    std::iota(units.begin(), units.end(), first);
    first += std::ssize(units);
    made.push_back(make(std::span<const Index>(units)));
  }
  return made;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
