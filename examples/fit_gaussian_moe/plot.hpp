// SPDX-License-Identifier: MIT
// Draws the fit of fit_gaussian_moe.cpp with gnuplot: over x where there is one input, else how well it predicts.
#pragma once

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "data.hpp"

namespace fitting {

inline constexpr Index kShown = 4000;  // points at most: every n-th row of larger data

inline std::string colour(Index expert) {
  constexpr std::array kColours = {"#4477aa", "#cc6677", "#228833", "#aa8800", "#aa3377", "#33aaaa", "#777777"};
  return kColours[static_cast<std::size_t>(expert) % kColours.size()];
}

/// 'text' for gnuplot, which runs what stands behind a line end.
inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    result += c == '\'' ? std::string("''") : std::string(1, byte < 0x20 || byte == 0x7F ? '?' : c);
  }
  return result + '\'';
}

/// One data block $points<j> per expert: two columns, of the rows that it most probably made. A block is never empty:
/// gnuplot skips NaN.
template <class Gate, class Point>
void write_points(std::ostream& script, const moe::GaussianMoe<Gate>& model, const Problem& problem, Point&& point) {
  const auto& data = problem.data();
  const std::vector<Index> experts = moe::predict_expert(model, data, data.y);
  const Index stride = (data.num_rows() + kShown - 1) / kShown;
  for (Index j = 0; j < model.num_experts(); ++j) {
    script << "$points" << j << " << END\nNaN NaN\n";
    for (Index i = 0; i < data.num_rows(); i += stride)
      if (experts[static_cast<std::size_t>(i)] == j) {
        const auto [x, y] = point(i);
        script << x << ' ' << y << '\n';
      }
    script << "END\n";
  }
}

/// $curves: x | 5, 50 and 95 % quantiles | mean of every expert | weight of every expert.
template <class Gate>
void write_curves(std::ostream& script, const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  constexpr Index kSteps = 600;
  const double low = data.x.minCoeff(), high = data.x.maxCoeff();
  const double margin = low < high ? 0.02 * (high - low) : 1;
  const moe::Matrix<double> x = Eigen::VectorXd::LinSpaced(kSteps, low - margin, high + margin);
  const moe::Matrix<double> bands = moe::predict_quantiles(model, x, std::array{0.05, 0.5, 0.95});
  const moe::Matrix<double> means = moe::expert_means(model, x), weights = moe::gate_weights(model, x);
  const Eigen::IOFormat plain(9, Eigen::DontAlignCols, " ");
  script << "$curves << END\n";
  for (Index i = 0; i < kSteps; ++i)
    script << x(i, 0) << ' ' << bands.row(i).format(plain) << ' ' << means.row(i).format(plain) << ' '
           << weights.row(i).format(plain) << '\n';
  script << "END\n";
}

/// One input: data, expert lines (full where the weight is at least a tenth) and quantiles above, weights below.
template <class Gate>
void draw_over_x(std::ostream& script, const moe::GaussianMoe<Gate>& model, const Problem& problem) {
  const Index k = model.num_experts();
  const auto& data = problem.data();
  write_points(script, model, problem, [&](Index i) { return std::pair(data.x(i, 0), data.y(i)); });
  write_curves(script, model, data);
  const double low = data.y.minCoeff(), high = data.y.maxCoeff(), margin = 0.2 * (low < high ? high - low : 1);
  script << "set multiplot\nset lmargin 9\nset rmargin 3\nset autoscale xfix"
            "\nset size 1,0.66\nset origin 0,0.34\nset bmargin 0.5\nset format x ''\nset ylabel "
         << quoted(problem.output) << " noenhanced\nset yrange [" << low - margin << ':' << high + margin
         << "]\nset key outside top center horizontal\nplot $curves using 1:2:4 with filledcurves lc '#e4e4e4' title "
            "'5 to 95 %', '' using 1:3 with lines lw 1.6 lc '#555555' title 'median'";
  for (Index j = 0; j < k; ++j)
    script << ", $points" << j << " using 1:2 with points pt 7 ps 0.45 lc '" << colour(j)
           << "' notitle, $curves using 1:" << 5 + j << " with lines lw 0.8 dt 3 lc '" << colour(j)
           << "' notitle, '' using 1:($" << 5 + k + j << " >= 0.1 ? $" << 5 + j << " : NaN) with lines lw 2.4 lc '"
           << colour(j) << "' title 'expert " << j + 1 << "'";
  script << "\nunset key\nset size 1,0.34\nset origin 0,0\nset tmargin 0.5\nset bmargin 3.5\nset format x '%g'\nset "
            "xlabel "
         << quoted(problem.inputs[0])
         << " noenhanced\nset ylabel 'weight'\nset yrange [-0.03:1.03]\nset ytics 0.5\nplot ";
  for (Index j = 0; j < k; ++j)
    script << (j ? ", " : "") << "$curves using 1:" << 5 + k + j << " with lines lw 2.4 lc '" << colour(j) << "'";
  script << "\nunset multiplot\n";
}

/// Several inputs: observed against predicted mean, and the quantile residuals against those of a normal.
template <class Gate>
void draw_prediction(std::ostream& script, const moe::GaussianMoe<Gate>& model, const Problem& problem) {
  const auto& data = problem.data();
  const Eigen::VectorXd mean = moe::predict_mean(model, data);
  write_points(script, model, problem, [&](Index i) { return std::pair(mean(i), data.y(i)); });
  const Eigen::VectorXd quantiles = moe::quantile_residuals(model, data, data.y);
  std::vector<std::pair<double, double>> residuals;  // and the weights of their rows
  for (Index i = 0; i < quantiles.size(); ++i) residuals.emplace_back(quantiles(i), data.weight(i));
  std::sort(residuals.begin(), residuals.end());
  const std::size_t stride = (residuals.size() + kShown - 1) / kShown;
  script << "$residuals << END\n";
  double before = 0;
  for (std::size_t i = 0; i < residuals.size(); ++i) {
    const auto [residual, weight] = residuals[i];
    const double level = (before + 0.5 * weight) / data.total_weight();
    if (i % stride == 0) script << moe::NormalMixture().quantile(level) << ' ' << residual << '\n';
    before += weight;
  }
  script << "END\nset multiplot layout 1,2\nset key top left\nset xlabel 'fitted mean'\nset ylabel "
         << quoted(problem.output) << " noenhanced\nplot x with lines lc '#999999' notitle";
  for (Index j = 0; j < model.num_experts(); ++j)
    script << ", $points" << j << " with points pt 7 ps 0.45 lc '" << colour(j) << "' title 'expert " << j + 1 << "'";
  script << "\nset xlabel 'normal quantile'\nset ylabel 'quantile residual'\nunset key\n"
            "plot x with lines lc '#999999', $residuals with points pt 7 ps 0.45 lc '#4477aa'\nunset multiplot\n";
}

/// Is there one picture of y over x? Not where offsets or precisions make rows of the same x differ.
inline bool is_curve(const Problem& problem) {
  return problem.inputs.size() == 1 && problem.data().offset.size() == 0 && problem.data().precision.size() == 0;
}

/// Writes `path`.gp and, if gnuplot is installed, the picture.
template <class Gate>
void write_plot(const moe::GaussianMoe<Gate>& model, const Problem& problem, const std::string& path) {
  const std::string script_path = path + ".gp";
  std::ofstream script(script_path);
  script.precision(9);
  script << "set terminal svg size " << (is_curve(problem) ? "820,640" : "1100,520")
         << " font 'sans-serif,13' background '#ffffff'\nset output " << quoted(path)
         << "\nset border 3\nset tics nomirror\nset grid lc rgb '#eeeeee' lt 1\n";
  if (is_curve(problem))
    draw_over_x(script, model, problem);
  else
    draw_prediction(script, model, problem);
  script.close();
  if (!script) moe::fail_environment("cannot write '", script_path, "'");
  std::string shell = "'";  // a quote ends the string, is escaped, and begins it again
  for (const char c : script_path) shell += c == '\'' ? std::string("'\\''") : std::string(1, c);
  if (std::system(("gnuplot " + shell + "'").c_str()) == 0)
    std::printf("\npicture: %s\n", path.c_str());
  else
    std::printf("\nno picture: install gnuplot and run: gnuplot %s'\n", shell.c_str());
}

}  // namespace fitting
