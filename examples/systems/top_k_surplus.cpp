// SPDX-License-Identifier: MIT
// Surplus experts behind a top-K gate. Nguyen, Akbarian, Yan & Ho, "Statistical perspective of top-K sparse softmax
// gating mixture of experts" (arXiv:2309.13850): with more experts than the truth has, more of them must be selected,
// or the density does not converge. Here: when that shows. Three experts are fitted to two, both active everywhere, and
// K = 2 or 3 of them selected; four to three, K = 2. With ranks by inner products alone, on inputs of both signs, the
// third expert is among the best two on one side of 0, whatever its slope is, and takes the place of one that is
// needed: no parameters give the true density. What takes the failure away: K = 3; ranks that count the bias, as a low
// one is never selected; and a truth in which two copies of the shared expert serve a side each (three experts, K = 2),
// with a full mass each, which a Voronoi loss excludes and a likelihood does not. With K = 1 weights are 1, and an
// expert between two others is never the first: K too small cannot show.
#include <cmath>

#include <moe/gate/top_k.hpp>
#include <moe/gaussian/theory/rate_experiment.hpp>

#include "support/page.hpp"

namespace {

using moe::Index;
using Gate = moe::TopKGate;
using Model = moe::GaussianMoe<Gate>;

enum class Ranks { Products, Logits };

Gate top(Index k, Index num_experts, Ranks ranks) {
  if (ranks == Ranks::Logits) return {.k = k};
  return {.k = k, .weight_bias = Eigen::RowVectorXd::Zero(num_experts)};
}

Model two(Index active, Ranks ranks) {
  auto model = Model::zero(2, 1, top(active, 2, ranks));
  model.gate_slope << 2, 0;
  model.gate_bias << 0.3, 0;
  model.slope << 1, -1;
  model.intercept << 1.5, -1.5;
  model.variance << 0.3, 0.4;
  return model;
}

Model three() {
  auto model = Model::zero(3, 1, top(2, 3, Ranks::Products));
  model.gate_slope << 2, -2, 0;
  model.gate_bias << 0.3, -0.3, 0;
  model.slope << 1, -1, 0.5;
  model.intercept << 2, -2, 0;
  model.variance << 0.3, 0.4, 0.2;
  return model;
}

/// Median Hellinger distance at the smaller and the larger n, and log-likelihood above the truth's at the larger.
std::vector<double> surplus(systems::Page& page, const Model& truth, Index active, std::uint64_t seed) {
  moe::RateOptions options{.rows = {1000, 10'000},
                           .replications = {page.amount<Index>(4, 1)},
                           .num_experts = truth.num_experts() + 1,
                           .active = active,
                           .seed = seed};
  options.noise = {.gate = {.scale = 0.3, .power = 0}, .expert = {.scale = 0.3, .power = 0}};
  options.slope.bootstrap_draws = 0;
  const moe::RateExperiment rates = moe::rate_experiment(truth, options);
  const auto& distance = rates("hellinger").median;
  return {distance[0], distance[1], rates("excess").median[1]};
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"top_k_surplus", "2309.13850", "moe/gaussian/theory/rate_experiment.hpp"}, [](systems::Page& page) {
        const auto fits = [&](const Model& truth, Index active) {
          return page.over_seeds([&](std::uint64_t seed) { return surplus(page, truth, active, seed); });
        };
        const auto small = fits(two(2, Ranks::Products), 2), large = fits(two(2, Ranks::Products), 3);
        const auto hard = fits(two(1, Ranks::Products), 1), copies = fits(three(), 2);
        page.table({"experts, selected", "Hellinger, n = 1000", "n = 10000", "log-likelihood above the truth"});
        page.row("3 for 2 of 2, K = 2", small);
        page.row("3 for 2 of 2, K = 3", large);
        page.row("3 for 1 of 2, K = 1", hard);
        page.row("4 for 2 of 3, K = 2", copies);
        page.expect("K = 2 for 2 of 2: log-likelihood above the truth", small[2], {.high = -20});
        page.expect("K = 3 for 2 of 2: Hellinger distance at n = 10000", large[1], {.high = 0.03});
        page.expect("4 for 2 of 3, K = 2: Hellinger distance at n = 10000", copies[1], {.high = 0.03});
        page.claim("K = 2 for 2 of 2: Hellinger distance at n = 10000", small[1], {.low = 0.04});
      });
}
