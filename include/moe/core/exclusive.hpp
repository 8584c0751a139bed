// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <thread>

#include "moe/core/error.hpp"

namespace moe::inline MOE_ABI::detail {

/// Mark of working memory that one thread at a time may use. Two threads that share it would overwrite each other's
/// buffers, or wait for each other for ever; the second is refused instead. A copy starts free. Some nanoseconds a
/// call.
class Exclusive {
 public:
  Exclusive() = default;
  Exclusive(const Exclusive&) noexcept {}
  Exclusive& operator=(const Exclusive&) noexcept { return *this; }

 private:
  friend class ExclusiveUse;
  std::atomic<std::thread::id> owner_{};
};

/// Whether scopes of one thread may nest.
enum class Nested { Allowed, Refused };

/// Holds the mark for a scope. Throws std::invalid_argument if another thread has it, or, where scopes may not nest,
/// another scope of this one.
class ExclusiveUse {
 public:
  ExclusiveUse(const char* function, const char* name, Exclusive& mark, Nested nested = Nested::Allowed) : mark_(mark) {
    const std::thread::id self = std::this_thread::get_id();
    if (mark_.owner_.load(std::memory_order_relaxed) == self) {  // nobody else writes this thread's id
      if (nested == Nested::Refused)
        fail(function, ": ", name, " is in use by a pass around this one, expected memory of its own");
      return;
    }
    std::thread::id nobody;
    is_outermost_ = mark_.owner_.compare_exchange_strong(nobody, self, std::memory_order_acquire);
    if (!is_outermost_) fail(function, ": ", name, " is in use by another thread, expected one per thread");
  }
  ~ExclusiveUse() {
    if (is_outermost_) mark_.owner_.store(std::thread::id(), std::memory_order_release);
  }
  ExclusiveUse(const ExclusiveUse&) = delete;
  ExclusiveUse& operator=(const ExclusiveUse&) = delete;

 private:
  Exclusive& mark_;
  bool is_outermost_ = false;
};

}  // namespace moe::inline MOE_ABI::detail
