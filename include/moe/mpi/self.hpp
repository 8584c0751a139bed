// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "moe/mpi/communicator.hpp"

namespace moe::inline MOE_ABI::mpi {

/// The communicator of a single rank, which sends nothing: what is written for several then runs in one process.
/// Immutable, share freely.
class Self {
 public:
  /// Exchanges end where they start.
  struct Request {
    bool test() { return true; }
    void wait() {}
  };

  Index rank() const { return 0; }
  Index size() const { return 1; }
  Request start_all_to_all(std::span<const std::byte> send, std::span<const Index> send_bytes,
                           std::span<std::byte> received, std::span<const Index> received_bytes) const {
    detail::require_exchange("moe::mpi::Self::start_all_to_all", 0, 1, send, send_bytes, received, received_bytes);
    std::ranges::copy(send, received.begin());
    return {};
  }
  Self split(Index, Index) const { return {}; }
  Traffic traffic() const { return {}; }
  void fail(const char*) const noexcept {}
};

static_assert(Communicator<Self>);

}  // namespace moe::inline MOE_ABI::mpi
