// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI::detail {

/// The valid tokens of a batch by their step.group_id: sequences in the order of their first tokens, tokens of each in
/// the order of rows, whether or not they stand together. Without ids one sequence, if there are valid tokens.
class Sequences {
 public:
  Sequences(const Step& step, Index num_tokens) {
    std::vector<Index> sequence_of(static_cast<std::size_t>(num_tokens), -1), length;
    std::unordered_map<std::int64_t, Index> number;
    for (Index t = 0; t < num_tokens; ++t) {
      if (!step.is_valid(t)) continue;
      const Index sequence = number.try_emplace(step.group(t), std::ssize(length)).first->second;
      if (sequence == std::ssize(length)) length.push_back(0);
      ++length[static_cast<std::size_t>(sequence)];
      sequence_of[static_cast<std::size_t>(t)] = sequence;
    }
    begin_.resize(length.size() + 1);
    for (std::size_t s = 0; s < length.size(); ++s) begin_[s + 1] = begin_[s] + length[s];
    token_.resize(static_cast<std::size_t>(begin_.back()));
    std::vector<Index> next = begin_;
    for (Index t = 0; t < num_tokens; ++t)
      if (const Index sequence = sequence_of[static_cast<std::size_t>(t)]; sequence >= 0)
        token_[static_cast<std::size_t>(next[static_cast<std::size_t>(sequence)]++)] = t;
  }

  Index count() const { return std::ssize(begin_) - 1; }
  /// Rows of the tokens of a sequence, ascending.
  std::span<const Index> tokens(Index sequence) const {
    const auto s = static_cast<std::size_t>(sequence);
    return std::span(token_).subspan(static_cast<std::size_t>(begin_[s]),
                                     static_cast<std::size_t>(begin_[s + 1] - begin_[s]));
  }

 private:
  std::vector<Index> begin_ = {0}, token_;
};

}  // namespace moe::inline MOE_ABI::detail
