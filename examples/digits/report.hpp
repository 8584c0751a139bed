// SPDX-License-Identifier: MIT
// Table, JSON and picture of the runs of digits.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "data.hpp"

namespace digits {

/// What one training run leaves behind.
struct Run {
  std::string gate;
  int seed = 0;
  double test_accuracy = 0, active_experts = 0, load_imbalance = 0, seconds = 0;
  double kiloflops = 0;                       // of the experts, per token
  double ensemble_accuracy = -1;              // stochastic gate: all experts averaged; negative where it does not apply
  std::vector<double> accuracy_history = {};  // test accuracy after each epoch
  moe::Matrix<double> share = {};             // [num_experts, 10] share of a digit's assignments that an expert gets
};

/// Mean over the runs of one gate.
template <class Value>
double mean(const std::vector<Run>& runs, const std::string& gate, const Value& value) {
  double sum = 0, count = 0;
  for (const Run& run : runs)
    if (run.gate == gate) sum += value(run), ++count;
  return sum / count;
}

/// Names of the gates in order of first appearance.
inline std::vector<std::string> gates_of(const std::vector<Run>& runs) {
  std::vector<std::string> names;
  for (const Run& run : runs)
    if (std::find(names.begin(), names.end(), run.gate) == names.end()) names.push_back(run.gate);
  return names;
}

inline void print_table(const std::vector<Run>& runs) {
  std::printf("\n%-16s %9s %9s %16s %15s %16s %9s\n", "gate", "accuracy", "+/- s.d.", "active experts", "max/mean load",
              "kFLOP per token", "seconds");
  for (const std::string& gate : gates_of(runs)) {
    const double accuracy = mean(runs, gate, [](const Run& run) { return run.test_accuracy; });
    const double variance = mean(runs, gate, [&](const Run& run) { return std::pow(run.test_accuracy - accuracy, 2); });
    std::printf("%-16s %9.4f %9.4f %16.2f %15.2f %16.1f %9.2f\n", gate.c_str(), accuracy, std::sqrt(variance),
                mean(runs, gate, [](const Run& run) { return run.active_experts; }),
                mean(runs, gate, [](const Run& run) { return run.load_imbalance; }),
                mean(runs, gate, [](const Run& run) { return run.kiloflops; }),
                mean(runs, gate, [](const Run& run) { return run.seconds; }));
    const double ensemble = mean(runs, gate, [](const Run& run) { return run.ensemble_accuracy; });
    if (ensemble >= 0) std::printf("  all its experts averaged: %.4f (the line above draws one per token)\n", ensemble);
  }
}

inline void write_json(const std::vector<Run>& runs, const std::string& path) {
  nlohmann::json list = nlohmann::json::array();
  for (const Run& run : runs) {
    list.push_back({{"gate", run.gate},
                    {"seed", run.seed},
                    {"test_accuracy", run.test_accuracy},
                    {"active_experts", run.active_experts},
                    {"load_imbalance", run.load_imbalance},
                    {"seconds", run.seconds}});
    if (run.ensemble_accuracy >= 0) list.back()["ensemble_accuracy"] = run.ensemble_accuracy;
  }
  std::ofstream file(path);
  file << nlohmann::json{{"runs", list}}.dump(2) << '\n';
  if (!file) moe::fail_environment("digits: cannot write ", path);
}

/// Experts sorted by the digit they serve most, so that specialisation shows as a diagonal.
inline std::vector<moe::Index> by_favourite_digit(const moe::Matrix<double>& share) {
  std::vector<moe::Index> order(static_cast<std::size_t>(share.rows()));
  for (std::size_t e = 0; e < order.size(); ++e) order[e] = static_cast<moe::Index>(e);
  const auto favourite = [&](moe::Index e) {
    const double* row = share.row(e).data();
    return std::max_element(row, row + share.cols()) - row;
  };
  std::stable_sort(order.begin(), order.end(), [&](moe::Index a, moe::Index b) { return favourite(a) < favourite(b); });
  return order;
}

/// Writes `path`.gp and, if gnuplot is installed, draws the picture from it: accuracy against epochs, and who serves
/// which digit.
inline void write_picture(const std::vector<Run>& runs, const std::string& heat_gate, const std::string& path) {
  const auto heat = std::find_if(runs.begin(), runs.end(), [&](const Run& run) { return run.gate == heat_gate; });
  const std::vector<std::string> gates = gates_of(runs);
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 1180,480 font 'sans-serif,13' background '#ffffff'\nset output '" << path << "'\n";
  for (std::size_t g = 0; g < gates.size(); ++g) {
    script << "$gate" << g << " << END\n";
    for (std::size_t epoch = 0; epoch < runs.front().accuracy_history.size(); ++epoch)
      script << epoch + 1 << ' ' << mean(runs, gates[g], [&](const Run& run) { return run.accuracy_history[epoch]; })
             << '\n';
    script << "END\n";
  }
  const std::vector<moe::Index> order = by_favourite_digit(heat->share);
  script << "$share << END\n";
  for (std::size_t row = 0; row < order.size(); ++row)
    for (moe::Index d = 0; d < kClasses; ++d) script << d << ' ' << row << ' ' << heat->share(order[row], d) << '\n';
  script << "END\n";
  constexpr std::array kColours = {"#bbbbbb", "#333333", "#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377"};
  script << "set multiplot layout 1,2\nset border 3\nset tics nomirror\nset grid ytics lc '#dddddd'\n"
            "set title 'Test accuracy while training (mean of the seeds)'\nset xlabel 'epoch'\nset ylabel ''\n"
            "set yrange [0.88:1]\nset key bottom right\nplot ";
  for (std::size_t g = 0; g < gates.size(); ++g)
    script << (g ? ", " : "") << "$gate" << g << " with lines lw 2.2 lc '" << kColours[g % kColours.size()]
           << "' title '" << gates[g] << "' noenhanced";
  script << "\nset title 'Share of a digit that an expert serves (" << heat_gate
         << ", seed 1)' noenhanced\nset xlabel 'digit'\nset ylabel 'expert'\nunset grid\nunset key\nset border 0\n"
            "set xtics 0,1,9 scale 0\nset xrange [-0.5:9.5]\nset yrange ["
         << order.size()
         << "-0.5:-0.5]\n"
            "set ytics scale 0 (";
  for (std::size_t row = 0; row < order.size(); ++row) script << (row ? ", '" : "'") << order[row] << "' " << row;
  script << ")\nset cbrange [0:*]\nset cbtics 0.1 format '%.1f' scale 0\n"
            "set palette defined (0 '#f7fbff', 0.5 '#6baed6', 1 '#08306b')\n"
            "plot $share using 1:2:3 with image pixels, '' using 1:2:(sprintf('%.2f', $3)):($3 > 0.25 ? 0xffffff : "
            "0x333333) "
            "with labels font ',10' textcolor rgb variable\n";
  script.close();
  if (!script) moe::fail_environment("digits: cannot write ", path, ".gp");
  if (std::system("command -v gnuplot >/dev/null 2>&1") != 0)
    std::cout << "\nno picture yet, as gnuplot is missing; it draws with: gnuplot '" << path << ".gp'\n";
  else if (std::system(("gnuplot '" + path + ".gp'").c_str()) == 0)
    std::cout << "\npicture: " << path << '\n';
  else
    std::cout << "\nno picture: gnuplot failed on " << path << ".gp\n";
}

}  // namespace digits
