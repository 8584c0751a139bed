// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <numeric>

#include "moe/train/clip.hpp"
#include "support/catch.hpp"
#include "support/sample_layer.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::WithinRel;

struct Pair {
  moe::RowVector<float> a;
  double b = 0;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("a", self.a...);
    f("b", self.b...);
  }
};

}  // namespace

TEST_CASE("gradient_norm: 3, 4, 12 have norm 13", "[train]") {
  REQUIRE(moe::gradient_norm(Pair{moe::RowVector<float>{{3, 4}}, -12}) == 13);
  REQUIRE(moe::gradient_norm(Pair{}) == 0);
}

TEMPLATE_TEST_CASE("gradient_norm: equals the norm of the logical elements", "[train]", moe::F32, moe::F64) {
  test::SampleLayer<TestType> gradient;
  const moe::RandomField random(moe::Purpose::User, 3);
  test::fill(gradient, [&](moe::Index k) { return random.normal(k); });
  const std::vector<double> flat = test::flatten(gradient);
  const double expected = std::sqrt(std::inner_product(flat.begin(), flat.end(), flat.begin(), 0.0));
  // n positive terms summed in two orders: at most n eps apart, n < 300.
  REQUIRE_THAT(moe::gradient_norm(gradient), WithinRel(expected, 300 * std::numeric_limits<double>::epsilon()));
}

TEST_CASE("gradient_norm: squares beyond float are summed in double", "[train]") {
  REQUIRE_THAT(moe::gradient_norm(Pair{moe::RowVector<float>{{3e30f, 4e30f}}, 0}),
               WithinRel(5e30, 1e-7));  // the rounding of the two literals to float
}

TEST_CASE("gradient_norm: the same bits for any number of threads", "[train]") {
  Pair gradient{moe::RowVector<float>(3 * moe::detail::kElementGrain + 5)};
  for (moe::Index k = 0; k < gradient.a.size(); ++k) gradient.a(k) = 1 / static_cast<float>(k + 1);
  const double serial = moe::gradient_norm(gradient);
  for (const moe::Index threads : {2, 7}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    REQUIRE(moe::gradient_norm(gradient) == serial);
  }
}

TEST_CASE("clip_by_norm: scales to the norm asked for and returns the one before", "[train]") {
  Pair gradient{moe::RowVector<float>{{3, 4}}, -12};
  REQUIRE(moe::clip_by_norm(gradient, 3.25) == 13);  // a quarter: exact
  REQUIRE(gradient.a == moe::RowVector<float>{{0.75f, 1}});
  REQUIRE(gradient.b == -3);
}

TEST_CASE("clip_by_norm: leaves a gradient within the norm alone", "[train]") {
  Pair gradient{moe::RowVector<float>{{3, 4}}, -12};
  REQUIRE(moe::clip_by_norm(gradient, 13) == 13);
  REQUIRE(moe::clip_by_norm(gradient, std::numeric_limits<double>::infinity()) == 13);
  REQUIRE(gradient.a == moe::RowVector<float>{{3, 4}});
}

TEST_CASE("clip_by_norm: reports a norm that is not finite and leaves the gradient alone", "[train]") {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Pair infinite{moe::RowVector<float>{{kInf, 4}}, -12}, nan{moe::RowVector<float>{{std::nanf(""), 4}}, -12};
  REQUIRE(std::isinf(moe::clip_by_norm(infinite, 1)));
  REQUIRE(std::isnan(moe::clip_by_norm(nan, 1)));
  REQUIRE(infinite.a(1) == 4);
  REQUIRE(nan.b == -12);
}

TEST_CASE("clip_by_norm: padding of panels stays +0", "[train]") {
  test::SampleLayer<moe::F32> gradient;
  test::fill(gradient, [](moe::Index) { return 1.0; });
  moe::clip_by_norm(gradient, 1e-3);
  REQUIRE(test::count_zero_bits(gradient) == test::num_stored(gradient) - moe::num_parameters(gradient));
}

TEST_CASE("clip_by_norm: a limit that is not positive is refused", "[train][error]") {
  Pair gradient;
  for (const double limit : {0.0, -1.0, std::nan("")})
    REQUIRE_THROWS_AS(moe::clip_by_norm(gradient, limit), std::invalid_argument);
}
