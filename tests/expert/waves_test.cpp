// SPDX-License-Identifier: MIT
// Inference goes over the rows in waves, training does not: both give the same bits.
#include "moe/core/parallel.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/thread_executor.hpp"

using moe::ExpertPool;
using moe::Index;
using moe::Matrix;

namespace {

constexpr Index kDim = 3, kHidden = 600;

/// A routing of one expert per row, `rows[e]` of them for expert e.
moe::Routing<float> routing_of(const std::vector<Index>& rows) {
  moe::Routing<float> routing;
  Index total = 0;
  for (const Index count : rows) total += count;
  routing.resize(total, 1);
  Index t = 0;
  for (std::size_t e = 0; e < rows.size(); ++e)
    for (Index i = 0; i < rows[e]; ++i) {
      routing.experts(t)[0] = static_cast<Index>(e);
      routing.weights(t++)[0] = 1;
    }
  return routing;
}

/// Rows of a wave on so many workers.
template <class E>
Index wave_rows(const ExpertPool<E>& pool, Index workers) {
  test::ThreadExecutor executor(workers);
  const moe::UseExecutor use(executor);
  const Index offset[] = {0, 1};
  return moe::detail::wave_rows(moe::detail::require_stages<E>({offset, 1}, pool.input_dim(), pool.output_dim(),
                                                               [&](Index) -> const E& { return pool[0]; }));
}

template <class E>
void check_waves(Index workers) {
  const auto pool = ExpertPool<E>({test::random_expert<E>(kDim, kHidden, 1), test::random_expert<E>(kDim, kHidden, 2),
                                   test::random_expert<E>(kDim, kHidden / 2, 3), test::random_expert<E>(kDim, 7, 4)});
  const Index most = wave_rows(pool, workers);
  for (const auto& rows : {std::vector<Index>{0, 2 * most + 5, 0, 3},
                           {most / 2, most / 2, most / 2, most / 2},
                           {most - 1, 2, most, most + 1},
                           {most, 0, 0, 0}}) {
    moe::DispatchPlan plan;
    plan.build(routing_of(rows), 4);
    const auto tokens = test::random_matrix<float>(plan.num_rows(), kDim);
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    moe::RowBuffer<float> inferred, trained;
    const moe::Step step;
    moe::Scratch scratch;
    typename ExpertPool<E>::Tape tape;
    test::poison(inferred, plan.num_rows(), 64);
    trained.resize(plan.num_rows(), pool.row_width());
    pool.forward(tokens, plan, {step, scratch}, inferred);
    pool.forward(tokens, plan, {step, scratch}, trained, tape);
    CAPTURE(workers, most, rows);
    CHECK(test::same_bits(inferred.matrix().leftCols(kDim), trained.matrix().leftCols(kDim)));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("ExpertPool: waves of inference give the bits of one pass", "[expert][property]", moe::Glu,
                   moe::Mlp) {
  check_waves<TestType>(1);
  check_waves<TestType>(3);
}
