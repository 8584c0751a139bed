// SPDX-License-Identifier: MIT
#include "moe/kernel/combine.hpp"

#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/routings.hpp"
#include "support/tolerance.hpp"

using moe::Index;
using moe::Matrix;
using moe::RowBuffer;
using test::Mat;

namespace kernel = moe::kernel;

namespace {

constexpr Index kExperts = 5;

/// Ragged, with tokens that have no expert, dropped choices, and random weights of both signs.
template <class S>
moe::Routing<S> random_routing(Index num_tokens) {
  const auto ragged = test::random_ragged_routing(num_tokens, kExperts);
  moe::Routing<S> routing;
  routing.resize_ragged(num_tokens, [&](Index t) { return ragged.end(t) - ragged.begin(t); });
  const auto weights = test::random_matrix<S>(1, routing.num_assignments() + 1, 9);
  for (Index a = 0; a < routing.num_assignments(); ++a) {
    const auto at = static_cast<std::size_t>(a);
    routing.experts()[at] = ragged.experts()[at];
    routing.weights()[at] = weights(0, a);
    if (a % 4 == 1) routing.drop(a, moe::kDroppedByCapacity);
  }
  return routing;
}

/// A routing, its plan, and rows of experts, in buffers that held NaN before.
template <class S>
struct Case {
  moe::Routing<S> routing;
  moe::DispatchPlan plan;
  Matrix<S> values;   // [rows, cols], of the experts
  RowBuffer<S> rows;  // the same with NaN behind the columns

  Case(Index num_tokens, Index cols) : routing(random_routing<S>(num_tokens)) {
    plan.build(routing, kExperts);
    values = test::random_matrix<S>(plan.num_rows(), cols, 5);
    test::poison(rows, plan.num_rows(), cols);
    for (Index r = 0; r < plan.num_rows(); ++r) std::copy_n(values.row(r).data(), cols, rows.row(r));
  }
  Index row_of(Index a) const { return plan.row_of_assignment()[static_cast<std::size_t>(a)]; }
  S weight(Index a) const { return routing.weights()[static_cast<std::size_t>(a)]; }
};

template <class S>
std::vector<Index> widths() {
  constexpr Index kLanes = moe::simd::kLanes<S>;
  return {1, kLanes - 1, kLanes, kLanes + 1, 2 * kLanes, 4 * kLanes + 3, 8 * kLanes, 15 * kLanes + 1, 130};
}

}  // namespace

TEMPLATE_TEST_CASE("combine: is the weighted sum over kept slots, in slot order, bit for bit", "[kernel]", float,
                   double) {
  using S = TestType;
  for (const Index cols : widths<S>())
    for (const Index num_tokens : {0, 1, 13}) {
      const Case<S> c(num_tokens, cols);
      Matrix<S> out = test::nan_matrix<S>(num_tokens, cols), plain = out;
      kernel::combine(c.rows, c.plan, c.routing, out);
      kernel::combine_unweighted<S>(c.rows, c.plan, plain);
      for (Index t = 0; t < num_tokens; ++t)
        for (Index i = 0; i < cols; ++i) {
          S sum = 0, count = 0;
          for (Index a = c.routing.begin(t); a < c.routing.end(t); ++a)
            if (c.row_of(a) >= 0) {
              sum = moe::simd::fma(c.weight(a), c.values(c.row_of(a), i), sum);
              count += c.values(c.row_of(a), i);
            }
          CAPTURE(cols, num_tokens, t, i);
          REQUIRE(test::same_bits(out(t, i), sum));
          REQUIRE(test::same_bits(plain(t, i), count));
        }
    }
}

TEMPLATE_TEST_CASE("combine: writes into a block of a larger matrix and nothing else", "[kernel]", float, double) {
  const Case<TestType> c(13, 19);
  Matrix<TestType> out(13, 19), frame = Matrix<TestType>::Constant(15, 24, 7);
  kernel::combine(c.rows, c.plan, c.routing, out);
  kernel::combine(c.rows, c.plan, c.routing, frame.block(1, 3, 13, 19));
  CHECK(test::same_bits(frame.block(1, 3, 13, 19), out));
  frame.block(1, 3, 13, 19).setConstant(7);
  CHECK(test::same_bits(frame, Matrix<TestType>::Constant(15, 24, 7)));
}

TEMPLATE_TEST_CASE("combine_backward: a weight's gradient is <dout, row>, also where the weight is 0", "[kernel]",
                   float, double) {
  using S = TestType;
  for (const Index cols : widths<S>()) {
    Case<S> c(13, cols);
    for (S& weight : c.routing.weights()) weight = 0;
    const auto dout = test::random_matrix<S>(13, cols, 6);
    std::vector<S> dweight(static_cast<std::size_t>(c.routing.num_assignments()), test::kNan<S>);
    RowBuffer<S> drows;
    kernel::combine_backward<S>(dout, c.rows, c.plan, c.routing, cols, std::span(dweight), drows);
    for (Index t = 0; t < 13; ++t)
      for (Index a = c.routing.begin(t); a < c.routing.end(t); ++a) {
        CAPTURE(cols, t, a);
        Matrix<S> actual(1, 1);
        actual(0, 0) = dweight[static_cast<std::size_t>(a)];
        if (c.row_of(a) < 0) {
          CHECK(test::all_zero(actual));
        } else {
          const test::Bounded<S> row{Mat(c.values.row(c.row_of(a)).template cast<double>())};
          CHECK(row.linear(dout.row(t).template cast<double>()).worst(actual) <= 1);
        }
      }
  }
}

TEMPLATE_TEST_CASE("combine_backward: a row's gradient is weight * dout, zero behind the columns", "[kernel]", float,
                   double) {
  using S = TestType;
  for (const Index cols : widths<S>()) {
    const Case<S> c(13, cols);
    const auto dout = test::random_matrix<S>(13, cols, 6);
    std::vector<S> dweight(static_cast<std::size_t>(c.routing.num_assignments()));
    RowBuffer<S> drows;
    test::poison(drows, c.plan.num_rows(), cols + 40);
    kernel::combine_backward<S>(dout, c.rows, c.plan, c.routing, cols + 40, std::span(dweight), drows);
    REQUIRE(drows.rows() == c.plan.num_rows());
    for (Index r = 0; r < drows.rows(); ++r) {
      const auto at = static_cast<std::size_t>(r);
      CAPTURE(cols, r);
      const Matrix<S> expected = c.weight(c.plan.assignment_of_row()[at]) * dout.row(c.plan.token_of_row()[at]);
      CHECK(test::same_bits(drows.matrix().row(r).head(cols), expected));
      CHECK(test::all_zero(drows.matrix().row(r).tail(40)));
    }
  }
}

TEMPLATE_TEST_CASE("combine: adds any number of slots in order, bit for bit", "[kernel]", float, double) {
  using S = TestType;
  constexpr Index kSlots = static_cast<Index>(kernel::detail::Slots<S>::kMost);
  const Index cols = 8 * moe::simd::kLanes<S> + 3;
  for (const Index slots : {kSlots - 1, kSlots, kSlots + 1, 2 * kSlots, 2 * kSlots + 1, 3 * kSlots + 4}) {
    moe::Routing<S> routing;
    routing.resize(2, slots);
    const auto weights = test::random_matrix<S>(1, 2 * slots, 3);
    std::copy_n(weights.data(), 2 * slots, routing.weights().begin());
    for (Index a = 0; a < 2 * slots; ++a) routing.experts()[static_cast<std::size_t>(a)] = a % slots;
    routing.drop(4, moe::kDroppedByGate);
    moe::DispatchPlan plan;
    plan.build(routing, slots);
    RowBuffer<S> rows;
    rows.resize(plan.num_rows(), cols);
    rows.matrix() = test::random_matrix<S>(plan.num_rows(), cols, 5);
    Matrix<S> out = test::nan_matrix<S>(2, cols), expected = Matrix<S>::Zero(2, cols);
    kernel::combine(rows, plan, routing, out);
    for (Index a = 0; a < 2 * slots; ++a)
      for (Index i = 0; i < cols; ++i)
        if (const Index row = plan.row_of_assignment()[static_cast<std::size_t>(a)]; row >= 0)
          expected(a / slots, i) = moe::simd::fma(weights(0, a), rows.row(row)[i], expected(a / slots, i));
    CAPTURE(slots);
    CHECK(test::same_bits(out, expected));
  }
}

TEMPLATE_TEST_CASE("combine: a token has the same bits alone and in any batch, forward and backward",
                   "[kernel][property]", float, double) {
  using S = TestType;
  const Index num_tokens = 70, cols = 9 * moe::simd::kLanes<S> + 2;
  const auto values = test::random_matrix<S>(3 * num_tokens, cols, 5), dout = test::random_matrix<S>(num_tokens, cols);
  const auto run = [&](Index first, Index count) {  // expert e answers token t with row 3 t + e
    moe::Routing<S> routing;
    routing.resize(count, 3);
    RowBuffer<S> rows, drows;
    moe::DispatchPlan plan;
    for (std::size_t a = 0; a < routing.experts().size(); ++a) {
      routing.experts()[a] = static_cast<Index>(a % 3);
      routing.weights()[a] = values(3 * first + static_cast<Index>(a), 0);
    }
    plan.build(routing, 3);
    rows.resize(3 * count, cols);
    for (Index r = 0; r < 3 * count; ++r)
      rows.matrix().row(r) = values.row(3 * first + plan.assignment_of_row()[static_cast<std::size_t>(r)]);
    Matrix<S> out(count, cols), dweight(count, 3);
    kernel::combine(rows, plan, routing, out);
    kernel::combine_backward<S>(dout.middleRows(first, count), rows, plan, routing, cols,
                                std::span<S>(dweight.data(), static_cast<std::size_t>(dweight.size())), drows);
    return std::pair{out, dweight};
  };
  const auto all = run(0, num_tokens);
  for (Index t = 0; t < num_tokens; ++t) {
    const auto alone = run(t, 1);
    CAPTURE(t);
    REQUIRE(test::same_bits(alone.first.row(0), all.first.row(t)));
    REQUIRE(test::same_bits(alone.second.row(0), all.second.row(t)));
  }
}

TEMPLATE_TEST_CASE("combine_backward: what goes past the caches has the same bits", "[kernel]", float, double) {
  using S = TestType;
  for (const Index cols : widths<S>()) {
    const Case<S> c(13, cols);
    const auto dout = test::random_matrix<S>(13, cols, 6);
    const auto run = [&]<bool kStream>(std::bool_constant<kStream>) {
      Matrix<S> dweight(1, c.routing.num_assignments());
      RowBuffer<S> drows;
      test::poison(drows, c.plan.num_rows(), cols + 40);
      kernel::detail::combine_backward<kStream, S>(
          dout, c.rows, c.plan, c.routing, std::span<S>(dweight.data(), static_cast<std::size_t>(dweight.size())),
          drows);
      return std::pair{dweight, Matrix<S>(drows.matrix())};
    };
    const auto plain = run(std::false_type{}), streamed = run(std::true_type{});
    CAPTURE(cols);
    CHECK(test::same_bits(streamed.first, plain.first));
    CHECK(test::same_bits(streamed.second, plain.second));
  }
}

TEST_CASE("combine: dispatch and combine of identity experts with weights that sum to 1 is the identity", "[kernel]") {
  auto routing = test::routing_of<double>({{0, 1}, {1}, {4, 2}, {3, 0}});
  for (Index t = 0; t < 4; ++t)
    for (double& weight : routing.weights(t)) weight = 1.0 / double(routing.weights(t).size());
  moe::DispatchPlan plan;
  plan.build(routing, kExperts);
  const auto tokens = test::random_matrix<double>(4, 11);
  Matrix<double> out = test::nan_matrix<double>(4, 11);
  RowBuffer<double> rows;
  kernel::dispatch<double>(tokens, plan, rows);
  kernel::combine(rows, plan, routing, out);
  CHECK(test::same_bits(out, tokens));  // halves are exact
}

TEST_CASE("combine: the number of threads does not change a bit, forward or backward", "[kernel][property]") {
  const Case<float> c(300, 37);
  const auto dout = test::random_matrix<float>(300, 37, 6);
  const auto results = test::on_thread_counts([&] {
    Matrix<float> out(300, 37);
    kernel::combine(c.rows, c.plan, c.routing, out);
    std::vector<float> dweight(static_cast<std::size_t>(c.routing.num_assignments()));
    RowBuffer<float> drows;
    kernel::combine_backward<float>(dout, c.rows, c.plan, c.routing, 48, std::span(dweight), drows);
    return std::tuple{out, Matrix<float>(drows.matrix()), dweight};
  });
  CHECK(test::all_equal(results));
}
