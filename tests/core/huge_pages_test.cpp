// SPDX-License-Identifier: MIT
#include "moe/core/huge_pages.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/random.hpp"
#include "support/catch.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

using moe::AlignedBuffer;
using moe::Index;
using moe::detail::HugePages;

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr bool kHasHugePages = HugePages::serves(kMiB);

/// Buffers that come and go, each full of bytes of its own; all that is found wrong is counted.
class Traffic {
 public:
  explicit Traffic(std::uint64_t seed) : random_(moe::Purpose::User, seed) {}
  ~Traffic() {
    while (!held_.empty()) give(held_.size() - 1);
  }

  void step(Index i) {
    if (held_.size() > 12 || (!held_.empty() && random_.uniform(i, 0) < .4))
      return give(static_cast<std::size_t>(random_.uniform(i, 1) * static_cast<double>(held_.size())));
    // Mostly small ones, and some of many pages; any number of bytes.
    const double size = random_.uniform(i, 2);
    const auto bytes = static_cast<std::size_t>(1 + size * size * size * static_cast<double>(5 * kMiB));
    const bool zero = random_.uniform(i, 3) < .7;
    std::byte* const memory = HugePages::take(bytes, zero);
    if (!memory) {
      ++num_wrong;
      return;
    }
    if (reinterpret_cast<std::uintptr_t>(memory) % 4096 != 0) ++num_wrong;
    if (zero && std::any_of(memory, memory + bytes, [](std::byte b) { return b != std::byte{0}; })) ++num_wrong;
    const auto mark = static_cast<unsigned char>(1 + i % 255);
    std::memset(memory, mark, bytes);
    held_.push_back({memory, bytes, std::byte{mark}});
  }

  int num_wrong = 0;

 private:
  struct Held {
    std::byte* memory;
    std::size_t bytes;
    std::byte mark;
  };
  void give(std::size_t at) {
    const Held held = held_[at];
    if (std::any_of(held.memory, held.memory + held.bytes, [&](std::byte b) { return b != held.mark; })) ++num_wrong;
    HugePages::give(held.memory, held.bytes);
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  moe::RandomField random_;
  std::vector<Held> held_;
};

#if defined(__linux__) && defined(__LP64__)

TEST_CASE("HugePages: memory that comes and goes is zero where asked for, and nobody else's", "[core][property]") {
  Traffic traffic(1);
  for (Index i = 0; i < 1500; ++i) traffic.step(i);
  CHECK(traffic.num_wrong == 0);
}

TEST_CASE("HugePages: threads take and give at the same time", "[core]") {
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < wrong.size(); ++t)
    threads.emplace_back([&, t] {
      Traffic traffic(10 + t);
      for (Index i = 0; i < 200; ++i) traffic.step(i);
      wrong[t] = traffic.num_wrong;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4));
}

/// Bytes that the system holds for an address and so many behind it.
std::size_t resident(const std::byte* memory, std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> is_held((bytes + page - 1) / page);
  auto* const begin = const_cast<std::byte*>(memory) - reinterpret_cast<std::uintptr_t>(memory) % page;
  if (mincore(begin, bytes, is_held.data()) != 0) return 0;
  return page * static_cast<std::size_t>(
                    std::count_if(is_held.begin(), is_held.end(), [](unsigned char c) { return (c & 1) != 0; }));
}

TEST_CASE("HugePages: a page goes back to the system with the last of its buffers", "[core]") {
  constexpr std::size_t kBytes = moe::kHugePage * 3 / 4;
  std::vector<std::byte*> parts;
  for (int i = 0; i < 12; ++i) {
    parts.push_back(HugePages::take(kBytes, true));
    REQUIRE(parts.back());
    std::memset(parts.back(), 1, kBytes);
  }
  std::sort(parts.begin(), parts.end());
  int num_shared = 0;  // pages that two of them fill
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    std::byte *const begin = parts[i], *const end = parts[i + 1] + kBytes;
    const std::size_t offset = reinterpret_cast<std::uintptr_t>(begin) % moe::kHugePage;
    std::byte* const page = begin + (moe::kHugePage - offset) % moe::kHugePage;
    if (parts[i + 1] != begin + kBytes || parts[i + 1] <= page || page + moe::kHugePage > end) continue;
    ++num_shared;
    CHECK(resident(page, moe::kHugePage) == moe::kHugePage);
    HugePages::give(parts[i], kBytes);
    CHECK(resident(parts[i + 1], 4096) == 4096);
    CHECK(parts[i + 1][0] == std::byte{1});
    HugePages::give(parts[i + 1], kBytes);
    CHECK(resident(page, moe::kHugePage) == 0);
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i), parts.begin() + static_cast<std::ptrdiff_t>(i) + 2);
    --i;
  }
  CHECK(num_shared > 0);
  for (std::byte* const part : parts) HugePages::give(part, kBytes);
}

TEST_CASE("HugePages: what is given back is taken first", "[core]") {
  constexpr std::size_t kBytes = 100 * 4096;
  std::byte* const first = HugePages::take(kBytes, false);
  std::byte* const second = HugePages::take(kBytes - 1, false);
  HugePages::give(first, kBytes);
  CHECK(HugePages::take(kBytes - 1, false) == first);  // in whole pages of 4 KiB
  HugePages::give(first, kBytes - 1);
  HugePages::give(second, kBytes - 1);
}

TEST_CASE("HugePages: more than one stretch of addresses", "[core]") {
  std::vector<std::byte*> all;
  for (int i = 0; i < 10; ++i) {
    all.push_back(HugePages::take(HugePages::kMost, true));
    REQUIRE(all.back());
    all.back()[0] = all.back()[HugePages::kMost - 1] = std::byte(i + 1);
  }
  for (int i = 0; i < 10; ++i) {
    std::byte* const memory = all[static_cast<std::size_t>(i)];
    CHECK((memory[0] == std::byte(i + 1) && memory[HugePages::kMost - 1] == std::byte(i + 1)));
    HugePages::give(memory, HugePages::kMost);
  }
}

#endif

TEST_CASE("AlignedBuffer: in huge pages it is zero, side by side, and copied into such", "[core]") {
  for (const Index size : {0, 1, 1000, 16383, 16384, 100000, 600000, 20000000}) {
    CAPTURE(size);
    AlignedBuffer<float> buffer = AlignedBuffer<float>::in_huge_pages(size);
    REQUIRE(buffer.size() == size);
    REQUIRE(reinterpret_cast<std::uintptr_t>(buffer.data()) % moe::kCacheLine == 0);
    REQUIRE(std::all_of(buffer.span().begin(), buffer.span().end(), [](float x) { return x == 0; }));
    if (size > 0) buffer.data()[size - 1] = 3;
    const AlignedBuffer<float> copy = buffer, moved = std::move(buffer);
    REQUIRE(copy.size() == size);
    if (size > 0) REQUIRE((copy.data()[size - 1] == 3 && copy.data() != moved.data()));
  }
  if (kHasHugePages) {
    const auto first = AlignedBuffer<float>::in_huge_pages(32768), second = AlignedBuffer<float>::in_huge_pages(32768);
    const AlignedBuffer<float> copy = second;
    const auto stretch = [](const float* p) { return reinterpret_cast<std::uintptr_t>(p) >> 28; };
    CHECK(stretch(first.data()) == stretch(second.data()));
    CHECK(stretch(first.data()) == stretch(copy.data()));
  }
}

}  // namespace
