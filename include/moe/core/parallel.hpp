// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <type_traits>

#include "moe/core/aligned.hpp"
#include "moe/core/executor.hpp"
#include "moe/core/team_cost.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Keeps the first exception of a loop and rethrows it on the calling thread.
class FirstException {
 public:
  void capture() noexcept {
    const std::lock_guard lock(mutex_);
    if (!first_) first_ = std::current_exception();
    failed_.store(true, std::memory_order_relaxed);
  }
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
  std::atomic<bool> failed_{false};
};

/// What an executor owes a loop: workers in range, each once (two threads of one number would share a buffer), and all
/// tasks. One per loop.
class Attendance {
 public:
  explicit Attendance(Index workers) : workers_(workers) {}

  void enter(Index worker) {
    if (worker < 0 || worker >= workers_)
      fail_environment("moe::parallel_for: the executor called worker ", worker, ", expected 0 to ", workers_ - 1);
    if (worker >= kWatched) return;
    const std::uint64_t bit = std::uint64_t{1} << (worker % 64);
    if (entered_[static_cast<std::size_t>(worker / 64)].fetch_or(bit, std::memory_order_relaxed) & bit)
      fail_environment("moe::parallel_for: the executor called worker ", worker, " twice, expected once");
  }
  void leave(Index tasks) { done_.fetch_add(tasks, std::memory_order_relaxed); }
  void require_all(Index num_tasks) const {
    if (done_.load() != num_tasks)
      fail_environment("moe::parallel_for: the executor returned after ", done_.load(), " of ", num_tasks,
                       " tasks, expected it to call the task and to wait for all of it");
  }

 private:
  static constexpr Index kWatched = 512;

  Index workers_;
  std::array<std::atomic<std::uint64_t>, kWatched / 64> entered_ = {};
  std::atomic<Index> done_{0};
};

/// Non-owning reference to the body of a loop, void(Index task, Index worker). Not a template parameter, so that the
/// loop, its region of OpenMP and its exceptions are compiled once and not for every body.
class LoopBody {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, LoopBody>)
  explicit LoopBody(F& callable)
      : object_(const_cast<void*>(static_cast<const void*>(&callable))),
        call_([](void* object, Index task, Index worker) { (*static_cast<F*>(object))(task, worker); }) {}

  void operator()(Index task, Index worker) const { call_(object_, task, worker); }

 private:
  void* object_;
  void (*call_)(void*, Index, Index);
};

/// Who takes the next task. Each worker begins with its own stretch of the tasks, the same in every loop, so that what
/// it wrote in one loop is in its cache in the next; then it takes what others have left. Order::Given: one stretch.
class Handout {
 public:
  enum class Order { Near, Given };

  Handout(Index num_tasks, Index workers, Order order)
      : workers_(workers), num_stretches_(order == Order::Given ? 1 : std::min(workers, kMostStretches)) {
    for (Index s = 0; s < num_stretches_; ++s) {
      stretch(s).next.store(num_tasks * s / num_stretches_, std::memory_order_relaxed);
      stretch(s).end = num_tasks * (s + 1) / num_stretches_;
    }
  }

  /// Calls body(task, worker) while there are tasks and no exception; returns how many.
  Index take(LoopBody body, Index worker, const FirstException& exception) {
    const Index own = worker * num_stretches_ / workers_;
    Index taken = 0;
    for (Index s = 0; s < num_stretches_; ++s) {
      Stretch& from = stretch((own + s) % num_stretches_);
      if (from.next.load(std::memory_order_relaxed) >= from.end) continue;  // others only read its line
      for (Index task = from.next.fetch_add(1); task < from.end && !exception.failed(); task = from.next.fetch_add(1)) {
        body(task, worker);
        ++taken;
      }
    }
    return taken;
  }

 private:
  static constexpr Index kMostStretches = 16;  // more workers share them: at the end each looks at all

  struct alignas(kCacheLine) Stretch {
    std::atomic<Index> next{0};
    Index end = 0;
  };

  Stretch& stretch(Index s) { return stretches_[static_cast<std::size_t>(s)]; }

  std::array<Stretch, static_cast<std::size_t>(kMostStretches)> stretches_;
  Index workers_, num_stretches_;
};

/// See parallel_for.
inline void run_loop(Index num_tasks, LoopBody body, Handout::Order order) {
  const Index workers = num_tasks <= 1 ? 1 : num_workers();
  if (workers <= 1) {
    for (Index task = 0; task < num_tasks; ++task) body(task, Index{0});
    return;
  }
  Handout handout(num_tasks, workers, order);
  FirstException exception;
  Attendance attendance(workers);
  auto work = [&](Index worker) noexcept {
    const EnterParallel enter;
    try {
      attendance.enter(worker);
      attendance.leave(handout.take(body, worker, exception));
    } catch (...) {
      exception.capture();
    }
  };
  if (Executor* executor = current_executor().executor) {
    executor->run(TaskRef(work));
  } else {
#ifdef _OPENMP
    TeamTimes times;
// Always the whole team, though it may be larger than num_tasks: libgomp ends the threads that a smaller team leaves
// over, and then allocates and starts them anew.
#pragma omp parallel
    {
      times.arrived();
      work(omp_get_thread_num());
      times.left();
    }
    times.teach(TeamCost::of_this_thread());
#endif
  }
  exception.rethrow();
  attendance.require_all(num_tasks);
}

/// Whether a team pays for `nanoseconds` of one thread's work. An executor is asked always: its cost is its own.
inline bool pays_for_team(Index nanoseconds) {
  return current_executor().executor || TeamCost::of_this_thread().pays(nanoseconds);
}

/// The tasks of a loop that is not worth a team, and of the loops inside.
template <class Body>
void run_alone(Index num_tasks, Body& body) {
  const EnterParallel enter;
  for (Index task = 0; task < num_tasks; ++task) body(task, Index{0});
}

}  // namespace detail

/// Calls body(task, worker) for every task in [0, num_tasks), with worker in [0, num_workers()).
/// Which worker gets which task is not fixed, so a result may depend on the task only. Tasks are handed out one by one,
/// to each worker those of its own stretch first, which is the same in every loop; make each worth some microseconds.
/// The first exception ends the loop early and is rethrown here. Throws std::runtime_error if an executor has left
/// tasks undone; see Executor.
template <class Body>
void parallel_for(Index num_tasks, Body&& body) {
  detail::run_loop(num_tasks, detail::LoopBody(body), detail::Handout::Order::Near);
}

/// Work of one thread, in nanoseconds, below which no team of OpenMP is ever asked: two threads that wait awake cost 3
/// microseconds and save half of the work. Where threads take longer to wake, loops learn so, and share from later on.
inline constexpr Index kLeastShared = detail::TeamCost::kLeast;

/// The same on the calling thread, as worker 0, where all tasks together are not worth a team; `nanoseconds` is what
/// one thread needs for them, estimated from sizes alone. An executor is asked always: its cost is its own.
template <class Body>
void parallel_for(Index num_tasks, Index nanoseconds, Body&& body) {
  if (!detail::pays_for_team(nanoseconds)) return detail::run_alone(num_tasks, body);
  parallel_for(num_tasks, body);
}

/// parallel_for where every worker takes the first task that is left: for tasks in the order of their size, or of which
/// the first ones count most.
template <class Body>
void parallel_in_order(Index num_tasks, Body&& body) {
  detail::run_loop(num_tasks, detail::LoopBody(body), detail::Handout::Order::Given);
}

/// The same on the calling thread where all tasks together are not worth a team.
template <class Body>
void parallel_in_order(Index num_tasks, Index nanoseconds, Body&& body) {
  if (!detail::pays_for_team(nanoseconds)) return detail::run_alone(num_tasks, body);
  parallel_in_order(num_tasks, body);
}

/// Calls body(begin, end, worker) for consecutive ranges of at most `grain` that cover [0, count).
template <class Body>
void parallel_ranges(Index count, Index grain, Body&& body) {
  MOE_ASSERT(grain > 0);
  parallel_for((count + grain - 1) / grain,
               [&](Index block, Index worker) { body(block * grain, std::min(count, (block + 1) * grain), worker); });
}

/// The same with an estimate of all of the work.
template <class Body>
void parallel_ranges(Index count, Index grain, Index nanoseconds, Body&& body) {
  MOE_ASSERT(grain > 0);
  parallel_for((count + grain - 1) / grain, nanoseconds,
               [&](Index block, Index worker) { body(block * grain, std::min(count, (block + 1) * grain), worker); });
}

}  // namespace moe::inline MOE_ABI
