// SPDX-License-Identifier: MIT
// Batches of requests by expert: each request once and in order, and how many experts they need.
#include "moe/serve/expert_aware_batches.hpp"

#include <cmath>
#include <set>

#include "moe/core/random.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::WaitingRequest;

namespace {

/// Experts of 8 with probabilities as 1 / (1 + e).
std::vector<WaitingRequest> zipf_requests(Index count, std::uint64_t seed, Index most_tokens = 1) {
  const moe::RandomField random(moe::Purpose::User, seed);
  double total = 0;
  for (Index e = 0; e < 8; ++e) total += 1.0 / static_cast<double>(1 + e);
  std::vector<WaitingRequest> requests;
  for (Index i = 0; i < count; ++i) {
    Index e = 0;
    for (double rest = total * random.uniform(i) - 1; rest > 0 && e < 7; rest -= 1.0 / static_cast<double>(1 + e)) ++e;
    requests.push_back({e, 1 + static_cast<Index>(random.below(static_cast<std::uint64_t>(most_tokens), i, 1))});
  }
  return requests;
}

/// Mean number of experts of batches of windows of 128 requests; as they come, and by expert.
std::pair<double, double> experts_per_batch(const std::vector<WaitingRequest>& requests, Index size) {
  double first = 0, sorted = 0, firsts = 0, sorteds = 0;
  for (std::size_t window = 0; window < requests.size(); window += 128) {
    const auto waiting = std::span(requests).subspan(window, std::min<std::size_t>(128, requests.size() - window));
    for (std::size_t i = 0; i < waiting.size(); i += static_cast<std::size_t>(size)) {
      std::set<Index> experts;
      for (std::size_t j = i; j < std::min(i + static_cast<std::size_t>(size), waiting.size()); ++j)
        experts.insert(waiting[j].expert);
      first += static_cast<double>(experts.size()), ++firsts;
    }
    for (const auto& batch : moe::expert_aware_batches(waiting, size)) {
      std::set<Index> experts;
      for (const Index i : batch) experts.insert(waiting[static_cast<std::size_t>(i)].expert);
      sorted += static_cast<double>(experts.size()), ++sorteds;
    }
  }
  return {first / firsts, sorted / sorteds};
}

}  // namespace

TEST_CASE("expert_aware_batches: every request once, those of an expert in order, none too large",
          "[serve][property]") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed)
    for (const Index most : {5, 8, 31}) {
      const auto requests = zipf_requests(100, seed, 5);
      const auto batches = moe::expert_aware_batches(requests, most);
      std::vector<Index> seen(requests.size()), last(8, -1);
      for (const auto& batch : batches) {
        Index tokens = 0;
        CAPTURE(seed, most);
        REQUIRE(!batch.empty());
        for (const Index i : batch) {
          const WaitingRequest& request = requests[static_cast<std::size_t>(i)];
          ++seen[static_cast<std::size_t>(i)];
          tokens += request.tokens;
          CHECK(last[static_cast<std::size_t>(request.expert)] < i);
          last[static_cast<std::size_t>(request.expert)] = i;
        }
        CHECK(tokens <= most);
      }
      CHECK(std::ranges::count(seen, 1) == std::ssize(requests));
    }
}

TEST_CASE("expert_aware_batches: the longest queue first, in parts where it does not fit", "[serve]") {
  const std::vector<WaitingRequest> requests = {{3, 1}, {1, 2}, {3, 1}, {0, 3}, {1, 2}};
  CHECK(moe::expert_aware_batches(requests, 4) == std::vector<std::vector<Index>>{{1, 4}, {3, 0}, {2}});
  CHECK(moe::expert_aware_batches(requests, 9) == std::vector<std::vector<Index>>{{1, 4, 3, 0, 2}});
  CHECK(moe::expert_aware_batches({}, 4).empty());
  CHECK_THROWS_AS(moe::expert_aware_batches(requests, 2), std::invalid_argument);
  CHECK_THROWS_AS(moe::expert_aware_batches(std::vector<WaitingRequest>{{0, 0}}, 2), std::invalid_argument);
}

TEST_CASE("expert_aware_batches: batches of 8 need 1.4 experts instead of 4.5", "[serve][property]") {
  double of_8 = 0, by_8 = 0, of_32 = 0, by_32 = 0;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const auto requests = zipf_requests(960, seed);
    of_8 += experts_per_batch(requests, 8).first / 5, by_8 += experts_per_batch(requests, 8).second / 5;
    of_32 += experts_per_batch(requests, 32).first / 5, by_32 += experts_per_batch(requests, 32).second / 5;
  }
  const auto expected = [](int draws) {  // experts of so many requests as they come
    double total = 0, sum = 0;
    for (Index e = 0; e < 8; ++e) total += 1.0 / static_cast<double>(1 + e);
    for (Index e = 0; e < 8; ++e) sum += 1 - std::pow(1 - 1 / total / static_cast<double>(1 + e), draws);
    return sum;  // 4.48 and 7.32
  };
  CAPTURE(of_8, by_8, of_32, by_32);
  // Deviations: of the mean of 600 batches .04, of 150 .06.
  CHECK(std::abs(of_8 - expected(8)) < 0.15);
  CHECK(std::abs(of_32 - expected(32)) < 0.15);
  CHECK(by_8 < 1.6);
  CHECK(by_32 < 3.1);
}
