// SPDX-License-Identifier: MIT
// Policies against their definitions and against all that one could do, and a cache that keeps its promises: bytes,
// errors, threads.
#include "moe/serve/expert_cache.hpp"

#include <atomic>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <thread>

#include "moe/serve/simulate_cache.hpp"
#include "serve/traces.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Belady;
using moe::CacheStatistics;
using moe::Index;
using moe::LeastStale;
using moe::Lfu;
using moe::Lru;
using moe::RoutingTrace;
using moe::SegmentOracle;

namespace {

/// Most hits of any policy: waves as the cache has them, and every victim tried.
class BestOfAll {
 public:
  BestOfAll(const RoutingTrace& trace, int capacity) : steps_(moe::steps_of(trace)), capacity_(capacity) {}

  Index hits(std::size_t step = 0, unsigned state = 0) {
    if (step == steps_.size()) return 0;
    const auto [found, is_new] = known_.emplace(std::pair(step, state), 0);
    if (!is_new) return found->second;
    unsigned asked = 0;
    for (const Index e : steps_[step]) asked |= 1u << e;
    const Index best = std::popcount(asked & state) + place(step, state, asked & ~state, 0);
    return known_[{step, state}] = best;
  }

 private:
  Index place(std::size_t step, unsigned state, unsigned pending, unsigned pinned) {
    if (pending == 0) return hits(step + 1, state);
    const unsigned expert = pending & (~pending + 1);
    if (std::popcount(state) < capacity_) return place(step, state | expert, pending & ~expert, pinned | expert);
    if ((state & ~pinned) == 0) return place(step, state, pending, 0);
    Index best = 0;
    for (unsigned victim = 1; victim <= state; victim <<= 1)
      if (state & ~pinned & victim)
        best = std::max(best, place(step, (state & ~victim) | expert, pending & ~expert, pinned | expert));
    return best;
  }

  std::vector<std::vector<Index>> steps_;
  int capacity_;
  std::map<std::pair<std::size_t, unsigned>, Index> known_;
};

/// A policy of one's own: by lot.
struct RandomEviction {
  moe::RandomField random{moe::Purpose::User, 7};
  Index draws = 0;

  void start(Index) {}
  void use(Index, std::int64_t) {}
  Index victim(std::span<const Index> candidates, std::int64_t) {
    return candidates[static_cast<std::size_t>(random.below(candidates.size(), draws++))];
  }
};
static_assert(moe::CachePolicy<RandomEviction>);

/// Contents after every step.
template <class P>
std::vector<std::vector<Index>> contents(const RoutingTrace& trace, std::size_t capacity, P policy) {
  moe::ExpertCache<int, P> cache(
      std::vector<std::size_t>(static_cast<std::size_t>(trace.num_experts()), 1), [](Index) { return 0; }, capacity,
      std::move(policy));
  typename moe::ExpertCache<int, P>::Memory memory;
  std::vector<std::vector<Index>> result;
  for (const auto& step : moe::steps_of(trace)) {
    cache.serve(step, memory, [](std::span<const Index>) {});
    result.push_back(cache.resident());
  }
  return result;
}

/// Hits of a cache that is written down plainly: everything a step asks for is used, then what is missing comes in and
/// the one with the smallest key goes, for steps that fit.
template <class Key>
Index plain_hits(const RoutingTrace& trace, std::size_t capacity, const Key& key) {
  const auto steps = moe::steps_of(trace);
  std::set<Index> state;
  Index hits = 0;
  for (std::size_t step = 0; step < steps.size(); ++step) {
    std::set<Index> in;
    for (const Index e : steps[step])
      if (state.contains(e))
        ++hits;
      else
        in.insert(e);
    for (const Index e : in) {
      if (state.size() == capacity) {
        Index victim = -1;
        for (const Index other : state)
          if (!in.contains(other) && (victim < 0 || key(steps, step, other) < key(steps, step, victim))) victim = other;
        state.erase(victim);
      }
      state.insert(e);
    }
  }
  return hits;
}

/// A door that a thread waits at.
class Door {
 public:
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    opened_.notify_all();
  }
  /// Whether it was opened in time.
  bool pass(std::chrono::seconds most = std::chrono::seconds(60)) {
    std::unique_lock lock(mutex_);
    return opened_.wait_for(lock, most, [&] { return is_open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool is_open_ = false;
};

bool has(const std::vector<Index>& step, Index e) { return std::ranges::count(step, e) > 0; }
Index last_use(const std::vector<std::vector<Index>>& steps, std::size_t now, Index e) {
  for (std::size_t s = now + 1; s-- > 0;)
    if (has(steps[s], e)) return static_cast<Index>(s) * 1000 + e;
  return -1;
}
Index uses(const std::vector<std::vector<Index>>& steps, std::size_t first, std::size_t last, Index e) {
  Index count = 0;
  for (std::size_t s = first; s < std::min(last, steps.size()); ++s) count += has(steps[s], e) ? 1 : 0;
  return count;
}

}  // namespace

TEST_CASE("Belady: hits as often as the best of all choices of victims", "[serve][property]") {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const auto experts = static_cast<Index>(2 + seed % 4);
    const RoutingTrace trace = test::random_trace(8, experts, 1, seed, 0.2);
    for (Index capacity = 1; capacity <= experts; ++capacity) {
      CAPTURE(seed, experts, capacity);
      CHECK(moe::simulate_cache(trace, capacity, Belady(trace)).hits ==
            BestOfAll(trace, static_cast<int>(capacity)).hits());
    }
  }
}

TEST_CASE("Belady: misses a hit or two of the best where steps ask for several experts", "[serve][property]") {
  Index found = 0, best = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const auto experts = static_cast<Index>(3 + seed % 3);
    const RoutingTrace trace = test::random_trace(8, experts, 2, seed, 0.2);
    for (Index capacity = 1; capacity <= experts; ++capacity) {
      const auto hits = moe::simulate_cache(trace, capacity, Belady(trace)).hits;
      const Index most = BestOfAll(trace, static_cast<int>(capacity)).hits();
      CAPTURE(seed, experts, capacity);
      CHECK(hits <= most);
      CHECK(hits >= most - 2);
      found += hits, best += most;
    }
  }
  CHECK(static_cast<double>(found) >= 0.99 * static_cast<double>(best));
}

TEST_CASE("Belady: at least every other policy on 1000 traces", "[serve][property]") {
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    const RoutingTrace trace = test::random_trace(40, 10, 2, seed, 0.5);
    const auto capacity = static_cast<Index>(1 + seed % 8);
    const auto best = moe::simulate_cache(trace, capacity, Belady(trace)).hits;
    CAPTURE(seed, capacity);
    REQUIRE(best >= moe::simulate_cache(trace, capacity, Lru()).hits);
    REQUIRE(best >= moe::simulate_cache(trace, capacity, Lfu()).hits);
    REQUIRE(best >= moe::simulate_cache(trace, capacity, SegmentOracle(trace, 16)).hits);
    REQUIRE(best >= moe::simulate_cache(trace, capacity, RandomEviction()).hits);
  }
}

TEST_CASE("Lru, Lfu, SegmentOracle: hits as their definitions have them", "[serve][property]") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const RoutingTrace trace = test::random_trace(80, 10, 2, seed, 0.6);
    const std::size_t capacity = 2 + seed % 6;
    const auto hits = [&](auto policy) {
      return moe::simulate_cache(trace, static_cast<Index>(capacity), std::move(policy)).hits;
    };
    CAPTURE(seed, capacity);
    CHECK(hits(Lru()) == plain_hits(trace, capacity, last_use));
    CHECK(hits(Lfu()) == plain_hits(trace, capacity, [](const auto& steps, std::size_t now, Index e) {
            return std::pair(uses(steps, 0, now + 1, e), last_use(steps, now, e));
          }));
    CHECK(hits(SegmentOracle(trace, 5)) == plain_hits(trace, capacity, [](const auto& steps, std::size_t now, Index e) {
            return std::pair(uses(steps, now + 1, now + 6, e), last_use(steps, now, e));
          }));
  }
}

TEST_CASE("SegmentOracle: any m is the rest of the trace from its length on", "[serve]") {
  const RoutingTrace trace = test::random_trace(80, 10, 2, 1, 0.3);
  const auto rest = contents(trace, 4, SegmentOracle(trace, 80));
  CHECK(contents(trace, 4, SegmentOracle(trace, std::numeric_limits<Index>::max())) == rest);
  CHECK(contents(trace, 4, SegmentOracle(trace, 2)) != rest);
}

TEST_CASE("Lru: a larger cache holds what a smaller one does", "[serve][property]") {
  for (std::uint64_t seed = 0; seed < 15; ++seed) {
    const RoutingTrace trace = test::random_trace(60, 12, 2, seed, 0.4);
    std::vector<std::vector<Index>> before;
    for (std::size_t capacity = 2; capacity <= 12; ++capacity) {
      const auto after = contents(trace, capacity, Lru());
      for (std::size_t step = 0; step < before.size(); ++step) {
        CAPTURE(seed, capacity, step);
        REQUIRE(std::ranges::includes(after[step], before[step]));
      }
      before = after;
    }
  }
}

TEST_CASE("LeastStale: one layer is Lru, and layers in turn keep what comes next", "[serve]") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const RoutingTrace trace = test::random_trace(60, 10, 2, seed, 0.4);
    CHECK(contents(trace, 5, LeastStale(10)) == contents(trace, 5, Lru()));
  }
  std::vector<RoutingTrace> layers;
  for (std::uint64_t layer = 0; layer < 6; ++layer) layers.push_back(test::random_trace(200, 8, 2, layer, 0.8));
  const RoutingTrace model = moe::join_layers(layers);
  const double stale = moe::simulate_cache(model, 10, LeastStale(8)).hit_rate();
  const double recent = moe::simulate_cache(model, 10, Lru()).hit_rate();
  const double best = moe::simulate_cache(model, 10, Belady(model)).hit_rate();
  CAPTURE(stale, recent, best);
  CHECK(recent < 0.05);  // 12 experts a pass, of which 10 fit: the next layer's have just gone
  CHECK(stale > 0.5);
  CHECK(best >= stale);
}

TEST_CASE("segment_cache_hit_rate: bounds, first uses and a cache for all", "[serve]") {
  for (std::uint64_t seed = 0; seed < 15; ++seed) {
    const RoutingTrace trace = test::random_trace(200, 16, 2, seed, 0.8);
    const double sch = moe::segment_cache_hit_rate(trace, 2, 16);
    const double best = moe::simulate_cache(trace, 4, Belady(trace), {.cold_fill = moe::ColdFill::Hit}).hit_rate();
    CAPTURE(seed);
    CHECK(sch <= best);
    CHECK(sch >= 0.85 * best);  // as published: 0.91 at twice the experts of a token
    CHECK(moe::segment_cache_hit_rate(trace, 8, 16) == 1);
    const auto cold = moe::simulate_cache(trace, 16, Lru());
    CHECK(cold.hits == 2 * 200 - cold.loads);
    CHECK(cold.loads <= 16);
  }
  CHECK(moe::segment_cache_hit_rate(RoutingTrace(4), 2, 16) == 0);
  CHECK_THROWS_AS(moe::segment_cache_hit_rate(test::random_trace(5, 4, 2, 1), 0.1, 16), std::invalid_argument);
}

TEST_CASE("simulate_cache: bytes of unequal experts never exceed the budget", "[serve][property]") {
  const std::vector<std::size_t> bytes = {5, 1, 9, 3, 3, 7, 2, 4};
  for (std::size_t budget = 9; budget <= 34; ++budget) {
    const RoutingTrace trace = test::random_trace(100, 8, 3, budget, 0.3);
    const CacheStatistics done = moe::simulate_cache(trace, bytes, budget, Lfu(), {.tokens_per_step = 2});
    CAPTURE(budget);
    CHECK(done.peak_bytes <= budget);
    CHECK(done.hits + done.loads == done.requests);
    CHECK(done.steps == 50);
    CHECK((budget == 34) == (done.evictions == 0));
  }
}

TEST_CASE("simulate_cache: foretells the seconds of all loads", "[serve]") {
  RoutingTrace trace(4);
  for (const std::vector<Index>& experts : {std::vector<Index>{0}, {1}, {0}, {2}, {1, 3}, {3}}) trace.add(experts);
  const std::vector<std::size_t> bytes = {1, 2, 4, 8};
  const moe::LoadCost cost{.per_load = 0.5, .per_byte = 0.25};  // all sums are exact
  const auto seconds = [&](std::size_t budget, const moe::LoadCost& of) {
    return moe::simulate_cache(trace, bytes, budget, Lru(), {.load_cost = of}).stall_seconds;
  };
  CHECK(seconds(15, cost) == 4 * 0.5 + (1 + 2 + 4 + 8) * 0.25);  // all fit
  CHECK(seconds(8, cost) == 4 * 0.5 + (1 + 2 + 4 + 8) * 0.25);   // 3 comes when 1 has run, and evicts all
  trace.add(std::vector<Index>{2});                              // which is loaded again
  CHECK(seconds(8, cost) == 5 * 0.5 + (1 + 2 + 4 + 8 + 4) * 0.25);
  CHECK(seconds(15, {}) == 0);
  CHECK(seconds(15, {.per_load = 0.5}) == 4 * 0.5);
  CHECK(seconds(15, {.per_byte = 0.25}) == 15 * 0.25);
  CHECK(cost.seconds(0) == 0.5);
  CHECK(moe::simulate_cache(RoutingTrace(4), bytes, 8, Lru(), {.load_cost = cost}).stall_seconds == 0);
}

TEST_CASE("simulate_cache: seconds are those of the loads and bytes that it counts", "[serve][property]") {
  const std::vector<std::size_t> bytes = {5, 1, 9, 3, 3, 7, 2, 4};
  const moe::LoadCost cost{.per_load = 0.125, .per_byte = 0.0625};  // all sums are exact
  for (std::size_t budget = 9; budget <= 34; ++budget)
    for (const Index tokens : {1, 3}) {  // several waves a step, too
      const RoutingTrace trace = test::random_trace(100, 8, 3, budget, 0.3);
      const auto done =
          moe::simulate_cache(trace, bytes, budget, Lfu(), {.tokens_per_step = tokens, .load_cost = cost});
      CAPTURE(budget, tokens);
      CHECK(done.stall_seconds ==
            0.125 * static_cast<double>(done.loads) + 0.0625 * static_cast<double>(done.loaded_bytes));
      const auto without = moe::simulate_cache(trace, bytes, budget, Lfu(), {.tokens_per_step = tokens});
      CHECK(without.stall_seconds == 0);
      CHECK(without.hits == done.hits);
    }
}

TEST_CASE("simulate_cache: costs that cannot be are refused", "[serve][error]") {
  const RoutingTrace trace = test::random_trace(4, 3, 1, 1);
  for (const double bad : {-1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    CAPTURE(bad);
    CHECK_THROWS_AS(moe::simulate_cache(trace, 2, Lru(), {.load_cost = {.per_load = bad}}), std::invalid_argument);
    CHECK_THROWS_AS(moe::simulate_cache(trace, 2, Lru(), {.load_cost = {.per_byte = bad}}), std::invalid_argument);
  }
}

TEST_CASE("ExpertCache: arguments that cannot be are refused", "[serve][error]") {
  using Cache = moe::ExpertCache<int, Lru>;
  const auto load = [](Index) { return 0; };
  CHECK_THROWS_AS(Cache({}, load, 4), std::invalid_argument);
  CHECK_THROWS_AS(Cache({3, 5}, load, 4), std::invalid_argument);
  Cache cache({3, 4}, load, 4);
  Cache::Memory memory;
  const auto serve = [&](std::vector<Index> experts) { cache.serve(experts, memory, [](std::span<const Index>) {}); };
  CHECK_THROWS_AS(serve({0, 2}), std::invalid_argument);
  CHECK_THROWS_AS(serve({1, 0}), std::invalid_argument);
  CHECK_THROWS_AS(serve({0, 0}), std::invalid_argument);
  CHECK(cache.statistics().steps == 0);
  const RoutingTrace trace = test::random_trace(4, 3, 1, 1);
  CHECK_THROWS_AS(moe::simulate_cache(trace, 0, Lru()), std::invalid_argument);
  CHECK_THROWS_AS(moe::simulate_cache(trace, {1, 1}, 2, Lru()), std::invalid_argument);
  CHECK_THROWS_AS(moe::simulate_cache(trace, 2, Belady(test::random_trace(4, 5, 1, 1))), std::invalid_argument);
  CHECK_THROWS_AS(SegmentOracle(trace, 0), std::invalid_argument);
  CHECK_THROWS_AS(LeastStale(0), std::invalid_argument);
}

namespace {

struct BadPolicy : Lru {
  Index victim(std::span<const Index>, std::int64_t) const { return 99; }
};

}  // namespace

TEST_CASE("ExpertCache: a load that fails throws to who asked for it, and nothing is lost", "[serve][error]") {
  std::atomic<bool> fails{true};
  const auto load = [&](Index e) {
    if (e == 2 && fails) throw std::runtime_error("expert 2 cannot be read");
    return static_cast<int>(10 * e);
  };
  moe::ExpertCache<int, Lru> cache(std::vector<std::size_t>(6, 1), load, 3);
  moe::ExpertCache<int, Lru>::Memory memory;
  std::vector<int> seen;
  const auto serve = [&](std::vector<Index> experts) {
    seen.clear();
    cache.serve(experts, memory, [&](std::span<const Index> wave) {
      for (const Index e : wave) seen.push_back(cache[e]);
    });
  };
  const auto all_can_go = [&](std::vector<Index> experts) {  // what is pinned, and not among these, would stay
    serve(experts);
    CHECK(cache.resident() == experts);
  };
  serve({0});
  CHECK_THROWS_AS(serve({0, 1, 2}), std::runtime_error);
  CHECK(cache.resident_bytes() == cache.resident().size());
  all_can_go({3, 4, 5});
  all_can_go({0, 1, 3});
  CHECK_THROWS_AS(serve({2}), std::runtime_error);
  CHECK(cache.resident_bytes() == 2);  // one made room
  fails = false;
  all_can_go({0, 4, 5});
  serve({0, 1, 2, 3});
  CHECK(std::set<int>(seen.begin(), seen.end()) == std::set<int>{0, 10, 20, 30});
  CHECK(cache.resident_bytes() == 3);
  for (const std::vector<Index>& experts : {std::vector<Index>{0, 1}, {1, 2, 4}}) {
    CHECK_THROWS_AS(cache.serve(experts, memory, [](auto) { throw std::logic_error("run"); }), std::logic_error);
    all_can_go({0, 3, 5});
    all_can_go({1, 2, 4});
  }
  moe::ExpertCache<int, BadPolicy> bad(
      {1, 1}, [](Index) { return 0; }, 1);
  moe::ExpertCache<int, BadPolicy>::Memory of_bad;
  bad.serve(std::vector<Index>{0}, of_bad, [](auto) {});
  CHECK_THROWS_AS(bad.serve(std::vector<Index>{1}, of_bad, [](auto) {}), std::invalid_argument);
  CHECK(bad.resident_bytes() == 1);
  bad.serve(std::vector<Index>{0}, of_bad, [](auto) {});
}

TEST_CASE("ExpertCache: threads share it, each finds its experts, and bytes stay below the budget", "[serve]") {
  constexpr Index kExperts = 12;
  std::atomic<Index> alive{0}, most{0}, wrong{0}, failed{0};
  struct Counted {
    std::atomic<Index>* alive;
    Index value;
    Counted(std::atomic<Index>& count, std::atomic<Index>& most, Index e) : alive(&count), value(e) {
      const Index now = ++count;
      for (Index before = most; before < now && !most.compare_exchange_weak(before, now);) {
      }
    }
    Counted(Counted&& other) noexcept : alive(std::exchange(other.alive, nullptr)), value(other.value) {}
    Counted& operator=(Counted&&) = delete;
    ~Counted() {
      if (alive) --*alive;
    }
  };
  {
    using Cache = moe::ExpertCache<Counted, Lru>;
    Cache cache(
        std::vector<std::size_t>(kExperts, 1),
        [&](Index e) {
          if (e == 5 && alive % 2 == 0) throw std::runtime_error("now and then");
          return Counted(alive, most, e);
        },
        4, Lru(), 2);
    const auto work = [&](std::uint64_t seed) {
      test::ThreadExecutor executor(2);
      const moe::UseExecutor use(executor);
      Cache::Memory memory;
      const auto steps = moe::steps_of(test::random_trace(150, kExperts, 6, seed, 0.2));
      for (std::size_t i = 0; i < steps.size(); ++i) {
        if (i + 1 < steps.size()) cache.prefetch(steps[i + 1]);
        Index served = 0;
        try {
          cache.serve(steps[i], memory, [&](std::span<const Index> wave) {
            for (const Index e : wave) wrong += cache[e].value == e ? 0 : 1;
            served += std::ssize(wave);
          });
          wrong += served == 6 ? 0 : 1;
        } catch (const std::runtime_error&) {
          ++failed;
        }
      }
    };
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < 3; ++i) threads.emplace_back(work, i);
    for (std::thread& thread : threads) thread.join();
    cache.finish_prefetch();
    CHECK(wrong == 0);
    CHECK(failed < 3 * 150);
    CHECK(cache.statistics().peak_bytes <= 4);
    CHECK(cache.resident_bytes() == static_cast<std::size_t>(alive));
    CHECK(most <= 4);
  }
  CHECK(alive == 0);
}

TEST_CASE("ExpertCache: steps that wait for room are served in the order in which they began", "[serve]") {
  using Cache = moe::ExpertCache<Index, Lru>;
  Cache cache(
      {4, 1, 1, 1, 1}, [](Index e) { return e == 4 ? throw std::runtime_error("no expert 4") : e; }, 4);
  std::mutex mutex;
  std::vector<Index> order, failed;
  std::vector<std::thread> threads;
  const auto begin = [&](Index e) {
    const std::int64_t before = cache.statistics().steps;
    threads.emplace_back([&, e] {
      Cache::Memory memory;
      try {
        cache.serve(std::vector<Index>{e}, memory, [&](std::span<const Index>) {
          const std::lock_guard lock(mutex);
          order.push_back(e);
        });
      } catch (const std::runtime_error&) {
        failed.push_back(e);
      }
    });
    while (cache.statistics().steps == before) std::this_thread::yield();  // it waits then, or has what it needs
  };
  // Expert 0 needs all that there is. While 1 runs, it is there for others, and 2 has room: if these had it, 0 would
  // wait for as long as such as they come. The one that cannot be loaded keeps nobody.
  const std::vector<Index> steps{0, 1, 0, 2, 0, 4, 0, 3, 0, 1};
  Cache::Memory memory;
  cache.serve(std::vector<Index>{1}, memory, [&](std::span<const Index>) {
    for (const Index e : steps) begin(e);
    const std::lock_guard lock(mutex);
    CHECK(order.empty());
  });
  for (std::thread& thread : threads) thread.join();
  CHECK(order == std::vector<Index>{0, 1, 0, 2, 0, 0, 3, 0, 1});
  CHECK(failed == std::vector<Index>{4});
  const CacheStatistics done = cache.statistics();
  CHECK(done.requests == 11);
  CHECK(done.hits == 0);
  CHECK(done.loads == 10);
  CHECK(cache.resident() == std::vector<Index>{1});
}

TEST_CASE("ExpertCache: who waits for a load of others keeps nobody, and what a policy throws passes the turn on",
          "[serve][error]") {
  struct Fails : Lru {
    bool* fails;
    explicit Fails(bool& flag) : fails(&flag) {}
    Index victim(std::span<const Index> candidates, std::int64_t step) const {
      if (std::exchange(*fails, false)) throw std::domain_error("of the policy");
      return Lru::victim(candidates, step);
    }
  };
  using Cache = moe::ExpertCache<Index, Fails>;
  Door begun, other;
  bool fails = false, in_time = false;
  Cache cache(
      {1, 1, 1, 1},
      [&](Index e) {
        if (e == 0) begun.open(), in_time = other.pass();
        return e;
      },
      2, Fails(fails));
  std::atomic<Index> served{0}, thrown{0};
  std::vector<std::thread> threads;
  const auto begin = [&](Index e) {
    const std::int64_t before = cache.statistics().steps;
    threads.emplace_back([&, e] {
      Cache::Memory memory;
      try {
        cache.serve(std::vector<Index>{e}, memory, [&](std::span<const Index>) { ++served; });
      } catch (const std::domain_error&) {
        ++thrown;
      }
    });
    while (cache.statistics().steps == before) std::this_thread::yield();
  };
  begin(0);
  CHECK(begun.pass());
  begin(0);  // waits for the load
  Cache::Memory memory;
  cache.serve(std::vector<Index>{1}, memory, [&](std::span<const Index>) {
    CHECK(served == 0);
    begin(2), begin(3);  // both wait for room, as 0 is being loaded and 1 runs
    fails = true;        // for the first of them that gets some
  });
  other.open();
  for (std::thread& thread : threads) thread.join();
  CHECK(in_time);
  CHECK(served == 3);
  CHECK(thrown == 1);
  CHECK(cache.statistics().peak_bytes <= 2);
  cache.serve(std::vector<Index>{0, 1, 2, 3}, memory, [](std::span<const Index>) {});
}

TEST_CASE("ExpertCache: many threads with room for one expert all come to their end", "[serve]") {
  using Cache = moe::ExpertCache<Index, Lru>;
  constexpr Index kThreads = 8, kSteps = 200;
  Cache cache(
      std::vector<std::size_t>(5, 1), [](Index e) { return e; }, 1);
  std::atomic<Index> wrong{0}, served{0};
  std::vector<std::thread> threads;
  for (Index i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      Cache::Memory memory;
      for (const auto& step : moe::steps_of(test::random_trace(kSteps, 5, 2, static_cast<std::uint64_t>(i))))
        cache.serve(step, memory, [&](std::span<const Index> wave) {
          for (const Index e : wave) wrong += cache[e] == e ? 0 : 1;
          served += std::ssize(wave);
        });
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(served == kThreads * kSteps * 2);
  const CacheStatistics done = cache.statistics();
  CHECK(done.requests == done.hits + done.loads + done.awaited);
  CHECK(done.peak_bytes == 1);
}

TEST_CASE("ExpertCache: what was prefetched in time is a hit, what nobody wants is bounded", "[serve]") {
  using Cache = moe::ExpertCache<Index, Lru>;
  std::atomic<bool> fails{false};
  const auto load = [&](Index e) {
    if (fails) throw std::runtime_error("no");
    return e;
  };
  Cache cache(std::vector<std::size_t>(8, 1), load, 4, Lru(), 2);
  Cache::Memory memory;
  const auto serve = [&](std::vector<Index> experts) { cache.serve(experts, memory, [](std::span<const Index>) {}); };
  serve({0, 1, 2, 3});
  cache.prefetch(std::vector<Index>{4, 5, 6, 99, -1});
  cache.finish_prefetch();
  CHECK(cache.resident() == std::vector<Index>{2, 3, 4, 5});  // 6 is beyond what prefetches may hold
  CHECK(cache.statistics().prefetches == 2);
  CHECK(cache.statistics().prefetches_dropped == 1);
  serve({3, 4});
  CHECK(cache.statistics().hits == 2);
  CHECK(cache.statistics().prefetches_used == 1);
  CHECK(cache.statistics().wasted_bytes() == 1);
  serve({0, 1, 2});
  CHECK(cache.resident() == std::vector<Index>{0, 1, 2, 5});  // steps take what was prefetched last
  fails = true;
  cache.prefetch(std::vector<Index>{6});
  cache.finish_prefetch();
  CHECK(cache.statistics().prefetches_failed == 1);
  CHECK_THROWS_AS(serve({6}), std::runtime_error);
  fails = false;
  serve({6});
  CHECK(cache.statistics().peak_bytes == 4);
  cache.prefetch(std::vector<Index>{3});
  cache.finish_prefetch();
  const auto waiting = std::ranges::count_if(cache.resident(), [](Index e) { return e == 3 || e == 5; });
  cache.reset_statistics();
  CHECK(cache.statistics().requests == 0);
  CHECK(cache.statistics().prefetches == waiting);
  CHECK(cache.statistics().wasted_bytes() == static_cast<std::uint64_t>(waiting));
  serve({3, 5});
  CHECK(cache.statistics().prefetches_used == waiting);
  CHECK(cache.statistics().wasted_bytes() == 0);
}

TEST_CASE("ExpertCache: a step that waits for a prefetch under way neither hits nor loads", "[serve]") {
  using Cache = moe::ExpertCache<Index, Lru>;
  std::atomic<bool> may_end{false};
  const auto load = [&](Index e) {
    while (e == 1 && !may_end) std::this_thread::yield();
    return e;
  };
  Cache cache(std::vector<std::size_t>(4, 1), load, 2, Lru(), 1);
  cache.prefetch(std::vector<Index>{1});
  while (cache.resident_bytes() == 0) std::this_thread::yield();  // not begun
  std::thread other([&] {
    while (cache.statistics().steps == 0) std::this_thread::yield();
    may_end = true;
  });
  Cache::Memory memory;
  cache.serve(std::vector<Index>{1}, memory, [&](std::span<const Index>) { CHECK(cache[1] == 1); });
  other.join();
  const CacheStatistics done = cache.statistics();
  CHECK(done.awaited == 1);
  CHECK(done.hits + done.loads == 0);
  CHECK(done.prefetches_used == 1);
}

TEST_CASE("ExpertCache: a prefetch keeps what its own list names", "[serve]") {
  using Cache = moe::ExpertCache<Index, Lru>;
  Cache cache(
      std::vector<std::size_t>(8, 1), [](Index e) { return e; }, 4, Lru(), 4);
  Cache::Memory memory;
  const auto serve = [&](std::vector<Index> experts) { cache.serve(experts, memory, [](std::span<const Index>) {}); };
  const auto after = [&](std::vector<Index> experts) {
    cache.prefetch(experts);
    cache.finish_prefetch();
    return cache.resident();
  };
  serve({0, 1, 2, 3});
  CHECK(after({0, 1, 4, 5}) == std::vector<Index>{0, 1, 4, 5});
  CHECK(cache.statistics().prefetches == 2);
  serve({0, 1, 4, 5});
  CHECK(cache.statistics().hits == 4);
  CHECK(after({5, 6, 7, 2, 3}) == std::vector<Index>{2, 5, 6, 7});
  CHECK(cache.statistics().prefetches_dropped == 1);
  serve({0, 1});  // steps go before lists
  CHECK(std::ranges::includes(cache.resident(), std::vector<Index>{0, 1}));
}

TEST_CASE("ExpertCache: with the next step prefetched in time all steps but the first hit", "[serve][property]") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto steps = moe::steps_of(test::random_trace(60, 12, 3, seed, 0.3));
    const std::size_t capacity = 3 + seed % 4;
    const auto hits = [&](std::size_t prefetch_bytes) {
      using Cache = moe::ExpertCache<Index, Lru>;
      Cache cache(
          std::vector<std::size_t>(12, 1), [](Index e) { return e; }, capacity, Lru(), prefetch_bytes);
      Cache::Memory memory;
      for (std::size_t i = 0; i < steps.size(); ++i) {
        cache.serve(steps[i], memory, [](std::span<const Index>) {});
        if (i + 1 < steps.size()) cache.prefetch(steps[i + 1]);
        cache.finish_prefetch();
      }
      CHECK(cache.statistics().peak_bytes <= capacity);
      CHECK(cache.statistics().wasted_bytes() == 0);
      return cache.statistics().hits;
    };
    CAPTURE(seed, capacity);
    CHECK(hits(3) == 3 * 59);
    CHECK(hits(0) < 3 * 59);
  }
}

namespace {

/// What a cache has done whose next steps are guessed, each in time.
template <class P, class Guess>
CacheStatistics with_guesses(const RoutingTrace& trace, const std::vector<std::size_t>& bytes, std::size_t budget,
                             const P& policy, std::size_t prefetch_bytes, const Guess& guess) {
  using Cache = moe::ExpertCache<Index, P>;
  Cache cache(
      bytes, [](Index e) { return e; }, budget, policy, prefetch_bytes);
  typename Cache::Memory memory;
  const auto steps = moe::steps_of(trace);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    cache.serve(steps[i], memory, [](std::span<const Index>) {});
    if (i + 1 < steps.size()) cache.prefetch(guess(i + 1, steps[i + 1]));
    cache.finish_prefetch();
  }
  return cache.statistics();
}

}  // namespace

TEST_CASE("ExpertCache: wrong guesses cost no more than they may, and right ones bring something",
          "[serve][property]") {
  constexpr Index kExperts = 16, kChoices = 3;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const RoutingTrace trace = test::random_trace(600, kExperts, kChoices, seed, seed % 3 == 0 ? 0.2 : 0.8);
    const moe::RandomField random(moe::Purpose::User, seed, 7);
    std::vector<std::size_t> bytes(kExperts, 1);
    if (seed % 2 == 1)
      for (Index e = 0; e < kExperts; ++e) bytes[static_cast<std::size_t>(e)] = 1 + random.below(5, e, -1);
    const std::size_t largest = *std::ranges::max_element(bytes);
    const std::size_t budget = (kChoices + 1 + seed % 5) * largest, prefetch_bytes = (1 + seed % 4) * largest;
    // Guesses each of which is right with a probability: experts that the step does not have, from anywhere, else.
    const auto check = [&](const auto& policy, double right) {
      const auto guess = [&](std::size_t i, const std::vector<Index>& next) {
        std::vector<Index> guessed;
        for (std::size_t n = 0; n < next.size(); ++n) {
          const auto at = static_cast<Index>(3 * i + n);
          auto e = static_cast<Index>(random.below(kExperts, at, 1));
          while (has(next, e)) e = (e + 1) % kExperts;
          guessed.push_back(random.uniform(at) < right ? next[n] : e);
        }
        return guessed;
      };
      const CacheStatistics with = with_guesses(trace, bytes, budget, policy, prefetch_bytes, guess);
      const CacheStatistics without = moe::simulate_cache(trace, bytes, budget, policy);
      CAPTURE(seed, right, budget, prefetch_bytes, with.loaded_bytes, with.wasted_bytes(), without.loaded_bytes);
      CHECK(256 * (2 * with.loaded_bytes + with.wasted_bytes()) <=
            2 * 257 * without.loaded_bytes + 256 * 3 * prefetch_bytes);
      CHECK(with.peak_bytes <= budget);
      if (right == 1) CHECK(with.loaded_bytes < without.loaded_bytes * 3 / 4);  // of 3 guesses, one may fit
    };
    for (const double right : {0.0, 0.3, 0.6, 0.9, 1.0}) {
      check(Lru(), right);
      check(Lfu(), right);
      if (right < 1) check(Belady(trace), right);
    }
  }
}

TEST_CASE("ExpertCache: guesses that become good are taken up again, those that turn bad are left", "[serve]") {
  constexpr std::size_t kTokens = 4000;
  const RoutingTrace trace = test::random_trace(kTokens, 16, 2, 3, 0.8);
  const std::vector<std::size_t> bytes(16, 1);
  const auto wrong = [](const std::vector<Index>& next) {
    std::vector<Index> guessed;
    for (Index e = 0; guessed.size() < 2; ++e)
      if (!has(next, e)) guessed.push_back(e);
    return guessed;
  };
  const auto loads = [&](const auto& guess) { return with_guesses(trace, bytes, 5, Lru(), 2, guess).loads; };
  const auto without = moe::simulate_cache(trace, 5, Lru()).loads;
  const auto first_bad = loads([&](std::size_t i, const auto& next) { return i < kTokens / 2 ? wrong(next) : next; });
  const auto first_good = loads([&](std::size_t i, const auto& next) { return i < kTokens / 2 ? next : wrong(next); });
  CAPTURE(without, first_bad, first_good);
  CHECK(first_bad < without * 3 / 4);  // of the half that there is; a guess is tried every 256 loads
  CHECK(first_good < without * 6 / 10);
}

TEST_CASE("ExpertCache: nothing is evicted where that does not make room enough", "[serve]") {
  using Cache = moe::ExpertCache<Index, Lru>;
  const auto load = [](Index e) { return e; };
  std::vector<std::size_t> bytes(9, 1);
  bytes[0] = 4;
  Cache cache(bytes, load, 8, Lru(), 8);
  Cache::Memory memory;
  const std::vector<Index> others{1, 2, 3, 4, 5, 6, 7, 8};
  cache.serve(others, memory, [](std::span<const Index>) {});
  cache.serve(std::vector<Index>{1, 2, 3, 4, 5}, memory, [&](std::span<const Index>) {
    cache.prefetch(std::vector<Index>{0});  // for which 3 bytes could go
    cache.finish_prefetch();
  });
  CHECK(cache.resident() == others);
  CHECK(cache.statistics().prefetches_dropped == 1);
  std::thread waits;
  cache.serve(std::vector<Index>{1, 2, 3, 4, 5}, memory, [&](std::span<const Index>) {
    waits = std::thread([&] {
      Cache::Memory own;
      cache.serve(std::vector<Index>{0}, own, [](std::span<const Index>) {});
    });
    while (cache.statistics().steps < 4) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(cache.resident() == others);
  });
  waits.join();
  CHECK(has(cache.resident(), 0));
}

TEST_CASE("ExpertCache: no prefetch takes the room of a step that asks for something else", "[serve]") {
  using Cache = moe::ExpertCache<Index, Lru>;
  for (const std::size_t budget : {1u, 2u}) {
    Door begun, served;
    bool in_time = true;
    Cache cache(
        {1, 1, 1},
        [&](Index e) {
          if (e == 1) {
            begun.open();
            in_time = served.pass();
          }
          return e;
        },
        budget, Lru(), 1);
    cache.prefetch(std::vector<Index>{1});
    if (budget == 1)
      cache.finish_prefetch();
    else
      CHECK(begun.pass());
    Cache::Memory memory;
    cache.serve(std::vector<Index>{0, 2}, memory, [](std::span<const Index>) {});
    served.open();
    cache.finish_prefetch();
    CAPTURE(budget);
    CHECK(in_time);
    CHECK(cache.statistics().prefetches == static_cast<Index>(budget) - 1);
    CHECK(cache.statistics().prefetches_dropped == 2 - static_cast<Index>(budget));
  }
}

TEST_CASE("ExpertCache: no prefetch takes the room that a step waits for", "[serve]") {
  using Cache = moe::ExpertCache<Index, Lru>;
  for (const bool one_waits : {false, true}) {
    Cache cache(
        {3, 1, 1, 1}, [](Index e) { return e; }, 4, Lru(), 1);
    Cache::Memory memory, of_thread;
    std::thread other;
    cache.serve(std::vector<Index>{1, 2}, memory, [&](std::span<const Index>) {
      const std::int64_t before = cache.statistics().steps;
      if (one_waits) {
        other = std::thread([&] { cache.serve(std::vector<Index>{0}, of_thread, [](std::span<const Index>) {}); });
        while (cache.statistics().steps == before) std::this_thread::yield();
      }
      cache.prefetch(std::vector<Index>{3});
      cache.finish_prefetch();
      CAPTURE(one_waits);
      CHECK(cache.statistics().prefetches == (one_waits ? 0 : 1));
      CHECK(cache.statistics().prefetches_dropped == (one_waits ? 1 : 0));
    });
    if (one_waits) other.join();
  }
}

TEST_CASE("ExpertCache: who waits for the end of prefetching hears of it however the list ends", "[serve]") {
  using Cache = moe::ExpertCache<Index, Lru>;
  Cache cache(
      std::vector<std::size_t>(4, 1), [](Index e) { return e; }, 2, Lru(), 1);
  Cache::Memory memory;
  std::atomic<Index> ends{0};
  std::atomic<bool> stops{false}, has_stopped{false};
  std::thread waits([&] {
    for (; !stops; ++ends) cache.finish_prefetch();
    has_stopped = true;
  });
  const auto ends_again = [&] {
    const Index before = ends;
    const auto last = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (ends < before + 2 && std::chrono::steady_clock::now() < last) std::this_thread::yield();
    return ends >= before + 2;
  };
  bool heard = true;
  for (Index round = 0; round < 500 && heard; ++round) {
    const std::vector<Index> next{round % 4};
    cache.prefetch(next);  // and before the background thread wakes up:
    if (round % 2 == 0)
      cache.prefetch({});
    else
      cache.serve(next, memory, [](std::span<const Index>) {});
    heard = ends_again();
  }
  CHECK(heard);
  stops = true;
  for (Index e = 0; !heard && !has_stopped; e = (e + 1) % 4) {  // so that the test ends
    cache.prefetch(std::vector<Index>{e});
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  waits.join();
}

TEST_CASE("ExpertCache: steps that load many experts, prefetching or not, leave guesses their room", "[serve]") {
  struct First {
    Index victim(std::span<const Index> candidates, std::int64_t) { return candidates[0]; }
  } policy;
  moe::detail::PrefetchAccount account(40, 20, /*prefetch_bytes=*/1);
  const std::vector<std::size_t> bytes(40, 1);
  for (Index step = 0; step < 5; ++step) {
    std::vector<Index> experts(10);
    std::iota(experts.begin(), experts.end(), step % 4 * 10);  // none of them is there any more
    account.add_step(bytes, experts, step, policy);
    for (int load = 0; load < 10; ++load) account.add_load(1);
    CAPTURE(step);
    CHECK(account.allows(/*absent=*/0, /*guess=*/1));
  }
  account.add_load(2);  // more than the stake
  CHECK_FALSE(account.allows(0, 1));
}
