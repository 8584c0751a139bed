// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <cstddef>
#include <limits>
#include <span>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI::mpi {

/// What a rank has sent to others: neither what it keeps for itself nor parts without bytes count.
struct Traffic {
  Index bytes = 0;
  Index messages = 0;

  friend bool operator==(const Traffic&, const Traffic&) = default;
  friend Traffic operator-(const Traffic& a, const Traffic& b) { return {a.bytes - b.bytes, a.messages - b.messages}; }
};

/// An exchange on its way: test() says whether it has ended, without waiting, and lets it go on where nothing else
/// does; wait() returns when it has. Both throw what a failed exchange is answered with, see Communicator. The memory
/// of the exchange must stay until then.
template <class R>
concept ExchangeRequest = std::movable<R> && requires(R& request) {
  { request.test() } -> std::same_as<bool>;
  { request.wait() } -> std::same_as<void>;
};

/// One of several ranks that run the same program and exchange bytes: MPI and whatever can stand for it. One of your
/// own needs, besides copies that are the same communicator:
///   moe::Index rank() const, size() const;                  // 0 <= rank < size
///   Request start_all_to_all(std::span<const std::byte> send, std::span<const Index> send_bytes,
///                            std::span<std::byte> received, std::span<const Index> received_bytes) const;
///   MyCommunicator split(Index color, Index key) const;     // ranks of one color, in the order of (key, rank)
///   Traffic traffic() const;                                // of this rank, here and in what was split from it
///   void fail(const char* reason) const noexcept;           // tells the others
/// start_all_to_all sends a part to every rank and receives one from each, in the order of ranks, one behind the other:
/// send_bytes and received_bytes are their sizes, of which the former are the latter of the other side. Everything else
/// is made of it, see moe/mpi/collectives.hpp. Collective: all ranks call the same functions in the same order.
/// Where a rank has called fail(), does not come within the timeout of the communicator, or sends another number of
/// bytes than is expected, every rank that waits throws std::runtime_error: none hangs. (Bytes where none are expected
/// find nobody who waits.) A communicator that has failed
/// stays so. One thread at a time.
template <class C>
concept Communicator = std::copyable<C> && ExchangeRequest<typename C::Request> &&
                       requires(const C& ranks, std::span<const std::byte> send, std::span<const Index> bytes,
                                std::span<std::byte> received, Index number, const char* reason) {
                         { ranks.rank() } -> std::convertible_to<Index>;
                         { ranks.size() } -> std::convertible_to<Index>;
                         { ranks.start_all_to_all(send, bytes, received, bytes) } -> std::same_as<typename C::Request>;
                         { ranks.split(number, number) } -> std::same_as<C>;
                         { ranks.traffic() } -> std::same_as<Traffic>;
                         { ranks.fail(reason) } noexcept;
                       };

namespace detail {

/// Throws std::invalid_argument unless there is a part for every rank, none negative, and all together are `total`.
inline void require_parts(const char* function, const char* name, std::span<const Index> bytes, Index size,
                          std::size_t total) {
  if (std::ssize(bytes) != size)
    fail(function, ": ", name, " has ", bytes.size(), " parts, expected one per rank = ", size);
  Index sum = 0;
  for (std::size_t r = 0; r < bytes.size(); ++r) {
    if (bytes[r] < 0) fail(function, ": ", name, "[", r, "] is ", bytes[r], ", expected at least 0 bytes");
    if (bytes[r] > std::numeric_limits<Index>::max() - sum)
      fail(function, ": ", name, "[", r, "] is ", bytes[r], ", expected a sum that 64 bits hold");
    sum += bytes[r];
  }
  if (sum != static_cast<Index>(total))
    fail(function, ": ", name, " adds up to ", sum, " bytes, expected the ", total, " of the memory given");
}

/// Throws std::invalid_argument unless a clock can wait for so long.
inline void require_seconds(const char* function, const char* name, double seconds) {
  constexpr double kYear = 366 * 86400.0;
  if (!(seconds >= 0 && seconds <= kYear)) fail(function, ": ", name, " is ", seconds, ", expected 0 to ", kYear, " s");
}

/// The checks that every start_all_to_all begins with; own parts must be of one size.
inline void require_exchange(const char* function, Index rank, Index size, std::span<const std::byte> send,
                             std::span<const Index> send_bytes, std::span<std::byte> received,
                             std::span<const Index> received_bytes) {
  require_parts(function, "send_bytes", send_bytes, size, send.size());
  require_parts(function, "received_bytes", received_bytes, size, received.size());
  const auto own = static_cast<std::size_t>(rank);
  if (send_bytes[own] != received_bytes[own])
    fail(function, ": rank ", rank, " sends itself ", send_bytes[own],
         " bytes, expected received_bytes = ", received_bytes[own]);
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI::mpi
