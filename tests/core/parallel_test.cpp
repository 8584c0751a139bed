// SPDX-License-Identifier: MIT
#include "moe/core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "support/catch.hpp"
#include "support/thread_executor.hpp"

namespace {

using moe::Index;

/// Runs its tasks one after the other on the calling thread, and counts the calls.
class CountingExecutor final : public moe::Executor {
 public:
  explicit CountingExecutor(Index workers) : workers_(workers) {}
  Index concurrency() const override { return workers_; }
  void run(moe::TaskRef task) override {
    ++runs;
    for (Index w = 0; w < workers_; ++w) task(w);
  }
  int runs = 0;

 private:
  Index workers_;
};

TEST_CASE("parallel_for: runs every task once, by a worker in range", "[core]") {
  for (const Index workers : {1, 2, 3, 8, 40})
    for (const Index tasks : {0, 1, 2, 7, 1000}) {
      CAPTURE(workers, tasks);
      test::ThreadExecutor executor(workers);
      const moe::UseExecutor use(executor);
      std::vector<std::atomic<int>> count(static_cast<std::size_t>(tasks));
      std::atomic<int> out_of_range = 0;
      moe::parallel_for(tasks, [&](Index task, Index worker) {
        ++count[static_cast<std::size_t>(task)];
        out_of_range += worker < 0 || worker >= workers;
      });
      for (const auto& c : count) REQUIRE(c == 1);
      REQUIRE(out_of_range == 0);
    }
}

TEST_CASE("parallel_for: little work stays on the calling thread, with the loops inside", "[core]") {
  std::vector<Index> order;
  moe::parallel_for(3, moe::kLeastShared - 1, [&](Index task, Index worker) {
    REQUIRE(worker == 0);
    REQUIRE(moe::num_workers() == 1);
    moe::parallel_for(2, [&](Index inner, Index) { order.push_back(2 * task + inner); });
  });
  CHECK(order == std::vector<Index>{0, 1, 2, 3, 4, 5});
  CountingExecutor executor(2);
  const moe::UseExecutor use(executor);
  std::vector<int> count(7);
  moe::parallel_ranges(7, 2, Index{1}, [&](Index begin, Index end, Index) {
    for (Index i = begin; i < end; ++i) ++count[static_cast<std::size_t>(i)];
  });
  CHECK(count == std::vector<int>(7, 1));
  CHECK(executor.runs == 1);  // an executor is asked always
}

/// The order in which a worker takes all tasks where no other comes.
std::vector<Index> order_of_first(Index tasks, Index workers, Index first, moe::detail::Handout::Order order) {
  moe::detail::Handout handout(tasks, workers, order);
  std::vector<Index> taken;
  const auto body = [&](Index task, Index) { taken.push_back(task); };
  const moe::detail::FirstException none;
  CHECK(handout.take(moe::detail::LoopBody(body), first, none) == tasks);
  return taken;
}

TEST_CASE("parallel_for: a worker begins with its own stretch, the same for any number of tasks", "[core]") {
  using enum moe::detail::Handout::Order;
  CHECK(order_of_first(6, 3, 1, Near) == std::vector<Index>{2, 3, 4, 5, 0, 1});
  CHECK(order_of_first(6, 3, 1, Given) == std::vector<Index>{0, 1, 2, 3, 4, 5});
  CHECK(order_of_first(2, 5, 4, Near) == std::vector<Index>{1, 0});  // stretches may be empty
  for (const Index workers : {2, 3, 7, 16, 17, 40, 500})
    for (const Index tasks : {2, 64, 1000}) {
      CAPTURE(workers, tasks);
      for (Index worker = 0; worker < workers; ++worker) {
        auto taken = order_of_first(tasks, workers, worker, Near);
        // The point of the loop where it begins: as far along as the worker is among the workers, to a stretch.
        const double at = static_cast<double>(taken.front()) / static_cast<double>(tasks);
        const double own = static_cast<double>(worker) / static_cast<double>(workers);
        REQUIRE(std::abs(at - own) <=
                1.0 / static_cast<double>(std::min<Index>(workers, 16)) + 1.0 / static_cast<double>(tasks));
        std::ranges::sort(taken);
        for (Index task = 0; task < tasks; ++task) REQUIRE(taken[static_cast<std::size_t>(task)] == task);
      }
    }
}

TEST_CASE("TeamCost: learns what a team costs, and not from one late thread", "[core]") {
  using moe::detail::TeamCost;
  TeamCost cost;
  const Index unknown = cost.least_shared();
  CHECK(TeamCost::kLeast <= unknown);
  CHECK(unknown <= TeamCost::kMost);
  cost.learn(Index{1} << 40, 0);  // suspended for a quarter of an hour
  CHECK(cost.least_shared() <= unknown + unknown / 16);
  for (int loop = 0; loop < 200; ++loop) cost.learn(10000000, 7000);
  CHECK(cost.least_shared() == TeamCost::kMost);
  CHECK(cost.pays(TeamCost::kMost));
  for (int loop = 0; loop < 200; ++loop) cost.learn(100, 100);
  CHECK(cost.least_shared() == TeamCost::kLeast);
  for (int loop = 0; loop < 200; ++loop) cost.learn(2000, 4000);  // 3 times 6 microseconds, to a step
  CHECK(std::abs(cost.least_shared() - 18000) <= 18000 / 15);
  for (int loop = 0; loop < 200; ++loop) cost.learn(10000000, 0);
  int alone = 0;  // a bad moment is forgotten by loops that would be worth a team
  while (!cost.pays(20000)) ++alone;
  CHECK(alone > 30 * TeamCost::kForget);
  CHECK(alone < 100 * TeamCost::kForget);
  for (int loop = 0; loop < 10000; ++loop) CHECK(!cost.pays(TeamCost::kLeast - 1));  // and by no others
  CHECK(cost.pays(20000));
}

TEST_CASE("parallel_in_order: every worker takes the first task that is left", "[core]") {
  CountingExecutor executor(3);
  const moe::UseExecutor use(executor);
  std::vector<Index> order;
  moe::parallel_in_order(5, Index{1}, [&](Index task, Index) { order.push_back(task); });
  CHECK(order == std::vector<Index>{0, 1, 2, 3, 4});
}

TEST_CASE("parallel_for: one worker takes the tasks in order", "[core]") {
  CountingExecutor executor(1);
  const moe::UseExecutor use(executor);
  std::vector<Index> order;
  moe::parallel_for(4, [&](Index task, Index) { order.push_back(task); });
  CHECK(order == std::vector<Index>{0, 1, 2, 3});
}

TEST_CASE("parallel_for: uses the installed executor until the end of its scope", "[core]") {
  CountingExecutor outer(2), inner(2);
  const auto loop = [] { moe::parallel_for(5, [](Index, Index) {}); };
  {
    const moe::UseExecutor use_outer(outer);
    {
      const moe::UseExecutor use_inner(inner);
      loop();
    }
    loop();
    loop();
  }
  loop();
  CHECK(inner.runs == 1);
  CHECK(outer.runs == 2);
}

TEST_CASE("parallel_for: does not wake an executor for one task or none", "[core]") {
  CountingExecutor executor(4);
  const moe::UseExecutor use(executor);
  moe::parallel_for(0, [](Index, Index) {});
  moe::parallel_for(1, [](Index, Index) {});
  CHECK(executor.runs == 0);
}

TEST_CASE("parallel_for: a task's exception reaches the caller", "[core][error]") {
  for (const Index workers : {1, 4}) {
    CAPTURE(workers);
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    const auto loop = [] {
      moe::parallel_for(100, [](Index task, Index) {
        if (task == 17) throw std::domain_error("task 17");
      });
    };
    REQUIRE_THROWS_AS(loop(), std::domain_error);
    std::atomic<int> count = 0;
    moe::parallel_for(100, [&](Index, Index) { ++count; });  // and the next loop is whole again
    REQUIRE(count == 100);
  }
}

TEST_CASE("parallel_for: an exception ends the loop early", "[core][error]") {
  CountingExecutor executor(2);  // worker 0 throws at once, so that worker 1 finds the loop ended
  const moe::UseExecutor use(executor);
  int started = 0;
  const auto loop = [&] {
    moe::parallel_for(100, [&](Index, Index) {
      ++started;
      throw std::domain_error("first");
    });
  };
  REQUIRE_THROWS_AS(loop(), std::domain_error);
  CHECK(started == 1);
}

TEST_CASE("parallel_for: a loop inside a loop is serial", "[core]") {
  test::ThreadExecutor executor(4);
  const moe::UseExecutor use(executor);
  std::atomic<int> count = 0, wrong = 0;
  moe::parallel_for(8, [&](Index, Index) {
    wrong += moe::num_workers() != 1;
    moe::parallel_for(10, [&](Index, Index worker) {
      wrong += worker != 0;
      ++count;
    });
  });
  CHECK(count == 80);
  CHECK(wrong == 0);
  CHECK(moe::num_workers() == 4);
}

/// Calls the task for the workers of a list, one after the other.
class ListExecutor final : public moe::Executor {
 public:
  ListExecutor(Index concurrency, std::vector<Index> workers) : concurrency_(concurrency), workers_(workers) {}
  Index concurrency() const override { return concurrency_; }
  void run(moe::TaskRef task) override {
    for (const Index worker : workers_) task(worker);
  }

 private:
  Index concurrency_;
  std::vector<Index> workers_;
};

TEST_CASE("parallel_for: an executor that does not do its part is an error", "[core][error]") {
  const auto loop = [](moe::Executor& executor) {
    const moe::UseExecutor use(executor);
    moe::parallel_for(3, [](Index, Index) {});
  };
  const auto error_of = [&](ListExecutor executor) -> std::string {
    try {
      loop(executor);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(error_of({2, {}}).find("returned after 0 of 3 tasks") != std::string::npos);
  CHECK(error_of({2, {0, 2}}).find("called worker 2, expected 0 to 1") != std::string::npos);
  CHECK(error_of({2, {-1}}).find("called worker -1, expected 0 to 1") != std::string::npos);
  CHECK(error_of({2, {1, 1}}).find("called worker 1 twice") != std::string::npos);
  CHECK(error_of({100, {70, 70}}).find("called worker 70 twice") != std::string::npos);
  CHECK(error_of({2, {1}}).empty());  // one that does all of it
  CHECK(error_of({2, {0, 1}}).empty());
}

TEST_CASE("num_workers: an executor is asked once, so that buffers and loops agree", "[core]") {
  struct Growing final : moe::Executor {
    Index concurrency() const override { return ++asked + 1; }
    void run(moe::TaskRef task) override { task(0); }
    mutable Index asked = 0;
  } executor;
  const moe::UseExecutor use(executor);
  CHECK(moe::num_workers() == 2);
  CHECK(moe::num_workers() == 2);
}

#if defined(__unix__)
TEST_CASE("SerialExecutor: a child process runs loops after its parent's threads", "[core]") {
  std::atomic<int> count = 0;
  const auto loop = [&] { moe::parallel_for(100, [&](Index, Index worker) { count += worker >= 0 ? 1 : 0; }); };
  loop();  // starts the threads of OpenMP
  REQUIRE(count == 100);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // what waits for threads that are not there ends by a signal
    moe::SerialExecutor serial;
    const moe::UseExecutor use(serial);
    loop();
    _exit(count == 200 && moe::num_workers() == 1 ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}
#endif

TEST_CASE("num_workers: is at least 1, whatever an executor says", "[core]") {
  CountingExecutor none(0);
  const moe::UseExecutor use(none);
  CHECK(moe::num_workers() == 1);
}

TEST_CASE("parallel_ranges: covers the count without gap or overlap, within the grain", "[core]") {
  test::ThreadExecutor executor(3);
  const moe::UseExecutor use(executor);
  for (const Index count : {0, 1, 6, 7, 8, 100})
    for (const Index grain : {1, 7, 1000}) {
      CAPTURE(count, grain);
      std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
      std::atomic<int> wrong = 0;
      moe::parallel_ranges(count, grain, [&](Index begin, Index end, Index worker) {
        wrong += begin >= end || end - begin > grain || worker >= 3;
        for (Index i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
      });
      for (const auto& v : visits) REQUIRE(v == 1);
      REQUIRE(wrong == 0);
    }
}

}  // namespace
