// SPDX-License-Identifier: MIT
// The top-K gate as a statistical model: y given x is a mixture of linear regressions whose weights are a softmax over
// the K experts that x selects. Nguyen, Akbarian, Yan & Ho, "Statistical perspective of top-K sparse softmax gating
// mixture of experts" (arXiv:2309.13850): with as many experts as there are, maximum likelihood estimates the density
// at the parametric rate, n^-1/2. Here: top 2 of 3 experts on one input, the slope of log(Hellinger distance) on
// log(n); and the same class fitted to 272 eruptions of Old Faithful, where two experts beat one line. Not here: the
// slower rates of surplus experts; examples/convergence_rates.cpp measures those.
#include <cmath>

#include <moe/gate/top_k.hpp>
#include <moe/gaussian/fit/fit.hpp>
#include <moe/gaussian/inference/criteria.hpp>
#include <moe/gaussian/theory/rate_experiment.hpp>
#include <moe/io/file/csv.hpp>

#include "support/page.hpp"
#include "support/top_k_models.hpp"

namespace {

using moe::Index;

/// Slopes of the Hellinger distance and of the Voronoi loss of the parameters.
std::vector<double> slopes(systems::Page& page, std::uint64_t seed) {
  moe::RateOptions options{.rows = page.amount(moe::geometric_rows(1000, 31'623), {1000, 3162}),
                           .replications = {page.amount<Index>(24, 3)},
                           .seed = seed};
  options.slope.bootstrap_draws = 0;
  const moe::RateExperiment rates = moe::rate_experiment(systems::two_of_three(), options);
  return {rates("hellinger").slope_of_mean.slope, rates("D").slope_of_mean.slope};
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"top_k_statistics", "2309.13850", "moe/gate/top_k.hpp"}, [](systems::Page& page) {
        const moe::CsvTable table = moe::read_csv(MOE_EXAMPLE_DATA "/faithful.csv");
        const moe::RegressionData faithful{table.values.leftCols(1), table.values.col(1)};
        const auto fits = page.over_seeds([&](std::uint64_t seed) -> std::vector<double> {
          std::vector<double> numbers;
          for (const auto& [k, experts] : {std::pair<Index, Index>{1, 1}, {1, 2}, {2, 2}}) {
            const auto fit = moe::fit(faithful, experts, systems::top(k, experts),
                                      {.starts = page.amount<Index>(50, 5), .seed = seed});
            numbers.push_back(fit.log_likelihood);
            numbers.push_back(moe::criteria(fit, faithful).bic);
          }
          return numbers;
        });
        page.table({"Old Faithful", "log-likelihood", "BIC"});
        for (std::size_t i = 0; i < 3; ++i)
          page.row(std::array{"one line", "top 1 of 2", "top 2 of 2"}[i], {fits[2 * i], fits[2 * i + 1]});

        const auto rates = page.over_seeds([&](std::uint64_t seed) { return slopes(page, seed); });
        page.table({"slope on log(n)", "Hellinger", "Voronoi loss"});
        page.row("top 2 of 3, theory -1/2", rates);
        page.expect("BIC of one line less that of two experts", fits[1] - fits[5], {.low = 10});
        page.claim("slope of the Hellinger distance", rates[0], {.low = -0.56, .high = -0.44});
      });
}
