// SPDX-License-Identifier: MIT
// Experts whose precision comes from a file plane by plane: the bits of levels in memory, in whatever order they come.
#include "moe/serve/pipelined_experts.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "layer/fixtures.hpp"
#include "moe/compress/quantise.hpp"
#include "moe/expert/glu.hpp"
#include "moe/layer/structure.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/thread_executor.hpp"

using moe::Index;
using moe::Matrix;
using E = moe::BasicGlu<moe::Quantised>;

namespace {

constexpr Index kExperts = 5, kLevels = 3, kDim = 40, kHidden = 21, kTokens = 30;
constexpr std::array kBits = {2, 3, 5};

moe::ExpertPool<E> planes() {
  return moe::quantise(moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden, 3, moe::Bias::Zero),
                       moe::WeightFormat::planes(kBits.back(), 32));
}

/// Two choices per token at levels by lot; expert 3 has no rows, expert 1 none of the highest level.
moe::DispatchPlan any_plan(std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  std::vector<Index> ids;
  for (Index a = 0; a < 2 * kTokens; ++a) {
    const auto e = static_cast<Index>(random.below(kExperts, a));
    const auto level = static_cast<Index>(random.below(e == 1 ? kLevels - 1 : kLevels, a, 1));
    ids.push_back(e == 3 ? -1 : e * kLevels + level);
  }
  moe::DispatchPlan plan;
  plan.build(moe::Routing<float>::from(kTokens, ids, {}, kExperts * kLevels), kExperts * kLevels);
  return plan;
}

template <class X>
Matrix<float> rows_of(const X& experts, const moe::DispatchPlan& plan, std::uint64_t seed, Index workers = 1) {
  test::ThreadExecutor executor(workers);
  const moe::UseExecutor use(executor);
  const auto tokens = test::random_matrix<float>(kTokens, kDim, seed);
  moe::Scratch scratch;
  moe::RowBuffer<float> rows;
  test::poison(rows, plan.num_rows(), moe::row_width(experts));
  experts.forward(tokens, plan, {moe::Step::train(seed), scratch}, rows);
  return rows.matrix().leftCols(experts.output_dim());
}

/// An expert that calls a function before it runs, and another when its parts are looked at, as they are for reading.
struct Hooked {
  using Scalar = float;
  static inline std::function<void()> hook = {}, visit_hook = {};

  E inner;

  Index input_dim() const { return inner.input_dim(); }
  Index output_dim() const { return inner.output_dim(); }
  void forward(const moe::ConstMatrixRef<float>& rows, moe::MatrixRef<float> out, const moe::Context& context) const {
    if (hook) hook();
    inner.forward(rows, out, context);
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    if (visit_hook) visit_hook();
    moe::visit_part(f, "inner", self.inner...);
  }
};

/// Sets Hooked::visit_hook for a scope.
struct VisitHook {
  explicit VisitHook(std::function<void()> hook) { Hooked::visit_hook = std::move(hook); }
  ~VisitHook() { Hooked::visit_hook = nullptr; }
  VisitHook(const VisitHook&) = delete;
  VisitHook& operator=(const VisitHook&) = delete;
};

/// The last expert first, as wrong as can be.
std::vector<Index> backwards(std::span<const moe::LoadJob> jobs) {
  std::vector<Index> order = moe::expert_id_order(jobs);
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [&](Index job) { return jobs[static_cast<std::size_t>(job)].expert; });
  return order;
}
/// All lowest levels before any other: with little room none could be finished, if experts were not admitted whole.
std::vector<Index> level_by_level(std::span<const moe::LoadJob> jobs) {
  std::vector<Index> order = moe::expert_id_order(jobs);
  std::ranges::stable_sort(order, {}, [&](Index job) { return jobs[static_cast<std::size_t>(job)].level; });
  return order;
}

}  // namespace

TEST_CASE("PipelinedExperts: the bits of levels in memory, for every schedule, budget and number of threads",
          "[serve][property]") {
  const test::TemporaryDirectory directory;
  const auto pool = planes();
  const auto levels = moe::nested_experts(pool, kBits);
  REQUIRE(levels.size() == kExperts * kLevels);
  moe::save_nested_experts(directory / "planes", pool, kBits);
  const auto file = std::make_shared<const moe::NestedExpertFile<E>>(directory / "planes", pool[0]);
  REQUIRE(file->size() == kExperts);
  REQUIRE(file->levels() == kLevels);
  for (Index e = 0; e < kExperts; ++e)
    for (Index l = 0; l < kLevels; ++l) CHECK(file->bytes(e, l) == moe::memory_bytes(levels[e * kLevels + l]));
  const std::size_t one = file->bytes(0, kLevels - 1);
  for (const moe::LoadSchedule& schedule :
       {moe::LoadSchedule(moe::hottest_expert_bit_first), moe::LoadSchedule(moe::expert_id_order),
        moe::LoadSchedule(backwards), moe::LoadSchedule(level_by_level)})
    for (const std::size_t budget : {one, 2 * one + 1, kExperts * one}) {
      const moe::PipelinedExperts<E> pipelined(file, budget, schedule);
      for (std::uint64_t seed = 1; seed <= 3; ++seed)
        for (const Index workers : {1, 3}) {
          CAPTURE(budget, seed, workers);
          const moe::DispatchPlan plan = any_plan(seed);
          REQUIRE(test::same_bits(rows_of(pipelined, plan, seed, workers), rows_of(levels, plan, seed)));
        }
      const moe::PipelineStatistics done = pipelined.statistics();
      CHECK(done.calls == 6);
      CHECK(done.peak_bytes <= budget);
      std::int64_t loads = 0;
      std::uint64_t bytes = 0;
      for (std::uint64_t seed = 1; seed <= 3; ++seed)
        for (const moe::DispatchPlan plan = any_plan(seed); const moe::LoadJob& job : moe::load_jobs(plan, kLevels))
          loads += 2, bytes += 2 * file->file_bytes(job.expert, job.level);
      CHECK(done.loads == loads);
      CHECK(done.loaded_bytes == bytes);
    }
}

TEST_CASE("PipelinedExperts: the jobs of a call, as they were loaded, take the seconds that are counted", "[serve]") {
  const test::TemporaryDirectory directory;
  const auto pool = planes();
  moe::save_nested_experts(directory / "planes", pool, kBits);
  const auto file = std::make_shared<const moe::NestedExpertFile<E>>(directory / "planes", pool[0]);
  const moe::PipelinedExperts<E> pipelined(file, kExperts * file->bytes(0, kLevels - 1), backwards);
  CHECK(pipelined.last_jobs().empty());
  const moe::DispatchPlan plan = any_plan(1);
  const auto jobs = moe::load_jobs(plan, kLevels);
  const auto order = backwards(jobs);
  rows_of(pipelined, plan, 1);
  const auto took = pipelined.last_jobs();
  REQUIRE(took.size() == jobs.size());
  double load = 0, compute = 0;
  for (std::size_t i = 0; i < took.size(); ++i) {
    const moe::LoadJob& expected = jobs[static_cast<std::size_t>(order[i])];
    CHECK((took[i].expert == expected.expert && took[i].level == expected.level && took[i].rows == expected.rows));
    load += took[i].load, compute += took[i].compute;
  }
  const moe::PipelineStatistics done = pipelined.statistics();
  CHECK(load > 0);
  CHECK(std::abs(load - done.load_seconds) <= 1e-12 * load);  // the same numbers, in the same order
  CHECK(std::abs(compute - done.compute_seconds) <= 1e-12 * compute);
}

TEST_CASE("PipelinedExperts: a layer whose choices have levels, and several threads that share it", "[serve]") {
  const test::TemporaryDirectory directory;
  const auto pool = planes();
  moe::save_nested_experts(directory / "planes", pool, kBits);
  const auto file = std::make_shared<const moe::NestedExpertFile<E>>(directory / "planes", pool[0]);
  const moe::PipelinedExperts<E> pipelined(file, 2 * file->bytes(0, kLevels - 1));
  const auto levels = moe::nested_experts(pool, kBits);
  const auto expected = rows_of(levels, any_plan(1), 1);
  std::atomic<Index> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] {
      for (int n = 0; n < 5; ++n) wrong += test::same_bits(rows_of(pipelined, any_plan(1), 1), expected) ? 0 : 1;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);

  const auto router = moe::LinearRouter::random(kExperts, kDim, 1);
  const auto tokens = test::random_matrix<float>(kTokens, kDim, 9);
  Matrix<float> logits(kTokens, kExperts), out(kTokens, kDim), same(kTokens, kDim);
  router.logits(tokens, moe::Step{}, logits);
  moe::Routing<float> routing;
  moe::TopKGate{.k = 2}.route(logits, moe::Step{}, routing);
  for (Index level = 0; level < kLevels; ++level) {  // all at one level: the pool of so many bits
    moe::Routing<float> at = routing;
    moe::route_to_level(at, kLevels, level);
    moe::RoutedExperts<moe::PipelinedExperts<E>>(pipelined).forward(tokens, at, moe::Step{}, out);
    std::vector<E> few;
    for (Index e = 0; e < kExperts; ++e) few.push_back(levels[e * kLevels + level]);
    moe::RoutedExperts<moe::ExpertPool<E>>(moe::ExpertPool<E>(std::move(few)))
        .forward(tokens, routing, moe::Step{}, same);
    CHECK(test::same_bits(out, same));
  }
  CHECK_THROWS_AS(moe::route_to_level(routing, kLevels, kLevels), std::invalid_argument);
}

TEST_CASE("load_jobs: levels that rows need, with those of higher levels counted below", "[serve]") {
  const moe::DispatchPlan plan = any_plan(4);
  const auto jobs = moe::load_jobs(plan, kLevels, {.load = {5, 2, 1}, .compute = {7, 7, 7}, .compute_row = {1, 2, 3}});
  Index at = 0;
  for (Index e = 0; e < kExperts; ++e)
    for (Index l = 0; l < kLevels; ++l) {
      Index rows = 0;
      for (Index higher = l; higher < kLevels; ++higher) rows += plan.rows_of(e * kLevels + higher);
      if (rows == 0) continue;
      const moe::LoadJob& job = jobs[static_cast<std::size_t>(at++)];
      const auto own = static_cast<double>(plan.rows_of(e * kLevels + l));
      CHECK((job.expert == e && job.level == l && job.rows == rows));
      CHECK(job.load == (l == 0 ? 5 : l == 1 ? 2 : 1));
      CHECK(job.compute == 7 + own * static_cast<double>(l + 1));
    }
  CHECK(at == std::ssize(jobs));
  CHECK_THROWS_AS(moe::load_jobs(plan, 4), std::invalid_argument);
  CHECK_THROWS_AS(moe::load_jobs(plan, kLevels, {.load = {1}}), std::invalid_argument);
}

TEST_CASE("PipelinedExperts: files that break off, schedules that are none and small budgets throw in the call",
          "[serve][error]") {
  const test::TemporaryDirectory directory;
  const auto pool = planes();
  moe::save_nested_experts(directory / "planes", pool, kBits);
  const std::string bytes = test::read_bytes(directory / "planes");
  const auto file = std::make_shared<const moe::NestedExpertFile<E>>(directory / "planes", pool[0]);
  const std::size_t one = file->bytes(0, kLevels - 1);
  CHECK_THROWS_AS(moe::PipelinedExperts<E>(file, one - 1), std::invalid_argument);
  const auto expected = rows_of(moe::nested_experts(pool, kBits), any_plan(1), 1);
  const moe::PipelinedExperts<E> pipelined(file, 2 * one);
  std::filesystem::resize_file(directory / "planes", bytes.size() / 2);
  CHECK_THROWS_AS(rows_of(pipelined, any_plan(1), 1), std::runtime_error);
  test::write_bytes(directory / "planes", bytes);
  CHECK(test::same_bits(rows_of(pipelined, any_plan(1), 1), expected));

  const moe::PipelinedExperts<E> none(file, one, [](auto) { return std::vector<Index>{0}; });
  CHECK_THROWS_AS(rows_of(none, any_plan(1), 1), std::invalid_argument);
  const moe::PipelinedExperts<E> downwards(file, one, [](auto jobs) {
    std::vector<Index> order = moe::expert_id_order(jobs);
    std::ranges::reverse(order);
    return order;
  });
  CHECK_THROWS_AS(rows_of(downwards, any_plan(1), 1), std::invalid_argument);
  moe::DispatchPlan nothing;
  nothing.build(moe::Routing<float>::from(kTokens, std::vector<int>(kTokens, -1), {}, kExperts * kLevels),
                kExperts * kLevels);
  const moe::Step step;
  moe::Scratch scratch;
  moe::RowBuffer<float> rows;
  rows.resize(1, none.row_width());
  CHECK_NOTHROW(
      none.forward(Matrix<float>::Zero(kTokens, kDim), nothing, {step, scratch}, rows));  // asks for no schedule
}

TEST_CASE("NestedExpertFile: parts that are missing, too many, too long or too short are no level", "[serve][error]") {
  const test::TemporaryDirectory directory;
  const auto pool = planes();
  moe::save_nested_experts(directory / "planes", pool, kBits);
  const moe::NestedExpertFile<E> file(directory / "planes", pool[0]);
  for (Index level = 0; level < kLevels; ++level) {
    const auto whole = file.read(0, level);
    E expert = level == 0 ? pool[0] : file.load(0, level - 1);
    const std::size_t bytes = moe::memory_bytes(expert);
    const auto refuses = [&](const auto& change) {
      auto broken = whole;
      change(broken);
      CHECK_THROWS_AS(file.add(expert, 0, level, broken), std::runtime_error);
      CHECK(moe::memory_bytes(expert) == bytes);
    };
    refuses([](auto& parts) { parts.clear(); });
    refuses([](auto& parts) { parts.pop_back(); });
    refuses([](auto& parts) { parts.emplace_back(); });
    for (std::size_t part = 0; part < whole.size(); ++part) {
      refuses([&](auto& parts) { parts[part].pop_back(); });
      refuses([&](auto& parts) { parts[part].emplace_back(); });
      refuses([&](auto& parts) { parts[part].clear(); });
    }
    CHECK_NOTHROW(file.add(expert, 0, level, whole));
  }
  E expert = pool[0];
  CHECK_THROWS_AS(file.add(expert, 0, 0, file.read(0, 1)), std::runtime_error);
}

TEST_CASE("PipelinedExperts: what fails amid a call ends it, and the next one is as good as any", "[serve][error]") {
  const test::TemporaryDirectory directory;
  const auto path = directory / "planes";
  std::vector<Hooked> experts;
  const auto pool = planes();
  for (Index e = 0; e < kExperts; ++e) experts.push_back({pool[e]});
  moe::save_nested_experts(path, moe::ExpertPool<Hooked>(experts), kBits);
  const std::string bytes = test::read_bytes(path);
  const auto file = std::make_shared<const moe::NestedExpertFile<Hooked>>(path, experts[0]);
  // One expert at a time: when the second level runs, others have not been read.
  const moe::PipelinedExperts<Hooked> pipelined(file, file->bytes(0, kLevels - 1));
  const auto expected = rows_of(pipelined, any_plan(1), 1);
  for (const int at : {1, 2, 3}) {
    int calls = 0;
    Hooked::hook = [&] {
      if (++calls == at) throw std::domain_error("of the expert");
    };
    CHECK_THROWS_AS(rows_of(pipelined, any_plan(1), 1), std::domain_error);
    calls = 0;
    Hooked::hook = [&] {  // a byte less: memory that is mapped stays readable
      if (++calls == at) std::filesystem::resize_file(path, bytes.size() - 1);
    };
    CHECK_THROWS_AS(rows_of(pipelined, any_plan(1), 1), std::runtime_error);
    CHECK(calls >= at);
    Hooked::hook = nullptr;
    test::write_bytes(path, bytes);
    CHECK(test::same_bits(rows_of(pipelined, any_plan(1), 1), expected));
  }
}

TEST_CASE("PipelinedExperts: whichever read fails, its call throws, others and the next one have room and their bits",
          "[serve][error]") {
  const test::TemporaryDirectory directory;
  std::vector<Hooked> experts;
  const auto pool = planes();
  for (Index e = 0; e < kExperts; ++e) experts.push_back({pool[e]});
  moe::save_nested_experts(directory / "planes", moe::ExpertPool<Hooked>(experts), kBits);
  const auto file = std::make_shared<const moe::NestedExpertFile<Hooked>>(directory / "planes", experts[0]);
  const std::size_t one = file->bytes(0, kLevels - 1);
  const auto expected = rows_of(moe::nested_experts(pool, kBits), any_plan(1), 1);
  static thread_local bool is_caller;  // threads that read are others
  std::atomic<int> reads{0}, fails_at{0};
  const VisitHook hooked([&] {
    if (!is_caller && ++reads == fails_at) throw std::range_error("of reading");
  });
  for (const std::size_t budget : {one, kExperts * one}) {
    const moe::PipelinedExperts<Hooked> pipelined(file, budget);
    const auto throws = [&] {
      is_caller = true;
      try {
        return test::same_bits(rows_of(pipelined, any_plan(1), 1), expected) ? 0 : 100;
      } catch (const std::range_error&) {
        return 1;
      }
    };
    reads = fails_at = 0;
    REQUIRE(throws() == 0);
    const int all = reads;
    REQUIRE(all >= std::ssize(pipelined.last_jobs()));
    for (int at = 1; at <= all; ++at) {
      CAPTURE(budget, at, all);
      reads = 0, fails_at = at;
      CHECK(throws() == 1);
      CHECK(throws() == 0);  // which would wait for ever, were a byte of a budget of one expert lost
      reads = 0, fails_at = at;
      int other = 0;
      std::thread thread([&] { other = throws(); });
      const int own = throws();
      thread.join();
      CHECK(own + other == 1);
    }
    CHECK(pipelined.statistics().calls == 1 + 2 * all);  // that ended as they should
    CHECK(pipelined.statistics().peak_bytes <= budget);
  }
}

TEST_CASE("PipelinedExperts: calls of several threads share one budget, one expert at a time if it is of one",
          "[serve]") {
  const test::TemporaryDirectory directory;
  std::vector<Hooked> experts;
  const auto pool = planes();
  for (Index e = 0; e < kExperts; ++e) experts.push_back({pool[e]});
  moe::save_nested_experts(directory / "planes", moe::ExpertPool<Hooked>(experts), kBits);
  const auto file = std::make_shared<const moe::NestedExpertFile<Hooked>>(directory / "planes", experts[0]);
  const std::size_t one = file->bytes(0, kLevels - 1);
  const moe::LevelCosts costs{.load = {2, 1, 1}, .compute = {1, 1, 1}, .compute_row = {0.1, 0.1, 0.1}};
  const moe::PipelinedExperts<Hooked> pipelined(file, one, moe::johnson_chains, costs);
  const auto expected = rows_of(moe::nested_experts(pool, kBits), any_plan(1), 1);
  std::atomic<Index> runs{0}, most{0}, wrong{0}, thrown{0};
  Hooked::hook = [&] {
    const Index now = ++runs;
    for (Index before = most; before < now && !most.compare_exchange_weak(before, now);) {
    }
    std::this_thread::sleep_for(std::chrono::microseconds(300));
    const bool fails = thrown == 0 && ++thrown == 1;  // once: what has been begun leaves its room to others
    --runs;
    if (fails) throw std::domain_error("of the expert");
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] {
      for (int n = 0; n < 4; ++n) {
        try {
          wrong += test::same_bits(rows_of(pipelined, any_plan(1), 1), expected) ? 0 : 1;
        } catch (const std::domain_error&) {
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  Hooked::hook = nullptr;
  CHECK(most == 1);
  CHECK(wrong == 0);
  CHECK(pipelined.statistics().calls == 11);
  CHECK(pipelined.statistics().peak_bytes <= one);
  CHECK_THROWS_AS(moe::PipelinedExperts<Hooked>(file, one, moe::johnson_chains, {.load = {1, 1}}),
                  std::invalid_argument);
}

TEST_CASE("NestedExpertFile: files of other things, levels that do not rise and experts that are not there",
          "[serve][error]") {
  const test::TemporaryDirectory directory;
  const auto pool = planes();
  const auto save = [&](std::vector<int> bits) { moe::save_nested_experts(directory / "planes", pool, bits); };
  CHECK_THROWS_AS(save({}), std::invalid_argument);
  CHECK_THROWS_AS(save({2, 2, 5}), std::invalid_argument);
  CHECK_THROWS_AS(save({2, 4}), std::invalid_argument);  // of the 5 that there are
  const auto ints = moe::quantise(moe::dequantise(pool), moe::WeightFormat::int4());
  CHECK_THROWS_AS(moe::nested_experts(ints, std::array{4}), std::invalid_argument);
  save({1, 5});
  const moe::NestedExpertFile<E> file(directory / "planes", pool[0]);
  CHECK(moe::memory_bytes(file.load(4, 1)) == moe::memory_bytes(pool[4]));
  CHECK_THROWS_AS(file.read(5, 0), std::invalid_argument);
  CHECK_THROWS_AS(file.read(0, 2), std::invalid_argument);
  E expert = pool[0];
  CHECK_THROWS_AS(file.add(expert, 0, 1, file.read(0, 1)), std::invalid_argument);  // has them already
  E other(kDim, kHidden + 1, moe::Bias::Zero);
  CHECK_THROWS_AS(file.add(other, 0, 1, file.read(0, 1)), std::invalid_argument);
  moe::save_parameters(directory / "other", pool);
  CHECK_THROWS_AS(moe::NestedExpertFile<E>(directory / "other", pool[0]), std::runtime_error);
  CHECK_THROWS_AS(moe::NestedExpertFile<E>(directory / "planes", E(kDim, kHidden + 1, moe::Bias::Zero)),
                  std::runtime_error);
}
