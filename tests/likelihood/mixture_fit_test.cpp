// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>

#include "gaussian/simulated.hpp"
#include "likelihood/mixtures.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;
using moe::Matrix;

namespace {

/// What is asked of every fit: finite numbers and a path that never falls.
template <class F, class G>
void require_sound(const moe::MixtureFit<F, G>& fit) {
  CHECK(std::isfinite(fit.log_likelihood));
  CHECK(fit.model.slope.allFinite());
  CHECK(fit.model.gate_slope.allFinite());
  CHECK(fit.model.shape.allFinite());
  CHECK(std::is_sorted(fit.path.begin(), fit.path.end()));
  CHECK(fit.iterations <= 1000);
}

/// Estimates and standard errors by name.
void require_estimates(const moe::StandardErrors& errors, const std::vector<std::string>& names,
                       const std::vector<double>& estimates, const std::vector<double>& standard, double tolerance) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    CAPTURE(names[i], errors.explanation);
    CHECK_THAT(errors[names[i]].estimate, WithinRel(estimates[i], tolerance));
    REQUIRE(errors[names[i]].error);
    CHECK_THAT(errors[names[i]].error->observed, WithinRel(standard[i], tolerance));
  }
}

const std::vector<std::string> kOneExpert = {"b[0]", "a[0,0]", "a[0,1]"};

}  // namespace

// The reference values: see tests/data/likelihood/README.md.
TEST_CASE("fit_mixture: one expert is R's glm and lm", "[likelihood][golden]") {
  const auto counts = test::reference_response("counts");
  const auto poisson = moe::fit_mixture<moe::Poisson>(counts, 1);
  CHECK_THAT(poisson.log_likelihood, WithinAbs(-544.416087138667, 1e-9));
  require_estimates(moe::standard_errors(poisson, counts), kOneExpert,
                    {1.38958019318061, 0.17379718163693, 0.281888698586546},
                    {0.0405516891554825, 0.0317703386551739, 0.0665573312941678}, 1e-8);
  const auto successes = test::reference_response("succ", "trials");
  const auto binomial = moe::fit_mixture<moe::Binomial>(successes, 1);
  CHECK_THAT(binomial.log_likelihood, WithinAbs(-394.167031266057, 1e-9));
  require_estimates(moe::standard_errors(binomial, successes), kOneExpert,
                    {-0.457693717840856, 0.496405801433335, 0.25223964023058},
                    {0.0595079079888933, 0.0494429969237251, 0.100296796967238}, 1e-8);
  const auto line = test::reference_response("y");
  const auto normal = moe::fit_mixture<moe::Normal>(line, 1);
  CHECK_THAT(normal.log_likelihood, WithinAbs(-220.086491730881, 1e-9));
  const double share = std::sqrt(157.0 / 160);  // maximum likelihood divides by n, lm by n - 3
  require_estimates(moe::standard_errors(normal, line), kOneExpert,
                    {0.962951458368247, 0.838126878436814, -0.404546222359462},
                    {0.0768643048578897 * share, 0.0622501679232234 * share, 0.128815433769657 * share}, 1e-8);
}

TEST_CASE("fit_mixture: one expert is R's multinom and a direct maximum of the t likelihood", "[likelihood][golden]") {
  const auto classes = test::reference_response("class");
  const auto multinomial = moe::fit_mixture(classes, 1, moe::Multinomial{.classes = 3});
  CHECK_THAT(multinomial.log_likelihood, WithinAbs(-148.242483262754, 1e-9));
  // multinom stops at 1e-8 of the likelihood, which is 1e-4 standard errors, and often later.
  require_estimates(
      moe::standard_errors(multinomial, classes), {"b[0|0]", "a[0,0|0]", "a[0,1|0]", "b[0|1]", "a[0,0|1]", "a[0,1|1]"},
      {0.151221633925, 0.828119249792, 0.345023247801, -0.121733346154, -0.428157640647, 0.299067918774},
      {0.219643779749, 0.194205701072, 0.356167496411, 0.238514810803, 0.198329711919, 0.350741152024}, 1e-5);
  const auto line = test::reference_response("y");
  const auto robust = moe::fit_mixture<moe::StudentT>(line, 1);
  CHECK_THAT(robust.log_likelihood, WithinAbs(-193.550803172907, 1e-9));
  const auto errors = moe::standard_errors(robust, line);
  // nlm stops at scores of 1e-8; the standard errors are from second differences of the likelihood, good to 1e-5.
  require_estimates(errors, {"b[0]", "a[0,0]", "a[0,1]", "log degrees of freedom[0]"},
                    {0.972691876402224, 0.822961007817929, -0.366459895898048, 0.97328851360347},
                    {0.0542181766750982, 0.0438394517531373, 0.0873267904515386, 0.227925447840367}, 1e-5);
  CHECK_THAT(0.5 * std::log(robust.model.shape(0, 0)), WithinAbs(-0.613298610540862, 1e-7));
}

TEST_CASE("fit_mixture: at least the likelihood of flexmix", "[likelihood][golden]") {
  const auto counts = test::reference_response("counts");
  const auto two = moe::fit_mixture<moe::Poisson>(counts, 2), three = moe::fit_mixture<moe::Poisson>(counts, 3);
  CAPTURE(two.log_likelihood, three.log_likelihood);
  CHECK(two.log_likelihood >= -339.246811907359 - 1e-6);
  CHECK(three.log_likelihood >= -328.138725330351 - 1e-6);
  CHECK(two.converged);
  CHECK(!two.flags.not_reproduced);
  require_sound(three);
  const auto binomial = moe::fit_mixture<moe::Binomial>(test::reference_response("succ", "trials"), 2);
  CAPTURE(binomial.log_likelihood);
  CHECK(binomial.log_likelihood >= -269.801205105548 - 1e-6);
}

TEST_CASE("fit_mixture: Normal experts reach the maximum of the Gaussian fit", "[likelihood]") {
  const auto data = test::simulated(test::two_lines(), 400, 11);
  const auto gaussian =
      moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 12, .remaining_tolerance = 1e-12, .score_tolerance = 1e-10});
  const auto mixture = moe::fit_mixture<moe::Normal>(data, 2);
  CHECK_THAT(mixture.log_likelihood, WithinAbs(gaussian.log_likelihood, 1e-8));
  CHECK((mixture.model.slope - gaussian.model.slope).cwiseAbs().maxCoeff() < 1e-6);
  CHECK((mixture.model.gate_slope - gaussian.model.gate_slope).cwiseAbs().maxCoeff() < 1e-5);
  const auto ours = moe::standard_errors(mixture, data), theirs = moe::standard_errors(gaussian, data);
  for (const char* name : {"beta1[0,0]", "beta0[0]", "a[0,0]", "b[1]"}) {
    CAPTURE(name);
    CHECK_THAT(ours[name].error->observed, WithinRel(theirs[name].error->observed, 1e-5));
    CHECK_THAT(ours[name].error->sandwich, WithinRel(theirs[name].error->sandwich, 1e-5));
  }
  // Nearly normal data: never below, whatever the degrees of freedom.
  const auto robust = moe::fit_mixture<moe::StudentT>(data, 2);
  CHECK(robust.log_likelihood >= gaussian.log_likelihood - 1e-6);
  require_sound(robust);
  const auto from = moe::fit_mixture_from(data, moe::mixture_of<moe::StudentT>(gaussian.model));
  CHECK(from.log_likelihood >= gaussian.log_likelihood - 1e-6);
}

TEST_CASE("fit_mixture: robust experts and noise do not follow outliers", "[likelihood]") {
  const auto truth = test::two_lines();
  moe::ResponseData data = test::simulated(truth, 500, 12);
  for (Index i = 0; i < 500; i += 20) data.y(i) = i % 40 ? 12 : 15;  // 5%, far away on one side
  const auto worst = [&](const auto& fit) {
    require_sound(fit);
    CAPTURE(fit.model.slope, fit.model.intercept, fit.model.shape);
    const auto k = Eigen::seqN(0, 2);
    return std::max((fit.model.slope - truth.slope).cwiseAbs().maxCoeff(),
                    (fit.model.intercept(k) - truth.intercept).cwiseAbs().maxCoeff());
  };
  const auto normal = moe::fit_mixture<moe::Normal>(data, 2);
  const auto robust = moe::fit_mixture<moe::StudentT>(data, 2);
  const auto noise = moe::fit_mixture<moe::UniformNoise<moe::Normal>>(data, 2);
  CHECK(worst(normal) > 0.5);   // one expert is the outliers, the other all the rest
  CHECK(worst(robust) < 0.25);  // three standard errors
  CHECK(worst(noise) < 0.25);
  CHECK(robust.log_likelihood > normal.log_likelihood);
  CHECK(noise.model.num_components() == 3);
  CHECK_THAT(noise.expert_rows(2), WithinAbs(30, 10));  // it takes a part of the tails, too
  const auto r = moe::responsibilities(noise.model, data);
  for (Index i = 0; i < 500; i += 20) CHECK(r(i, 2) > 0.9);
}

TEST_CASE("fit_mixture: frequency weights are rows that repeat", "[likelihood][property]") {
  const auto check = [](const auto& model) {
    moe::ResponseData data = test::simulated(model, 120, 5);
    data.weights = Eigen::VectorXd::NullaryExpr(120, [](Index i) { return static_cast<double>(i % 3); });
    std::vector<Index> rows;
    for (Index i = 0; i < 120; ++i) rows.insert(rows.end(), static_cast<std::size_t>(i % 3), i);
    moe::ResponseData repeated = moe::detail::rows_of(data, rows);
    repeated.weights = {};
    const auto once = moe::fit_mixture_from(data, model), twice = moe::fit_mixture_from(repeated, model);
    CHECK(once.converged);
    CHECK_THAT(once.log_likelihood, WithinRel(twice.log_likelihood, 1e-11));
    const auto a = moe::standard_errors(once, data), b = moe::standard_errors(twice, repeated);
    REQUIRE(a.parameters.size() == b.parameters.size());
    for (std::size_t i = 0; i < a.parameters.size(); ++i) {
      CAPTURE(a.parameters[i].name);
      CHECK_THAT(a.parameters[i].estimate,
                 WithinAbs(b.parameters[i].estimate, 1e-9 * (1 + std::abs(b.parameters[i].estimate))));
      REQUIRE(a.parameters[i].error.has_value() == b.parameters[i].error.has_value());
      if (!a.parameters[i].error) continue;
      CHECK_THAT(a.parameters[i].error->observed, WithinRel(b.parameters[i].error->observed, 1e-9));
      CHECK_THAT(a.parameters[i].error->sandwich, WithinRel(b.parameters[i].error->sandwich, 1e-9));
    }
    CHECK_THAT(moe::criteria(once, data).icl, WithinRel(moe::criteria(twice, repeated).icl, 1e-9));
  };
  check(test::random_mixture<moe::Poisson>(2, 1, 1));
  check(test::random_mixture<moe::StudentT>(1, 1, 2));
  check(test::random_mixture<moe::Binomial>(1, 2, 3));
}

TEST_CASE("fit_mixture: the truth is recovered", "[likelihood]") {
  const auto check = [](auto truth, Index n) {
    truth.gate_slope.topRows(1) << 3;
    truth.gate_bias(0) = 0.3;
    const auto data = test::simulated(truth, n, 21);
    const auto fit = moe::fit_mixture(data, 2, truth.family, truth.gate, {.wanted_hits = 2});
    require_sound(fit);
    CHECK(fit.converged);
    CHECK(fit.log_likelihood >= moe::log_likelihood(truth, data) - 1e-9);
    const auto errors = moe::standard_errors(fit, data);
    const Eigen::VectorXd wanted = moe::free_parameters(truth);
    for (Index i = 0; i < wanted.size(); ++i) {
      const auto& p = errors.parameters[static_cast<std::size_t>(i)];
      CAPTURE(p.name, p.estimate, wanted(i), errors.explanation);
      REQUIRE(p.error);
      CHECK(std::abs(p.estimate - wanted(i)) < 3.5 * p.error->observed);
    }
  };
  auto counts = moe::MixtureRegression<moe::Poisson>::zero(2, 1);
  counts.slope << 0.6, -0.5;
  counts.intercept << 0.4, 2;
  check(counts, 400);
  auto proportions = moe::MixtureRegression<moe::Binomial>::zero(2, 1);
  proportions.slope << 1, -1.5;
  proportions.intercept << -1.5, 1.5;
  check(proportions, 700);
  auto heavy = moe::MixtureRegression<moe::StudentT>::zero(2, 1);
  heavy.slope << 1, -1.5;
  heavy.intercept << -3, 3;
  heavy.shape << 0.3, 3, 0.2, 4;
  check(heavy, 800);
}

TEST_CASE("fit_mixture: classes in two experts are recovered", "[likelihood]") {
  auto truth = moe::MixtureRegression<moe::Multinomial>::zero(2, 1, {.classes = 3});
  truth.gate_slope.topRows(1) << 4;
  truth.slope << 3, -2, -3, 3;
  truth.intercept << -2, 1, 2, -1;
  const auto data = test::simulated(truth, 800, 5);
  const auto fit = moe::fit_mixture(data, 2, truth.family, truth.gate, {.wanted_hits = 1, .most_starts = 24});
  require_sound(fit);
  CHECK(fit.log_likelihood >= moe::log_likelihood(truth, data));
  const Matrix<double> x = test::uniform_inputs(50, 1, 3);
  CHECK((moe::predict_mean(fit.model, x) - moe::predict_mean(truth, x)).cwiseAbs().maxCoeff() < 0.2);
  CHECK((moe::predict_mean(fit.model, x).rowwise().sum().array() - 1).abs().maxCoeff() < 1e-12);
}

TEST_CASE("fit_mixture: EM never falls on random problems, and ends", "[likelihood][property]") {
  const moe::MixtureFitOptions quick{.wanted_hits = 1, .most_starts = 12, .max_iterations = 200};
  const auto check = [&](const auto& family, const auto& gate, std::uint64_t seed) {
    CAPTURE(seed);
    const auto data = test::simulated(test::random_mixture(2, 1, seed, family, gate), 60, seed);
    require_sound(moe::fit_mixture(data, 1 + static_cast<Index>(seed % 3), family, gate, quick));
  };
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    check(moe::Poisson{}, moe::SoftmaxGate{}, seed);
    check(moe::Binomial{}, moe::SoftmaxGate{}, seed);
    check(moe::Multinomial{.classes = 3}, moe::SoftmaxGate{}, seed);
    check(moe::StudentT{}, moe::SoftmaxGate{}, seed);
    check(moe::UniformNoise<moe::StudentT>({}, -40, 40), moe::SoftmaxGate{}, seed);
  }
  check(moe::Poisson{}, moe::TopKGate{.k = 1}, 7);
  check(moe::Poisson{}, moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>{}, 8);
}

TEST_CASE("fit_mixture: data without a finite maximum end with flags", "[likelihood]") {
  const Matrix<double> x = test::uniform_inputs(80, 1, 9);
  const moe::MixtureFitOptions quick{.wanted_hits = 1, .most_starts = 12};
  const auto of = [&](auto&& y) {
    return moe::ResponseData(moe::RegressionData{x, Eigen::VectorXd::NullaryExpr(80, y)});
  };
  const auto zeros = of([](Index) { return 0.0; });
  for (const Index k : {1, 2}) {
    const auto fit = moe::fit_mixture<moe::Poisson>(zeros, k, {}, {}, quick);
    require_sound(fit);
    CHECK(fit.flags.expert_separated);
    CHECK_THAT(fit.log_likelihood, WithinAbs(0, 1e-6));
    require_sound(moe::fit_mixture<moe::Binomial>(zeros, k, {}, {}, quick));
    require_sound(moe::fit_mixture<moe::StudentT>(zeros, k, {}, {}, quick));
  }
  auto separated = of([&](Index i) { return x(i, 0) > 0 ? 1.0 : 0.0; });
  for (Index i = 0; i < 80; ++i) separated.x(i, 0) += x(i, 0) > 0 ? 0.2 : -0.2;
  const auto logistic = moe::fit_mixture<moe::Binomial>(separated, 1);
  require_sound(logistic);
  CHECK(logistic.flags.expert_separated);
  CHECK_THAT(logistic.log_likelihood, WithinAbs(0, 1e-6));
  CHECK(!moe::standard_errors(logistic, separated)["a[0,0]"].error);
  require_sound(moe::fit_mixture(separated, 2, moe::Multinomial{.classes = 2}, {}, quick));
  const auto huge = of([&](Index i) { return std::floor(1e14 * (2 + x(i, 0))); });
  const auto counts = moe::fit_mixture<moe::Poisson>(huge, 1);
  require_sound(counts);
  CHECK_THAT(counts.model.intercept(0), WithinAbs(std::log(2e14), 0.2));
  require_sound(moe::fit_mixture<moe::Poisson>(huge, 2, {}, {}, quick));
  moe::ResponseData twice = of([&](Index i) { return static_cast<double>(i / 20); });
  for (Index i = 0; i < 80; ++i) twice.x(i, 0) = static_cast<double>(i % 2);  // eight different rows
  require_sound(moe::fit_mixture<moe::Poisson>(twice, 3, {}, {}, quick));
  require_sound(moe::fit_mixture<moe::StudentT>(twice, 2, {}, {}, quick));
}

TEST_CASE("fit_mixture: bad input is refused", "[likelihood][error]") {
  const auto message = [](const moe::ResponseData& data, Index k, moe::MixtureFitOptions options = {}) {
    try {
      moe::fit_mixture<moe::Poisson>(data, k, {}, {}, options);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("(nothing was thrown)");
  };
  const auto data = test::simulated(test::random_mixture<moe::Poisson>(1, 1, 1), 30, 1);
  CHECK(message(data, 0) == "moe::fit_mixture: num_experts is 0, expected at least 1");
  CHECK(message(data, 1, {.most_starts = 0}) == "moe::fit_mixture: most_starts is 0, expected a finite number >= 1");
  CHECK(message(moe::detail::rows_of(data, std::vector<Index>{3}), 1).find("is constant") != std::string::npos);
  CHECK(message(data, 10) == "moe::fit_mixture: there are 30 rows, expected at least as many as parameters, 38");
  moe::ResponseData bad = data;
  bad.x.setConstant(2);
  CHECK(message(bad, 1) == "moe::fit_mixture: column 0 of x is constant, 2, expected columns that vary");
  bad = data;
  bad.offset = Eigen::VectorXd::Zero(3);
  CHECK(message(bad, 1) == "moe::fit_mixture: offset has 3 numbers, expected as many as x has rows, 30");
}

TEST_CASE("fit_mixture: exposures are offsets", "[likelihood]") {
  // Counts over times t: with log t as the offset the rate has the coefficients of counts over t = 1.
  auto truth = test::random_mixture<moe::Poisson>(1, 2, 3);
  moe::ResponseData data;
  data.x = test::uniform_inputs(300, 2, 3);
  data.offset = Eigen::VectorXd::NullaryExpr(300, [](Index i) { return std::log(1.0 + static_cast<double>(i % 7)); });
  data.y = moe::sample(truth, data.x, 4, {}, data.offset);
  const auto fit = moe::fit_mixture<moe::Poisson>(data, 1);
  CHECK((fit.model.slope - truth.slope).cwiseAbs().maxCoeff() < 0.15);
  CHECK_THAT(fit.model.intercept(0), WithinAbs(truth.intercept(0), 0.15));
  // The score of the intercept: fitted counts add up to the counts.
  CHECK_THAT(moe::predict_mean(fit.model, data.x, data.offset).sum(), WithinRel(data.y.sum(), 1e-9));
}

TEST_CASE("fit_mixture: the same numbers for any number of threads", "[likelihood]") {
  const auto data = test::simulated(test::random_mixture<moe::Poisson>(2, 1, 6), 100, 4);
  const auto fitted = [&](moe::Index workers) {
    test::ThreadExecutor threads(workers);
    const moe::UseExecutor use(threads);
    return moe::free_parameters(
        moe::fit_mixture<moe::Poisson>(data, 2, {}, {}, {.wanted_hits = 1, .most_starts = 12}).model);
  };
  CHECK(fitted(1) == fitted(3));
}

TEST_CASE("fit_mixture: a top-1 gate finds the border", "[likelihood]") {
  auto truth = moe::MixtureRegression<moe::Poisson, moe::TopKGate>::zero(2, 1, {}, {.k = 1});
  truth.gate_slope.topRows(1) << 1;
  truth.gate_bias(0) = -0.2;
  truth.slope << 1, -1;
  truth.intercept << 0.5, 2.5;
  const auto data = test::simulated(truth, 300, 8);
  const auto fit = moe::fit_mixture(data, 2, truth.family, truth.gate, {.wanted_hits = 1, .most_starts = 24});
  require_sound(fit);
  CHECK(fit.log_likelihood >= moe::log_likelihood(truth, data) - 1e-9);
  CHECK_THAT(-fit.model.gate_bias(0) / fit.model.gate_slope(0, 0), WithinAbs(0.2, 0.1));
}
