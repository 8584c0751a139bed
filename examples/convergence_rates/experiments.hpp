// SPDX-License-Identifier: MIT
// The experiments of convergence_rates.cpp and what each has to show.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "truths.hpp"

namespace rates {

/// How much is simulated.
struct Scale {
  std::vector<Index> rows, replications;
  Index smallest_rows = 1000;  ///< of the regressions
};

/// A quantity of an experiment: the slope that the theory says, and how far from it the measured one may be.
struct Check {
  const char* metric;
  moe::RateStatistic statistic = moe::RateStatistic::Mean;
  const char* theory = "-1/2";
  double low = -0.6, high = -0.4;  ///< band of the slope at full scale
  double spread = 0.8;  ///< deviation / mean of the loss over replications: the band widens with it at smaller scales
};

struct Experiment {
  const char* name;
  const char* claim;  ///< experiments of one claim share a picture
  const char* title;
  std::vector<Check> checks;
  std::vector<const char*> drawn;  ///< metrics in the picture
  double cost;                     ///< relative time of a fit; --quick leaves out what is above 10
  std::function<void(moe::RateOptions&)> change;
  std::function<moe::RateExperiment(const moe::RateOptions&)> run;
};

// Bands. Slopes are those of n = 10^3 ... 10^5 in half decades. With R replications whose losses spread by c (deviation
// / mean), log(mean) has the standard error c / sqrt(R) at each n, and the slope, with x = log n,
//   c / sqrt(sum_i R_i (x_i - mean x)^2)
// 0.02 for raw errors (c = 0.8), 0.015 for exact losses (0.6) and 0.008 for densities (0.3) at full scale. A band is
// two to three times what these would be with 20 replications at each n, so that a seed seldom decides with more of
// them. Experiments with the same truth share their data (E2 and E5b, E6b and E6f), so they miss together.

/// Densities spread least, so they decide.
inline Check density(const char* metric) { return {.metric = metric, .low = -0.55, .high = -0.45, .spread = 0.3}; }
/// An exact Voronoi loss.
inline Check loss(const char* metric) { return {.metric = metric, .low = -0.58, .high = -0.42, .spread = 0.6}; }
/// A single parameter.
inline Check error(const char* metric) { return {.metric = metric, .low = -0.6, .high = -0.4}; }
/// Not identified: as large as the noise of the starts. A loss keeps parts that do shrink (weights, experts), which
/// count at 10^3 rows and tilt it by about -0.1.
inline Check flat_loss(const char* metric) { return {.metric = metric, .theory = "none", .low = -0.17, .high = 0.17}; }
inline Check flat(const char* metric) { return {.metric = metric, .theory = "none", .low = -0.1, .high = 0.1}; }
/// Experts that share a true one: n^-1/8 and n^-1/4 cannot be told apart at n <= 10^5, "much slower than n^-1/2" can.
/// No more is checked: a slope of 0 passes as well. Medians, because a fit whose surplus expert has left for elsewhere
/// is off by any amount.
inline Check slow(const char* metric, const char* theory) {
  return {.metric = metric,
          .statistic = moe::RateStatistic::Median,
          .theory = theory,
          .low = -0.4,
          .high = 0.15,
          .spread = 1.2};
}
/// The loss of an over-specified model, by medians for the same reason.
inline Check over_loss(const char* metric) {
  return {.metric = metric, .statistic = moe::RateStatistic::Median, .low = -0.68, .high = -0.35, .spread = 1.2};
}
/// 2 (l(fit) - l(truth)) is chi-squared with p degrees of freedom, whatever n is.
inline Check excess() { return {.metric = "excess", .theory = "0", .low = -0.1, .high = 0.1, .spread = 0.5}; }

template <class Gate>
Experiment experiment(Experiment description, const moe::GaussianMoe<Gate>& truth) {
  description.run = [truth](const moe::RateOptions& options) { return moe::rate_experiment(truth, options); };
  return description;
}

inline void uniform_0_1(moe::RateOptions& options) { options.inputs = moe::uniform_inputs(0, 1); }
inline void uniform_3(moe::RateOptions& options) { options.inputs = moe::uniform_inputs(-3, 3); }

/// Starts at a temperature that is off by 20 %, at every n: what the likelihood says about it, it must correct. (With
/// the authors' shrinking noise a temperature seems to converge because its starts do.)
inline void off_temperature(moe::RateOptions& options) { options.noise.log_temperature = {.scale = 0.2, .power = 0}; }
inline void off_temperature_3(moe::RateOptions& options) {
  off_temperature(options);
  uniform_3(options);
}

/// The other starts of a gate whose temperature is estimated: noise that shrinks as that of the experts.
inline void near_temperature_3(moe::RateOptions& options) {
  options.noise.log_temperature = options.noise.expert;
  uniform_3(options);
}

inline void one_more(moe::RateOptions& options) { options.num_experts = 3; }

inline std::vector<Experiment> temperature_experiments() {
  const std::vector<Check> converges = {density("hellinger"),
                                        density("total variation"),
                                        loss("D"),
                                        error("tau"),
                                        error("beta1"),
                                        error("beta0"),
                                        error("a"),
                                        error("b"),
                                        error("nu")};
  const std::vector<const char*> drawn = {"D", "tau", "beta1", "b", "hellinger"};
  return {experiment({.name = "E5b",
                      .claim = "temperature",
                      .title = "linear gate, free temperature",
                      .checks = {density("hellinger"), density("total variation"), flat_loss("raw D"), flat("tau"),
                                 flat("beta1"), loss("D"), error("beta1/tau"), error("beta0/tau"), error("a"),
                                 error("b"), error("nu")},
                      .drawn = {"raw D", "tau", "beta1", "beta1/tau", "b", "hellinger"},
                      .cost = 1,
                      .change = off_temperature,
                      .run = {}},
                     moderate_with_temperature()),
          experiment({.name = "E6a",
                      .claim = "activation",
                      .title = "sigmoid gate",
                      .checks = converges,
                      .drawn = drawn,
                      .cost = 2,
                      .change = near_temperature_3,
                      .run = {}},
                     activated<moe::Sigmoid>(0.2)),
          experiment({.name = "E6b",
                      .claim = "activation",
                      .title = "tanh gate",
                      .checks = converges,
                      .drawn = drawn,
                      .cost = 2,
                      .change = near_temperature_3,
                      .run = {}},
                     activated<moe::Tanh>(0.5)),
          experiment({.name = "E6f",
                      .claim = "activation",
                      .title = "tanh gate, starts as E5b",
                      .checks = converges,
                      .drawn = drawn,
                      .cost = 2,
                      .change = off_temperature_3,
                      .run = {}},
                     activated<moe::Tanh>(0.5)),
          experiment({.name = "E6e",
                      .claim = "activation",
                      .title = "relu gate, starts as E5b",
                      .checks = {density("hellinger"), flat_loss("D"), flat("tau"), flat("beta1"), error("beta1/tau"),
                                 error("beta0/tau"), error("a"), error("b"), error("nu")},
                      .drawn = drawn,
                      .cost = 2,
                      .change = off_temperature_3,
                      .run = {}},
                     activated<moe::Relu>(0.5))};
}

inline std::vector<Experiment> softmax_experiments() {
  return {experiment({.name = "E1",
                      .claim = "softmax",
                      .title = "softmax gate, authors' parameters",
                      .checks = {density("hellinger"), density("total variation"), loss("D"), error("a"), error("b"),
                                 error("nu"), excess()},
                      .drawn = {"beta1", "a", "D", "b", "hellinger"},
                      .cost = 1,
                      .change = [](moe::RateOptions& options) { options.inputs = moe::grid_inputs(0, 1); },
                      .run = {}},
                     authors(moe::SoftmaxGate{})),
          experiment({.name = "E2",
                      .claim = "softmax",
                      .title = "softmax gate, moderate parameters",
                      .checks = {density("hellinger"), density("total variation"), loss("D"), error("beta1"),
                                 error("beta0"), error("a"), error("b"), error("nu"), excess()},
                      .drawn = {"D", "beta1", "a", "b", "hellinger"},
                      .cost = 1,
                      .change = [](moe::RateOptions&) {},
                      .run = {}},
                     moderate())};
}

inline std::vector<Experiment> over_experiments() {
  return {experiment({.name = "E3",
                      .claim = "over-specified",
                      .title = "softmax gate, 3 experts fitted to 2",
                      .checks = {density("hellinger"), density("total variation"), over_loss("D"),
                                 slow("shared b", "-1/8"), slow("shared beta1", "-1/8"), slow("shared a", "-1/4"),
                                 slow("shared nu", "-1/4"), error("single b")},
                      .drawn = {"shared beta1", "shared b", "shared nu", "D", "single b", "hellinger"},
                      .cost = 20,
                      .change = one_more,
                      .run = {}},
                     moderate()),
          experiment({.name = "E7",
                      .claim = "over-specified",
                      .title = "tanh gate, 3 experts fitted to 2",
                      .checks = {density("hellinger"), density("total variation"), over_loss("D"),
                                 slow("shared b", "-1/8"), slow("shared nu", "-1/4"), slow("shared a", "-1/4")},
                      .drawn = {"shared beta1", "shared b", "shared nu", "D", "single b", "hellinger"},
                      .cost = 40,
                      .change =
                          [](moe::RateOptions& options) {
                            near_temperature_3(options);
                            one_more(options);
                          },
                      .run = {}},
                     activated<moe::Tanh>(0.5))};
}

inline std::vector<Experiment> sparse_experiments() {
  return {experiment({.name = "E4",
                      .claim = "top-k",
                      .title = "top 2 of 3, selected by inner products",
                      .checks = {density("hellinger"), density("total variation"), loss("D"), error("a"), error("b"),
                                 error("nu")},
                      .drawn = {"D", "beta1", "a", "b", "hellinger"},
                      .cost = 2,
                      .change = [](moe::RateOptions&) {},
                      .run = {}},
                     two_of_three()),
          experiment({.name = "E8",
                      .claim = "top-k",
                      .title = "top 1 of 2, authors' parameters",
                      .checks = {{.metric = "boundary", .theory = "-1", .low = -1.12, .high = -0.88, .spread = 1},
                                 error("a"),
                                 error("b"),
                                 error("nu")},
                      .drawn = {"a", "b", "nu", "boundary"},
                      .cost = 0.3,
                      .change = uniform_0_1,
                      .run = {}},
                     authors(moe::TopKGate{.k = 1}))};
}

/// All of them, in the order of the claims.
inline std::vector<Experiment> all_experiments() {
  std::vector<Experiment> all;
  for (const auto& part : {temperature_experiments(), softmax_experiments(), over_experiments(), sparse_experiments()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace rates
