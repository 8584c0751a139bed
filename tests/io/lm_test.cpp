// SPDX-License-Identifier: MIT
// Files of data frames, regressions out of them and fits against R.
#include <cmath>
#include <string>
#include <vector>

#include "moe/gaussian/design/regression.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/io/file/data_file.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using Names = std::vector<std::string>;

struct Coefficient {
  double estimate, error;  // of lm()
};

/// One expert is least squares: the coefficients of lm(), and its standard errors but for its division of the squares
/// of residuals by n - p in place of n. R's numbers have 1e-12 or so, and the maximum is found to about 1e-10 of an
/// error.
void require_lm(const moe::Regression& regression, const std::vector<Coefficient>& lm, double log_likelihood) {
  const auto fit = moe::fit(regression.data(), 1, moe::SoftmaxGate{}, {.starts = 1});
  REQUIRE(fit.model.input_dim() + 1 == std::ssize(lm));
  CHECK_THAT(fit.log_likelihood, Catch::Matchers::WithinRel(log_likelihood, 1e-10));
  const moe::StandardErrors errors = moe::standard_errors(fit, regression.data());
  const double n = static_cast<double>(fit.num_rows), p = static_cast<double>(lm.size());
  for (std::size_t c = 0; c < lm.size(); ++c) {
    const std::string name = c == 0 ? "b[0]" : "a[0," + std::to_string(c - 1) + ']';
    CAPTURE(name);
    const moe::ParameterEstimate& at = errors[name];
    CHECK(std::abs(at.estimate - lm[c].estimate) <= 1e-8 * lm[c].error);
    REQUIRE(at.error.has_value());
    CHECK_THAT(at.error->observed * std::sqrt(n / (n - p)), Catch::Matchers::WithinRel(lm[c].error, 1e-8));
  }
}

moe::Regression from(const char* file, const char* formula) {
  return moe::regression(moe::read_data_frame(std::string(MOE_TEST_DATA "/gaussian/") + file),
                         moe::parse_formula(formula));
}

}  // namespace

// R 4.2.2: f <- lm(Ozone ~ Solar.R + Wind + Temp + factor(Month), airquality)
//          print(coef(summary(f))[, 1:2], digits = 17); logLik(f)
TEST_CASE("regression: lm() with a factor of numbers and missing values", "[io][gaussian]") {
  const auto r = from("airquality.csv", "Ozone ~ Solar.R + Wind + Temp + factor(Month)");
  CHECK(r.design.names() ==
        Names{"Solar.R", "Wind", "Temp", "factor(Month)6", "factor(Month)7", "factor(Month)8", "factor(Month)9"});
  CHECK(r.rows.missing_rows == 42);
  CHECK(r.notes.at(0) == "42 of 153 rows are left out, as values are missing: 7 in Solar.R, 37 in Ozone");
  require_lm(r,
             {{-74.234813169980924386, 26.101840589964130146},
              {0.052220492718041793, 0.023666960399815213},
              {-3.108720122687790077, 0.660086360802949468},
              {1.875110852205966960, 0.340726935905883321},
              {-14.758952544789295303, 9.122686698100791247},
              {-8.748613829942932796, 7.829060716919149954},
              {-4.196535134507715092, 8.146928405904166226},
              {-15.967281452382561469, 6.655606828971857070}},
             -489.81678354512923);
}

// R: w <- warpbreaks; w$full <- as.numeric(w$wool == "A"); w$one <- 3
//    h <- lm(breaks ~ wool + tension + full + one, w), whose last two coefficients are NA; tension <- relevel(tension,
//    "L")
TEST_CASE("regression: lm() with factors of text and a full set of dummies", "[io][gaussian]") {
  moe::DataFrame frame = moe::read_data_frame(MOE_TEST_DATA "/gaussian/warpbreaks.csv");
  moe::DataColumn full{.name = "full", .kind = moe::ColumnKind::Number, .numbers = {}, .texts = {}, .unusable = {}};
  for (const std::string& wool : frame.columns.at(1).texts) full.numbers.push_back(wool == "A" ? 1 : 0);
  frame.columns.push_back(full);
  full.name = "one";
  full.numbers.assign(full.numbers.size(), 3);
  frame.columns.push_back(full);
  const auto r = moe::regression(frame, moe::parse_formula("breaks ~ wool + factor(tension, ref = L) + full + one"));
  CHECK(r.design.dropped == Names{"full", "one"});
  CHECK(r.design.names() == Names{"woolB", "tensionH", "tensionM"});
  require_lm(r,
             {{39.2777777777777786, 3.1617831089408290},
              {-5.7777777777777795, 3.1617831089408295},
              {-14.7222222222222232, 3.8723776471278346},
              {-10.0000000000000036, 3.8723776471278351}},
             -206.97870593496418);
}
