// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/gaussian/theory/distance.hpp"
#include "moe/gaussian/theory/gate_errors.hpp"
#include "moe/gaussian/theory/voronoi.hpp"
#include "moe/numeric/assignment.hpp"

// What a rate experiment measures of each fit.
namespace moe::inline MOE_ABI::detail {

/// For each fitted expert its true one: least total distance of (a, b, nu), which no pinning of the gate concerns.
inline std::vector<Index> match_experts(const GaussianParameters& fitted, const GaussianParameters& truth) {
  const Index k = truth.num_experts();
  Eigen::MatrixXd cost(k, k);
  for (Index i = 0; i < k; ++i)
    for (Index j = 0; j < k; ++j) {
      const double b = fitted.intercept(i) - truth.intercept(j), v = fitted.variance(i) - truth.variance(j);
      cost(i, j) = std::sqrt((fitted.slope.row(i) - truth.slope.row(j)).squaredNorm() + b * b + v * v);
    }
  return least_assignment(cost);
}

/// Errors of matched experts, each summed over experts. Gates that are known up to a common shift of beta_1 are moved
/// first to 0 at the true model's last expert.
struct MatchedErrors {
  double beta1 = 0, beta0 = 0, a = 0, b = 0, nu = 0, tau = 0;
  double beta1_over_tau = 0, beta0_over_tau = 0;

  MatchedErrors(GaussianParameters fitted, GaussianParameters truth, bool linear, bool common_bias) {
    const std::vector<Index> cells = match_experts(fitted, truth);
    const Index k = truth.num_experts();
    Index last = 0;
    while (cells[static_cast<std::size_t>(last)] != k - 1) ++last;
    pin(fitted, last, linear, common_bias);
    pin(truth, k - 1, linear, common_bias);
    tau = std::abs(fitted.temperature - truth.temperature);
    for (Index i = 0; i < k; ++i) {
      const Index j = cells[static_cast<std::size_t>(i)];
      const Eigen::RowVectorXd f1 = fitted.gate_slope.row(i), t1 = truth.gate_slope.row(j);
      const double f0 = fitted.gate_bias(i), t0 = truth.gate_bias(j);
      beta1 += (f1 - t1).norm();
      beta0 += std::abs(f0 - t0);
      beta1_over_tau += (f1 / fitted.temperature - t1 / truth.temperature).norm();
      beta0_over_tau += std::abs(f0 / fitted.temperature - t0 / truth.temperature);
      a += (fitted.slope.row(i) - truth.slope.row(j)).norm();
      b += std::abs(fitted.intercept(i) - truth.intercept(j));
      nu += std::abs(fitted.variance(i) - truth.variance(j));
    }
  }

 private:
  static void pin(GaussianParameters& model, Index expert, bool linear, bool common_bias) {
    if (linear) model.gate_slope.rowwise() -= Eigen::RowVectorXd(model.gate_slope.row(expert));
    if (common_bias) model.gate_bias.array() -= double(model.gate_bias(expert));
  }
};

/// Mean errors of the fitted experts that share a cell (or of those alone in theirs), NaN if there are none.
struct CellErrors {
  double beta1 = 0, a = 0, b = 0, nu = 0;

  CellErrors(const VoronoiLoss& loss, bool shared) {
    double count = 0;
    for (const VoronoiAtom& atom : loss.atoms) {
      if ((loss.cells[static_cast<std::size_t>(atom.cell)].atoms > 1) != shared) continue;
      ++count;
      beta1 += atom.gate_slope;
      a += atom.slope;
      b += atom.intercept;
      nu += atom.variance;
    }
    for (double* error : {&beta1, &a, &b, &nu}) *error /= count;
  }
};

/// Names and numbers of what is measured, always in the same order.
struct Measured {
  std::vector<std::string> names = {};
  std::vector<double> values = {};

  void add(const char* name, double value) {
    names.emplace_back(name);
    values.push_back(value);
  }
};

/// Measures fits against one truth. Immutable, share freely.
template <class G>
class RateMeasurement {
 public:
  using Likelihood = GateModel<G>;
  static constexpr bool kLinear = std::is_same_v<typename Likelihood::Inner, Identity>;

  RateMeasurement(const GaussianMoe<G>& truth, const VoronoiOptions& voronoi, Matrix<double> inputs)
      : truth_(truth), voronoi_(voronoi), inputs_(std::move(inputs)) {}

  /// Throws std::invalid_argument where a model like the start cannot be measured.
  void check(const GaussianMoe<G>& start) const { voronoi_loss(start, truth_, voronoi_); }

  Measured operator()(const GaussianFit<G>& fit, const RegressionData& data, double truth_log_likelihood) const {
    Measured out;
    const VoronoiLoss loss = voronoi_loss(fit.model, truth_, voronoi_);
    out.add("D", loss.total);
    if (kLinear && Likelihood::kFreeTemperature)
      out.add("raw D", voronoi_loss(fit.model, truth_, {.kind = VoronoiKind::Power, .shift = voronoi_.shift}).total);
    if (inputs_.rows() > 0) {
      const DensityDistance distance = density_distance(fit.model, truth_, inputs_);
      out.add("hellinger", distance.hellinger);
      out.add("total variation", distance.total_variation);
    }
    out.add("excess", fit.log_likelihood - truth_log_likelihood);
    out.add("iterations", static_cast<double>(fit.iterations));
    if (fit.model.num_experts() == truth_.num_experts())
      add_matched(fit.model, data, out);
    else
      add_cells(loss, out);
    return out;
  }

 private:
  void add_matched(const GaussianMoe<G>& model, const RegressionData& data, Measured& out) const {
    const bool common_bias = kLinear || truth_.form().bias == BiasPlace::Outside;
    GaussianParameters known = model, known_truth = truth_;
    known.gate_slope = known_slopes(model);
    known_truth.gate_slope = known_slopes(truth_);
    const MatchedErrors errors(known, known_truth, slopes_shift(truth_), common_bias);
    out.add("beta1", errors.beta1);
    out.add("beta0", errors.beta0);
    if (truth_.form().score.kind == GateScoreKind::Cosine)
      out.add("raw beta1", MatchedErrors(model, truth_, /*linear=*/false, common_bias).beta1);
    out.add("a", errors.a);
    out.add("b", errors.b);
    out.add("nu", errors.nu);
    if (Likelihood::kFreeTemperature) {
      out.add("tau", errors.tau);
      out.add("beta1/tau", errors.beta1_over_tau);
      out.add("beta0/tau", errors.beta0_over_tau);
    }
    if (has_boundary()) out.add("boundary", std::abs(boundary(model) - boundary(truth_)));
    if (has_regular_maximum(truth_, model.num_experts(), model.form().active))
      out.add("gate wald", gate_wald(model, truth_, data));
  }

  void add_cells(const VoronoiLoss& loss, Measured& out) const {
    const CellErrors shared(loss, true), single(loss, false);
    out.add("shared beta1", shared.beta1);
    out.add("shared a", shared.a);
    out.add("shared b", shared.b);
    out.add("shared nu", shared.nu);
    out.add("single beta1", single.beta1);
    out.add("single a", single.a);
    out.add("single b", single.b);
    out.add("single nu", single.nu);
    if (Likelihood::kFreeTemperature && !kLinear) out.add("tau", loss.atoms.front().temperature);
  }

  /// Top-1 of two experts on one input: who is active changes at one x.
  bool has_boundary() const {
    return truth_.num_experts() == 2 && truth_.input_dim() == 1 && truth_.form().active == 1 &&
           truth_.form().ranks_bias && truth_.gate_slope(0, 0) != truth_.gate_slope(1, 0);
  }

  static double boundary(const GaussianParameters& model) {
    return -(model.gate_bias(0) - model.gate_bias(1)) / (model.gate_slope(0, 0) - model.gate_slope(1, 0));
  }

  GaussianMoe<G> truth_;
  VoronoiOptions voronoi_;
  Matrix<double> inputs_;
};

}  // namespace moe::inline MOE_ABI::detail
