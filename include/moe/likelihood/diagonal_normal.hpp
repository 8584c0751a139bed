// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/likelihood/expert_rows.hpp"
#include "moe/likelihood/gamma_terms.hpp"

namespace moe::inline MOE_ABI {

/// Experts of several outputs, which are independent within an expert: y_c ~ N(eta_c, nu_c), a linear predictor and a
/// shape (variance nu_c) for every output. ResponseData::y is output 0, `further` are the others.
///   log f = sum_c -(log(2 pi nu_c) + (y_c - eta_c)^2 / nu_c) / 2
/// What outputs have in common is which expert a row has: with k > 1 they are dependent, and tell experts apart
/// together that none of them tells alone. An offset is added to all of them; where outputs have offsets of their own,
/// subtract these before. The M-step is weighted least squares, one X^T W X for all outputs, then the mean squares;
/// variances stay above the floor of the fit, relative to that of their output.
///   moe::fit_mixture<moe::DiagonalNormal<2>>(moe::ResponseData::of_outputs({.x = x}, outputs), 3)
template <Index Outputs>
struct DiagonalNormal {
  static_assert(Outputs >= 1, "moe::DiagonalNormal: has no outputs, expected at least one");

  static constexpr Index kShapes = Outputs, kOutputs = Outputs;
  static constexpr bool kContinuous = true;
  static constexpr double kLargest = std::numeric_limits<double>::infinity();
  static constexpr std::array<std::string_view, Outputs> kShapeNames = [] {
    std::array<std::string_view, Outputs> names;
    names.fill("variance");
    return names;
  }();

  Index num_predictors() const { return Outputs; }
  Index num_outputs() const { return Outputs; }
  void require(const char*, const ResponseData&) const {}

  double log_density(Response r, const double* eta, const double* shape) const {
    double sum = 0;
    for (Index c = 0; c < Outputs; ++c) {
      const double e = r.output(c) - eta[c];
      sum += -detail::kHalfLogTwoPi - 0.5 * (std::log(shape[c]) + e * e / shape[c]);
    }
    return sum;
  }

  void derivatives(Response r, const double* eta, const double* shape, double* score, double* information) const {
    std::fill_n(information, 4 * Outputs * Outputs, 0.0);
    for (Index c = 0; c < Outputs; ++c) {
      const double e = r.output(c) - eta[c], precision = 1 / shape[c], q = e * e * precision;
      const Index s = Outputs + c;
      const auto at = [&](Index row, Index col) -> double& { return information[row * 2 * Outputs + col]; };
      score[c] = e * precision;
      score[s] = 0.5 * (q - 1);
      at(c, c) = precision;
      at(c, s) = at(s, c) = e * precision;
      at(s, s) = 0.5 * q;
    }
  }

  double link(Response r) const { return r.y; }
  void mean(const double* eta, const double*, double* out) const { std::copy_n(eta, Outputs, out); }
  /// Output 0.
  double draw(const double* eta, const double* shape, double, const RandomField& random, Index row) const {
    return draw_output(0, eta, shape, random, row);
  }
  double draw_output(Index c, const double* eta, const double* shape, const RandomField& random, Index row) const {
    return eta[c] + std::sqrt(shape[c]) * random.normal(row, 1 + c);
  }

  /// Of one output of that variance.
  void shape_bounds(double variance, double floor, double* lower, double* first, double* upper) const {
    *lower = floor * variance;
    *first = variance;
    *upper = 1e8 * variance;
  }

  void improve(const detail::ExpertRows& rows, const Eigen::VectorXd& weight, const detail::ShapeBounds& bounds,
               detail::ExpertNumbers& expert) const {
    const Eigen::MatrixXd gram = rows.gram(weight);
    const double total = weight.sum();
    for (Index c = 0; c < Outputs; ++c) {
      const Eigen::VectorXd we = weight.cwiseProduct(rows.output(c) - rows.predictor(expert, c));
      Eigen::VectorXd right(rows.x.cols());
      for (Index f = 0; f < right.size(); ++f) right(f) = rows.x.col(f).dot(we);
      expert.coefficients.row(c) += detail::solve_semidefinite(gram, right).transpose();
      const Eigen::VectorXd e = rows.output(c) - rows.predictor(expert, c);
      if (total > 0) expert.shape(c) = bounds.clamp(c, weight.dot(e.cwiseProduct(e)) / total);
    }
  }
};

static_assert(ExpertFamily<DiagonalNormal<1>> && ExpertFamily<DiagonalNormal<3>>);

}  // namespace moe::inline MOE_ABI
