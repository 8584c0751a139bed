// SPDX-License-Identifier: MIT
#include "moe/policy/frequency_loss.hpp"

#include <vector>

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Matrix;
using moe::RowVector;
using moe::Step;

TEST_CASE("frequency_loss: its gradient is 2 (w - v), by central differences too", "[policy][property]") {
  auto weight = test::probabilities_of(test::random_logits<double>(6, 3));
  const auto value = test::random_matrix<double>(6, 3, 2);
  const std::vector<std::uint8_t> valid = {1, 1, 0, 1, 1, 1};
  Step step;
  step.valid = valid;
  Matrix<double> dweight, ignored;
  double expected = 0;
  const double loss = moe::frequency_loss<double>(weight, value, step, dweight);
  for (Index t = 0; t < 6; ++t) {
    Index winner = 0;
    for (Index k = 1; k < 3; ++k)
      if (value(t, k) > value(t, winner)) winner = k;
    for (Index k = 0; k < 3 && t != 2; ++k) {
      const double gap = weight(t, k) - (k == winner ? 1 : 0);
      expected += gap * gap / 5;
      CHECK_THAT(dweight(t, k), WithinAbs(2 * gap / 5, 1e-15));
    }
  }
  CHECK_THAT(loss, WithinAbs(expected, 1e-14));
  CHECK(test::all_zero(dweight.row(2)));
  const auto again = [&] { return moe::frequency_loss<double>(weight, value, step, ignored); };
  CHECK(test::gradient_error(again, weight, dweight) < 1e-9);
}

TEST_CASE("frequency_loss: of one weight for all rows the histogram of winners is the best", "[policy]") {
  const auto value = test::random_matrix<double>(200, 3, 2);
  RowVector<double> won = RowVector<double>::Zero(3);
  for (Index t = 0; t < 200; ++t) {
    Index winner = 0;
    value.row(t).maxCoeff(&winner);
    won(winner) += 1.0 / 200;
  }
  Matrix<double> dweight;
  moe::frequency_loss<double>(won.replicate(200, 1), value, Step{}, dweight);
  CHECK(test::largest(dweight.colwise().sum()) < 1e-14);
}

TEST_CASE("frequency_loss: ties go to the first, no row is 0, and misuse is named", "[policy][error]") {
  const Matrix<float> weight = Matrix<float>::Constant(2, 2, 0.5f), value = Matrix<float>::Ones(2, 2);
  Matrix<float> dweight;
  moe::frequency_loss<float>(weight, value, Step{}, dweight);
  CHECK(dweight(0, 0) == -0.5f);
  CHECK(moe::frequency_loss<float>(Matrix<float>(0, 2), Matrix<float>(0, 2), Step{}, dweight) == 0);
  CHECK_THROWS_WITH(moe::frequency_loss<float>(weight, Matrix<float>(2, 3), Step{}, dweight),
                    ContainsSubstring("moe::frequency_loss: value is [2, 3], expected [2, 2]"));
  CHECK_THROWS_WITH(moe::frequency_loss<float>(Matrix<float>(2, 0), Matrix<float>(2, 0), Step{}, dweight),
                    ContainsSubstring("moe::frequency_loss: weight has 0 columns, expected at least 1"));
}
