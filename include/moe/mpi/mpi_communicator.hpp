// SPDX-License-Identifier: MIT
#pragma once

#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1  // the C++ bindings of old, which cast as nobody does any more
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "moe/mpi/collectives.hpp"

// The only header that needs MPI: target moe::mpi. Long, as it is all of it.
namespace moe::inline MOE_ABI::mpi {

struct MpiOptions {
  double timeout = 60;                ///< seconds that a rank waits for another before it gives up, at most a year
  Index most_bytes = Index{1} << 30;  ///< of a message; what is longer goes in pieces, as MPI counts in int
};

namespace detail {

/// Throws std::runtime_error with the text of MPI.
inline void require_mpi(const char* call, int code) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text = {};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  fail_environment("moe::mpi::Mpi: ", call, ": ", std::string(text.data(), static_cast<std::size_t>(length)));
}

inline bool mpi_is_over() {
  int over = 0;
  MPI_Finalized(&over);
  return over != 0;
}

inline MPI_Comm duplicate(MPI_Comm of) {
  MPI_Comm result = MPI_COMM_NULL;
  require_mpi("MPI_Comm_dup", MPI_Comm_dup(of, &result));
  MPI_Comm_set_errhandler(result, MPI_ERRORS_RETURN);
  return result;
}

/// Messages that nobody waits for have a moment to end; whether all have.
inline bool let_go(std::vector<MPI_Request>& messages) {
  constexpr auto kMoment = std::chrono::milliseconds(100);
  const auto end = std::chrono::steady_clock::now() + kMoment;
  int all = 0;
  while (all == 0 && std::chrono::steady_clock::now() < end)
    if (MPI_Testall(static_cast<int>(messages.size()), messages.data(), &all, MPI_STATUSES_IGNORE) != MPI_SUCCESS)
      break;
  for (MPI_Request& message : messages)
    if (message != MPI_REQUEST_NULL) MPI_Request_free(&message);
  return all != 0;
}

/// Memory of messages that have not ended, which MPI may read and write until it is over.
inline void keep_for_ever(std::vector<std::byte> memory) {
  static std::vector<std::vector<std::byte>> kept;
  kept.push_back(std::move(memory));
}

/// What a communicator and all that was split from it share: how a rank hears of the failure of another.
struct MpiWorld {
  MpiWorld(MPI_Comm of, const MpiOptions& options_of_ranks) : options(options_of_ranks), control(duplicate(of)) {
    MPI_Comm_rank(control, &rank);
    MPI_Comm_size(control, &size);
    told.resize(static_cast<std::size_t>(size), MPI_REQUEST_NULL);
  }
  MpiWorld(const MpiWorld&) = delete;
  MpiWorld& operator=(const MpiWorld&) = delete;
  ~MpiWorld() {
    if (mpi_is_over()) return;
    if (!has_failed) MPI_Comm_free(&control);  // else others may not have come as far
    let_go(told);                              // short enough to be copied by MPI
  }

  /// Throws std::runtime_error if this rank or another has failed.
  void require_alive() {
    int is_there = 0;
    MPI_Status status;
    if (!has_failed && MPI_Iprobe(MPI_ANY_SOURCE, 0, control, &is_there, &status) == MPI_SUCCESS && is_there != 0) {
      int length = 0;
      MPI_Get_count(&status, MPI_CHAR, &length);
      failure.resize(static_cast<std::size_t>(std::max(length, 0)));
      MPI_Recv(failure.data(), length, MPI_CHAR, status.MPI_SOURCE, 0, control, MPI_STATUS_IGNORE);
      has_failed = true;
    }
    if (has_failed) fail_environment("moe::mpi::Mpi: rank ", rank, " stops, as ", failure);
  }

  const MpiOptions options;
  MPI_Comm control;
  int rank = 0, size = 1;
  Traffic traffic;
  bool has_failed = false;
  std::string failure;            ///< which rank, and why
  std::vector<MPI_Request> told;  ///< the messages that carry it
};

/// A communicator of MPI of one's own, and how many exchanges it has started.
struct MpiGroup {
  MpiGroup(std::shared_ptr<MpiWorld> of, MPI_Comm owned) : world(std::move(of)), ranks(owned) {
    MPI_Comm_rank(ranks, &rank);
    MPI_Comm_size(ranks, &size);
  }
  MpiGroup(const MpiGroup&) = delete;
  MpiGroup& operator=(const MpiGroup&) = delete;
  ~MpiGroup() {
    if (!world->has_failed && !mpi_is_over()) MPI_Comm_free(&ranks);
  }

  const std::shared_ptr<MpiWorld> world;
  MPI_Comm ranks;
  int rank = 0, size = 1;
  std::uint64_t exchanges = 0;
  std::vector<std::vector<std::byte>> spare;  ///< memory of exchanges that have ended
};

/// The messages of an exchange: those to receive, then those to send, all in memory of its own. That of the caller may
/// go at any time after an error, but messages only end when the other side gets to them.
struct MpiExchange {
  MpiExchange(std::shared_ptr<MpiGroup> of, std::size_t bytes) : group(std::move(of)), number(group->exchanges++) {
    if (!group->spare.empty()) {
      memory = std::move(group->spare.back());
      group->spare.pop_back();
    }
    if (memory.size() < bytes) memory.resize(bytes);
  }
  MpiExchange(const MpiExchange&) = delete;
  MpiExchange& operator=(const MpiExchange&) = delete;
  ~MpiExchange() {
    if (!has_ended && !mpi_is_over()) {
      for (std::size_t i = 0; i < expected.size(); ++i)
        if (messages[i] != MPI_REQUEST_NULL) MPI_Cancel(&messages[i]);
      if (!let_go(messages)) keep_for_ever(std::exchange(memory, {}));
    }
    if (!memory.empty()) group->spare.push_back(std::move(memory));
  }

  /// f(bytes, their number) for each piece of the next `bytes` of the memory, a message each.
  template <class F>
  void for_each_piece(std::size_t bytes, const F& f) {
    while (bytes > 0) {
      const auto piece = std::min(bytes, static_cast<std::size_t>(group->world->options.most_bytes));
      messages.push_back(MPI_REQUEST_NULL);
      f(memory.data() + used, static_cast<int>(piece));
      used += piece;
      bytes -= piece;
    }
  }
  int tag() const { return static_cast<int>(number % 32768); }  // what every MPI has
  void receive(std::span<std::byte> part, int from) {
    parts.emplace_back(part, used);
    for_each_piece(part.size(), [&](std::byte* to, int bytes) {
      expected.push_back({from, bytes});
      require_mpi("MPI_Irecv", MPI_Irecv(to, bytes, MPI_BYTE, from, tag(), group->ranks, &messages.back()));
    });
  }
  void send(std::span<const std::byte> part, int to) {
    std::ranges::copy(part, memory.begin() + static_cast<std::ptrdiff_t>(used));
    for_each_piece(part.size(), [&](const std::byte* from, int bytes) {
      group->world->traffic.bytes += bytes;
      ++group->world->traffic.messages;
      require_mpi("MPI_Isend", MPI_Isend(from, bytes, MPI_BYTE, to, tag(), group->ranks, &messages.back()));
    });
  }

  bool test() {
    if (has_ended) return true;
    int all = 0;
    statuses.resize(messages.size());
    const int code = MPI_Testall(static_cast<int>(messages.size()), messages.data(), &all, statuses.data());
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) require_mpi("MPI_Testall", code);
    if (code == MPI_ERR_IN_STATUS)
      for (const MPI_Status& status : statuses)
        if (status.MPI_ERROR != MPI_ERR_PENDING) require_mpi("MPI_Testall", status.MPI_ERROR);
    if (all == 0) {
      group->world->require_alive();
      return false;
    }
    has_ended = true;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      int bytes = 0;
      MPI_Get_count(&statuses[i], MPI_BYTE, &bytes);
      if (bytes != expected[i].second)
        fail_environment("moe::mpi::Mpi: rank ", expected[i].first, " has sent ", bytes, " bytes in exchange ", number,
                         ", expected ", expected[i].second, " on rank ", group->rank);
    }
    for (const auto& [to, from] : parts)
      std::copy_n(memory.begin() + static_cast<std::ptrdiff_t>(from), to.size(), to.begin());
    return true;
  }

  const std::shared_ptr<MpiGroup> group;
  const std::uint64_t number;
  std::vector<std::byte> memory;
  std::size_t used = 0;
  std::vector<std::pair<std::span<std::byte>, std::size_t>> parts;  ///< where to, and where they are in the memory
  std::vector<std::pair<int, int>> expected;                        ///< rank and bytes of what is received
  std::vector<MPI_Request> messages;
  std::vector<MPI_Status> statuses;
  bool has_ended = false;
};

}  // namespace detail

/// MPI from here to the end of the object, one per program:
///   int main(int argc, char** argv) {
///     const moe::mpi::MpiSession session(argc, argv);
///     moe::mpi::run_ranks(session, [&](const moe::mpi::Mpi& ranks) { ... });
///   }
/// Throws std::runtime_error if MPI has been started before.
class MpiSession {
 public:
  MpiSession(int& argc, char**& argv) {
    int started = 0, provided = 0;
    MPI_Initialized(&started);
    if (started != 0) fail_environment("moe::mpi::MpiSession: MPI has been started, expected one session per program");
    detail::require_mpi("MPI_Init_thread", MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided));
    if (provided >= MPI_THREAD_FUNNELED) return;
    MPI_Finalize();
    fail_environment("moe::mpi::MpiSession: this MPI knows no threads, expected MPI_THREAD_FUNNELED");
  }
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  ~MpiSession() { MPI_Finalize(); }
};

/// Ranks that are processes, started by mpirun. Messages go from one rank to another without waiting, and whoever waits
/// looks whether another has failed, and at the clock. Only the constructor and split() wait within MPI for ranks to
/// come. Messages are copied on both sides, so that after an error nobody writes to memory that may be gone. One
/// thread.
class Mpi {
 public:
  class Request {
   public:
    bool test() { return !exchange_ || exchange_->test(); }
    void wait() {
      if (!exchange_) return;
      const double timeout = exchange_->group->world->options.timeout;
      const auto deadline =
          std::chrono::steady_clock::now() +
          std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(timeout));
      while (!exchange_->test()) {
        if (std::chrono::steady_clock::now() >= deadline)
          fail_environment("moe::mpi::Mpi: rank ", exchange_->group->rank, " has waited ", timeout, " s for exchange ",
                           exchange_->number);
        std::this_thread::yield();
      }
    }

   private:
    friend class Mpi;
    std::unique_ptr<detail::MpiExchange> exchange_;
  };

  /// The ranks of `of`, apart from what else it carries. Collective. Throws std::invalid_argument unless messages have
  /// at least a byte and no more than int counts.
  explicit Mpi(MPI_Comm of = MPI_COMM_WORLD, const MpiOptions& options = {}) {
    if (options.most_bytes < 1 || options.most_bytes > std::numeric_limits<int>::max())
      moe::fail("moe::mpi::Mpi: most_bytes is ", options.most_bytes, ", expected 1 to ",
                std::numeric_limits<int>::max());
    detail::require_seconds("moe::mpi::Mpi", "timeout", options.timeout);
    const auto world = std::make_shared<detail::MpiWorld>(of, options);
    group_ = std::make_shared<detail::MpiGroup>(world, detail::duplicate(of));
  }

  Index rank() const { return group_->rank; }
  Index size() const { return group_->size; }

  Request start_all_to_all(std::span<const std::byte> send, std::span<const Index> send_bytes,
                           std::span<std::byte> received, std::span<const Index> received_bytes) const {
    detail::require_exchange("moe::mpi::Mpi::start_all_to_all", rank(), size(), send, send_bytes, received,
                             received_bytes);
    group_->world->require_alive();
    Request request;
    const auto own_bytes = static_cast<std::size_t>(send_bytes[static_cast<std::size_t>(rank())]);
    request.exchange_ = std::make_unique<detail::MpiExchange>(group_, received.size() + send.size() - 2 * own_bytes);
    std::span<std::byte> own;
    for (int r = 0; r < group_->size; ++r) {
      const auto part = received.first(static_cast<std::size_t>(received_bytes[static_cast<std::size_t>(r)]));
      if (r == group_->rank)
        own = part;
      else
        request.exchange_->receive(part, r);
      received = received.subspan(part.size());
    }
    for (int r = 0; r < group_->size; ++r) {
      const auto part = send.first(static_cast<std::size_t>(send_bytes[static_cast<std::size_t>(r)]));
      if (r == group_->rank)
        std::ranges::copy(part, own.begin());
      else
        request.exchange_->send(part, r);
      send = send.subspan(part.size());
    }
    return request;
  }

  Mpi split(Index color, Index key) const {
    const std::array<Index, 2> own = {color, key};
    const std::vector<Index> all = all_gather<Index>(*this, own);  // all are here: what follows returns
    std::vector<Index> colors, keys;
    for (std::size_t i = 0; i < all.size(); i += 2) {
      colors.push_back(all[i]);
      keys.push_back(all[i + 1]);
    }
    const auto place_in = [](std::vector<Index> values, Index value) {  // MPI takes int, and no color below 0
      std::ranges::sort(values);
      return static_cast<int>(std::ranges::lower_bound(values, value) - values.begin());
    };
    MPI_Comm part = MPI_COMM_NULL;
    detail::require_mpi("MPI_Comm_split",
                        MPI_Comm_split(group_->ranks, place_in(colors, color), place_in(keys, key), &part));
    MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN);
    return Mpi(std::make_shared<detail::MpiGroup>(group_->world, part));
  }

  Traffic traffic() const { return group_->world->traffic; }

  void fail(const char* reason) const noexcept {
    detail::MpiWorld& world = *group_->world;
    if (world.has_failed) return;
    world.has_failed = true;
    try {
      world.failure = "rank " + std::to_string(world.rank) + " has failed: " + reason;
      world.failure.resize(std::min<std::size_t>(world.failure.size(), 1000));  // at once on its way
    } catch (...) {                                                             // without memory for the reason
    }
    for (int r = 0; r < world.size; ++r) {
      if (r == world.rank) continue;
      MPI_Request message = MPI_REQUEST_NULL;
      MPI_Isend(world.failure.data(), static_cast<int>(world.failure.size()), MPI_CHAR, r, 0, world.control, &message);
      world.told[static_cast<std::size_t>(r)] = message;
    }
  }

 private:
  explicit Mpi(std::shared_ptr<detail::MpiGroup> group) : group_(std::move(group)) {}

  std::shared_ptr<detail::MpiGroup> group_;
};

static_assert(Communicator<Mpi>);

/// Calls f(communicator) with the ranks that mpirun has started. Where it ends with an exception, the others are told,
/// which then throw as soon as they wait.
template <class F>
void run_ranks(const MpiSession&, const F& f, const MpiOptions& options = {}) {
  const Mpi ranks(MPI_COMM_WORLD, options);
  try {
    f(ranks);
  } catch (const std::exception& error) {
    ranks.fail(error.what());
    throw;
  } catch (...) {
    ranks.fail("an exception that is none of the standard library");
    throw;
  }
}

}  // namespace moe::inline MOE_ABI::mpi
