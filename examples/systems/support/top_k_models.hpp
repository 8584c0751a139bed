// SPDX-License-Identifier: MIT
// The truths of the pages about top-K gates as statistical models, and how near to one a model of another size can be.
#pragma once

#include <cmath>
#include <fstream>
#include <numbers>
#include <string>
#include <vector>

#include <moe/gate/top_k.hpp>
#include <moe/gaussian/theory/rate_experiment.hpp>

namespace systems {

using TopKModel = moe::GaussianMoe<moe::TopKGate>;

/// Who is active depends on x alone: a gate with weight_bias selects by the inner products.
inline moe::TopKGate top(moe::Index k, moe::Index num_experts) {
  return {.k = k, .weight_bias = Eigen::RowVectorXd::Zero(num_experts)};
}

/// Two lines on one input, one or both of them active.
inline TopKModel two_experts(moe::Index active) {
  auto model = TopKModel::zero(2, 1, top(active, 2));
  model.gate_slope << 2, 0;
  model.gate_bias << 0.3, 0;
  model.slope << 1, -1;
  model.intercept << 1.5, -1.5;
  model.variance << 0.3, 0.4;
  return model;
}

/// Top 2 of three lines on one input: 0 and 2 right of x = 0, 1 and 2 left of it.
inline TopKModel two_of_three() {
  auto model = TopKModel::zero(3, 1, top(2, 3));
  model.gate_slope << 2, -2, 0;
  model.gate_bias << 0.3, -0.3, 0;
  model.slope << 1, -1, 0.5;
  model.intercept << 2, -2, 0;
  model.variance << 0.3, 0.4, 0.2;
  return model;
}

/// Top 2 of three planes on two inputs, whose gates have the corners of a triangle: each pair is active in a sector.
inline TopKModel two_of_three_planes() {
  auto model = TopKModel::zero(3, 2, top(2, 3));
  model.gate_slope << 3, std::numbers::sqrt3, 3, -std::numbers::sqrt3, 0, 0;
  model.gate_bias << 0.3, -0.3, 0;
  model.slope << 1, 0.5, -1, 0.5, 0.5, -1;
  model.intercept << 2, -2, 0;
  model.variance << 0.3, 0.4, 0.2;
  return model;
}

/// Points of a grid on (-1, 1)^d, d = 1 or 2, with as many outcomes y at each, in all of the range of the models above.
struct DensityGrid {
  moe::Matrix<double> x = {};
  moe::RegressionData data = {};

  DensityGrid(moe::Index d, moe::Index per_axis, moe::Index outcomes) {
    constexpr double kReach = 7;  // 8 deviations beyond all means
    const moe::Index points = d == 1 ? per_axis : per_axis * per_axis;
    const auto middle = [](moe::Index i, moe::Index n) { return (2.0 * static_cast<double>(i) + 1) / double(n) - 1; };
    x.resize(points, d);
    data.x.resize(points * outcomes, d);
    data.y.resize(points * outcomes);
    for (moe::Index i = 0; i < points; ++i) {
      x(i, 0) = middle(i % per_axis, per_axis);
      if (d == 2) x(i, 1) = middle(i / per_axis, per_axis);
      for (moe::Index j = 0; j < outcomes; ++j) {
        data.x.row(i * outcomes + j) = x.row(i);
        data.y(i * outcomes + j) = kReach * middle(j, outcomes);
      }
    }
  }
};

/// The Hellinger distance of a truth from the nearest model of `num_experts`, `active` of which are selected: the least
/// that is found from a start at every allocation of experts, so at most too large. Majorises: among the densities q of
/// the models, the integral of sqrt(p q) grows where q maximises the mean of log q under weights sqrt(p q) of the last
/// round, which fit_from() does on a grid. The first round has weights p: the limit of maximum likelihood.
inline double nearest_distance(const TopKModel& truth, moe::Index num_experts, moe::Index active, DensityGrid grid,
                               int rounds = 4) {
  const moe::StartNoise noise{.gate = {.scale = 0.3, .power = 0}, .expert = {.scale = 0.3, .power = 0}};
  const Eigen::VectorXd p = moe::log_density(truth, grid.data);
  double least = 1;
  std::uint64_t seed = 0;
  for (const auto& cells : moe::expert_allocations(num_experts, truth.num_experts())) {
    TopKModel model = moe::near_truth(truth, cells, noise, {.num_rows = 1, .seed = ++seed});
    model.gate.k = active;
    Eigen::VectorXd q = p;
    for (int round = 0; round < rounds; ++round) {
      grid.data.weights = ((p + q) / 2).array().exp().max(1e-12);     // that is no density, and no weight to see
      model = moe::fit_from(grid.data, model, {.support = 0}).model;  // whose rows are no sample
      q = moe::log_density(model, grid.data);
    }
    least = std::min(least, moe::density_distance(model, truth, grid.x).hellinger);
  }
  return least;
}

/// A curve of distances against n, and the distance that it cannot get below; 0: none.
struct DistanceCurve {
  std::string title, colour;
  int panel = 0;
  std::vector<double> distances = {};
  double nearest = 0;
};

/// Writes a script for gnuplot: panels side by side, log-log, with a grey line of slope -1/2 through the first point.
inline void draw_distances(const std::vector<DistanceCurve>& curves, const std::vector<moe::Index>& rows,
                           const std::vector<std::string>& panels, const std::string& path) {
  std::ofstream script(path + ".gp");
  script << "set terminal svg size " << 470 * panels.size() << ",430 font 'sans-serif,13' background '#ffffff'\n"
         << "set output '" << path << "'\nset multiplot layout 1," << panels.size()
         << "\nset logscale xy\nset border 3\nset tics nomirror\nset xlabel 'n'\nset ylabel 'Hellinger distance'\n"
         << "set key below left Left reverse maxcols 1 samplen 2\nset yrange [0.005:0.3]\n";
  for (std::size_t panel = 0; panel < panels.size(); ++panel) {
    std::string plots;
    for (std::size_t c = 0; c < curves.size(); ++c) {
      const DistanceCurve& curve = curves[c];
      if (curve.panel != static_cast<int>(panel)) continue;
      script << "$d" << c << " << END\n";
      for (std::size_t i = 0; i < rows.size(); ++i) script << rows[i] << ' ' << curve.distances[i] << '\n';
      script << "END\n";
      const std::string colour = "lw 2 lc '" + curve.colour + "'";
      plots += (plots.empty() ? "" : ", ") + ("$d" + std::to_string(c)) + " with linespoints pt 7 ps 0.6 " + colour +
               " title '" + curve.title + "'";
      if (curve.nearest > 0.005)  // else below the picture
        plots += ", " + std::to_string(curve.nearest) + " dt 2 " + colour + " title 'nearest that was found'";
    }
    script << "set title '" << panels[panel] << "'\nplot " << plots
           << ", 0.6/sqrt(x) dt 3 lc '#888888' title 'n^{-1/2}'\n";
  }
  script << "unset multiplot\n";
  script.close();
  if (!script) moe::fail_environment("cannot write ", path, ".gp");
}

}  // namespace systems
