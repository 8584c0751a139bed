// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>

#include "moe/core/abi.hpp"

#if defined(__linux__) && defined(__LP64__)
#include <sys/mman.h>
#endif

namespace moe::inline MOE_ABI {

/// Bytes of a huge page: one entry of the TLB instead of 512.
inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

namespace detail {

/// Huge pages that several buffers share. Alone, a buffer below 2 MiB has none, and a larger one none at its end;
/// matrices in few bits are that small, and to read them from memory then waits for the TLB at every page of 4 KiB.
/// Addresses are reserved in stretches. A huge page takes memory from when the first buffer comes to lie in it until
/// the last has left it. A buffer takes the lowest addresses that are free (first fit), in units of 4 KiB, one of a
/// huge page and more the highest: matrices of floats that are rounded, and freed, leave no gaps between their codes.
/// Buffers are given back here whichever library of a process took them. Share freely.
class HugePages {
 public:
  /// Smaller ones would be rounded up by much; larger ones have huge pages enough of their own.
  static constexpr std::size_t kLeast = std::size_t{64} << 10, kMost = std::size_t{64} << 20;
  /// Whether buffers of so many bytes should lie here. Not where a sanitizer looks for writes past their end.
  static constexpr bool serves(std::size_t bytes) {
    return kIsAvailable && !kIsSanitised && bytes >= kLeast && bytes <= kMost;
  }

  /// Memory aligned to 4 KiB, null if the system has none left. Zero-initialised if so asked: by the system where
  /// nobody has used it before. O(bytes / 256 KiB) besides, and O(1) for each stretch that has no place.
  static std::byte* take(std::size_t bytes, bool zero) {
    bool is_new = false;
    for (std::atomic<Stretch*>* link = &first();;) {
      Stretch* stretch = link->load();
      if (!stretch) {
        Stretch* const reserved = Stretch::reserve();
        if (!reserved) return nullptr;
        is_new = link->compare_exchange_strong(stretch, reserved);
        if (is_new)
          stretch = reserved;
        else
          unmap(reserved, kStretch);  // another thread was faster
      }
      if (std::byte* const memory = stretch->take(units_of(bytes), zero)) return memory;
      if (is_new) return nullptr;
      link = &stretch->next;
    }
  }
  /// Gives back what take() gave for so many bytes.
  static void give(std::byte* memory, std::size_t bytes) noexcept {
    const std::size_t offset = reinterpret_cast<std::uintptr_t>(memory) % kStretch;
    std::launder(reinterpret_cast<Stretch*>(memory - offset))->give(offset / kUnit, units_of(bytes));
  }

 private:
  static constexpr std::size_t kStretch = std::size_t{256} << 20, kUnit = 4096;
  static constexpr std::size_t kUnits = kStretch / kUnit, kPages = kStretch / kHugePage, kPerPage = kUnits / kPages;
  static constexpr std::size_t units_of(std::size_t bytes) { return (bytes + kUnit - 1) / kUnit; }

#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool kIsSanitised = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
  static constexpr bool kIsSanitised = true;
#else
  static constexpr bool kIsSanitised = false;
#endif
#else
  static constexpr bool kIsSanitised = false;
#endif

#if defined(__linux__) && defined(__LP64__) && defined(MADV_HUGEPAGE)
  static constexpr bool kIsAvailable = true;
  /// Addresses without memory, from a multiple of their number on.
  static std::byte* reserve_addresses() {
    void* const all = mmap(nullptr, 2 * kStretch, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    auto* const begin = static_cast<std::byte*>(all);
    const std::size_t before = (kStretch - reinterpret_cast<std::uintptr_t>(begin) % kStretch) % kStretch;
    if (before > 0) unmap(begin, before);
    unmap(begin + before + kStretch, kStretch - before);
    (void)madvise(begin + before, kStretch, MADV_HUGEPAGE);
    return begin + before;
  }
  static void unmap(void* begin, std::size_t bytes) { (void)munmap(begin, bytes); }
  static bool allow(std::byte* begin, std::size_t bytes) { return mprotect(begin, bytes, PROT_READ | PROT_WRITE) == 0; }
  /// Returns memory to the system; the addresses stay.
  static void forbid(std::byte* begin, std::size_t bytes) noexcept {
    (void)madvise(begin, bytes, MADV_DONTNEED);
    (void)mprotect(begin, bytes, PROT_NONE);
  }
#else
  static constexpr bool kIsAvailable = false;
  static std::byte* reserve_addresses() { return nullptr; }
  static void unmap(void*, std::size_t) {}
  static bool allow(std::byte*, std::size_t) { return false; }
  static void forbid(std::byte*, std::size_t) noexcept {}
#endif

  /// A bit per unit.
  class UnitSet {
   public:
    /// The first unit from `begin` on that is in the set, or is not; kUnits if there is none.
    std::size_t find(std::size_t begin, bool is_in) const {
      while (begin < kUnits) {
        const std::uint64_t word = (is_in ? words_[begin / 64] : ~words_[begin / 64]) >> begin % 64;
        if (word != 0) return begin + static_cast<std::size_t>(std::countr_zero(word));
        begin = begin / 64 * 64 + 64;
      }
      return kUnits;
    }
    void set(std::size_t begin, std::size_t end, bool is_in) {
      while (begin < end) {
        const std::size_t first = begin % 64, count = std::min(64 - first, end - begin);
        const std::uint64_t mask = ~std::uint64_t{0} >> (64 - count) << first;
        words_[begin / 64] = is_in ? words_[begin / 64] | mask : words_[begin / 64] & ~mask;
        begin += count;
      }
    }

   private:
    std::uint64_t words_[kUnits / 64] = {};
  };

  /// Lies at the begin of its addresses, so that they lead to it.
  struct Stretch {
    std::atomic<Stretch*> next = nullptr;
    std::mutex mutex;
    std::size_t least_refused = kUnits;       ///< no place for so many units, since the last were given back
    UnitSet used, touched;                    ///< touched: once used since its page has memory, so perhaps not zero
    std::uint16_t used_in_page[kPages] = {};  ///< units; a page without any has no memory

    static Stretch* reserve() {
      std::byte* const begin = reserve_addresses();
      if (!begin) return nullptr;
      if (!allow(begin, kHugePage)) {
        unmap(begin, kStretch);
        return nullptr;
      }
      auto* const result = new (begin) Stretch;
      result->mark(0, units_of(sizeof(Stretch)), true);
      return result;
    }

    std::byte* take(std::size_t units, bool zero) {
      std::byte* memory = nullptr;
      {
        const std::lock_guard lock(mutex);
        if (units >= least_refused) return nullptr;
        const auto [begin, end] = place(units);
        if (begin == end) {
          least_refused = units;
          return nullptr;
        }
        if (!allow_pages(begin, end)) return nullptr;
        zero = zero && touched.find(begin, true) < end;
        mark(begin, end, true);
        memory = at(begin);
      }
      if (zero) std::memset(memory, 0, units * kUnit);
      return memory;
    }

    void give(std::size_t begin, std::size_t units) noexcept {
      const std::lock_guard lock(mutex);
      mark(begin, begin + units, false);
      least_refused = kUnits;
      for_each_unused_run(begin, begin + units, [&](std::size_t first, std::size_t last) {
        forbid(at(first * kPerPage), (last - first) * kHugePage);
        touched.set(first * kPerPage, last * kPerPage, false);
        return true;
      });
    }

   private:
    struct Place {
      std::size_t begin, end;
    };
    /// Units in a row that are free, none if there are none: the lowest, for those of huge pages and more the highest.
    Place place(std::size_t units) const {
      Place found = {0, 0};
      for (std::size_t begin = used.find(0, false); begin < kUnits;) {
        const std::size_t end = used.find(begin, true);
        if (end - begin >= units && units < kPerPage) return {begin, begin + units};
        if (end - begin >= units) found = {end - units, end};
        begin = used.find(end, false);
      }
      return found;
    }
    std::byte* at(std::size_t unit) { return reinterpret_cast<std::byte*>(this) + unit * kUnit; }
    /// Gives memory to the pages of these units that have none. False if there is none left; then it is as before.
    bool allow_pages(std::size_t begin, std::size_t end) {
      std::size_t failed = kPages;
      const bool ok = for_each_unused_run(begin, end, [&](std::size_t first, std::size_t last) {
        failed = first;
        return allow(at(first * kPerPage), (last - first) * kHugePage);
      });
      if (!ok)
        for_each_unused_run(begin, end, [&](std::size_t first, std::size_t last) {
          if (first <= failed) forbid(at(first * kPerPage), (last - first) * kHugePage);
          return first < failed;
        });
      return ok;
    }
    /// f(first, last) for the pages [first, last) side by side that hold some of these units, and none that is used,
    /// while it returns true. Whether it always has.
    template <class F>
    bool for_each_unused_run(std::size_t begin, std::size_t end, const F& f) const {
      const std::size_t end_page = (end + kPerPage - 1) / kPerPage;
      for (std::size_t page = begin / kPerPage; page < end_page; ++page) {
        const std::size_t run = page;
        while (page < end_page && used_in_page[page] == 0) ++page;
        if (page > run && !f(run, page)) return false;
      }
      return true;
    }
    void mark(std::size_t begin, std::size_t end, bool is_used) noexcept {
      used.set(begin, end, is_used);
      touched.set(begin, end, true);
      for (std::size_t unit = begin; unit < end;) {
        const std::size_t page = unit / kPerPage, count = std::min(end, (page + 1) * kPerPage) - unit;
        const std::size_t before = used_in_page[page];
        used_in_page[page] = static_cast<std::uint16_t>(is_used ? before + count : before - count);
        unit += count;
      }
    }
  };

  /// Stretches of this library, oldest first. Never freed: buffers of static storage may live longest.
  static std::atomic<Stretch*>& first() {
    static std::atomic<Stretch*> stretch = nullptr;
    return stretch;
  }
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
