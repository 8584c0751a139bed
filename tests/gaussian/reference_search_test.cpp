// SPDX-License-Identifier: MIT
// The best known maxima of published and simulated data, found again from as many random starts as an independent
// program took.
#include "gaussian/fit_check.hpp"
#include "gaussian/reference_data.hpp"
#include "gaussian/shared_fits.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;

/// Starts of the independent search, by experts for real data.
Index starts_of(const test::ReferenceFit& entry, bool real) {
  if (real) return entry.num_experts == 2 ? 150 : entry.num_experts == 3 ? 450 : 350;
  return entry.gate == test::ReferenceGate::Softmax ? 12 : 20;
}

void check_found(const test::ReferenceFit& entry, Index starts) {
  const moe::RegressionData data = test::reference_data(entry.data);
  const double best = entry.ridge > 0 ? entry.penalised_log_likelihood : entry.log_likelihood;
  test::with_reference_model(entry, entry.fit, [&](const auto& model) {
    for (const std::uint64_t seed : {1U, 2U}) {
      const moe::FitOptions options{.starts = starts, .ridge = entry.ridge, .seed = seed};
      const auto fit = moe::fit(data, entry.num_experts, model.gate, options);
      CAPTURE(entry.name, seed, fit.penalised_log_likelihood, best);
      CHECK(fit.converged);
      CHECK(fit.hits >= 1);
      // Both are maxima to within the remaining_tolerance of 1e-6; another maximum is more than 1e-2 away.
      CHECK(std::abs(fit.penalised_log_likelihood - best) < 1e-3);
      CHECK(test::FitCheck(data, options, fit)() == "");
    }
  });
}

}  // namespace

TEST_CASE("fit: the best known maxima of real data", "[gaussian][golden]") {
  Index found = 0;
  for (const test::ReferenceFit& entry : test::kRealFits)
    if (entry.reproducible) check_found(entry, starts_of(entry, true)), ++found;
  CHECK(found == 11);
}

TEST_CASE("fit: the best known maxima of simulated data, all gates", "[gaussian][golden]") {
  Index found = 0;
  for (const test::ReferenceFit& entry : test::kSimulatedFits)
    if (entry.reproducible) check_found(entry, starts_of(entry, false)), ++found;
  CHECK(found == 8);
}

TEST_CASE("fit: a top-1 gate on one input has its border in the best gap between rows", "[gaussian][golden]") {
  const moe::RegressionData data = test::reference_data("sim_top1of2_logit_d1_n2000");
  const auto fit = moe::fit(data, 2, moe::TopKGate{.k = 1}, {.starts = 6, .seed = 3});
  CHECK(std::abs(fit.log_likelihood + 646.4175677265532) < 1e-6);  // an exact scan of all gaps
  const double border = -fit.model.gate_bias(0) / fit.model.gate_slope(0, 0);
  CHECK((border > 0.3199420597 && border < 0.3200614945));
}
