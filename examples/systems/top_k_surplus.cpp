// SPDX-License-Identifier: MIT
// Surplus experts behind a top-K gate. Nguyen, Akbarian, Yan & Ho, "Statistical perspective of top-K sparse softmax
// gating mixture of experts" (arXiv:2309.13850): with more experts than the truth has, more of them must be selected,
// at least as many as share the true ones that are active, or the density does not converge. Here: where that shows, by
// whether the distance to the truth shrinks as n^-1/2, and by that of the nearest model of the size, which is computed.
// Ranks are by inner products, as in the paper.
//   k* = 2, K = 1, one input   never: weights are 1, and three experts with K = 1 hold the truth
//   k* = 2, K = 2, one input   K = 2 of three: the third is among the best two on one side of 0, whatever its slope is,
//                              and takes the place of one that is needed; K = 3 holds the truth
//   k* = 3, K = 2, one input   not in the likelihood: of K = 2 of four, two copies of the shared expert serve a side
//                              each, with a full mass each, which the paper's Voronoi loss excludes
//   k* = 3, K = 2, two inputs  K = 2 of four: three sectors tie the gates of the copies together, so they cannot part;
//                              K = 3 comes nearer, by gates that grow; fits from random starts near the truth do
//                              not always find that
// The picture, top_k_surplus.svg, has medians of one seed and the nearest models.
#include "support/page.hpp"
#include "support/top_k_models.hpp"

namespace {

using moe::Index;

struct Case {
  const char *name, *title, *colour;
  systems::TopKModel truth;
  Index active;
  int panel;
};

std::vector<Case> cases() {
  const auto one = systems::two_experts(1), both = systems::two_experts(2), plane = systems::two_of_three_planes();
  return {{"3 for 1 of 2, K = 1", "one active, K = 1", "#228833", one, 1, 0},
          {"3 for 1 of 2, K = 2", "one active, K = 2", "#aa8800", one, 2, 0},
          {"3 for 2 of 2, K = 2", "both active, K = 2", "#ee6677", both, 2, 0},
          {"3 for 2 of 2, K = 3", "both active, K = 3", "#4477aa", both, 3, 0},
          {"4 for 2 of 3, K = 2", "one input, K = 2", "#228833", systems::two_of_three(), 2, 1},
          {"4 for 2 of 3, K = 2, two inputs", "two inputs, K = 2", "#ee6677", plane, 2, 1},
          {"4 for 2 of 3, K = 3, two inputs", "two inputs, K = 3", "#4477aa", plane, 3, 1}};
}

std::vector<Index> rows_of(const systems::Page& page) {
  return page.amount(moe::geometric_rows(1000, 10'000), {1000, 2000});
}

/// Median Hellinger distances, and the log-likelihood above the truth's at the largest n.
std::vector<double> surplus(const systems::Page& page, const Case& one, std::uint64_t seed) {
  moe::RateOptions options{.rows = rows_of(page),
                           .replications = {page.amount<Index>(4, 1)},
                           .num_experts = one.truth.num_experts() + 1,
                           .active = one.active,
                           .distance_inputs = 1024,  // the same law as the grid of nearest(), so comparable
                           .seed = seed};
  options.noise = {.gate = {.scale = 0.3, .power = 0}, .expert = {.scale = 0.3, .power = 0}};
  options.slope.bootstrap_draws = 0;
  options.fit.max_iterations = page.amount<Index>(300, 60);  // gates that grow do so without end
  const moe::RateExperiment rates = moe::rate_experiment(one.truth, options);
  std::vector<double> numbers = rates("hellinger").median;
  numbers.push_back(rates("excess").median.back());
  return numbers;
}

double nearest(const systems::Page& page, const Case& one) {
  const Index d = one.truth.input_dim();
  const systems::DensityGrid grid(d, d == 1 ? page.amount<Index>(64, 32) : page.amount<Index>(8, 6), 60);
  return systems::nearest_distance(one.truth, one.truth.num_experts() + 1, one.active, grid, page.amount(4, 1));
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"top_k_surplus", "2309.13850", "moe/gaussian/theory/rate_experiment.hpp"}, [](systems::Page& page) {
        const std::vector<Index> rows = rows_of(page);
        std::vector<std::string> titles = {"experts, selected"};
        for (const Index n : rows) titles.push_back("Hellinger, n = " + std::to_string(n));
        titles.insert(titles.end(), {"log-likelihood above the truth", "nearest model"});
        page.table(titles);
        std::vector<systems::DistanceCurve> curves;
        std::vector<std::vector<systems::Sample>> all;
        for (const Case& one : cases()) {
          all.push_back(page.over_seeds([&](std::uint64_t seed) { return surplus(page, one, seed); }));
          all.back().push_back({{nearest(page, one)}});
          page.row(one.name, all.back());
          curves.push_back({one.title, one.colour, one.panel, {}, all.back().back().mean()});
          for (std::size_t i = 0; i < rows.size(); ++i) curves.back().distances.push_back(all.back()[i].mean());
        }
        systems::draw_distances(curves, rows, {"3 experts fitted to 2", "4 experts fitted to 3, 2 of them active"},
                                "top_k_surplus.svg");
        const auto at_last = [&](std::size_t c) { return all[c][rows.size() - 1]; };
        page.expect("K = 1 for 1 of 2: nearest model", all[0].back(), {.high = 1e-4});
        page.expect("K = 2 for 2 of 2: nearest model", all[2].back(), {.low = 0.1});
        page.expect("K = 2 for 2 of 2: log-likelihood above the truth", all[2][rows.size()], {.high = -20});
        page.expect("K = 3 for 2 of 2: Hellinger distance at n = 10000", at_last(3), {.high = 0.03});
        page.expect("4 for 2 of 3, K = 2: Hellinger distance at n = 10000", at_last(4), {.high = 0.03});
        page.expect("4 for 2 of 3, K = 2, two inputs: nearest model", all[5].back(), {.low = 0.08});
        page.expect("4 for 2 of 3, K = 2, two inputs: log-likelihood", all[5][rows.size()], {.high = -100});
        page.expect("4 for 2 of 3, K = 3, two inputs: Hellinger distance", at_last(6), {.high = 0.06});
        page.claim("K = 2 for 2 of 2: Hellinger distance at n = 10000", at_last(2), {.low = 0.04});
      });
}
