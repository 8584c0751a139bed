// SPDX-License-Identifier: MIT
// Router logits whose top-K choices load the experts evenly, a little unevenly, or very unevenly.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/random.hpp"

namespace bench {

using moe::Index;

/// How popular the experts are: alike; U(0.7, 1.3), as trained routers with a balance loss are; or 1 / rank.
enum class Pattern { Uniform, Skewed, Zipf };

inline constexpr Pattern kPatterns[] = {Pattern::Uniform, Pattern::Skewed, Pattern::Zipf};

inline const char* name_of(Pattern pattern) {
  return pattern == Pattern::Uniform ? "uniform" : pattern == Pattern::Skewed ? "skewed" : "zipf";
}

/// Relative popularity of each expert; ranks are dealt out at random.
inline std::vector<double> popularity(Pattern pattern, Index num_experts, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::Shuffle, seed);
  std::vector<double> share(static_cast<std::size_t>(num_experts), 1.0);
  for (std::size_t e = 0; e < share.size(); ++e) {
    if (pattern == Pattern::Skewed) share[e] = 0.7 + 0.6 * random.uniform(static_cast<Index>(e));
    if (pattern == Pattern::Zipf) share[e] = 1.0 / static_cast<double>(e + 1);
  }
  for (std::size_t e = share.size(); e > 1; --e)
    std::swap(share[e - 1], share[static_cast<std::size_t>(random.below(e, static_cast<Index>(e), 1))]);
  return share;
}

/// Logits [num_tokens, num_experts]: log popularity plus Gumbel noise, so that the best K of a token are K draws
/// without replacement by popularity. `first_token` continues a stream: other tokens, same experts.
inline moe::Matrix<float> routing_logits(Pattern pattern, Index num_tokens, Index num_experts, std::uint64_t seed = 1,
                                         Index first_token = 0) {
  const std::vector<double> share = popularity(pattern, num_experts, seed);
  const moe::RandomField noise(moe::Purpose::Gumbel, seed);
  moe::Matrix<float> logits(num_tokens, num_experts);
  for (Index e = 0; e < num_experts; ++e) {
    const double level = std::log(share[static_cast<std::size_t>(e)]);
    for (Index t = 0; t < num_tokens; ++t)
      logits(t, e) = static_cast<float>(level + noise.gumbel(first_token + t, e));
  }
  return logits;
}

/// Batches of different tokens, in turn: a branch predictor learns one small batch by heart.
class LogitBatches {
 public:
  LogitBatches(Pattern pattern, Index num_tokens, Index num_experts) {
    for (Index first = 0; first < (1 << 13); first += num_tokens)
      batches_.push_back(routing_logits(pattern, num_tokens, num_experts, /*seed=*/1, first));
  }
  const moe::Matrix<float>& next() { return batches_[next_++ % batches_.size()]; }
  const moe::Matrix<float>& front() const { return batches_.front(); }

 private:
  std::vector<moe::Matrix<float>> batches_;
  std::size_t next_ = 0;
};

}  // namespace bench
