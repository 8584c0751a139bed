// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "moe/mpi/collectives.hpp"
#include "mpi/ranks.hpp"

// The cases that every communicator passes, on any number of ranks. Each is given a communicator of its own.
namespace test {

using moe::Index;

/// Byte `i` of what `from` sends to `to`, and how many there are: none, few, or thousands.
inline Index part_size(Index from, Index to) { return (from * 7 + to * 3) % 5 == 0 ? 0 : (from + 2 * to) % 4 * 1237; }
inline std::byte part_byte(Index from, Index to, Index i) { return static_cast<std::byte>(from * 31 + to * 17 + i); }

struct PartsOfCase {
  std::vector<Index> send_bytes, received_bytes;
  std::vector<std::byte> send, expected, received;
  Index bytes = 0, messages = 0;  ///< to others

  PartsOfCase(Index rank, Index size) {
    for (Index r = 0; r < size; ++r) {
      send_bytes.push_back(part_size(rank, r));
      received_bytes.push_back(part_size(r, rank));
      for (Index i = 0; i < send_bytes.back(); ++i) send.push_back(part_byte(rank, r, i));
      for (Index i = 0; i < received_bytes.back(); ++i) expected.push_back(part_byte(r, rank, i));
      if (r != rank) bytes += send_bytes.back(), messages += send_bytes.back() > 0 ? 1 : 0;
    }
    received.resize(expected.size());
  }
};

template <class C>
struct CommunicatorCases {
  static void parts_arrive(const C& ranks) {
    PartsOfCase parts(ranks.rank(), ranks.size());
    const moe::mpi::Traffic before = ranks.traffic();
    moe::mpi::all_to_all(ranks, parts.send, parts.send_bytes, parts.received, parts.received_bytes);
    expect(parts.received == parts.expected, "other bytes than were sent");
    const moe::mpi::Traffic sent = ranks.traffic() - before;
    expect(sent == moe::mpi::Traffic{parts.bytes, parts.messages}, "traffic ", sent.bytes, " in ", sent.messages);
  }

  /// Several on their way at once, waited for in another order than they were started in.
  static void exchanges_overlap(const C& ranks) {
    std::vector<PartsOfCase> parts(3, PartsOfCase(ranks.rank(), ranks.size()));
    for (std::size_t i = 0; i < parts.size(); ++i)
      for (std::byte& b : parts[i].send) b ^= static_cast<std::byte>(i);
    std::vector<typename C::Request> requests;
    for (PartsOfCase& p : parts)
      requests.push_back(ranks.start_all_to_all(p.send, p.send_bytes, p.received, p.received_bytes));
    requests[2].wait();
    while (!requests[0].test()) std::this_thread::yield();
    requests[1].wait();
    for (std::size_t i = 0; i < parts.size(); ++i) {
      for (std::byte& b : parts[i].expected) b ^= static_cast<std::byte>(i);
      expect(parts[i].received == parts[i].expected, "exchange ", i, " has other bytes than were sent");
    }
    expect(requests[1].test(), "an exchange that has ended has not");
  }

  static void reductions_go_by_rank(const C& ranks) {
    const Index size = ranks.size(), rank = ranks.rank();
    for (const Index count : {Index{0}, Index{1}, size, 3 * size + 1}) {
      const auto value = [](Index r, Index i) {
        return 1.0 / (3.0 + static_cast<double>(r * 13 + i)) * (r % 2 ? 1 : 1e9);
      };
      std::vector<double> sums, least;
      std::vector<std::int64_t> most;
      for (Index i = 0; i < count; ++i) {
        sums.push_back(value(rank, i));
        least.push_back(-value(rank, i));
        most.push_back((rank * 5 + i) % 7);
      }
      moe::mpi::all_reduce<double>(ranks, sums);
      moe::mpi::all_reduce<double>(ranks, least, moe::mpi::Reduction::Least);
      moe::mpi::all_reduce<std::int64_t>(ranks, most, moe::mpi::Reduction::Most);
      for (Index i = 0; i < count; ++i) {
        double sum = value(0, i), lowest = -value(0, i);
        std::int64_t highest = i % 7;
        for (Index r = 1; r < size; ++r) {
          sum += value(r, i);
          lowest = std::min(lowest, -value(r, i));
          highest = std::max<std::int64_t>(highest, (r * 5 + i) % 7);
        }
        const auto at = static_cast<std::size_t>(i);
        expect(sums[at] == sum && least[at] == lowest && most[at] == highest, "value ", i, " of ", count, " is ",
               sums[at], ", expected ", sum);
      }
    }
  }

  static void ids_are_global(const C& ranks) {
    const Index count = ranks.rank() % 3;  // some ranks have no tokens
    Index first = 0;
    for (Index r = 0; r < ranks.rank(); ++r) first += r % 3;
    const std::vector<std::int64_t> ids = moe::mpi::global_ids(ranks, count);
    for (Index i = 0; i < count; ++i) expect(ids[static_cast<std::size_t>(i)] == first + i, "id ", i);
    moe::mpi::require_same(ranks, "f", "n", 7);
    if (ranks.size() == 1) return;
    expect_throws<std::invalid_argument>("n is 8 on rank 1, expected 7 as on rank 0",
                                         [&] { moe::mpi::require_same(ranks, "f", "n", ranks.rank() == 1 ? 8 : 7); });
  }

  /// Even and odd ranks, the highest first; traffic is counted together.
  static void splits(const C& ranks) {
    const moe::mpi::Traffic before = ranks.traffic();
    const C half = ranks.split(ranks.rank() % 2, -ranks.rank());
    const std::vector<Index> members = moe::mpi::all_gather<Index>(half, std::vector<Index>{ranks.rank()});
    const Index parity = ranks.rank() % 2, expected = (ranks.size() - parity + 1) / 2;
    expect(std::ssize(members) == expected && half.size() == expected, "a half has ", members.size());
    for (Index i = 0; i < expected; ++i)
      expect(members[static_cast<std::size_t>(i)] == 2 * (expected - 1 - i) + parity, "place ", i);
    expect(members[static_cast<std::size_t>(half.rank())] == ranks.rank(), "another rank than that of the list");
    const C alone = half.split(half.rank(), 0);  // and once more
    moe::mpi::barrier(alone);
    expect(alone.size() == 1, "alone among ", alone.size());
    expect(ranks.size() == 1 || ranks.traffic().messages > before.messages, "what a half sends is not counted");
  }

  static void wrong_parts_are_refused(const C& ranks) {
    std::vector<std::byte> memory(static_cast<std::size_t>(ranks.size()));
    std::vector<Index> ones(memory.size(), 1), negative = ones, few(ones.begin(), ones.end() - 1);
    negative[0] = -1;
    const auto exchange = [&](const std::vector<Index>& send, const std::vector<Index>& received) {
      moe::mpi::all_to_all(ranks, memory, send, memory, received);
    };
    expect_throws<std::invalid_argument>("parts, expected one per rank", [&] { exchange(few, ones); });
    expect_throws<std::invalid_argument>("is -1, expected at least 0", [&] { exchange(ones, negative); });
    std::vector<Index> more = ones;
    more.back() = 2;
    expect_throws<std::invalid_argument>("bytes, expected the", [&] { exchange(ones, more); });
  }

  /// A rank that fails ends the waiting of all others.
  static void failure_reaches_all(const C& ranks) {
    const Index last = ranks.size() - 1;
    if (ranks.size() == 1) return;
    if (ranks.rank() == last) return ranks.fail("of a reason");
    expect_throws<std::runtime_error>("of a reason", [&] { moe::mpi::barrier(ranks); });
    expect_throws<std::runtime_error>("of a reason", [&] { moe::mpi::barrier(ranks); });
  }

  static auto all() {
    using Case = void (*)(const C&);
    return std::vector<std::pair<const char*, Case>>{{"parts arrive", &parts_arrive},
                                                     {"exchanges overlap", &exchanges_overlap},
                                                     {"reductions go by rank", &reductions_go_by_rank},
                                                     {"ids are global", &ids_are_global},
                                                     {"splits", &splits},
                                                     {"wrong parts are refused", &wrong_parts_are_refused},
                                                     {"failure reaches all", &failure_reaches_all}};
  }
};

}  // namespace test
