// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/serve/cache_policy.hpp"
#include "moe/serve/prefetch_account.hpp"

// Long, as the states of an expert, who may change them and what is counted on the way belong to one lock.
namespace moe::inline MOE_ABI {

/// What a cache has done. Where nothing throws, requests == hits + loads + awaited.
struct CacheStatistics {
  std::int64_t steps = 0;               ///< calls that asked for experts
  std::int64_t requests = 0, hits = 0;  ///< experts that steps asked for, and those that they had at once
  std::int64_t loads = 0;               ///< by steps, which had to wait for them
  std::int64_t awaited = 0;             ///< by others, for which steps had to wait: in the background, by other
                                        ///< threads, and those that were there, behind steps that waited for room
  std::int64_t evictions = 0;
  std::int64_t prefetches = 0;          ///< loads in the background
  std::int64_t prefetches_used = 0;     ///< of these, asked for before they were evicted
  std::int64_t prefetches_dropped = 0;  ///< not begun: too late, no room, or too many guesses were wrong before
  std::int64_t prefetches_failed = 0;   ///< begun, and `load` threw
  std::uint64_t loaded_bytes = 0;       ///< by steps
  std::uint64_t prefetched_bytes = 0, prefetched_bytes_used = 0;
  std::uint64_t peak_bytes = 0;  ///< most that were resident or being loaded at a time; never above the budget
  double stall_seconds = 0;      ///< in which steps waited for experts, added up over threads

  /// 0 before the first request.
  double hit_rate() const { return requests == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(requests); }
  std::uint64_t wasted_bytes() const { return prefetched_bytes - prefetched_bytes_used; }
};

/// Experts that are loaded when they are asked for, and kept while a budget of bytes lets them: what CachedExperts runs
/// on, and simulate_cache() without anything to load.
///   ExpertCache<E, Lru> cache(bytes_of_experts, [&](Index e) { return file.load(e); }, budget);
///   cache.serve(experts, memory, [&](std::span<const Index> wave) { ... cache[e] for e in wave ... });
/// A step asks for some experts and is served in waves: first those that are there, then, as many at a time as fit,
/// those that are loaded. Experts of a wave are pinned while it runs. Bytes of experts that are being loaded count, so
/// that the sum never exceeds the budget. Who waits for room pins nothing, so that steps of several threads cannot
/// block each other, and is served in the order in which steps began: those that come later have to wait until it has
/// its room, even for what is there, so that it waits for no more than what others had begun. Thread-safe; `load` is
/// called by several threads at once. Not copied nor moved.
template <class E, CachePolicy P>
class ExpertCache {
 public:
  using Expert = E;
  using Policy = P;

  /// Working memory of serve(); one per thread.
  struct Memory {
    std::vector<Index> pending, wave;
  };

  /// `bytes` are those of each expert. With prefetch_bytes > 0 there is a background thread for prefetch(), which holds
  /// at most so many bytes that no step has asked for yet. The policy is asked for victims of the cache without
  /// prefetching as well then, twice a step, and should not take its answers for done. Throws std::invalid_argument for
  /// no experts, a budget that is smaller than an expert, and for what the policy refuses.
  ExpertCache(std::vector<std::size_t> bytes, std::function<E(Index)> load, std::size_t budget, P policy = P(),
              std::size_t prefetch_bytes = 0)
      : bytes_(std::move(bytes)),
        load_(std::move(load)),
        budget_(budget),
        prefetch_bytes_(prefetch_bytes),
        policy_(std::move(policy)),
        entries_(bytes_.size()),
        account_(bytes_.size(), budget, prefetch_bytes) {
    if (bytes_.empty()) fail("moe::ExpertCache: 0 experts, expected at least 1");
    const auto largest = std::ranges::max_element(bytes_);
    largest_ = *largest;
    if (largest_ > budget)
      fail("moe::ExpertCache: a budget of ", budget, " bytes, expected at least the ", largest_, " of expert ",
           largest - bytes_.begin());
    policy_.start(size());
    for (auto& each : candidates_) each.reserve(bytes_.size());
    if (prefetch_bytes > 0) background_ = std::thread([this] { run_background(); });
  }
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;
  ~ExpertCache() {
    if (!background_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stops_ = true;
    }
    wake_.notify_all();
    background_.join();
  }

  Index size() const { return std::ssize(bytes_); }
  std::size_t budget() const { return budget_; }
  std::size_t bytes_of(Index expert) const { return bytes_[static_cast<std::size_t>(expert)]; }
  /// Of all experts together.
  std::size_t total_bytes() const {
    std::size_t sum = 0;
    for (const std::size_t bytes : bytes_) sum += bytes;
    return sum;
  }

  /// Calls run(wave) until each of `experts`, which ascend, has been in a wave; waves ascend. What `load` throws is
  /// thrown here, to who asked for the expert, and leaves the cache as it was without that load; so does what `run`
  /// throws, which must not ask this cache for more, nor wait for another step of it. Throws std::invalid_argument for
  /// experts out of range or order. Allocates where it loads or waits.
  template <class Run>
  void serve(std::span<const Index> experts, Memory& memory, const Run& run) {
    for (std::size_t i = 0; i < experts.size(); ++i)
      if (experts[i] < 0 || experts[i] >= size() || (i > 0 && experts[i] <= experts[i - 1]))
        fail("moe::ExpertCache::serve: expert ", experts[i], " at place ", i, ", expected ascending ones below ",
             size());
    if (experts.empty()) return;
    memory.pending.assign(experts.begin(), experts.end());
    memory.wave.reserve(experts.size());
    std::unique_lock lock(mutex_);
    const std::int64_t step = begin_step(experts, memory);
    for (bool is_first = true; is_first || !memory.pending.empty(); is_first = false) {
      if (!is_first) lock.lock();
      if (!is_first || memory.wave.empty()) acquire(memory, step, lock);
      lock.unlock();
      const Pins pins{*this, memory.wave};
      run(std::span<const Index>(memory.wave));
    }
  }

  /// An expert of the wave that runs.
  const E& operator[](Index expert) const { return *entries_[static_cast<std::size_t>(expert)].expert; }

  /// Lets the background thread load these, in this order, as far as there is room for them. Those of them that are
  /// there stay, as far as it is up to prefetching. One that does not fit beside the largest expert is dropped, so that
  /// no step has to wait for the room of a wrong guess. So is one that costs more than it may bring, by how guesses did
  /// so far: of whatever kind they are,
  ///   loads + wasted / 2 <= 257/256 loads without prefetching + 1.5 prefetch_bytes
  /// in bytes, for steps of one thread whose experts fit; see detail::PrefetchAccount. Returns at once. There is one
  /// list for all threads: what waited from before, of any thread, is dropped. Experts out of range are ignored; one
  /// that cannot be loaded is counted, and tried again by who asks for it. Does nothing without a background thread.
  void prefetch(std::span<const Index> experts) {
    if (!background_.joinable()) return;
    const std::lock_guard lock(mutex_);
    statistics_.prefetches_dropped += std::ssize(queue_);
    queue_.clear();
    for (Entry& of : entries_) of.is_listed = false;
    for (const Index e : experts) {
      if (e < 0 || e >= size()) continue;
      if (entry(e).state == State::Absent && !entry(e).is_listed) queue_.push_back(e);
      entry(e).is_listed = true;
    }
    if (queue_.empty())
      changed_.notify_all();
    else
      wake_.notify_one();
  }
  /// Returns when the background thread has nothing to do.
  void finish_prefetch() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return queue_.empty() && !is_loading_; });
  }

  CacheStatistics statistics() const {
    const std::lock_guard lock(mutex_);
    return statistics_;
  }
  /// Experts stay, and so does what the policy knows. Those that were prefetched and not asked for yet are counted as
  /// prefetched from then on.
  void reset_statistics() {
    const std::lock_guard lock(mutex_);
    statistics_ = {};
    statistics_.peak_bytes = used_;
    for (Index e = 0; e < size(); ++e)
      if (entry(e).is_unused) {
        ++statistics_.prefetches;
        statistics_.prefetched_bytes += bytes_of(e);
      }
  }
  /// Bytes of the experts that are there or being loaded.
  std::size_t resident_bytes() const {
    const std::lock_guard lock(mutex_);
    return used_;
  }
  /// Those that are there, ascending.
  std::vector<Index> resident() const {
    const std::lock_guard lock(mutex_);
    std::vector<Index> result;
    for (Index e = 0; e < size(); ++e)
      if (entries_[static_cast<std::size_t>(e)].state == State::Resident) result.push_back(e);
    return result;
  }

 private:
  enum class State : std::uint8_t { Absent, Loading, Resident };
  struct Entry {
    std::optional<E> expert = {};
    Index pins = 0;
    State state = State::Absent;
    bool is_unused = false;  ///< prefetched, and not asked for yet
    bool is_listed = false;  ///< named by the last prefetch(), and not asked for yet
  };
  using Clock = std::chrono::steady_clock;

  /// Unpins a wave at the end of a scope.
  struct Pins {
    ExpertCache& cache;
    const std::vector<Index>& wave;

    Pins(ExpertCache& of, const std::vector<Index>& experts) : cache(of), wave(experts) {}
    Pins(const Pins&) = delete;
    Pins& operator=(const Pins&) = delete;
    ~Pins() {
      {
        const std::lock_guard lock(cache.mutex_);
        for (const Index e : wave) --cache.entry(e).pins;
      }
      cache.changed_.notify_all();
    }
  };

  double real_bytes_of(Index expert) const { return static_cast<double>(bytes_of(expert)); }
  Entry& entry(Index expert) { return entries_[static_cast<std::size_t>(expert)]; }

  /// Counts a step, and pins those of its experts that are there, unless others wait for room. All of it at once: a hit
  /// is what the first wave has.
  std::int64_t begin_step(std::span<const Index> experts, Memory& memory) {
    const std::int64_t step = next_step_++;
    for (const Index e : experts) policy_.use(e, step), entry(e).is_listed = false;
    account_.add_step(bytes_, experts, step, policy_);
    const auto late = std::erase_if(queue_, [&](Index e) { return std::ranges::binary_search(experts, e); });
    statistics_.prefetches_dropped += static_cast<std::int64_t>(late);
    if (late > 0 && queue_.empty()) changed_.notify_all();
    memory.wave.clear();
    if (waiting_.empty()) take_resident(memory);
    ++statistics_.steps;
    statistics_.requests += std::ssize(experts);
    statistics_.hits += std::ssize(memory.wave);
    return step;
  }

  /// Moves those of the pending experts that are there into the wave, pinned.
  void take_resident(Memory& memory) {
    memory.wave.clear();
    std::erase_if(memory.pending, [&](Index e) {
      Entry& of = entry(e);
      if (of.state != State::Resident) return false;
      ++of.pins;
      if (of.is_unused) {
        ++statistics_.prefetches_used;
        statistics_.prefetched_bytes_used += bytes_of(e);
        unused_ -= bytes_of(e);
        account_.add_guess(-real_bytes_of(e));
        of.is_unused = false;
      }
      memory.wave.push_back(e);
      return true;
    });
  }

  /// The next wave: what has come meanwhile, else what can be loaded now; neither while a step that began earlier waits
  /// for room. Who waits for what others load keeps nobody from loading.
  void acquire(Memory& memory, std::int64_t step, std::unique_lock<std::mutex>& lock) {
    const auto since = Clock::now();
    bool loads = false, has_turn = false;
    memory.wave.clear();
    for (;; changed_.wait(lock)) {
      has_turn = waiting_.empty() || *waiting_.begin() >= step;
      if (has_turn) take_resident(memory);
      statistics_.awaited += std::ssize(memory.wave);
      loads = has_turn && memory.wave.empty() && reserve(memory, step);
      if (!memory.wave.empty()) break;
      if (!has_turn || std::ranges::any_of(memory.pending, [&](Index e) { return entry(e).state == State::Absent; }))
        waiting_.insert(step);
      else
        stop_waiting(step);
    }
    stop_waiting(step);
    if (loads) {
      lock.unlock();
      load_wave(memory.wave);
      lock.lock();
    }
    statistics_.stall_seconds += std::chrono::duration<double>(Clock::now() - since).count();
  }
  /// Lets those go on that waited behind this step.
  void stop_waiting(std::int64_t step) {
    if (waiting_.erase(step) > 0) changed_.notify_all();
  }

  /// Makes room for pending experts that nobody loads, until one does not fit; false if the first does not.
  bool reserve(Memory& memory, std::int64_t step) {
    try {
      for (const Index e : memory.pending) {
        if (entry(e).state != State::Absent) continue;
        if (!make_room(bytes_of(e), step, For::Step)) break;
        begin_loading(e);
        account_.add_load(real_bytes_of(e));
        ++entry(e).pins;
        memory.wave.push_back(e);
      }
    } catch (...) {  // of the policy
      waiting_.erase(step);
      for (const Index e : memory.wave) --entry(e).pins, give_up(e), account_.add_load(-real_bytes_of(e));
      changed_.notify_all();
      throw;
    }
    std::erase_if(memory.pending, [&](Index e) { return std::ranges::binary_search(memory.wave, e); });
    return !memory.wave.empty();
  }

  enum class For { Step, Prefetch };

  /// Who goes first. What the cache would not have without prefetching goes before what it would, as far as guesses
  /// have not earned more.
  enum class Rank { Extra, OldGuess, Kept, Listed, Last };

  /// Evicts what the policy says until `bytes` fit; false where what is pinned leaves no such room, and nothing has
  /// been evicted then. Of prefetches, what was prefetched for a step to come never goes for others; nor does what was
  /// named by the same prefetch(), nor what they are not worth.
  bool make_room(std::size_t bytes, std::int64_t step, For purpose) {
    const double guess = purpose == For::Prefetch ? static_cast<double>(bytes) : 0;
    while (bytes > budget_ - used_) {
      std::size_t room = budget_ - used_, largest_kept = 0;  // with all that may go
      for (auto& each : candidates_) each.clear();
      for (Index e = 0; e < size(); ++e) {
        const Entry& of = entry(e);
        if (of.state != State::Resident || of.pins > 0) continue;
        if (purpose == For::Prefetch && (of.is_unused || of.is_listed)) continue;
        const Rank rank = rank_of(e);
        if (rank == Rank::Kept) largest_kept = std::max(largest_kept, bytes_of(e));
        candidates_[static_cast<std::size_t>(rank)].push_back(e);
        room += bytes_of(e);
      }
      if (bytes > room) return false;
      auto first = std::ranges::find_if(candidates_, [](const auto& each) { return !each.empty(); });
      if (first - candidates_.begin() == static_cast<std::ptrdiff_t>(Rank::Kept) && account_.follows() &&
          !account_.allows(absent_bytes() + static_cast<double>(largest_kept), guess)) {
        if (purpose == For::Prefetch) return false;
        if (!first[1].empty()) ++first;
      }
      const Index victim = policy_.victim(std::span<const Index>(*first), step);
      if (!std::ranges::binary_search(*first, victim))
        fail("moe::ExpertCache: the policy evicts expert ", victim, ", expected one of its candidates");
      Entry& of = entry(victim);
      if (of.is_unused) unused_ -= bytes_of(victim);
      of.is_unused = false;
      of.expert.reset();
      of.state = State::Absent;
      used_ -= bytes_of(victim);
      ++statistics_.evictions;
    }
    return true;
  }
  /// Of what the cache would have without prefetching, and has not.
  double absent_bytes() const {
    double absent = 0;
    for (Index e = 0; e < size(); ++e)
      if (account_.has(e) && entries_[static_cast<std::size_t>(e)].state == State::Absent) absent += real_bytes_of(e);
    return absent;
  }
  Rank rank_of(Index e) const {
    if (!account_.follows()) return Rank::Kept;
    const Entry& of = entries_[static_cast<std::size_t>(e)];
    if (account_.has(e)) return of.is_listed ? Rank::Last : Rank::Kept;
    return of.is_listed ? Rank::Listed : of.is_unused ? Rank::OldGuess : Rank::Extra;
  }

  void begin_loading(Index e) {
    entry(e).state = State::Loading;
    used_ += bytes_of(e);
    statistics_.peak_bytes = std::max<std::uint64_t>(statistics_.peak_bytes, used_);
    if (!waiting_.empty()) changed_.notify_all();  // who waits for room for it waits for its load now
  }
  void give_up(Index e) {
    entry(e).state = State::Absent;
    used_ -= bytes_of(e);
  }

  /// Loads experts that are reserved and pinned. If one cannot be loaded, none of them stays pinned.
  void load_wave(const std::vector<Index>& wave) {
    try {
      parallel_for(std::ssize(wave), [&](Index i, Index) {
        const Index e = wave[static_cast<std::size_t>(i)];
        entry(e).expert.emplace(load_(e));  // whose place nobody else looks at
        const std::lock_guard lock(mutex_);
        entry(e).state = State::Resident;
        ++statistics_.loads;
        statistics_.loaded_bytes += bytes_of(e);
      });
    } catch (...) {
      {
        const std::lock_guard lock(mutex_);
        for (const Index e : wave) {
          --entry(e).pins;
          if (entry(e).state == State::Loading) give_up(e), account_.add_load(-real_bytes_of(e));
        }
      }
      changed_.notify_all();
      throw;
    }
    changed_.notify_all();
  }

  void run_background() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stops_ || !queue_.empty(); });
      if (stops_) return;
      const Index e = queue_.front();
      queue_.pop_front();
      if (entry(e).state == State::Absent) {
        if (has_room_to_prefetch(bytes_of(e)))
          load_in_background(e, lock);
        else
          ++statistics_.prefetches_dropped;
      }
      changed_.notify_all();
    }
  }

  bool has_room_to_prefetch(std::size_t bytes) {
    if (!waiting_.empty()) return false;  // a step is to have the next room
    if (unused_ + bytes > prefetch_bytes_ || bytes > budget_ - largest_) return false;
    if (!account_.allows(absent_bytes(), static_cast<double>(bytes))) return false;
    try {
      return make_room(bytes, next_step_ - 1, For::Prefetch);
    } catch (...) {  // of the policy, which says it again to who asks for an expert
      return false;
    }
  }

  void load_in_background(Index e, std::unique_lock<std::mutex>& lock) {
    begin_loading(e);
    is_loading_ = true;
    unused_ += bytes_of(e);
    account_.add_guess(real_bytes_of(e));
    lock.unlock();
    try {
      entry(e).expert.emplace(load_(e));  // whose place nobody else looks at
    } catch (...) {                       // whoever asks for it finds out
    }
    lock.lock();
    is_loading_ = false;
    if (!entry(e).expert) {
      unused_ -= bytes_of(e);
      account_.add_guess(-real_bytes_of(e));
      ++statistics_.prefetches_failed;
      return give_up(e);
    }
    entry(e).state = State::Resident;
    entry(e).is_unused = true;
    ++statistics_.prefetches;
    statistics_.prefetched_bytes += bytes_of(e);
  }

  const std::vector<std::size_t> bytes_;
  const std::function<E(Index)> load_;
  const std::size_t budget_, prefetch_bytes_;
  std::size_t largest_ = 0;
  mutable std::mutex mutex_;  ///< of all that follows
  std::condition_variable changed_, wake_;
  P policy_;
  std::vector<Entry> entries_;
  detail::PrefetchAccount account_;
  std::array<std::vector<Index>, 5> candidates_;  ///< by rank
  std::deque<Index> queue_;
  std::size_t used_ = 0, unused_ = 0;
  std::int64_t next_step_ = 0;
  CacheStatistics statistics_;
  bool stops_ = false, is_loading_ = false;
  std::set<std::int64_t> waiting_;  ///< steps that wait for room, or for the turn of those
  std::thread background_;
};

}  // namespace moe::inline MOE_ABI
