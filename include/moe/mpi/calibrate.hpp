// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <span>
#include <vector>

#include "moe/mpi/collectives.hpp"
#include "moe/mpi/cost_model.hpp"

// Measurements that fit_cost() makes a cost of. Those of several ranks are collective, and all ranks get the same.
namespace moe::inline MOE_ABI::mpi {

/// Median of the seconds that f() takes, called `repeats` times, and once before.
template <class F>
double median_seconds(Index repeats, const F& f) {
  moe::detail::checked_size("moe::mpi::median_seconds", "repeats", repeats, 1);
  std::vector<double> seconds;
  for (Index i = -1; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    if (i >= 0) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::ranges::nth_element(seconds, seconds.begin() + repeats / 2);
  return std::max(seconds[static_cast<std::size_t>(repeats / 2)], 1e-12);
}

namespace detail {

/// Parts of an exchange, and memory for them.
struct MeasuredExchange {
  std::vector<Index> send_bytes, received_bytes;
  std::vector<std::byte> send, received;

  explicit MeasuredExchange(Index size) : send_bytes(static_cast<std::size_t>(size)), received_bytes(send_bytes) {}

  template <Communicator C>
  void run(const C& ranks) {
    const auto sum = [](const std::vector<Index>& of) {
      Index bytes = 0;
      for (const Index part : of) bytes += part;
      return static_cast<std::size_t>(bytes);
    };
    send.resize(sum(send_bytes));
    received.resize(sum(received_bytes));
    all_to_all(ranks, send, send_bytes, received, received_bytes);
  }
};

/// The seconds of the slowest rank.
template <Communicator C>
double slowest(const C& ranks, double seconds) {
  all_reduce<double>(ranks, std::span(&seconds, 1), Reduction::Most);
  return seconds;
}

}  // namespace detail

/// Messages of these sizes that go from rank 0 to rank `other` and back: half the time there and back. Other ranks
/// wait. Throws std::invalid_argument for a rank that is not there, or rank 0. Empty with one rank.
template <Communicator C>
std::vector<Measured> measure_ping_pong(const C& ranks, Index other, std::span<const Index> sizes, Index repeats) {
  if (ranks.size() == 1) return {};
  if (other < 1 || other >= ranks.size())
    fail("moe::mpi::measure_ping_pong: rank ", other, ", expected 0 < rank < size = ", ranks.size());
  const Index rank = ranks.rank(), peer = rank == 0 ? other : rank == other ? 0 : -1;
  std::vector<Measured> result;
  for (const Index bytes : sizes) {
    detail::MeasuredExchange there(ranks.size()), back(ranks.size());
    if (peer >= 0) {
      (rank == 0 ? there.send_bytes : there.received_bytes)[static_cast<std::size_t>(peer)] = bytes;
      (rank == 0 ? back.received_bytes : back.send_bytes)[static_cast<std::size_t>(peer)] = bytes;
    }
    barrier(ranks);
    const double both = median_seconds(repeats, [&] {
      there.run(ranks);
      back.run(ranks);
    });
    result.push_back({1, static_cast<double>(bytes), detail::slowest(ranks, both) / 2});
  }
  return result;
}

/// Exchanges in which every rank sends so many bytes to every other one.
template <Communicator C>
std::vector<Measured> measure_all_to_all(const C& ranks, std::span<const Index> sizes, Index repeats) {
  if (ranks.size() == 1) return {};
  const auto others = static_cast<double>(ranks.size() - 1);
  std::vector<Measured> result;
  for (const Index bytes : sizes) {
    detail::MeasuredExchange exchange(ranks.size());
    for (Index r = 0; r < ranks.size(); ++r)
      if (r != ranks.rank())
        exchange.send_bytes[static_cast<std::size_t>(r)] = exchange.received_bytes[static_cast<std::size_t>(r)] = bytes;
    barrier(ranks);
    const double seconds = median_seconds(repeats, [&] { exchange.run(ranks); });
    result.push_back({others, others * static_cast<double>(bytes), detail::slowest(ranks, seconds)});
  }
  return result;
}

}  // namespace moe::inline MOE_ABI::mpi
