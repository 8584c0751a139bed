// SPDX-License-Identifier: MIT
// Requests by Zipf's law, put into batches.
#pragma once

#include <set>
#include <vector>

#include <moe/core/random.hpp>
#include <moe/serve/expert_aware_batches.hpp>

namespace systems {

/// Experts per batch of a window of 128 requests, as they come and by expert.
inline std::vector<double> zipf_batches(moe::Index size, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  std::vector<moe::WaitingRequest> requests;
  for (moe::Index i = 0; i < 128; ++i) {
    double rest = 2.717857 * random.uniform(i) - 1;  // the sum of 1 / (1 + e)
    moe::Index e = 0;
    for (; rest > 0 && e < 7; ++e) rest -= 1.0 / static_cast<double>(e + 2);
    requests.push_back({.expert = e});
  }
  std::vector<std::vector<moe::Index>> as_they_come;
  for (moe::Index i = 0; i < 128; ++i) {
    if (i % size == 0) as_they_come.emplace_back();
    as_they_come.back().push_back(i);
  }
  const auto mean = [&](const std::vector<std::vector<moe::Index>>& of) {
    double sum = 0;
    for (const auto& batch : of) {
      std::set<moe::Index> experts;
      for (const moe::Index i : batch) experts.insert(requests[static_cast<std::size_t>(i)].expert);
      sum += static_cast<double>(experts.size()) / static_cast<double>(of.size());
    }
    return sum;
  };
  return {mean(as_they_come), mean(moe::expert_aware_batches(requests, size))};
}

}  // namespace systems
