// SPDX-License-Identifier: MIT
// Contrast of a strong and a weak pass: the formula, its masks, and layers that share their experts.
#include "moe/train/self_contrast.hpp"

#include <vector>

#include "moe/expert/frozen.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/pool.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/routings.hpp"
#include "support/text.hpp"

using Catch::Matchers::WithinAbs;
using moe::ContrastOptions;
using moe::Index;
using moe::Matrix;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

template <class S>
Matrix<S> contrast(const Matrix<S>& strong, const Matrix<S>& weak, const ContrastOptions& options = {}) {
  Matrix<S> out;
  moe::self_contrast(strong, weak, options, out);
  return out;
}

/// By the probabilities, in plain loops.
Matrix<double> reference(const Matrix<double>& strong, const Matrix<double>& weak, const ContrastOptions& options) {
  Matrix<double> out(strong.rows(), strong.cols());
  for (Index t = 0; t < out.rows(); ++t) {
    double most = 0;
    for (Index j = 0; j < out.cols(); ++j) most = std::max(most, std::exp(strong(t, j) / options.strong_temperature));
    for (Index j = 0; j < out.cols(); ++j) {
      const double s = strong(t, j) / options.strong_temperature, w = weak(t, j) / options.weak_temperature;
      out(t, j) = std::exp(s) >= options.alpha * most ? (1 + options.beta) * s - options.beta * w : -kInf;
    }
  }
  return out;
}

Index best(const Matrix<double>& scores, Index t) {
  return std::max_element(scores.row(t).data(), scores.row(t).data() + scores.cols()) - scores.row(t).data();
}

}  // namespace

TEMPLATE_TEST_CASE("self_contrast: the unlikely class is masked, and the weak pass decides between the others",
                   "[train]", float, double) {
  const auto strong = test::matrix<TestType>({{TestType(2), TestType(1.9), TestType(-3)}});
  const auto out = contrast(strong, test::matrix<TestType>({{2, 0, -3}}));
  const double tolerance = 4 * std::numeric_limits<TestType>::epsilon();
  CHECK(out(0, 0) == 2);
  CHECK_THAT(static_cast<double>(out(0, 1)), WithinAbs(2.85, tolerance));
  CHECK(out(0, 2) == -std::numeric_limits<TestType>::infinity());
}

TEMPLATE_TEST_CASE("self_contrast: follows the plain loops around the register width", "[train]", float, double) {
  const ContrastOptions options{.beta = 0.7, .alpha = 0.2, .strong_temperature = 1.3, .weak_temperature = 0.8};
  for (const Index classes : {0, 1, 7, 8, 9, 33, 5000}) {
    CAPTURE(classes);
    const auto strong = test::random_matrix<TestType>(3, classes, 1),
               weak = test::random_matrix<TestType>(3, classes, 2);
    const auto out = contrast(strong, weak, options);
    const auto expected = reference(strong.template cast<double>(), weak.template cast<double>(), options);
    REQUIRE(out.rows() == 3);
    REQUIRE(out.cols() == classes);
    // Two factors, a product and a sum are rounded, of terms below 10; no logit of these lies on the border.
    const double tolerance = 40 * std::numeric_limits<TestType>::epsilon();
    for (Index t = 0; t < 3; ++t)
      for (Index j = 0; j < classes; ++j) {
        CAPTURE(t, j);
        if (std::isinf(expected(t, j)))
          REQUIRE(out(t, j) == -std::numeric_limits<TestType>::infinity());
        else
          REQUIRE_THAT(static_cast<double>(out(t, j)), WithinAbs(expected(t, j), tolerance));
      }
  }
}

TEST_CASE("self_contrast: beta 0 leaves the strong logits, alpha 1 the largest, a small alpha all", "[train]") {
  const auto strong = test::random_matrix<double>(9, 21, 1), weak = test::random_matrix<double>(9, 21, 2);
  const auto all = contrast(strong, weak, {.beta = 0, .alpha = 1e-300});
  CHECK(test::same_bits(all, strong));
  const auto largest = contrast(strong, weak, {.beta = 0.9, .alpha = 1});
  for (Index t = 0; t < 9; ++t)
    for (Index j = 0; j < 21; ++j) CHECK(std::isfinite(largest(t, j)) == (j == best(strong, t)));
  const auto ties = contrast(Matrix<double>{{1, 3, 3}}, Matrix<double>{{0, 0, 1}}, {.beta = 0.5, .alpha = 1});
  CHECK(ties == Matrix<double>{{-kInf, 4.5, 4}});
}

TEST_CASE("self_contrast: equal passes and constants added to a row keep the best class and all differences",
          "[train][property]") {
  const auto strong = test::random_matrix<double>(9, 21, 1), weak = test::random_matrix<double>(9, 21, 2);
  for (const double beta : {0.1, 0.5, 0.9}) {
    CAPTURE(beta);
    const ContrastOptions options{.beta = beta, .alpha = 0.3};
    const auto same = contrast(strong, strong, options), plain = contrast(strong, weak, options);
    const auto shifted = contrast<double>(strong.array() + 8, weak.array() - 4, options);
    for (Index t = 0; t < 9; ++t) {
      CHECK(best(same, t) == best(strong, t));
      for (Index j = 0; j < 21; ++j) {
        REQUIRE(std::isinf(plain(t, j)) == std::isinf(shifted(t, j)));
        // (1 + beta) 8 + beta 4 more; logits near 8 are rounded to 1e-15.
        if (!std::isinf(plain(t, j)))
          REQUIRE_THAT(shifted(t, j) - plain(t, j), WithinAbs((1 + beta) * 8 + beta * 4, 1e-13));
      }
    }
  }
}

TEST_CASE("self_contrast: masked strong logits stay masked, and no NaN arises", "[train]") {
  const Matrix<double> strong{{1, -kInf, 0.9}, {-kInf, -kInf, -kInf}, {-1e308, -kInf, -1e308}};
  const Matrix<double> weak{{0, -kInf, 1}, {-kInf, 0, 3}, {0, 0, 0}};
  for (const double alpha : {1.0, 0.1, 1e-300})
    for (const double temperature : {1e-3, 1.0, 1e300}) {
      CAPTURE(alpha, temperature);
      const auto out = contrast(strong, weak, {.alpha = alpha, .strong_temperature = temperature});
      for (Index t = 0; t < 3; ++t) CHECK(out(t, 1) == -kInf);
      CHECK(std::isfinite(out(0, 0)));
      CHECK((out(1, 0) == -kInf && out(1, 2) == -kInf));
      CHECK(!std::isnan(out(2, 0)));
    }
}

TEST_CASE("self_contrast: the same bits for any number of threads", "[train]") {
  const auto strong = test::random_matrix<float>(70, 801, 1), weak = test::random_matrix<float>(70, 801, 2);
  CHECK(test::all_equal(test::on_thread_counts([&] { return contrast(strong, weak); })));
}

TEST_CASE("self_contrast: what is not a number is named, before anything is written", "[train][error]") {
  const Matrix<double> good = test::random_matrix<double>(2, 3, 1), before = Matrix<double>::Constant(1, 1, 5);
  const auto complaint = [&](const Matrix<double>& strong, const Matrix<double>& weak, ContrastOptions options = {}) {
    Matrix<double> out = before;
    const std::string text = test::message_of([&] { moe::self_contrast(strong, weak, options, out); });
    CHECK(out == before);
    return text;
  };
  Matrix<double> bad = good;
  bad(1, 2) = std::nan("");
  CHECK(complaint(bad, good) ==
        "moe::self_contrast: strong logit of row 1, class 2 is nan, expected a finite number, or -infinity as a mask");
  bad(1, 2) = kInf;
  CHECK(complaint(good, bad) ==
        "moe::self_contrast: weak logit of row 1, class 2 is inf, expected a finite number, or -infinity as a mask");
  bad(1, 2) = -kInf;
  CHECK(complaint(good, bad, {.alpha = 1e-300}) ==
        "moe::self_contrast: weak logit of row 1, class 2 is -inf, expected a finite number where the strong one is "
        "kept");
  CHECK(complaint(good, Matrix<double>(2, 4)) == "moe::self_contrast: weak is [2, 4], expected [2, 3]");
  CHECK(complaint(good, good, {.beta = -1}) == "moe::self_contrast: beta is -1, expected a number of at least 0");
  CHECK(complaint(good, good, {.alpha = 0}) == "moe::self_contrast: alpha is 0, expected 0 < alpha <= 1");
  CHECK(complaint(good, good, {.alpha = 1.5}) == "moe::self_contrast: alpha is 1.5, expected 0 < alpha <= 1");
  CHECK(complaint(good, good, {.strong_temperature = 0}) ==
        "moe::self_contrast: strong_temperature is 0, expected a number above 0");
  CHECK(complaint(good, good, {.weak_temperature = std::nan("")}) ==
        "moe::self_contrast: weak_temperature is nan, expected a number above 0");
  CHECK(complaint(good, good, {.strong_temperature = 1e-320}).find("logits are multiplied by inf") !=
        std::string::npos);
  Matrix<double> twice = good;
  CHECK_THROWS_AS(moe::self_contrast(twice, good, {}, twice), std::invalid_argument);
}

TEST_CASE("self_contrast: a strong and a weak layer share their experts and leave each other alone", "[train][layer]") {
  using Mlp = moe::BasicMlp<moe::F64>;
  const moe::Frozen experts(moe::ExpertPool<Mlp>::random(6, {.input = 8, .hidden = 5, .output = 4}, 1));
  const auto router = moe::BasicLinearRouter<moe::F64>::random(6, 8, 2);
  const moe::MoeLayer strong(router, moe::TopKGate{.k = 2}, experts), weak(router, moe::TopKGate{.k = 1}, experts);
  CHECK(strong.experts()[3].up().panel(0) == weak.experts()[3].up().panel(0));
  CHECK(strong.experts()[3].up().panel(0) == (*experts)[3].up().panel(0));

  const auto tokens = test::random_matrix<double>(10, 8, 3);
  using Workspace = moe::BasicWorkspace<double>;
  Workspace strong_workspace, weak_workspace;
  Matrix<double> of_strong(10, 4), of_weak(10, 4), again(10, 4);
  strong.forward(tokens, of_strong, strong_workspace);
  weak.forward(tokens, of_weak, weak_workspace);
  CHECK(strong_workspace.routing.choices_per_token() == 2);
  CHECK(strong_workspace.plan().num_rows() == 20);
  CHECK(weak_workspace.plan().num_rows() == 10);  // half of the rows: what the second pass costs
  strong.forward(tokens, again, strong_workspace);
  CHECK(test::same_bits(again, of_strong));
  const ContrastOptions options{.beta = 0.4, .alpha = 0.5};
  const auto out = contrast(of_strong, of_weak, options), expected = reference(of_strong, of_weak, options);
  for (Index t = 0; t < 10; ++t) CHECK(best(out, t) == best(expected, t));
}
