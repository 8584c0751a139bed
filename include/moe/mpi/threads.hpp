// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "moe/mpi/collectives.hpp"

namespace moe::inline MOE_ABI::mpi {

/// The network between ranks that are threads. Zeros: as fast as memory.
struct ThreadsOptions {
  double latency = 0;           ///< seconds from the end of sending to the arrival of a message
  double bytes_per_second = 0;  ///< of what a rank sends, one message after the other; 0: no limit
  double timeout = 60;          ///< seconds that a rank waits for another before it gives up
};

namespace detail {

using ThreadClock = std::chrono::steady_clock;

inline ThreadClock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<ThreadClock::duration>(std::chrono::duration<double>(seconds));
}

/// What all ranks of a run share: one lock, as they are few, and how the run ended.
struct ThreadWorld {
  explicit ThreadWorld(const ThreadsOptions& options_of_run) : options(options_of_run) {}

  const ThreadsOptions options;
  std::mutex mutex;
  std::condition_variable changed;
  bool has_failed = false;
  std::string failure;  ///< which rank, and why
};

struct ThreadMessage {
  std::vector<std::byte> bytes;
  ThreadClock::time_point arrival;
};

/// The messages of a communicator that have been sent and not been received.
struct ThreadGroup {
  using Key = std::tuple<Index, Index, std::uint64_t>;  ///< from, to, number of the exchange

  ThreadGroup(std::shared_ptr<ThreadWorld> of, Index num_ranks) : world(std::move(of)), size(num_ranks) {}

  const std::shared_ptr<ThreadWorld> world;
  const Index size;
  std::map<Key, ThreadMessage> mail;
  std::map<std::pair<std::uint64_t, Index>, std::shared_ptr<ThreadGroup>> split;  ///< by exchange and color
};

/// What a thread has sent, in whichever communicator.
struct ThreadSender {
  Traffic traffic;
  ThreadClock::time_point free_at;  ///< all that it has sent is under way
};

}  // namespace detail

template <class F>
void run_ranks(Index num_ranks, const F& f, const ThreadsOptions& options = {});

/// Ranks that are threads of one process, see run_ranks(): what is written for MPI runs, and is tested, without it.
/// A message is copied when it is sent, and arrives when the network of the options has carried it. One per thread.
class Threads {
 public:
  class Request {
   public:
    bool test() {
      if (waits_.empty()) return true;
      std::unique_lock lock(group_->world->mutex);
      require_alive();
      const auto now = detail::ThreadClock::now();
      for (const Wait& wait : waits_) {
        const auto found = group_->mail.find(key(wait.from));
        if (found == group_->mail.end() || found->second.arrival > now) return false;
      }
      take_all(lock);
      return true;
    }
    void wait() {
      if (waits_.empty()) return;
      detail::ThreadWorld& world = *group_->world;
      const auto deadline = detail::ThreadClock::now() + detail::duration_of(world.options.timeout);
      std::unique_lock lock(world.mutex);
      for (const Wait& wait : waits_) wait_for(wait.from, deadline, lock);
      take_all(lock);
    }

   private:
    friend class Threads;
    struct Wait {
      Index from;
      std::span<std::byte> to;
    };

    detail::ThreadGroup::Key key(Index from) const { return {from, rank_, number_}; }
    void require_alive() const {
      if (group_->world->has_failed)
        fail_environment("moe::mpi::Threads: rank ", rank_, " stops, as ", group_->world->failure);
    }
    void wait_for(Index from, detail::ThreadClock::time_point deadline, std::unique_lock<std::mutex>& lock) const {
      detail::ThreadWorld& world = *group_->world;
      for (;;) {
        require_alive();
        const auto now = detail::ThreadClock::now();
        const auto found = group_->mail.find(key(from));
        const bool is_sent = found != group_->mail.end();
        if (is_sent && found->second.arrival <= now) return;
        if (!is_sent && now >= deadline)
          fail_environment("moe::mpi::Threads: rank ", rank_, " has waited ", world.options.timeout, " s for exchange ",
                           number_, " of rank ", from);
        world.changed.wait_until(lock, is_sent ? found->second.arrival : deadline);
      }
    }
    void take_all(std::unique_lock<std::mutex>& lock) {
      std::vector<detail::ThreadMessage> messages;
      for (const Wait& wait : waits_) messages.push_back(std::move(group_->mail.extract(key(wait.from)).mapped()));
      lock.unlock();
      for (std::size_t i = 0; i < messages.size(); ++i) {
        if (messages[i].bytes.size() != waits_[i].to.size())
          fail_environment("moe::mpi::Threads: rank ", waits_[i].from, " has sent ", messages[i].bytes.size(),
                           " bytes in exchange ", number_, ", expected ", waits_[i].to.size(), " on rank ", rank_);
        std::ranges::copy(messages[i].bytes, waits_[i].to.begin());
      }
      waits_.clear();
    }

    std::shared_ptr<detail::ThreadGroup> group_;
    Index rank_ = 0;
    std::uint64_t number_ = 0;
    std::vector<Wait> waits_;
  };

  Index rank() const { return rank_; }
  Index size() const { return group_->size; }

  Request start_all_to_all(std::span<const std::byte> send, std::span<const Index> send_bytes,
                           std::span<std::byte> received, std::span<const Index> received_bytes) const {
    detail::require_exchange("moe::mpi::Threads::start_all_to_all", rank_, size(), send, send_bytes, received,
                             received_bytes);
    Request request;
    request.group_ = group_;
    request.rank_ = rank_;
    request.number_ = (*exchanges_)++;
    std::vector<std::pair<Index, detail::ThreadMessage>> messages;
    for (Index r = 0; r < size(); ++r) {
      const auto bytes = static_cast<std::size_t>(send_bytes[static_cast<std::size_t>(r)]),
                 expected = static_cast<std::size_t>(received_bytes[static_cast<std::size_t>(r)]);
      if (r == rank_) {
        std::ranges::copy(send.first(bytes), received.begin());
      } else {
        if (bytes > 0) messages.emplace_back(r, message(send.first(bytes)));
        if (expected > 0) request.waits_.push_back({r, received.first(expected)});
      }
      send = send.subspan(bytes);
      received = received.subspan(expected);
    }
    const std::lock_guard lock(group_->world->mutex);
    request.require_alive();
    for (auto& [to, sent] : messages) group_->mail[{rank_, to, request.number_}] = std::move(sent);
    if (!messages.empty()) group_->world->changed.notify_all();
    return request;
  }

  Threads split(Index color, Index key) const {
    const std::array<Index, 2> own = {color, key};
    const std::vector<Index> all = all_gather<Index>(*this, own);
    std::vector<std::pair<Index, Index>> order;  // (key, rank)
    for (Index r = 0; r < size(); ++r)
      if (all[static_cast<std::size_t>(2 * r)] == color)
        order.emplace_back(all[static_cast<std::size_t>(2 * r + 1)], r);
    std::ranges::sort(order);
    const Index rank = std::ranges::find(order, std::pair(key, rank_)) - order.begin();
    const std::lock_guard lock(group_->world->mutex);
    std::shared_ptr<detail::ThreadGroup>& group = group_->split[{*exchanges_, color}];
    if (!group) group = std::make_shared<detail::ThreadGroup>(group_->world, std::ssize(order));
    return Threads(group, rank, sender_);
  }

  Traffic traffic() const { return sender_->traffic; }

  void fail(const char* reason) const noexcept {
    detail::ThreadWorld& world = *group_->world;
    const std::lock_guard lock(world.mutex);
    if (world.has_failed) return;
    world.has_failed = true;
    try {
      world.failure = "rank " + std::to_string(rank_) + " has failed: " + reason;
    } catch (...) {  // without memory for the reason
    }
    world.changed.notify_all();
  }

 private:
  template <class F>
  friend void run_ranks(Index num_ranks, const F& f, const ThreadsOptions& options);

  Threads(std::shared_ptr<detail::ThreadGroup> group, Index rank, std::shared_ptr<detail::ThreadSender> sender)
      : group_(std::move(group)),
        rank_(rank),
        exchanges_(std::make_shared<std::uint64_t>(0)),
        sender_(std::move(sender)) {}

  detail::ThreadMessage message(std::span<const std::byte> bytes) const {
    const ThreadsOptions& options = group_->world->options;
    ++sender_->traffic.messages;
    sender_->traffic.bytes += std::ssize(bytes);
    const double seconds =
        options.bytes_per_second > 0 ? static_cast<double>(bytes.size()) / options.bytes_per_second : 0.0;
    sender_->free_at = std::max(sender_->free_at, detail::ThreadClock::now()) + detail::duration_of(seconds);
    return {{bytes.begin(), bytes.end()}, sender_->free_at + detail::duration_of(options.latency)};
  }

  std::shared_ptr<detail::ThreadGroup> group_;
  Index rank_;
  std::shared_ptr<std::uint64_t> exchanges_;  ///< started so far, the same on all ranks; shared by copies
  std::shared_ptr<detail::ThreadSender> sender_;
};

static_assert(Communicator<Threads>);

/// Calls f(communicator) in num_ranks threads, each with the communicator of its rank, and returns when all have ended:
///   moe::mpi::run_ranks(4, [&](const moe::mpi::Threads& ranks) { moe::mpi::barrier(ranks); });
/// Where a rank ends with an exception, the others stop as soon as they wait, and the first one is thrown again here.
/// An executor of the caller's thread (UseExecutor) is not that of the ranks. Throws std::invalid_argument for less
/// than one rank and for times that are none.
template <class F>
void run_ranks(Index num_ranks, const F& f, const ThreadsOptions& options) {
  constexpr const char* kFunction = "moe::mpi::run_ranks";
  moe::detail::checked_size(kFunction, "num_ranks", num_ranks, 1);
  detail::require_seconds(kFunction, "latency", options.latency);
  detail::require_seconds(kFunction, "timeout", options.timeout);
  if (!(options.bytes_per_second >= 0))
    fail(kFunction, ": bytes_per_second is ", options.bytes_per_second, ", expected at least 0");
  const auto world = std::make_shared<detail::ThreadWorld>(options);
  const auto group = std::make_shared<detail::ThreadGroup>(world, num_ranks);
  std::exception_ptr first;
  const auto run = [&](Index rank) {
    const Threads ranks(group, rank, std::make_shared<detail::ThreadSender>());
    const auto failed = [&](const char* reason) {
      {
        const std::lock_guard lock(world->mutex);
        if (!first) first = std::current_exception();
      }
      ranks.fail(reason);
    };
    try {
      f(ranks);
    } catch (const std::exception& error) {
      failed(error.what());
    } catch (...) {
      failed("an exception that is none of the standard library");
    }
  };
  {
    std::vector<std::jthread> threads;
    try {
      for (Index r = 0; r < num_ranks; ++r) threads.emplace_back(run, r);
    } catch (const std::exception& error) {  // those that have begun shall not wait for the others
      Threads(group, 0, std::make_shared<detail::ThreadSender>()).fail(error.what());
      throw;
    }
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace moe::inline MOE_ABI::mpi
