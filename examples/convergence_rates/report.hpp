// SPDX-License-Identifier: MIT
// Tables, pictures and files of convergence_rates.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "experiments.hpp"

namespace rates {

/// An experiment with its result.
struct Finished {
  Experiment experiment;
  moe::RateExperiment result;
  Scale scale;
};

/// Standard error of a slope whose losses spread by `spread` at each n.
inline double slope_error(const Scale& scale, double spread) {
  double count = 0, mean = 0, squares = 0;
  const auto each = [&](auto&& visit) {
    for (std::size_t i = 0; i < scale.rows.size(); ++i)
      if (scale.rows[i] >= scale.smallest_rows)
        visit(std::log(static_cast<double>(scale.rows[i])), static_cast<double>(scale.replications[i]));
  };
  each([&](double x, double r) { count += r, mean += r * x; });
  mean /= count;
  each([&](double x, double r) { squares += r * (x - mean) * (x - mean); });
  return spread / std::sqrt(squares);
}

/// The scale that the bands are stated for.
inline Scale full_scale() { return {moe::geometric_rows(100, 100'000), {160, 160, 160, 160, 160, 96, 80}}; }

/// A band at another scale: wider by three times what the standard error of the slope grows.
inline std::pair<double, double> band(const Check& check, const Scale& scale) {
  const double more = 3 * std::max(0.0, slope_error(scale, check.spread) - slope_error(full_scale(), check.spread));
  return {check.low - more, check.high + more};
}

inline const moe::RateSlope& slope_of(const moe::RateMetric& metric, moe::RateStatistic statistic) {
  return statistic == moe::RateStatistic::Mean ? metric.slope_of_mean : metric.slope_of_median;
}

inline bool is_met(const Check& check, const moe::RateExperiment& result, const Scale& scale) {
  const auto [low, high] = band(check, scale);
  const double slope = slope_of(result(check.metric), check.statistic).slope;
  return slope >= low && slope <= high;  // not where there is no slope
}

/// A level with its name.
struct NamedLevel {
  const char* name;
  moe::RateLevel level;
  double share = 0;  ///< by which the expected level may be off

  bool ok() const {  // not where there is no level
    return std::abs(level.mean - level.expected) <= kLevelErrors * level.error + share * level.expected;
  }
};

/// The levels of an experiment whose maximum is a regular one.
inline std::vector<NamedLevel> levels_of(const moe::RateExperiment& result) {
  if (result.identified == 0) return {};
  return {{"excess, mean", moe::excess_level(result)},
          {"gate wald, mean", moe::gate_level(result, kGateRows), kGateShare}};
}

inline int print_levels(const moe::RateExperiment& result) {
  int missed = 0;
  for (const NamedLevel& at : levels_of(result)) {
    missed += at.ok() ? 0 : 1;
    std::printf("  %-16s %6.1f  mean %6.3f, %5.2f standard errors of %.3f off (%td fits) %s\n", at.name,
                at.level.expected, at.level.mean, at.level.standardised(), at.level.error, at.level.count,
                at.ok() ? "ok" : "MISSED");
  }
  return missed;
}

/// Prints the rows of an experiment; returns how many checks are missed.
inline int print(const Finished& finished) {
  const Experiment& e = finished.experiment;
  std::printf("%s: %s (%.1f s)\n", e.name, e.title, finished.result.seconds);
  int missed = print_levels(finished.result);
  for (const Check& check : e.checks) {
    const moe::RateMetric& metric = finished.result(check.metric);
    std::printf("  %-16s %6s  mean %6.3f [%6.3f, %6.3f]  median %6.3f  ", check.metric, check.theory,
                metric.slope_of_mean.slope, metric.slope_of_mean.low, metric.slope_of_mean.high,
                metric.slope_of_median.slope);
    if (std::isinf(check.low)) {
      std::printf("reported\n");
      continue;
    }
    const auto [low, high] = band(check, finished.scale);
    const bool ok = is_met(check, finished.result, finished.scale);
    missed += ok ? 0 : 1;
    const bool median = check.statistic == moe::RateStatistic::Median;
    std::printf("%s in [%5.2f, %5.2f] %s\n", median ? "median" : "mean  ", low, high, ok ? "ok" : "MISSED");
  }
  for (std::size_t i = 0; i < finished.result.failures.size(); ++i) {
    const moe::RateFailures& f = finished.result.failures[i];
    if (f.not_converged + f.below_truth + f.thrown == 0) continue;
    std::printf("  n = %td: %td not converged, %td below the truth, %td failed %s\n", finished.result.rows[i],
                f.not_converged, f.below_truth, f.thrown, f.first_error.c_str());
  }
  return missed;
}

/// One panel: data blocks, then means (medians where those are checked) and their fitted lines, log-log.
inline void draw_panel(std::ostream& script, const Finished& finished) {
  // dark enough on white, and apart for the colour-blind (Tol's "bright", its yellow darkened)
  constexpr std::array kColours = {"#4477aa", "#ee6677", "#228833", "#aa8800", "#aa3377", "#333333"};
  const bool median = std::string(finished.experiment.claim).find("over") != std::string::npos;
  std::string curves;
  std::size_t curve = 0;
  for (const char* name : finished.experiment.drawn) {
    const moe::RateMetric& metric = finished.result(name);
    const auto& slope = median ? metric.slope_of_median : metric.slope_of_mean;
    script << "$d" << curve << " << END\n";
    for (std::size_t i = 0; i < finished.result.rows.size(); ++i)
      script << finished.result.rows[i] << ' ' << (median ? metric.median[i] : metric.mean[i]) << '\n';
    script << "END\n";
    char text[240];
    std::snprintf(
        text, sizeof text,
        "%s%.9g*x**%.9g lc rgb '%s' lw 1.6 notitle, $d%zu with points pt 7 ps 0.6 lc rgb '%s' title '%s: %.2f'",
        curve ? ", " : "", slope.constant, slope.slope, kColours[curve % kColours.size()], curve,
        kColours[curve % kColours.size()], name, slope.slope);
    curves += text;
    ++curve;
  }
  script << "set ylabel '" << (median ? "median" : "mean") << " over replications'\nset title \""
         << finished.experiment.title << "\"\nplot " << curves << '\n';
}

/// One picture per claim, two panels to a row; the slopes are in the keys, which stand beside the panels.
inline void draw(const std::string& claim, const std::vector<Finished>& all, const std::string& path) {
  std::vector<const Finished*> panels;
  for (const Finished& finished : all)
    if (claim == finished.experiment.claim) panels.push_back(&finished);
  const std::size_t columns = std::min<std::size_t>(2, panels.size()), rows = (panels.size() + columns - 1) / columns;
  std::ofstream script(path + ".gnuplot");
  script << "set terminal svg size " << 620 * columns << ',' << 440 * rows << " font 'sans,12' background 'white'\n"
         << "set output '" << path << "'\nset logscale xy\nset format xy '10^{%T}'\nset grid lc rgb '#eeeeee'\n"
         << "set key outside right top Left reverse samplen 1 noenhanced\nset xlabel 'n'\nset multiplot layout " << rows
         << ',' << columns << '\n';
  for (const Finished* panel : panels) draw_panel(script, *panel);
  script << "unset multiplot\n";
  script.close();
  if (std::system(("gnuplot '" + path + ".gnuplot' 2>/dev/null").c_str()) == 0) {
    std::remove((path + ".gnuplot").c_str());
    std::printf("picture: %s\n", path.c_str());
  } else {
    std::printf("no picture: gnuplot is missing or failed on %s.gnuplot\n", path.c_str());
  }
}

/// Not-a-number, where something was not measured, becomes null.
inline nlohmann::json to_json(const Finished& finished) {
  const moe::RateExperiment& result = finished.result;
  const Scale& scale = finished.scale;
  nlohmann::json out{{"name", finished.experiment.name},
                     {"title", finished.experiment.title},
                     {"n", result.rows},
                     {"replications", result.replications},
                     {"seconds", result.seconds}};
  const auto slope_json = [](const moe::RateSlope& slope) {
    return nlohmann::json{{"slope", slope.slope}, {"interval", {slope.low, slope.high}}};
  };
  for (const moe::RateMetric& metric : result.metrics)
    out["metrics"][metric.name] = {{"mean", metric.mean},
                                   {"median", metric.median},
                                   {"sd", metric.deviation},
                                   {"count", metric.counts},
                                   {"of_mean", slope_json(metric.slope_of_mean)},
                                   {"of_median", slope_json(metric.slope_of_median)}};
  for (const moe::RateFailures& f : result.failures)
    out["failures"].push_back({{"not_converged", f.not_converged},
                               {"below_truth", f.below_truth},
                               {"thrown", f.thrown},
                               {"first_error", f.first_error}});
  for (const Check& check : finished.experiment.checks) {
    const auto [low, high] = band(check, scale);
    out["checks"].push_back({{"metric", check.metric},
                             {"statistic", check.statistic == moe::RateStatistic::Mean ? "mean" : "median"},
                             {"theory", check.theory},
                             {"band", {low, high}},
                             {"ok", is_met(check, result, scale)}});
  }
  for (const NamedLevel& at : levels_of(result))
    out["levels"].push_back({{"name", at.name},
                             {"expected", at.level.expected},
                             {"mean", at.level.mean},
                             {"error", at.level.error},
                             {"ok", at.ok()}});
  return out;
}

}  // namespace rates
