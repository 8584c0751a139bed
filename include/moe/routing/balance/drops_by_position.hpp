// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/routing/routing.hpp"
#include "moe/routing/token_groups.hpp"

namespace moe::inline MOE_ABI {

/// Where in their sequences choices are dropped: for each of `bins` equal parts of a sequence, the share of the choices
/// of its tokens that were dropped, over all sequences (step.group_id; without it, one); [bins], in [0, 1], 0 for a
/// part without choices. Padding has no place: the i-th valid token of a sequence of n is in part i * bins / n, so that
/// sequences of any length count, and short ones may leave parts out.
/// A capacity that serves by position drops the end of the batch, whatever is there; ServiceOrder::Random drops every
/// place alike. Throws std::invalid_argument for bins < 1 or a span of the step of another length.
/// O(assignments + num_tokens); allocates.
/// Kim et al., "Scalable and efficient MoE training for multitask multilingual models" (arXiv:2109.10465).
template <class S>
std::vector<double> drops_by_position(const Routing<S>& routing, const Step& step, Index bins) {
  constexpr const char* kName = "moe::drops_by_position";
  step.validate(kName, routing.num_tokens());
  detail::checked_size(kName, "bins", bins, 1);
  std::vector<double> dropped(static_cast<std::size_t>(bins)), choices(dropped.size());
  detail::TokenGroups sequences;
  sequences.build(routing.num_tokens(), step);
  for (Index sequence = 0; sequence < sequences.count(); ++sequence) {
    const auto tokens = sequences[sequence];
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::size_t bin = i * dropped.size() / tokens.size();
      for (const std::uint8_t by : routing.dropped(tokens[i])) {
        choices[bin] += 1;
        dropped[bin] += by != 0 ? 1 : 0;
      }
    }
  }
  for (std::size_t bin = 0; bin < dropped.size(); ++bin)
    if (choices[bin] != 0) dropped[bin] /= choices[bin];
  return dropped;
}

}  // namespace moe::inline MOE_ABI
