// SPDX-License-Identifier: MIT
// robust_regression: experts of other families than the normal one. First two regimes with 5% of outliers, which one of
// two normal experts gives all its rows to, while Student's t experts, or a component of noise beside normal ones, find
// both regimes; then counts over times of different length, by Poisson experts with an exposure.
#include <cstdio>
#include <moe/likelihood.hpp>

namespace {

using moe::Index;

constexpr Index kRows = 400;

moe::Matrix<double> inputs(std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  return moe::Matrix<double>::NullaryExpr(kRows, 1, [&](Index i, Index) { return 4 * random.uniform(i) - 2; });
}

/// Below x = 0.3 mostly y = -1 - 1.5 x, above mostly y = 1 + 1.5 x; every twentieth y is a slip of the pen.
moe::RegressionData two_regimes_with_outliers() {
  auto truth = moe::MixtureRegression<moe::Normal>::zero(2, 1);
  truth.gate_slope << -4, 0;
  truth.gate_bias << 1.2, 0;
  truth.slope << -1.5, 1.5;
  truth.intercept << -1, 1;
  truth.shape << 0.15, 0.25;
  moe::RegressionData data{inputs(1), {}};
  data.y = moe::sample(truth, data.x, /*seed=*/2);
  for (Index i = 0; i < kRows; i += 20) data.y(i) = i % 40 == 0 ? 18 : 25;
  return data;
}

/// Visits of two kinds of customers in 1 to 12 months each: some come more often with x, others less.
moe::ResponseData counts_over_months() {
  auto truth = moe::MixtureRegression<moe::Poisson>::zero(2, 1);
  truth.gate_slope << 1.5, 0;
  truth.slope << 0.5, -0.4;
  truth.intercept << -1, 1;
  moe::ResponseData data;
  data.x = inputs(3);
  data.offset =
      Eigen::VectorXd::NullaryExpr(kRows, [](Index i) { return std::log(1.0 + static_cast<double>(i % 12)); });
  data.y = moe::sample(truth, data.x, /*seed=*/4, /*trials=*/{}, data.offset);
  return data;
}

/// The lines of the experts, with standard errors where there are any.
template <class Fit>
void print(const char* what, const Fit& fit, const moe::ResponseData& data) {
  const auto errors = moe::standard_errors(fit, data);
  std::printf("%-24s log-likelihood %9.2f, BIC %8.2f%s\n", what, fit.log_likelihood, moe::criteria(fit, data).bic,
              fit.converged ? "" : ", not converged");
  for (Index j = 0; j < fit.model.num_experts(); ++j) {
    const std::string expert = std::to_string(j);
    std::printf("  expert %s, %4.0f rows:", expert.c_str(), fit.expert_rows(j));
    for (const std::string& name : {"b[" + expert + "]", "a[" + expert + ",0]"}) {
      const moe::ParameterEstimate& p = errors[name];
      std::printf("   %s %6.2f (%.2f)", name.c_str(), p.estimate, p.error ? p.error->observed : NAN);
    }
    for (Index s = 0; s < fit.model.shape.cols(); ++s)
      std::printf("   %s %.3g", std::string(fit.model.family.kShapeNames[s]).c_str(), fit.model.shape(j, s));
    std::printf("\n");
  }
  for (const moe::FlagWords& flag : moe::flag_words(fit.flags))
    std::printf("  %s: %s\n", flag.name.c_str(), flag.sentence.c_str());
}

}  // namespace

int main() {
  std::printf("Two regimes, -1 - 1.5 x and 1 + 1.5 x, of %d rows, %d of them outliers at 18 and 25\n",
              static_cast<int>(kRows), static_cast<int>(kRows) / 20);
  const moe::ResponseData data = two_regimes_with_outliers();
  print("normal experts", moe::fit_mixture<moe::Normal>(data, 2), data);
  const auto robust = moe::fit_mixture<moe::StudentT>(data, 2);
  print("Student's t experts", robust, data);
  const auto noise = moe::fit_mixture<moe::UniformNoise<moe::Normal>>(data, 2);
  print("normal experts, noise", noise, data);

  // Which rows are outliers? Those that the noise explains best: its responsibility is the last column.
  const moe::Matrix<double> r = moe::responsibilities(noise.model, data);
  Index found = 0, missed = 0;
  for (Index i = 0; i < kRows; ++i) {
    const bool outlier = r(i, 2) > 0.5;
    found += outlier && i % 20 == 0;
    missed += outlier != (i % 20 == 0);
  }
  std::printf("  %d of %d outliers found, %d rows taken for what they are not\n\n", static_cast<int>(found),
              static_cast<int>(kRows) / 20, static_cast<int>(missed));

  std::printf("Rates of visits, exp(-1 + 0.5 x) and exp(1 - 0.4 x) a month, over 1 to 12 months\n");
  const moe::ResponseData visits = counts_over_months();
  const auto one = moe::fit_mixture<moe::Poisson>(visits, 1), two = moe::fit_mixture<moe::Poisson>(visits, 2);
  print("one Poisson regression", one, visits);
  print("two Poisson experts", two, visits);

  const moe::Matrix<double> x = moe::Matrix<double>::Constant(1, 1, 0.5);
  std::printf("  visits a year at x = 0.5: %.1f\n",
              moe::predict_mean(two.model, x, Eigen::VectorXd::Constant(1, std::log(12.0)))(0, 0));
}
