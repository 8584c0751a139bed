// SPDX-License-Identifier: MIT
// The experiments of convergence_rates.cpp and what each has to show.
#pragma once

// Long, as it is one table: what each experiment has to show is read beside the others.

#include <functional>
#include <limits>
#include <string>
#include <utility>
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

using Change = std::function<void(moe::RateOptions&)>;

/// Up to which scale an experiment is run.
enum class Largest { Full, Default };

/// How estimates are made. An idle estimator returns its start: what it does is no evidence for a theory.
enum class Estimator { Likelihood, Idle };

struct Experiment {
  const char* name;
  const char* claim;  ///< experiments of one claim share a picture
  const char* title;
  std::vector<Check> checks;
  std::vector<const char*> drawn;  ///< metrics in the picture
  double cost;                     ///< relative time of a fit; --quick leaves out what is above 10
  Change change;
  std::function<moe::RateExperiment(const moe::RateOptions&, Estimator)> run;
  Largest largest = Largest::Full;
};

// Bands. Slopes are those of n = 10^3 ... 10^5 in half decades. With R replications whose losses spread by c (deviation
// / mean), log(mean) has the standard error c / sqrt(R) at each n, and the slope, with x = log n,
//   c / sqrt(sum_i R_i (x_i - mean x)^2)
// 0.02 for raw errors (c = 0.8), 0.015 for exact losses (0.6) and 0.008 for densities (0.3) at full scale. A band is
// two to three times what these would be with 20 replications at each n, so that a seed seldom decides with more of
// them. Experiments with the same truth share their data (E2 and E5b), so they miss together.

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
/// Experts that share a true one: n^-1/8 and n^-1/4 cannot be told apart at n <= 10^5, "much slower than n^-1/2, and
/// not standing still" can. The starts have no slope of their own (starts_at). Medians, because a fit whose surplus
/// expert has left for elsewhere is off by any amount.
inline Check slow(const char* metric, const char* theory) {
  return {.metric = metric,
          .statistic = moe::RateStatistic::Median,
          .theory = theory,
          .low = -0.4,
          .high = 0,
          .spread = 1.2};
}
/// The same by medians: at 10^3 rows some fits are far off, where the data hardly know a temperature.
inline Check by_median(Check check) {
  check.statistic = moe::RateStatistic::Median;
  return check;
}
/// The loss of an over-specified model, by medians as in slow().
inline Check over_loss(const char* metric) {
  return {.metric = metric, .statistic = moe::RateStatistic::Median, .low = -0.68, .high = -0.35, .spread = 1.2};
}
/// Shown, not checked.
inline Check reported(const char* metric, const char* theory) {
  constexpr double kAny = std::numeric_limits<double>::infinity();
  return {.metric = metric,
          .statistic = moe::RateStatistic::Median,
          .theory = theory,
          .low = -kAny,
          .high = kAny,
          .spread = 1.2};
}
/// A level is missed beyond that many standard errors: by chance one of 10,000, where means of tens of numbers are
/// nearly normal; there are some 30 of them.
inline constexpr double kLevelErrors = 4;
/// Levels of the gate are those from here on, and may be off by that share more. At 1000 rows the squared errors of
/// gates that the data hardly know (a temperature behind tanh or sigmoid) are 30 to 60 % above their limit, and what is
/// left of that falls like 1 / n.
inline constexpr Index kGateRows = 3000;
inline constexpr double kGateShare = 0.1;

template <class Gate>
Experiment experiment(Experiment description, const moe::GaussianMoe<Gate>& truth) {
  description.run = [truth](const moe::RateOptions& options, Estimator estimator) {
    return moe::rate_experiment(truth, options,
                                [&](const moe::RegressionData& data, const moe::GaussianMoe<Gate>& start) {
                                  if (estimator == Estimator::Likelihood)
                                    return moe::fit_from(data, start, options.fit);
                                  moe::GaussianFit<Gate> stay;
                                  stay.model = start;
                                  stay.log_likelihood = moe::log_likelihood(start, data);
                                  return stay;
                                });
  };
  return description;
}

inline void uniform_0_1(moe::RateOptions& options) { options.inputs = moe::uniform_inputs(0, 1); }
inline void uniform_3(moe::RateOptions& options) { options.inputs = moe::uniform_inputs(-3, 3); }

/// Starts at a temperature that is off by 20 %, at every n: what the likelihood says about it, it must correct.
inline void off_temperature(moe::RateOptions& options) { options.noise.log_temperature = {.scale = 0.2, .power = 0}; }
inline void off_temperature_3(moe::RateOptions& options) {
  off_temperature(options);
  uniform_3(options);
}

/// Starts at a distance that n does not shrink, `distance` for each coefficient: slopes and levels are those of the
/// likelihood. With the authors' starts, whose noise falls like n^-0.083, what converges slowly or not at all seems to
/// converge because they do.
inline moe::StartNoise starts_at(double distance) {
  return {.gate = {.scale = distance, .power = 0},
          .expert = {.scale = distance, .power = 0},
          .variance = {.scale = distance / 10, .power = 0},
          .log_temperature = {}};
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
                      .change = off_temperature_3,
                      .run = {}},
                     activated<moe::Sigmoid>(0.2)),
          experiment({.name = "E6b",
                      .claim = "activation",
                      .title = "tanh gate",
                      .checks = converges,
                      .drawn = drawn,
                      .cost = 2,
                      .change = off_temperature_3,
                      .run = {}},
                     activated<moe::Tanh>(0.5)),
          experiment({.name = "E6e",
                      .claim = "activation",
                      .title = "relu gate",
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
                      .checks = {density("hellinger"), density("total variation"), loss("D"), error("beta1"),
                                 error("beta0"), error("a"), error("b"), error("nu")},
                      .drawn = {"beta1", "a", "D", "b", "hellinger"},
                      .cost = 1,
                      .change = [](moe::RateOptions& options) { options.inputs = moe::grid_inputs(0, 1); },
                      .run = {}},
                     authors(moe::SoftmaxGate{})),
          experiment({.name = "E2",
                      .claim = "softmax",
                      .title = "softmax gate, moderate parameters",
                      .checks = {density("hellinger"), density("total variation"), loss("D"), error("beta1"),
                                 error("beta0"), error("a"), error("b"), error("nu")},
                      .drawn = {"D", "beta1", "a", "b", "hellinger"},
                      .cost = 1,
                      .change = [](moe::RateOptions&) {},
                      .run = {}},
                     moderate())};
}

inline std::vector<Experiment> over_experiments() {
  const std::vector<Check> checks = {density("hellinger"),     density("total variation"), over_loss("D"),
                                     slow("shared b", "-1/8"), slow("shared a", "-1/4"),   slow("shared nu", "-1/4"),
                                     error("single b")};
  const std::vector<const char*> drawn = {"shared beta1", "shared b", "shared nu", "D", "single b", "hellinger"};
  std::vector<Check> softmax = checks;
  softmax.push_back(slow("shared beta1", "-1/8"));
  return {experiment({.name = "E3",
                      .claim = "over-specified",
                      .title = "softmax gate, 3 experts fitted to 2",
                      .checks = softmax,
                      .drawn = drawn,
                      .cost = 20,
                      .change = one_more,
                      .run = {}},
                     moderate()),
          experiment({.name = "E3f",
                      .claim = "over-specified",
                      .title = "the same, starts three times as far",
                      .checks = softmax,
                      .drawn = drawn,
                      .cost = 20,
                      .change =
                          [](moe::RateOptions& options) {
                            options.noise = starts_at(0.3);
                            one_more(options);
                          },
                      .run = {}},
                     moderate()),
          experiment({.name = "E7",
                      .claim = "over-specified",
                      .title = "tanh gate, 3 experts fitted to 2",
                      .checks = checks,
                      .drawn = drawn,
                      .cost = 40,
                      .change =
                          [](moe::RateOptions& options) {
                            off_temperature_3(options);
                            one_more(options);
                          },
                      .run = {}},
                     activated<moe::Tanh>(0.5))};
}

/// x on (-2, 2), and its square.
inline void with_square(moe::RateOptions& options) {
  options.inputs = [](const moe::RandomField& random, moe::Matrix<double>& x) {
    for (Index i = 0; i < x.rows(); ++i) {
      x(i, 0) = 4 * random.uniform(i, 0) - 2;
      x(i, 1) = x(i, 0) * x(i, 0);
    }
  };
}

/// The same for a gate that reads the square alone, and so does not interact with the experts: the powers of its loss
/// are those of an activation.
inline void monomial(moe::RateOptions& options) {
  with_square(options);
  options.voronoi.kind = moe::VoronoiKind::Activation;
}

inline void uniform_1(moe::RateOptions&) {}  // the default

/// What is measured of the experts that share a true one: powers of beta_1, a, b and nu by theory. No band: within
/// these n they hardly fall, and with 24 replications not surely.
inline std::vector<Check> over_checks(const char* gate_power) {
  return {density("hellinger"),
          over_loss("D"),
          reported("shared beta1", gate_power),
          reported("shared a", "-1/4"),
          reported("shared b", "-1/8"),
          reported("shared nu", "-1/4")};
}

/// Another gate, exactly specified, at no more than the default scale: their bands follow from it.
template <class Gate>
Experiment gate(const char* name, const char* title, std::vector<Check> checks, std::vector<const char*> drawn,
                Change change, const moe::GaussianMoe<Gate>& truth) {
  return experiment({.name = name,
                     .claim = "other-gates",
                     .title = title,
                     .checks = std::move(checks),
                     .drawn = std::move(drawn),
                     .cost = 4,
                     .change = std::move(change),
                     .run = {},
                     .largest = Largest::Default},
                    truth);
}

inline std::vector<Experiment> gate_experiments() {
  const std::vector<Check> exact = {density("hellinger"), loss("D"),  error("beta1"), error("beta0"),
                                    error("a"),           error("b"), error("nu")};
  std::vector<Check> cosines = exact;
  cosines.push_back(reported("raw beta1", "none"));
  const std::vector<const char*> drawn = {"D", "beta1", "a", "b", "hellinger"};
  const std::vector<const char*> drawn_raw = {"raw beta1", "D", "beta1", "b", "hellinger"};
  return {gate("G1", "sigmoid gate, bias inside", exact, drawn, uniform_3, sigmoid(moe::BiasPlace::Inside)),
          gate("G2", "sigmoid gate", exact, drawn, uniform_3, sigmoid(moe::BiasPlace::Outside)),
          gate("G3", "Laplace gate", exact, drawn, uniform_3, laplace()),
          gate("G4", "cosine gate", cosines, drawn_raw, uniform_1, cosine(0)),
          gate("G5", "perturbed cosine gate", cosines, drawn_raw, uniform_3, cosine(0.5)),
          gate("G6", "quadratic gate, x and x^2", exact, drawn, with_square, quadratic(Quadratic::Polynomial)),
          gate("G7", "quadratic gate, x^2", exact, drawn, monomial, quadratic(Quadratic::Monomial))};
}

/// The temperature inside of the sigmoid (arXiv:2602.01466): of products only beta_1 / tau converges, of distances all
/// does.
inline std::vector<Experiment> sigmoid_temperature_experiments() {
  std::vector<Experiment> all = {
      gate("S1", "sigmoid of products, free temperature",
           {density("hellinger"), loss("D"), flat("tau"), flat("beta1"), error("beta1/tau"), error("beta0"), error("a"),
            error("b"), error("nu")},
           {"tau", "beta1", "beta1/tau", "D", "b", "hellinger"}, off_temperature_3,
           tempered_sigmoid<moe::ProductScore>()),
      gate("S2", "sigmoid of distances, free temperature",
           {density("hellinger"), by_median(loss("D")), by_median(error("tau")), by_median(error("beta1")),
            by_median(error("beta0")), error("a"), error("b"), error("nu")},
           {"tau", "beta1", "D", "b", "hellinger"}, off_temperature_3, tempered_sigmoid<moe::DistanceScore>())};
  for (Experiment& e : all) e.claim = "sigmoid-temperature";
  return all;
}

inline std::vector<Experiment> over_gate_experiments() {
  const auto add = [](Change change) {
    return [=](moe::RateOptions& options) {
      change(options);
      one_more(options);
    };
  };
  const std::vector<const char*> drawn = {"shared beta1", "shared a", "shared b", "shared nu", "D", "hellinger"};
  std::vector<Experiment> all = {
      gate("G2o", "sigmoid gate, 3 experts fitted to 2", over_checks("-1/4"), drawn, add(uniform_3),
           sigmoid(moe::BiasPlace::Outside)),
      gate("G3o", "Laplace gate, 3 to 2", over_checks("-1/4"), drawn, add(uniform_3), laplace()),
      gate("G4o", "cosine gate, 3 to 2", over_checks("none"), drawn, add(uniform_1), cosine(0)),
      gate("G5o", "perturbed cosine gate, 3 to 2", over_checks("-1/4"), drawn, add(uniform_3), cosine(0.5)),
      gate("G6o", "quadratic gate, x and x^2, 3 to 2", over_checks("-1/8"), drawn, add(with_square),
           quadratic(Quadratic::Polynomial)),
      gate("G7o", "quadratic gate, x^2, 3 to 2", over_checks("-1/4"), drawn, add(monomial),
           quadratic(Quadratic::Monomial))};
  for (Experiment& e : all) {
    e.claim = "other-gates-over";
    e.cost = 40;
  }
  return all;
}

inline std::vector<Experiment> sparse_experiments() {
  return {experiment({.name = "E4",
                      .claim = "top-k",
                      .title = "top 2 of 3, selected by inner products",
                      .checks = {density("hellinger"), density("total variation"), loss("D"), error("beta1"),
                                 error("beta0"), error("a"), error("b"), error("nu")},
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
  for (const auto& part : {temperature_experiments(), softmax_experiments(), over_experiments(), gate_experiments(),
                           sigmoid_temperature_experiments(), over_gate_experiments(), sparse_experiments()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace rates
