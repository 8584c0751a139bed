// SPDX-License-Identifier: MIT
#include "moe/train/disagreement.hpp"

#include "support/catch.hpp"
#include "support/routings.hpp"
#include "support/text.hpp"

using moe::disagreement;
using moe::Index;
using moe::Matrix;
using Scores = std::vector<Matrix<double>>;

namespace {

/// Pair by pair, from the first best class of each row.
double reference(const Scores& scores, const std::vector<std::uint8_t>& valid) {
  const auto best = [](const Matrix<double>& of, Index t) {
    Index result = 0;
    for (Index j = 1; j < of.cols(); ++j)
      if (of(t, j) > of(t, result)) result = j;
    return result;
  };
  double differing = 0, pairs = 0;
  for (std::size_t a = 0; a < scores.size(); ++a)
    for (std::size_t b = a + 1; b < scores.size(); ++b)
      for (Index t = 0; t < scores[0].rows(); ++t) {
        if (!valid[static_cast<std::size_t>(t)]) continue;
        pairs += 1;
        differing += best(scores[a], t) != best(scores[b], t) ? 1 : 0;
      }
  return differing / pairs;
}

}  // namespace

TEST_CASE("disagreement: the share of pairs of best classes that differ", "[train]") {
  // Best classes by row: 0 0 1, of which two pairs in three differ, and 1 1 1.
  const auto matrix = test::matrix<double>;
  const Scores scores{matrix({{3, 1}, {0, 1}}), matrix({{2, 0}, {4, 5}}), matrix({{0, 1}, {-2, -1}})};
  CHECK(disagreement(scores) == (2. / 3 + 0) / 2);
  CHECK(disagreement(Scores{scores[0], scores[0]}) == 0);
  CHECK(disagreement(Scores{matrix({{1, 0}}), matrix({{0, 1}})}) == 1);
  CHECK(disagreement(Scores{matrix({{1, 1}}), matrix({{1, 0}})}) == 0);  // ties go to the lower class
}

TEMPLATE_TEST_CASE("disagreement: follows the plain loops, padding left out, on any number of threads", "[train]",
                   float, double) {
  constexpr Index kRows = 700;
  std::vector<Matrix<TestType>> scores;
  Scores exact;
  for (std::uint64_t pass = 0; pass < 4; ++pass) {
    scores.push_back(test::random_matrix<TestType>(kRows, 3, pass + 1));
    exact.push_back(scores.back().template cast<double>());
  }
  const auto valid = test::every_nth_padding(kRows, 3);
  for (std::size_t t = 0; t < valid.size(); ++t)
    if (!valid[t]) scores[1].row(static_cast<Index>(t)).setConstant(test::kNan<TestType>);
  moe::Step step;
  step.valid = valid;
  const auto results = test::on_thread_counts([&] { return disagreement(scores, step); });
  CHECK(test::all_equal(results));
  CHECK_THAT(results[0], Catch::Matchers::WithinAbs(reference(exact, valid), 1e-15));  // whole numbers, and a division
}

TEST_CASE("disagreement: nothing to compare is 0, and what cannot be compared an error", "[train][error]") {
  const Matrix<double> scores = test::random_matrix<double>(2, 3, 1);
  const std::vector<std::uint8_t> none(2, 0);
  moe::Step padding;
  padding.valid = none;
  CHECK(disagreement(Scores{scores, scores}, padding) == 0);
  CHECK(disagreement(Scores(2, Matrix<double>(0, 3))) == 0);

  const auto complaint = [](const Scores& of) { return test::message_of([&] { disagreement(of); }); };
  CHECK(complaint({scores}) == "moe::disagreement: 1 predictions, expected at least 2");
  CHECK(complaint({scores, Matrix<double>::Zero(2, 4)}) == "moe::disagreement: scores is [2, 4], expected [2, 3]");
  CHECK(complaint(Scores(2, Matrix<double>(2, 0))) == "moe::disagreement: scores have 0 classes, expected at least 1");
  Matrix<double> bad = scores;
  bad(1, 2) = test::kNan<double>;
  CHECK(complaint({scores, bad}) ==
        "moe::disagreement: score of prediction 1, row 1, class 2 is nan, expected a number");
  padding.valid = std::span(none).first(1);
  CHECK_THROWS_AS(disagreement(Scores{scores, scores}, padding), std::invalid_argument);
}
