// SPDX-License-Identifier: MIT
#pragma once

#include <numeric>

#include "moe/expert/concept.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI::detail {

template <class T>
std::span<T> part_of(std::span<T> all, Index first, Index count) {
  return all.empty() ? all : all.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
}

/// Whether a forward pass over num_tokens has to go in chunks. Throws std::invalid_argument if the workspace asks for
/// chunks of a layer that looks at the whole batch or whose calls are collective, or for a negative number of tokens.
template <class Layer, class S>
bool goes_in_chunks(const char* function, Index num_tokens, const BasicWorkspace<S>& ws) {
  if (ws.max_tokens == 0) return false;
  if (ws.max_tokens < 0) fail(function, ": workspace.max_tokens is ", ws.max_tokens, ", expected >= 0");
  if (!Layer::kPerToken)
    fail(function, ": workspace.max_tokens is ", ws.max_tokens,
         ", expected 0 with a gate that does not decide token by token");
  if (kIsCollective<Layer>)
    fail(function, ": workspace.max_tokens is ", ws.max_tokens,
         ", expected 0 with experts over ranks, which must agree on the number of calls");
  return num_tokens > ws.max_tokens;
}

/// Calls forward(tokens, step, out) for consecutive chunks of at most ws.max_tokens rows, the spans of the step cut to
/// each. A token without an id keeps its number in the batch as its id, so that it draws what it draws in one pass.
template <class S, class Forward>
void for_each_chunk(const ConstMatrixRef<S>& tokens, const Step& step, MatrixRef<S> out, BasicWorkspace<S>& ws,
                    const Forward& forward) {
  for (Index first = 0; first < tokens.rows(); first += ws.max_tokens) {
    const Index count = std::min(ws.max_tokens, tokens.rows() - first);
    Step part = step;
    part.token_id = part_of(step.token_id, first, count);
    part.group_id = part_of(step.group_id, first, count);
    part.key = part_of(step.key, first, count);
    part.valid = part_of(step.valid, first, count);
    if (step.token_id.empty()) {
      ws.token_id.resize(static_cast<std::size_t>(count));
      std::iota(ws.token_id.begin(), ws.token_id.end(), first);
      part.token_id = ws.token_id;
    }
    forward(tokens.middleRows(first, count), part, out.middleRows(first, count));
  }
}

}  // namespace moe::inline MOE_ABI::detail
