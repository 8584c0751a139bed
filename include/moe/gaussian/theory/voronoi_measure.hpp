// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/gaussian/model/model.hpp"

// The points that a Voronoi loss compares, their cells and their common shift.
namespace moe::inline MOE_ABI::detail {

/// What a loss compares: the experts of a model as points with a weight.
struct VoronoiMeasure {
  Matrix<double> gate_slope = {};
  double temperature = 1;
  Eigen::RowVectorXd log_weight = {};
  Matrix<double> slope = {};
  Eigen::RowVectorXd intercept = {}, variance = {};

  /// With `ratio`, the gate is (beta_1, beta_0) / tau at temperature 1.
  VoronoiMeasure(const GaussianParameters& model, bool ratio)
      : gate_slope(model.gate_slope),
        temperature(model.temperature),
        log_weight(model.gate_bias / model.temperature),
        slope(model.slope),
        intercept(model.intercept),
        variance(model.variance) {
    if (!ratio) return;
    gate_slope /= temperature;
    temperature = 1;
  }

  Index size() const { return slope.rows(); }

  void shift(const Eigen::RowVectorXd& t1, double t0) {
    gate_slope.rowwise() -= t1;
    log_weight.array() -= t0;
  }
};

/// For each fitted expert the nearest true one, ties to the lower. The temperature is the same for all experts of a
/// model, so that it adds the same to every distance.
inline std::vector<Index> voronoi_cells(const VoronoiMeasure& fitted, const VoronoiMeasure& truth, bool with_gate) {
  std::vector<Index> cells;
  for (Index i = 0; i < fitted.size(); ++i) {
    Index nearest = 0;
    double least = std::numeric_limits<double>::infinity();
    for (Index j = 0; j < truth.size(); ++j) {
      const double db = fitted.intercept(i) - truth.intercept(j), dv = fitted.variance(i) - truth.variance(j);
      double square = (fitted.slope.row(i) - truth.slope.row(j)).squaredNorm() + db * db + dv * dv;
      if (with_gate) square += (fitted.gate_slope.row(i) - truth.gate_slope.row(j)).squaredNorm();
      if (square < least) {
        least = square;
        nearest = j;
      }
    }
    cells.push_back(nearest);
  }
  return cells;
}

/// Moves the true gate to 0 at its last expert, and the fitted one to centroid 0 and mass 1 in the last cell that has
/// an expert (relative to the truth there). Cells begin with the experts alone, which no shift concerns.
inline std::vector<Index> centre(VoronoiMeasure& fitted, VoronoiMeasure& truth, bool linear) {
  const Eigen::RowVectorXd zero = Eigen::RowVectorXd::Zero(truth.slope.cols());
  const Index last = truth.size() - 1;
  const Eigen::RowVectorXd origin = linear ? Eigen::RowVectorXd(truth.gate_slope.row(last)) : zero;
  truth.shift(origin, truth.log_weight(last));
  std::vector<Index> cells = voronoi_cells(fitted, truth, /*with_gate=*/false);
  for (int round = 0; round < 3; ++round) {
    const Index reference = *std::max_element(cells.begin(), cells.end());
    double largest = -std::numeric_limits<double>::infinity(), mass = 0;
    Eigen::RowVectorXd centroid = zero;
    const auto for_members = [&](const auto& body) {
      for (Index i = 0; i < fitted.size(); ++i)
        if (cells[static_cast<std::size_t>(i)] == reference) body(i);
    };
    for_members([&](Index i) { largest = std::max(largest, fitted.log_weight(i)); });
    for_members([&](Index i) {
      const double weight = std::exp(fitted.log_weight(i) - largest);
      mass += weight;
      centroid += weight * fitted.gate_slope.row(i);
    });
    const Eigen::RowVectorXd t1 = linear ? centroid / mass - truth.gate_slope.row(reference) : zero;
    fitted.shift(t1, largest + std::log(mass) - truth.log_weight(reference));
    auto moved = voronoi_cells(fitted, truth, /*with_gate=*/true);
    const bool settled = moved == cells;
    cells = std::move(moved);
    if (settled) break;
  }
  return cells;
}

}  // namespace moe::inline MOE_ABI::detail
