// SPDX-License-Identifier: MIT
// Do fits find what data were simulated from?
#pragma once

#include <cmath>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"

namespace test {

/// Twice the excess over the truth is a chi-squared of at most 13 parameters: above 55 with probability 4e-7. In other
/// units of x and y, and about another origin where the score allows one, the fit is the same.
template <class G>
moe::GaussianFit<G> require_recovery(const moe::GaussianMoe<G>& truth, double origin) {
  moe::RegressionData data = simulated(truth, 1500, 1);
  const moe::FitOptions options{.starts = 8, .long_runs = 3};
  const auto fit = moe::fit(data, 2, truth.gate, options);
  const double excess = 2 * (fit.log_likelihood - moe::log_likelihood(truth, data));
  CAPTURE(excess, fit.log_likelihood);
  CHECK(excess > 0);
  CHECK(excess < 55);
  CHECK(std::abs(moe::log_likelihood(fit.model, data) - fit.log_likelihood) < 1e-8);
  data.y *= 16;
  data.x = (data.x.array() * 8 + origin).matrix().eval();
  const auto other = moe::fit(data, 2, truth.gate, options);
  const double unit = 1500 * std::log(16.0);  // of the density
  // two ends of one search, whose gains are below 1e-8 at the end
  CHECK(std::abs(other.log_likelihood + unit - fit.log_likelihood) < 1e-5);
  return fit;
}

}  // namespace test
