// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/mpi/communicator.hpp"

// What ranks do together, made of exchanges of parts: the same on every communicator, sums in the order of ranks, so
// that all ranks hold the same bits. All of them are collective and throw as Communicator says.
namespace moe::inline MOE_ABI::mpi {

enum class Reduction { Sum, Least, Most };

/// An exchange of parts that has ended when it returns; see Communicator.
template <Communicator C>
void all_to_all(const C& ranks, std::span<const std::byte> send, std::span<const Index> send_bytes,
                std::span<std::byte> received, std::span<const Index> received_bytes) {
  ranks.start_all_to_all(send, send_bytes, received, received_bytes).wait();
}

/// One value of every rank for every rank: result[r] = what rank r has for this one. values [size].
template <class T, Communicator C>
std::vector<T> all_to_all(const C& ranks, std::span<const T> values) {
  static_assert(std::is_trivially_copyable_v<T>);
  const std::vector<Index> bytes(static_cast<std::size_t>(ranks.size()), static_cast<Index>(sizeof(T)));
  std::vector<T> received(bytes.size());
  all_to_all(ranks, std::as_bytes(values), bytes, std::as_writable_bytes(std::span(received)), bytes);
  return received;
}

/// The values of all ranks, which have equally many, in the order of ranks: [size * count]. Sends count to each other
/// rank.
template <class T, Communicator C>
std::vector<T> all_gather(const C& ranks, std::span<const T> own) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto size = static_cast<std::size_t>(ranks.size());
  const std::vector<Index> bytes(size, std::ssize(own) * static_cast<Index>(sizeof(T)));
  std::vector<T> send, received(size * own.size());
  send.reserve(received.size());
  for (std::size_t r = 0; r < size; ++r) send.insert(send.end(), own.begin(), own.end());
  all_to_all(ranks, std::as_bytes(std::span(send)), bytes, std::as_writable_bytes(std::span(received)), bytes);
  return received;
}

/// Replaces values[i] of every rank by the sum, the least or the most of all ranks' values[i]; sums are ((v_0 + v_1) +
/// v_2) + ... on every rank. Each reduces a part and hands it on: 2 (size - 1) / size of the values are sent by a rank.
template <class T, Communicator C>
void all_reduce(const C& ranks, std::span<T> values, Reduction reduction = Reduction::Sum) {
  static_assert(std::is_arithmetic_v<T>);
  const Index size = ranks.size(), count = std::ssize(values), rank = ranks.rank();
  constexpr auto kBytes = static_cast<Index>(sizeof(T));
  const auto first = [&](Index r) { return count / size * r + std::min(r, count % size); };
  const Index own = first(rank + 1) - first(rank);
  std::vector<Index> parts, own_parts(static_cast<std::size_t>(size), own * kBytes);
  for (Index r = 0; r < size; ++r) parts.push_back((first(r + 1) - first(r)) * kBytes);
  std::vector<T> gathered(static_cast<std::size_t>(own * size));
  all_to_all(ranks, std::as_bytes(values), parts, std::as_writable_bytes(std::span(gathered)), own_parts);
  for (Index r = 1; r < size; ++r)
    for (Index i = 0; i < own; ++i) {
      T& to = gathered[static_cast<std::size_t>(i)];
      const T value = gathered[static_cast<std::size_t>(r * own + i)];
      to = reduction == Reduction::Sum     ? to + value
           : reduction == Reduction::Least ? std::min(to, value)
                                           : std::max(to, value);
    }
  for (Index r = 1; r < size; ++r) std::copy_n(gathered.begin(), own, gathered.begin() + r * own);
  all_to_all(ranks, std::as_bytes(std::span(gathered)), own_parts, std::as_writable_bytes(values), parts);
}

/// Returns when all ranks have come here.
template <Communicator C>
void barrier(const C& ranks) {
  const std::vector<std::byte> nothing(static_cast<std::size_t>(ranks.size()));
  all_to_all<std::byte>(ranks, nothing);
}

/// Throws std::invalid_argument on every rank unless all have the same number.
template <Communicator C>
void require_same(const C& ranks, const char* function, const char* name, std::int64_t number) {
  const std::vector<std::int64_t> all = all_gather<std::int64_t>(ranks, std::span(&number, 1));
  for (std::size_t r = 1; r < all.size(); ++r)
    if (all[r] != all[0])
      fail(function, ": ", name, " is ", all[r], " on rank ", r, ", expected ", all[0], " as on rank 0");
}

/// Ids of `count` tokens of this rank, which stand behind those of the ranks before it: what Step::token_id should say
/// where a batch is cut into consecutive parts, so that tokens draw what they draw in one process.
template <Communicator C>
std::vector<std::int64_t> global_ids(const C& ranks, Index count) {
  const std::int64_t own = count;
  const std::vector<std::int64_t> counts = all_gather<std::int64_t>(ranks, std::span(&own, 1));
  std::vector<std::int64_t> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), std::accumulate(counts.begin(), counts.begin() + ranks.rank(), std::int64_t{0}));
  return ids;
}

}  // namespace moe::inline MOE_ABI::mpi
