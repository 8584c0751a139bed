// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <span>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// A request that waits, and where its tokens go: known before the pass, as from a PreGate.
struct WaitingRequest {
  Index expert = 0;
  Index tokens = 1;  ///< >= 1
};

/// Batches of requests, as numbers of places in `requests`, that use few experts each: there is a queue per expert, and
/// a batch takes from the one with most tokens, of equal ones that of the lower expert, until the next request of it
/// does not fit; what has been emptied is followed by the longest that is left. Each request is in one batch, those of
/// an expert in their order, and no batch has more than max_tokens. Throws std::invalid_argument for a request that is
/// larger than that, or has no token. O(requests * experts).
/// Cai et al. (arXiv:2410.19123), algorithm 1, which never leaves its loop where all queues are empty.
inline std::vector<std::vector<Index>> expert_aware_batches(std::span<const WaitingRequest> requests,
                                                            Index max_tokens) {
  struct Queue {
    std::deque<Index> requests;
    Index tokens = 0;
  };
  std::map<Index, Queue> queues;
  for (Index i = 0; i < std::ssize(requests); ++i) {
    const WaitingRequest& request = requests[static_cast<std::size_t>(i)];
    if (request.tokens < 1 || request.tokens > max_tokens)
      fail("moe::expert_aware_batches: request ", i, " has ", request.tokens,
           " tokens, expected 1 to max_tokens = ", max_tokens);
    queues[request.expert].requests.push_back(i);
    queues[request.expert].tokens += request.tokens;
  }
  std::vector<std::vector<Index>> batches;
  while (!queues.empty()) {
    std::vector<Index>& batch = batches.emplace_back();
    Index room = max_tokens;
    for (bool fits = true; fits && room > 0 && !queues.empty();) {
      const auto longest = std::ranges::max_element(queues, {}, [](const auto& of) { return of.second.tokens; });
      Queue& queue = longest->second;
      while (fits && !queue.requests.empty()) {
        const Index tokens = requests[static_cast<std::size_t>(queue.requests.front())].tokens;
        fits = tokens <= room;
        if (!fits) break;
        batch.push_back(queue.requests.front());
        queue.requests.pop_front();
        queue.tokens -= tokens;
        room -= tokens;
      }
      if (queue.requests.empty()) queues.erase(longest);
    }
  }
  return batches;
}

}  // namespace moe::inline MOE_ABI
