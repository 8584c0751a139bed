// SPDX-License-Identifier: MIT
#include "moe/routing/balance/sinkhorn.hpp"

#include "support/catch.hpp"
#include "support/routings.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Matrix;
using moe::SinkhornOptions;
using moe::Step;

namespace {

template <class S>
Matrix<S> plan_of(const Matrix<S>& logits, const Step& step = {}, const SinkhornOptions& options = {}) {
  Matrix<S> plan;
  moe::sinkhorn(logits, step, options, plan);
  return plan;
}

/// The iteration as it is written down, on exp(logits) itself.
Matrix<double> by_definition(const Matrix<double>& logits, double tolerance) {
  const Index tokens = logits.rows(), experts = logits.cols();
  std::vector<double> row(static_cast<std::size_t>(tokens)), column(static_cast<std::size_t>(experts), 1);
  const auto at = [](std::vector<double>& v, Index i) -> double& { return v[static_cast<std::size_t>(i)]; };
  for (double change = 1; change >= tolerance;) {
    change = 0;
    for (Index t = 0; t < tokens; ++t) {
      double sum = 0;
      for (Index e = 0; e < experts; ++e) sum += std::exp(logits(t, e)) * at(column, e);
      at(row, t) = 1 / static_cast<double>(tokens) / (sum + 1e-8);
    }
    for (Index e = 0; e < experts; ++e) {
      double sum = 0;
      for (Index t = 0; t < tokens; ++t) sum += std::exp(logits(t, e)) * at(row, t);
      const double next = 1 / static_cast<double>(experts) / (sum + 1e-8);
      change += std::abs(next - at(column, e)) / static_cast<double>(experts);
      at(column, e) = next;
    }
  }
  Matrix<double> plan(tokens, experts);
  for (Index t = 0; t < tokens; ++t)
    for (Index e = 0; e < experts; ++e) plan(t, e) = std::exp(logits(t, e)) * at(row, t) * at(column, e);
  return plan;
}

void check_sums(const Matrix<double>& plan, double of_rows, double tolerance) {
  for (Index e = 0; e < plan.cols(); ++e)
    CHECK_THAT(test::total(plan.col(e)), WithinAbs(1.0 / static_cast<double>(plan.cols()), 1e-7));
  for (Index t = 0; t < plan.rows(); ++t) CHECK_THAT(test::total(plan.row(t)), WithinAbs(of_rows, tolerance * of_rows));
}

}  // namespace

TEMPLATE_TEST_CASE("sinkhorn: equals its definition on logits of ordinary size", "[routing]", float, double) {
  for (const Index tokens : {1, 7, 300})
    for (const Index experts : {1, 2, 9, 33})
      for (const double tolerance : {1e-2, 1e-6}) {
        if (tokens == 1 && experts > 2) continue;  // sums of a far expert are small, and what is added to them is not
        CAPTURE(tokens, experts, tolerance);
        const auto logits = test::random_logits<TestType>(tokens, experts);
        const auto expected = by_definition(logits.template cast<double>(), tolerance);
        const auto plan = plan_of<TestType>(logits, {}, {.tolerance = tolerance, .max_iterations = 100000});
        // 1e-8 is added to sums of the order of 1 that differ by the factor exp(max): less than 50 times 1e-8 here.
        const double bound = 1e-6 * test::largest(expected);
        CHECK(test::largest(Matrix<double>(plan.template cast<double>() - expected)) < bound);
      }
}

TEST_CASE("sinkhorn: columns sum to 1 / num_experts and rows to 1 / num_tokens", "[routing][property]") {
  const auto logits = test::random_logits<double>(40, 8);
  check_sums(plan_of<double>(logits, {}, {.tolerance = 1e-10, .max_iterations = 1000}), 1.0 / 40, 1e-6);
}

TEST_CASE("sinkhorn: equal logits give a uniform plan at once", "[routing]") {
  Matrix<double> plan;
  const auto report = moe::sinkhorn<double>(Matrix<double>::Constant(6, 4, 3), Step{}, {}, plan);
  CHECK(report.converged);
  CHECK(report.iterations <= 2);
  // 1e-8 is added to sums of 1 / 4: entries are off by 4e-8 of 1 / 24.
  for (Index i = 0; i < plan.size(); ++i) CHECK_THAT(plan.data()[i], WithinAbs(1.0 / 24, 2e-9));
}

TEST_CASE("sinkhorn: a number added to a token's or an expert's logits changes nothing", "[routing][property]") {
  const auto logits = test::random_logits<double>(20, 5);
  const SinkhornOptions options{.tolerance = 1e-12, .max_iterations = 1000};
  const auto plan = plan_of<double>(logits, {}, options);
  Matrix<double> moved = logits;
  moved.row(3).array() += 800;  // exp of it is infinite
  moved.row(4).array() -= 800;
  moved.col(1).array() += 5;
  const auto same = plan_of<double>(moved, {}, options);
  CHECK(test::largest(Matrix<double>(plan - same)) < 1e-7);
}

TEST_CASE("sinkhorn: a low temperature finds the balanced assignment", "[routing]") {
  // Of all that give each expert two tokens, {0, 3} to the first and {1, 2} to the second has the largest sum, 10.4;
  // each token's larger logit would give three to the first.
  const auto scores = test::matrix<double>({{3, 1}, {2, 2.5}, {4, 3.9}, {1, 0}});
  const auto plan = plan_of<double>(scores * 50, {}, {.tolerance = 1e-9, .max_iterations = 10000});
  for (const Index t : {0, 3}) CHECK_THAT(plan(t, 0), WithinAbs(0.25, 1e-3));
  for (const Index t : {1, 2}) CHECK_THAT(plan(t, 1), WithinAbs(0.25, 1e-3));
}

TEST_CASE("sinkhorn: a temperature divides the logits", "[routing]") {
  const auto logits = test::random_logits<double>(20, 5);
  CHECK(test::same_bits(plan_of<double>(logits, {}, {.temperature = 0.25}), plan_of<double>(logits * 4)));
}

TEST_CASE("sinkhorn: a used workspace gives the bits of a new one", "[routing]") {
  moe::SinkhornWorkspace workspace;
  moe::RowBuffer<double> plan;
  Step step;
  for (const Index tokens : {600, 7, 40}) {
    auto logits = test::random_logits<double>(tokens, 6);
    logits.row(1).setConstant(-INFINITY);
    const auto valid = test::every_nth_padding(tokens, 3);
    step.valid = valid;
    moe::sinkhorn<double>(logits, step, {}, workspace, plan);
    CHECK(test::same_bits(plan.matrix(), plan_of<double>(logits, step)));
  }
  step.valid = {};
  CHECK_THROWS_AS(moe::sinkhorn<double>(plan.matrix(), step, {}, workspace, plan), std::invalid_argument);
}

TEST_CASE("sinkhorn: padding has no share, whatever it holds", "[routing]") {
  auto logits = test::random_logits<double>(9, 3);
  const auto valid = test::every_nth_padding(9, 3);
  Step step;
  step.valid = valid;
  for (const Index t : {0, 3, 6}) logits.row(t).setConstant(std::numeric_limits<double>::quiet_NaN());
  const auto plan = plan_of<double>(logits, step);
  Matrix<double> packed(6, 3);
  for (Index t = 0, r = 0; t < 9; ++t)
    if (t % 3 != 0) packed.row(r++) = logits.row(t);
  const auto expected = plan_of<double>(packed);
  for (Index t = 0, r = 0; t < 9; ++t) {
    if (t % 3 == 0)
      CHECK(plan.row(t).isZero(0));
    else
      CHECK(test::largest(Matrix<double>(plan.row(t) - expected.row(r++))) < 1e-15);
  }
}

TEST_CASE("sinkhorn: masks and logits far apart end in finite numbers", "[routing]") {
  auto logits = test::random_logits<double>(12, 4);
  logits.col(2).setConstant(-INFINITY);
  logits.row(1).setConstant(-INFINITY);
  logits(0, 0) = 1e300;
  logits(5, 1) = -1e300;
  const auto plan = plan_of<double>(logits, {}, {.tolerance = 0, .max_iterations = 3000});
  CHECK(plan.allFinite());
  CHECK(plan.col(2).isZero(0));
  CHECK(plan.row(1).isZero(0));
}

TEST_CASE("sinkhorn: says whether it converged", "[routing]") {
  const auto logits = test::random_logits<double>(20, 5);
  Matrix<double> plan;
  const auto stopped = moe::sinkhorn<double>(logits, Step{}, {.tolerance = 1e-9, .max_iterations = 2}, plan);
  CHECK(!stopped.converged);
  CHECK(stopped.iterations == 2);
  CHECK(stopped.change > 1e-9);
  CHECK(moe::sinkhorn<double>(Matrix<double>(0, 5), Step{}, {}, plan).converged);
  CHECK((plan.rows() == 0 && plan.cols() == 5));
}

TEMPLATE_TEST_CASE("sinkhorn: any number of threads gives the same bits", "[routing][property]", float, double) {
  const auto logits = test::random_logits<TestType>(900, 7);
  CHECK(test::all_equal(test::on_thread_counts([&] { return plan_of<TestType>(logits); })));
}

TEST_CASE("sinkhorn: bad options and logits are errors", "[routing][error]") {
  auto logits = test::random_logits<double>(3, 4);
  CHECK_THROWS_WITH(plan_of<double>(logits, {}, {.tolerance = -1}),
                    "moe::sinkhorn: tolerance is -1, expected at least 0");
  CHECK_THROWS_WITH(plan_of<double>(logits, {}, {.max_iterations = 0}),
                    "moe::sinkhorn: max_iterations is 0, expected at least 1");
  CHECK_THROWS_WITH(plan_of<double>(logits, {}, {.temperature = 0}),
                    "moe::sinkhorn: temperature is 0, expected a finite value above 0");
  logits(1, 2) = INFINITY;
  CHECK_THROWS_WITH(plan_of<double>(logits),
                    "moe::sinkhorn: logit of token 1 for expert 2 is inf, expected a finite number, or -infinity as a "
                    "mask");
}
