// SPDX-License-Identifier: MIT
// Experts from a file have the bits of the pool that it was made of, whatever stays in memory, and what the cache does
// is what the simulation says.
#include "moe/serve/cached_experts.hpp"

#include <filesystem>
#include <thread>

#include "layer/fixtures.hpp"
#include "moe/compress/quantise.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/pool.hpp"
#include "moe/layer/structure.hpp"
#include "moe/serve/simulate_cache.hpp"
#include "serve/traces.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/thread_executor.hpp"

using moe::Bias;
using moe::CachedExperts;
using moe::ExpertFile;
using moe::ExpertPool;
using moe::Index;
using moe::Matrix;

namespace {

constexpr Index kExperts = 7, kDim = 6, kHidden = 19, kTokens = 40;

/// An expert without stages, with draws of its own and a wrapped one: the gathered path.
struct NoisyExpert {
  using Scalar = double;
  moe::BasicMlp<moe::F64> mlp;

  Index input_dim() const { return mlp.input_dim(); }
  Index output_dim() const { return mlp.output_dim(); }
  void forward(const moe::ConstMatrixRef<double>& rows, moe::MatrixRef<double> out, const moe::Context& context) const {
    mlp.forward(rows, out, context);
    const moe::RandomField random = context.step.random(moe::Purpose::Noise);
    for (Index r = 0; r < out.rows(); ++r) out(r, 0) += random.normal(context.step.id(r));
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "mlp", self.mlp...);
  }
};

template <class E>
struct Made {
  static ExpertPool<E> pool() { return ExpertPool<E>::random(kExperts, kDim, kHidden, 3, Bias::Zero); }
};
template <>
struct Made<NoisyExpert> {
  static ExpertPool<NoisyExpert> pool() {
    std::vector<NoisyExpert> experts;
    for (std::uint64_t e = 0; e < kExperts; ++e) experts.push_back({moe::BasicMlp<moe::F64>::random(kDim, kHidden, e)});
    return ExpertPool<NoisyExpert>(std::move(experts));
  }
};
template <>
struct Made<moe::BasicGlu<moe::Quantised>> {
  /// Experts in formats, and so with bytes, of their own.
  static ExpertPool<moe::BasicGlu<moe::Quantised>> pool() {
    std::vector<moe::BasicGlu<moe::Quantised>> experts;
    const auto floats = ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden, 3);
    for (Index e = 0; e < kExperts; ++e)
      experts.push_back(moe::quantise(floats[e], e % 3 == 0   ? moe::WeightFormat::int4()
                                                 : e % 3 == 1 ? moe::WeightFormat::bf16()
                                                              : moe::WeightFormat::planes(3)));
    return ExpertPool<moe::BasicGlu<moe::Quantised>>(std::move(experts));
  }
};

/// Two choices per token, of which some are dropped; expert 4 has no rows.
template <class S>
moe::DispatchPlan any_plan(std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  std::vector<Index> ids;
  for (Index a = 0; a < 2 * kTokens; ++a) {
    const auto e = static_cast<Index>(random.below(kExperts - 1, a));
    ids.push_back(random.uniform(a, 1) < 0.1 ? -1 : e + (e >= 4 ? 1 : 0));
  }
  moe::DispatchPlan plan;
  plan.build(moe::Routing<S>::from(kTokens, ids, {}, kExperts), kExperts);
  return plan;
}

template <class X>
Matrix<typename X::Scalar> rows_of(const X& experts, std::uint64_t seed, Index workers = 1) {
  using S = typename X::Scalar;
  test::ThreadExecutor executor(workers);
  const moe::UseExecutor use(executor);
  const moe::DispatchPlan plan = any_plan<S>(seed);
  const Matrix<S> tokens = test::random_matrix<S>(kTokens, kDim, seed);
  moe::Scratch scratch;
  moe::RowBuffer<S> rows;
  test::poison(rows, plan.num_rows(), moe::row_width(experts));
  experts.forward(tokens, plan, {moe::Step::train(seed), scratch}, rows);
  return rows.matrix().leftCols(experts.output_dim());
}

std::size_t sum(const std::vector<std::size_t>& bytes) {
  std::size_t total = 0;
  for (const std::size_t each : bytes) total += each;
  return total;
}

/// What check_policy() asks for: a step per plan.
moe::RoutingTrace trace_of_plans() {
  moe::RoutingTrace trace(kExperts);
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    const moe::DispatchPlan plan = any_plan<float>(seed);
    std::vector<Index> ids;
    for (Index e = 0; e < kExperts; ++e)
      if (plan.rows_of(e) > 0) ids.push_back(e);
    trace.add(ids);
  }
  return trace;
}

template <class P, class E>
void check_policy(const ExpertPool<E>& pool, const std::filesystem::path& path, const P& policy) {
  const ExpertFile<E> file(path, pool[0]);
  const std::size_t largest = std::ranges::max(file.bytes()), all = sum(file.bytes());
  for (const std::size_t budget : {largest, all / 2, all})
    for (const Index workers : {1, 3}) {
      const auto cached = CachedExperts<E, P>::from_file(ExpertFile<E>(path, pool[0]), budget, policy);
      for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        CAPTURE(budget, workers, seed);
        REQUIRE(test::same_bits(rows_of(cached, seed, workers), rows_of(pool, seed)));
      }
      const moe::CacheStatistics done = cached.cache().statistics();
      CHECK(done.peak_bytes <= budget);
      CHECK((done.evictions == 0) == (budget == all));
      CHECK(done.hits + done.loads == done.requests);
      std::size_t resident = 0;
      for (const Index e : cached.cache().resident()) resident += file.bytes()[static_cast<std::size_t>(e)];
      CHECK(cached.cache().resident_bytes() == resident);
    }
}

}  // namespace

TEMPLATE_TEST_CASE("CachedExperts: the bits of the pool, for every policy, budget and number of threads",
                   "[serve][property]", moe::Glu, NoisyExpert, moe::BasicGlu<moe::Quantised>) {
  const test::TemporaryDirectory directory;
  const auto pool = Made<TestType>::pool();
  moe::save_parameters(directory / "experts", pool);
  const ExpertFile<TestType> file(directory / "experts", pool[0]);
  REQUIRE(file.size() == kExperts);
  for (Index e = 0; e < kExperts; ++e) CHECK(file.bytes()[static_cast<std::size_t>(e)] == moe::memory_bytes(pool[e]));
  const moe::RoutingTrace trace = trace_of_plans();
  check_policy(pool, directory / "experts", moe::Lru());
  check_policy(pool, directory / "experts", moe::Lfu());
  if constexpr (std::is_same_v<TestType, moe::Glu>) {  // what an expert is is nothing to a policy
    check_policy(pool, directory / "experts", moe::LeastStale(kExperts));
    check_policy(pool, directory / "experts", moe::SegmentOracle(trace, 2));
    check_policy(pool, directory / "experts", moe::Belady(trace));
  }
  const moe::MappedExperts mapped(ExpertFile<TestType>(directory / "experts", pool[0]));
  CHECK(test::same_bits(rows_of(mapped, 5, 3), rows_of(pool, 5)));
}

TEST_CASE("CachedExperts: a layer with them is the layer, and the simulation knows what they do", "[serve]") {
  const test::TemporaryDirectory directory;
  const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kDim, 1), moe::TopKGate{.k = 2},
                            ExpertPool<moe::Mlp>::random(kExperts, kDim, kHidden, 2));
  moe::save_parameters(directory / "layer", layer);
  for (const Index batch : {1, 3, 8})
    for (const std::size_t capacity : {1u, 3u, 5u}) {
      const ExpertFile<moe::Mlp> file(directory / "layer", layer.experts()[0], "experts.");
      const std::size_t budget = capacity * file.bytes()[0] + 3;
      const auto cached =
          CachedExperts<moe::Mlp, moe::Lfu>::from_file({directory / "layer", layer.experts()[0], "experts."}, budget);
      const auto served = moe::with_experts(layer, cached);
      moe::RoutingTrace trace(kExperts);
      moe::Workspace ws, own;
      for (std::uint64_t call = 0; call < 30; ++call) {
        const auto tokens = test::random_matrix<float>(batch, kDim, call);
        Matrix<float> expected(batch, kDim), out = test::nan_matrix<float>(batch, kDim);
        layer.forward(tokens, expected, ws);
        served.forward(tokens, out, own);
        trace.add(own.routing);
        CAPTURE(batch, capacity, call);
        REQUIRE(test::same_bits(out, expected));
      }
      const moe::CacheStatistics found = cached.cache().statistics();
      const moe::CacheStatistics said =
          moe::simulate_cache(trace, file.bytes(), budget, moe::Lfu(), {.tokens_per_step = batch});
      CHECK(found.requests == said.requests);
      CHECK(found.hits == said.hits);
      CHECK(found.loads == said.loads);
      CHECK(found.evictions == said.evictions);
      CHECK(found.loaded_bytes == said.loaded_bytes);
      CHECK(found.peak_bytes == said.peak_bytes);
      CHECK(found.stall_seconds > 0);
    }
}

TEST_CASE("CachedExperts: layers share a cache, threads share both, all get their own bits", "[serve]") {
  using E = moe::Mlp;
  using Cache = moe::ExpertCache<E, moe::LeastStale>;
  const auto first = ExpertPool<E>::random(kExperts, kDim, kHidden, 1),
             second = ExpertPool<E>::random(kExperts, kDim, kHidden, 2);
  const auto bytes = moe::memory_bytes(first[0]);
  const auto cache = std::make_shared<Cache>(
      std::vector<std::size_t>(2 * kExperts, bytes),
      [&](Index e) { return e < kExperts ? first[e] : second[e - kExperts]; }, 5 * bytes, moe::LeastStale(kExperts),
      2 * bytes);
  const CachedExperts<E, moe::LeastStale> low(first[0], cache, 0, kExperts), high(first[0], cache, kExperts);
  CHECK(high.size() == kExperts);
  const auto expected_low = rows_of(first, 1), expected_high = rows_of(second, 2);
  std::atomic<Index> wrong{0};
  const auto work = [&](bool is_low) {
    for (int i = 0; i < 20; ++i) {
      (is_low ? high : low).prefetch(std::vector<Index>{i % kExperts, 1, 99});
      wrong += test::same_bits(rows_of(is_low ? low : high, is_low ? 1 : 2, 2), is_low ? expected_low : expected_high)
                   ? 0
                   : 1;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back(work, i % 2 == 0);
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(cache->statistics().peak_bytes <= 5 * bytes);
  CHECK_THROWS_AS((CachedExperts<E, moe::LeastStale>(first[0], cache, kExperts, kExperts + 1)), std::invalid_argument);
}

TEST_CASE("CachedExperts: a file that is cut off throws in the call that needs it, and serves again when whole",
          "[serve][error]") {
  const test::TemporaryDirectory directory;
  const auto pool = Made<moe::Glu>::pool();
  moe::save_parameters(directory / "experts", pool);
  const std::string bytes = test::read_bytes(directory / "experts");
  const ExpertFile<moe::Glu> file(directory / "experts", pool[0]);
  const auto cached =
      CachedExperts<moe::Glu>::from_file(ExpertFile<moe::Glu>(directory / "experts", pool[0]), 3 * file.bytes()[0]);
  const moe::MappedExperts in_memory(
      ExpertFile<moe::Glu>(directory / "experts", pool[0], "", moe::Narrowing::Refuse, moe::FileAccess::Read));
  CHECK(test::same_bits(rows_of(cached, 1), rows_of(pool, 1)));
  std::filesystem::resize_file(directory / "experts", bytes.size() / 2);
  CHECK_THROWS_AS(rows_of(cached, 2), std::runtime_error);
  CHECK_THROWS_AS(file.load(0), std::runtime_error);
  CHECK(test::same_bits(rows_of(in_memory, 2), rows_of(pool, 2)));
  std::size_t resident = 0;
  for (const Index e : cached.cache().resident()) resident += file.bytes()[static_cast<std::size_t>(e)];
  CHECK(cached.cache().resident_bytes() == resident);
  test::write_bytes(directory / "experts", bytes);
  CHECK(test::same_bits(rows_of(cached, 3), rows_of(pool, 3)));
}

TEST_CASE("ExpertFile: files without experts, of others and none at all are refused", "[serve][error]") {
  const test::TemporaryDirectory directory;
  const auto pool = Made<moe::Glu>::pool();
  moe::save_parameters(directory / "experts", pool);
  CHECK_THROWS_AS(ExpertFile<moe::Glu>(directory / "none", pool[0]), std::runtime_error);
  CHECK_THROWS_AS(ExpertFile<moe::Glu>(directory / "experts", pool[0], "experts."), std::runtime_error);
  CHECK_THROWS_AS(ExpertFile<moe::Glu>(directory / "experts", moe::Glu(kDim, kHidden + 1, Bias::Zero)),
                  std::runtime_error);
  using Catch::Matchers::ContainsSubstring;
  CHECK_THROWS_WITH(ExpertFile<moe::Glu>(directory / "experts", moe::Glu(kDim, kHidden)),  // its biases would be lost
                    ContainsSubstring("is not a parameter of the prototype"));
  const ExpertFile<moe::Glu> file(directory / "experts", pool[0]);
  CHECK_THROWS_AS(file.load(-1), std::invalid_argument);
  CHECK_THROWS_AS(file.load(kExperts), std::invalid_argument);
  CHECK_THROWS_AS(CachedExperts<moe::Glu>::from_file(ExpertFile<moe::Glu>(directory / "experts", pool[0]), 10),
                  std::invalid_argument);
}

TEST_CASE("ExpertFile: experts behind a gap in the numbers are not forgotten", "[serve][error]") {
  const test::TemporaryDirectory directory;
  const auto pool = Made<moe::Glu>::pool();
  moe::save_parameters(directory / "experts", pool);
  std::string bytes = test::read_bytes(directory / "experts");
  for (auto at = bytes.find("\"2."); at != bytes.npos; at = bytes.find("\"2.")) bytes[at + 1] = '9';
  test::write_bytes(directory / "experts", bytes);
  CHECK_THROWS_WITH(ExpertFile<moe::Glu>(directory / "experts", pool[0]),
                    Catch::Matchers::ContainsSubstring("expected those of 0 to 1 without a gap"));
}

TEST_CASE("CachedExperts: nothing is asked for without rows, and shapes are looked at first", "[serve][error]") {
  const auto pool = Made<moe::Mlp>::pool();
  const auto bytes = moe::memory_bytes(pool[0]);
  using Cache = moe::ExpertCache<moe::Mlp, moe::Lru>;
  const CachedExperts<moe::Mlp> cached(
      pool[0], std::make_shared<Cache>(
                   std::vector<std::size_t>(kExperts, bytes), [&](Index e) { return pool[e]; }, bytes));
  moe::Scratch scratch;
  moe::RowBuffer<float> rows;
  const moe::Step step;
  moe::DispatchPlan empty, other;
  empty.build(moe::Routing<float>::from(2, std::vector<int>{-1, -1}, {}, kExperts), kExperts);
  other.build(moe::Routing<float>::from(1, std::vector<int>{0}, {}, kExperts - 1), kExperts - 1);
  rows.resize(1, cached.row_width());
  cached.forward(Matrix<float>::Zero(2, kDim), empty, {step, scratch}, rows);
  CHECK_THROWS_AS(cached.forward(Matrix<float>::Zero(1, kDim), other, {step, scratch}, rows), std::invalid_argument);
  const moe::DispatchPlan plan = any_plan<float>(1);
  CHECK_THROWS_AS(cached.forward(Matrix<float>::Zero(kTokens, kDim + 1), plan, {step, scratch}, rows),
                  std::invalid_argument);
  CHECK_THROWS_AS(cached.forward(Matrix<float>::Zero(kTokens, kDim), plan, {step, scratch}, rows),
                  std::invalid_argument);
  CHECK(cached.cache().statistics().steps == 0);
}
