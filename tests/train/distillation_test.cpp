// SPDX-License-Identifier: MIT
#include "moe/train/distillation.hpp"

#include <vector>

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"
#include "support/text.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;
using moe::Matrix;
using moe::StagedDistillation;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

/// A loss together with the gradient it wrote.
template <class S>
struct Result {
  double value = 0;
  Matrix<S> gradient = {};
  bool operator==(const Result&) const = default;
};

template <class S>
Result<S> distil(const Matrix<S>& student, const Matrix<S>& teacher, double temperature = 1,
                 const moe::Step& step = {}) {
  Result<S> result;
  result.value = moe::distillation_loss<S>(student, teacher, temperature, step, result.gradient);
  return result;
}

/// T^2 sum p log(p / q) of one row, from the plainest softmax.
double reference(const Matrix<double>& student, const Matrix<double>& teacher, double temperature) {
  const Matrix<double> p = test::probabilities_of<double>(teacher / temperature),
                       q = test::probabilities_of<double>(student / temperature);
  double sum = 0;
  for (Index j = 0; j < p.cols(); ++j) sum += p(0, j) * std::log(p(0, j) / q(0, j));
  return temperature * temperature * sum;
}

}  // namespace

TEMPLATE_TEST_CASE("distillation_loss: the value and gradient of two known distributions", "[train]", float, double) {
  const auto log = [](double p) { return static_cast<TestType>(std::log(p)); };
  const auto teacher = test::matrix<TestType>({{log(.7), log(.2), log(.1)}}),
             student = test::matrix<TestType>({{log(.5), log(.3), log(.2)}});
  const auto result = distil(student, teacher);
  CHECK_THAT(result.value, WithinAbs(.085123, 1e-6));  // the digits given
  const double expected[3] = {-.2, .1, .1};            // q - p
  const double tolerance = 8 * std::numeric_limits<TestType>::epsilon();
  for (Index j = 0; j < 3; ++j)
    CHECK_THAT(static_cast<double>(result.gradient(0, j)), WithinAbs(expected[j], tolerance));
}

TEST_CASE("distillation_loss: follows the plain formula at any temperature, as does its gradient", "[train]") {
  for (const double temperature : {0.3, 1.0, 4.0})
    for (const Index classes : {1, 2, 9, 35}) {
      CAPTURE(temperature, classes);
      const auto one = test::random_matrix<double>(1, classes, 1), other = test::random_matrix<double>(1, classes, 2);
      CHECK_THAT(distil(one, other, temperature).value, WithinAbs(reference(one, other, temperature), 1e-12));

      auto student = test::random_matrix<double>(4, classes, 3);
      const auto teacher = test::random_matrix<double>(4, classes, 4);
      const std::vector<std::uint8_t> valid{1, 1, 0, 1};
      moe::Step step;
      step.valid = valid;
      const auto result = distil(student, teacher, temperature, step);
      const auto loss = [&] { return distil(student, teacher, temperature, step).value; };
      CHECK(test::gradient_error(loss, student, result.gradient) < 1e-8);
      for (Index t = 0; t < 4; ++t)
        CHECK_THAT(result.gradient.row(t).sum(), WithinAbs(0, 1e-14));  // moving all logits of a row changes nothing
      CHECK(result.gradient.row(2).isZero(0));
    }
}

TEST_CASE("distillation_loss: equal logits give exactly 0", "[train]") {
  const auto logits = test::random_matrix<float>(5, 8, 1);
  const auto result = distil(logits, logits, 2);
  CHECK(result.value == 0);
  CHECK(result.gradient.isZero(0));
}

TEST_CASE("distillation_loss: at a high temperature the gradient is that of centred logits", "[train][property]") {
  constexpr Index kClasses = 7;
  const auto student = test::random_matrix<double>(1, kClasses, 1),
             teacher = test::random_matrix<double>(1, kClasses, 2);
  const Matrix<double> difference = student - teacher;
  const double mean = difference.sum() / kClasses;
  const auto gradient = distil(student, teacher, 1e5).gradient;
  for (Index j = 0; j < kClasses; ++j)  // the next term of the series is of order |logit|^2 / T
    CHECK_THAT(gradient(0, j), WithinAbs((difference(0, j) - mean) / kClasses, 1e-4));
}

TEST_CASE("distillation_loss: constants added to a row change nothing", "[train][property]") {
  const auto student = test::random_matrix<double>(6, 9, 1), teacher = test::random_matrix<double>(6, 9, 2);
  const auto plain = distil(student, teacher, 2);
  const auto shifted = distil<double>(student.array() + 3.7, teacher.array() - 100, 2);
  CHECK_THAT(shifted.value, WithinAbs(plain.value, 1e-12));  // logits near 100 are rounded to 1e-14
  CHECK((shifted.gradient - plain.gradient).isZero(1e-12));
}

TEST_CASE("distillation_loss: extreme logits and masks", "[train]") {
  const auto extreme = distil(Matrix<float>{{-1000, 1000, 0}}, Matrix<float>{{1000, -1000, 0}});
  CHECK(extreme.value == 2000);  // p = (1, 0, 0), log q_0 = -2000
  CHECK(extreme.gradient == Matrix<float>{{-1, 1, 0}});

  const Matrix<double> student{{1, -kInf, 0.25}}, teacher{{0.5, -kInf, 2}};
  const auto masked = distil(student, teacher);
  CHECK_THAT(masked.value, WithinAbs(distil(Matrix<double>{{1, 0.25}}, Matrix<double>{{0.5, 2}}).value, 1e-15));
  CHECK(masked.gradient(0, 1) == 0);
  CHECK_THAT(distil(Matrix<double>{{0, 0}}, Matrix<double>{{0, -kInf}}).value, WithinRel(std::log(2.), 1e-15));
  CHECK(distil(Matrix<double>{{0, -kInf}}, Matrix<double>{{0, 0}}).value == kInf);
}

TEST_CASE("distillation_loss: NaN and +inf make value and gradient NaN, unless in padding", "[train]") {
  const Matrix<double> good = Matrix<double>::Zero(1, 3);
  for (const double bad : {kInf, std::nan("")})
    for (Index place = 0; place < 3; ++place) {
      Matrix<double> logits = good;
      logits(0, place) = bad;
      CHECK((std::isnan(distil(logits, good).value) && std::isnan(distil(good, logits).value)));
      CHECK((std::isnan(distil(logits, good).gradient(0, 0)) && std::isnan(distil(good, logits).gradient(0, 0))));
    }
  const std::vector<std::uint8_t> none{0, 0};
  moe::Step padding;
  padding.valid = none;
  const auto result = distil<double>(test::nan_matrix<double>(2, 3), test::nan_matrix<double>(2, 3), 1, padding);
  CHECK(result.value == 0);
  CHECK(result.gradient.isZero(0));
  CHECK(distil(Matrix<double>(0, 3), Matrix<double>(0, 3)).value == 0);
}

TEST_CASE("distillation_loss: the same bits for any number of threads", "[train]") {
  const auto student = test::random_matrix<float>(600, 9, 1), teacher = test::random_matrix<float>(600, 9, 2);
  CHECK(test::all_equal(test::on_thread_counts([&] { return distil(student, teacher, 2); })));
}

TEST_CASE("distillation_loss: what does not fit is refused before anything is written", "[train][error]") {
  const auto logits = test::random_matrix<double>(3, 4, 1);
  Matrix<double> gradient;
  const auto complaint = [&](const Matrix<double>& teacher, double temperature) {
    return test::message_of([&] { moe::distillation_loss<double>(logits, teacher, temperature, {}, gradient); });
  };
  CHECK(complaint(Matrix<double>(3, 5), 1) == "moe::distillation_loss: teacher is [3, 5], expected [3, 4]");
  for (const auto& [temperature, text] : {std::pair(0., "0"), std::pair(-1., "-1"), std::pair(kInf, "inf")})
    CHECK(complaint(logits, temperature) ==
          std::string("moe::distillation_loss: temperature is ") + text + ", expected a number above 0");
  CHECK(gradient.size() == 0);
  Matrix<double> twice = logits;
  CHECK_THROWS_AS(moe::distillation_loss<double>(twice, logits, 1, {}, twice), std::invalid_argument);
  CHECK_THROWS_AS(moe::distillation_loss<double>(logits, twice, 1, {}, twice), std::invalid_argument);
  CHECK(twice == logits);
}

TEST_CASE("StagedDistillation: alpha before the stop, 0 from it on", "[train]") {
  const StagedDistillation staged{.alpha = 0.7, .temperature = 2, .stop = 5};
  CHECK(staged.weight(0) == 0.7);
  CHECK(staged.weight(4) == 0.7);
  CHECK(staged.weight(5) == 0);
  CHECK(staged.weight(moe::kFinished) == 0);
  CHECK(StagedDistillation{}.weight(0) == 0);
  CHECK_NOTHROW(staged.validate());
  CHECK_THROWS_WITH(StagedDistillation{.alpha = -1}.validate(),
                    "moe::StagedDistillation: alpha is -1, expected a number of at least 0");
  CHECK_THROWS_WITH(StagedDistillation{.temperature = 0}.validate(),
                    "moe::StagedDistillation: temperature is 0, expected a number above 0");
}
