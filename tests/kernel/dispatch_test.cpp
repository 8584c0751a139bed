// SPDX-License-Identifier: MIT
#include "moe/kernel/dispatch.hpp"

#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/routings.hpp"

using moe::Index;
using moe::Matrix;
using moe::RowBuffer;

namespace kernel = moe::kernel;

namespace {

constexpr Index kTokens = 70, kExperts = 5;

/// Ragged, with tokens that have no expert and dropped choices.
moe::DispatchPlan random_plan() {
  auto routing = test::random_ragged_routing(kTokens, kExperts);
  for (Index a = 1; a < routing.num_assignments(); a += 4) routing.drop(a, moe::kDroppedByCapacity);
  moe::DispatchPlan plan;
  plan.build(routing, kExperts);
  return plan;
}

template <class S>
std::vector<Index> widths() {
  constexpr Index kLanes = moe::simd::kLanes<S>;
  return {1, kLanes - 1, kLanes, kLanes + 1, 2 * kLanes, 4 * kLanes + 3, 130};
}

template <class S, class Tokens>
void require_gathered(const Tokens& tokens, const moe::DispatchPlan& plan, const RowBuffer<S>& rows) {
  REQUIRE(rows.rows() == plan.num_rows());
  REQUIRE(rows.cols() == tokens.cols());
  for (Index r = 0; r < rows.rows(); ++r) {
    CAPTURE(r, tokens.cols());
    REQUIRE(test::same_bits(rows.matrix().row(r), tokens.row(plan.token_of_row()[static_cast<std::size_t>(r)])));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("dispatch: row r is the token that the plan names", "[kernel]", float, double) {
  const auto plan = random_plan();
  for (const Index cols : widths<TestType>()) {
    const auto tokens = test::random_matrix<TestType>(kTokens, cols);
    RowBuffer<TestType> rows;
    test::poison(rows, 3, cols);
    kernel::dispatch<TestType>(tokens, plan, rows);
    require_gathered<TestType>(tokens, plan, rows);
  }
}

TEMPLATE_TEST_CASE("dispatch: so it is past the caches, from tokens at any address", "[kernel]", float, double) {
  const auto plan = random_plan();
  for (const Index cols : widths<TestType>()) {
    const auto wide = test::random_matrix<TestType>(kTokens + 1, cols + 3);
    const auto tokens = wide.block(1, 1, kTokens, cols);
    RowBuffer<TestType> rows;
    test::poison(rows, plan.num_rows(), cols);
    kernel::detail::dispatch<true, TestType>(tokens, plan, rows);
    require_gathered<TestType>(tokens, plan, rows);
  }
}

TEST_CASE("dispatch: chooses by the size of what it writes", "[kernel]") {
  CHECK(!kernel::worth_streaming<float>(4096, 2047));
  CHECK(kernel::worth_streaming<float>(4096, 2048));
  CHECK(kernel::worth_streaming<double>(4096, 1024));
  CHECK(!kernel::worth_streaming<float>(0, 1 << 20));
}

TEST_CASE("dispatch: rows that do not fit the caches, on several threads", "[kernel]") {
  auto routing = test::random_ragged_routing(3000, 4);
  moe::DispatchPlan plan;
  plan.build(routing, 4);
  const Index cols = kernel::kStreamFrom / 8 / plan.num_rows() + 1;
  const auto tokens = test::random_matrix<double>(3000, cols);
  test::ThreadExecutor executor(3);
  const moe::UseExecutor use(executor);
  RowBuffer<double> rows;
  kernel::dispatch<double>(tokens, plan, rows);
  REQUIRE(kernel::worth_streaming<double>(rows.rows(), rows.cols()));
  require_gathered<double>(tokens, plan, rows);
}

TEST_CASE("dispatch: no tokens or no rows is nothing to do", "[kernel]") {
  moe::DispatchPlan plan;
  RowBuffer<float> rows;
  kernel::dispatch<float>(Matrix<float>(0, 8), plan, rows);
  CHECK(rows.rows() == 0);
  plan.build(test::routing_of({{}, {}}), 3);
  kernel::dispatch<float>(Matrix<float>(2, 8), plan, rows);
  CHECK(rows.rows() == 0);
}
