// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Non-owning reference to a callable void(Index); what an Executor runs. Valid during the call it is passed to.
class TaskRef {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>)
  explicit TaskRef(F& callable)
      : object_(const_cast<void*>(static_cast<const void*>(&callable))),
        call_([](void* object, Index worker) { (*static_cast<F*>(object))(worker); }) {}

  void operator()(Index worker) const { call_(object_, worker); }

 private:
  void* object_;
  void (*call_)(void*, Index);
};

/// Where parallel loops run. Derive from it to hand the library your own threads, and install it with UseExecutor.
/// run() calls task(w) once for every w in [0, concurrency()), on any threads, and returns when all have returned.
/// concurrency() is asked once, when the executor is installed. The task never throws; a loop whose tasks have not all
/// been run when run() returns, a worker out of range and one that is called twice end in std::runtime_error.
/// Each thread needs 128 KiB of stack, as the thread that calls the library does.
/// Thread-safety: as the derived class says; the library calls it from the installing thread.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual Index concurrency() const = 0;
  virtual void run(TaskRef task) = 0;
};

/// Runs everything on the calling thread. What a child process needs after fork() from a program that has used OpenMP:
/// the threads of libgomp do not exist there, and a parallel loop would wait for them for ever.
///   moe::SerialExecutor serial;  moe::UseExecutor use(serial);  layer.forward(...);  // the same bits
class SerialExecutor final : public Executor {
 public:
  Index concurrency() const override { return 1; }
  void run(TaskRef task) override { task(0); }
};

namespace detail {

struct InstalledExecutor {
  Executor* executor = nullptr;
  Index workers = 1;
};

inline InstalledExecutor& current_executor() {
  thread_local InstalledExecutor installed;
  return installed;
}

/// True on a thread that is inside a parallel loop: loops started there run serially.
inline bool& inside_parallel() {
  thread_local bool inside = false;
  return inside;
}

/// Sets inside_parallel() for a scope.
class EnterParallel {
 public:
  EnterParallel() : before_(inside_parallel()) { inside_parallel() = true; }
  ~EnterParallel() { inside_parallel() = before_; }
  EnterParallel(const EnterParallel&) = delete;
  EnterParallel& operator=(const EnterParallel&) = delete;

 private:
  bool before_;
};

}  // namespace detail

/// Runs the parallel loops that the current thread starts on `executor`, until the end of the scope.
///   MyPool pool;  moe::UseExecutor use(pool);  layer.forward(...);
/// One per thread; scopes nest.
class UseExecutor {
 public:
  explicit UseExecutor(Executor& executor) : before_(detail::current_executor()) {
    detail::current_executor() = {&executor, std::max<Index>(1, executor.concurrency())};
  }
  ~UseExecutor() { detail::current_executor() = before_; }
  UseExecutor(const UseExecutor&) = delete;
  UseExecutor& operator=(const UseExecutor&) = delete;

 private:
  detail::InstalledExecutor before_;
};

/// Number of workers that a parallel loop started here may use: the installed executor's, else OpenMP's when the
/// program is compiled with it, else 1. Inside a parallel loop: 1. Buffers per worker are sized with it.
inline Index num_workers() {
  if (detail::inside_parallel()) return 1;
  if (detail::current_executor().executor) return detail::current_executor().workers;
#ifdef _OPENMP
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

}  // namespace moe::inline MOE_ABI
