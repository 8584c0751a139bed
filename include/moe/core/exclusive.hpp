// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>

#include "moe/core/error.hpp"

namespace moe::inline MOE_ABI::detail {

/// Mark of working memory that one call at a time may use. Two threads that share it would overwrite each other's
/// buffers, or wait for each other for ever; the second is refused instead. A copy starts free. Some nanoseconds a
/// call.
class Exclusive {
 public:
  Exclusive() = default;
  Exclusive(const Exclusive&) noexcept {}
  Exclusive& operator=(const Exclusive&) noexcept { return *this; }

 private:
  friend class ExclusiveUse;
  std::atomic<bool> taken_{false};
};

/// Holds the mark for a scope. Throws std::invalid_argument if another call has it.
class ExclusiveUse {
 public:
  ExclusiveUse(const char* function, const char* name, Exclusive& mark) : mark_(mark) {
    if (mark_.taken_.exchange(true, std::memory_order_acquire))
      fail(function, ": ", name, " is in use by another call, expected one per thread");
  }
  ~ExclusiveUse() { mark_.taken_.store(false, std::memory_order_release); }
  ExclusiveUse(const ExclusiveUse&) = delete;
  ExclusiveUse& operator=(const ExclusiveUse&) = delete;

 private:
  Exclusive& mark_;
};

}  // namespace moe::inline MOE_ABI::detail
