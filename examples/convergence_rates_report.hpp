// SPDX-License-Identifier: MIT
// Tables, pictures and files of convergence_rates.cpp.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "convergence_rates_experiments.hpp"

namespace rates {

/// An experiment with its result.
struct Finished {
  Experiment experiment;
  moe::RateExperiment result;
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

/// Prints the rows of an experiment; returns how many checks are missed.
inline int print(const Finished& finished, const Scale& scale) {
  const Experiment& e = finished.experiment;
  std::printf("%s: %s (%.1f s)\n", e.name, e.title, finished.result.seconds);
  int missed = 0;
  for (const Check& check : e.checks) {
    const moe::RateMetric& metric = finished.result(check.metric);
    const auto [low, high] = band(check, scale);
    const double slope = slope_of(metric, check.statistic).slope;
    const bool ok = slope >= low && slope <= high;
    missed += ok ? 0 : 1;
    const bool median = check.statistic == moe::RateStatistic::Median;
    std::printf("  %-16s %6s  mean %6.3f [%6.3f, %6.3f]  median %6.3f  %s in [%5.2f, %5.2f] %s\n", check.metric,
                check.theory, metric.slope_of_mean.slope, metric.slope_of_mean.low, metric.slope_of_mean.high,
                metric.slope_of_median.slope, median ? "median" : "mean  ", low, high, ok ? "ok" : "MISSED");
  }
  for (std::size_t i = 0; i < finished.result.failures.size(); ++i) {
    const moe::RateFailures& f = finished.result.failures[i];
    if (f.not_converged + f.below_truth + f.thrown == 0) continue;
    std::printf("  n = %td: %td not converged, %td below the truth, %td failed %s\n", finished.result.rows[i],
                f.not_converged, f.below_truth, f.thrown, f.first_error.c_str());
  }
  return missed;
}

/// One panel per experiment of a claim: means (medians where those are checked) and their fitted lines, log-log.
inline void draw(const std::string& claim, const std::vector<Finished>& all, const std::string& path) {
  std::vector<const Finished*> panels;
  for (const Finished& finished : all)
    if (claim == finished.experiment.claim) panels.push_back(&finished);
  std::ofstream script(path + ".gnuplot");
  script << "set terminal svg size " << 460 * panels.size() << ",460 font 'sans,12' background 'white'\n"
         << "set output '" << path << "'\nset logscale xy\nset format xy '10^{%T}'\nset grid lc rgb '#eeeeee'\n"
         << "set key bottom left\nset xlabel 'n'\nset multiplot layout 1," << panels.size() << "\n";
  for (const Finished* finished : panels) {
    const bool median = std::string(finished->experiment.claim) == "over-specified";
    std::string curves;
    int colour = 1;
    for (const char* name : finished->experiment.drawn) {
      const moe::RateMetric& metric = finished->result(name);
      const auto& slope = median ? metric.slope_of_median : metric.slope_of_mean;
      script << "$d" << colour << " << END\n";
      for (std::size_t i = 0; i < finished->result.rows.size(); ++i)
        script << finished->result.rows[i] << ' ' << (median ? metric.median[i] : metric.mean[i]) << '\n';
      script << "END\n";
      char line[160];
      std::snprintf(line, sizeof line, "%.9g*x**%.9g with lines lc %d notitle, $d%d with points pt 7 ps 0.5 lc %d",
                    slope.constant, slope.slope, colour, colour, colour);
      char title[80];
      std::snprintf(title, sizeof title, " title '%s %.2f'", name, slope.slope);
      curves += std::string(curves.empty() ? "" : ", ") + line + title;
      ++colour;
    }
    script << "set title \"" << finished->experiment.title << "\"\nplot " << curves << '\n';
  }
  script << "unset multiplot\n";
  script.close();
  if (std::system(("gnuplot '" + path + ".gnuplot' 2>/dev/null").c_str()) == 0) {
    std::remove((path + ".gnuplot").c_str());
    std::printf("picture: %s\n", path.c_str());
  } else {
    std::printf("no picture: gnuplot is missing or failed on %s.gnuplot\n", path.c_str());
  }
}

inline nlohmann::json to_json(const Finished& finished) {
  nlohmann::json out{{"name", finished.experiment.name},
                     {"title", finished.experiment.title},
                     {"n", finished.result.rows},
                     {"replications", finished.result.replications}};
  for (const moe::RateMetric& metric : finished.result.metrics)
    out["metrics"][metric.name] = {{"mean", metric.mean},
                                   {"median", metric.median},
                                   {"slope", metric.slope_of_mean.slope},
                                   {"interval", {metric.slope_of_mean.low, metric.slope_of_mean.high}},
                                   {"slope_of_median", metric.slope_of_median.slope}};
  return out;
}

}  // namespace rates
