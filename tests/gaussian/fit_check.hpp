// SPDX-License-Identifier: MIT
// What must hold for every result of moe::fit, whatever the data.
#pragma once

#include <cmath>
#include <limits>
#include <sstream>
#include <string>

#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/model/gate_weights.hpp"

namespace test {

using moe::Index;

/// Finds the first thing that is wrong with a fit.
template <class Gate>
class FitCheck {
 public:
  FitCheck(const moe::RegressionData& data, const moe::FitOptions& options, const moe::GaussianFit<Gate>& fit)
      : data_(data), options_(options), fit_(fit), by_(moe::detail::standardisation_of("test", data, false)) {}

  /// Empty if all is right.
  std::string operator()() const {
    for (const auto& check : {&FitCheck::finite, &FitCheck::likelihood, &FitCheck::penalty, &FitCheck::path,
                              &FitCheck::normal_form, &FitCheck::rows, &FitCheck::flags, &FitCheck::counts})
      if (const std::string wrong = (this->*check)(); !wrong.empty()) return wrong;
    return {};
  }

  /// How far two evaluations of the log-likelihood may be apart that round differently: a mean or score of a row is off
  /// by a few units in the last place of its largest term, and the density by its slope times that.
  double tolerance() const {
    constexpr double kUnit = 8 * std::numeric_limits<double>::epsilon();
    const auto& m = fit_.model;
    const moe::Matrix<double> r = moe::responsibilities(m, data_);
    const moe::Matrix<double> means = moe::expert_means(m, data_.x);
    double sum = kUnit * (static_cast<double>(data_.num_rows()) + std::abs(fit_.penalised_log_likelihood));
    for (Index i = 0; i < r.rows(); ++i) {
      double gate = 0;
      for (Index j = 0; j < r.cols(); ++j) {
        const Eigen::RowVectorXd x = data_.x.row(i).cwiseAbs() + by_.x_center.cwiseAbs();
        const double terms = m.slope.row(j).cwiseAbs().dot(x) + std::abs(m.intercept(j)) + std::abs(data_.y(i)) +
                             std::abs(by_.y_center),
                     e = std::abs(data_.y(i) - means(i, j)), off = kUnit * terms;
        gate = std::max(gate, (1 + m.gate_slope.row(j).cwiseAbs().dot(x) + std::abs(m.gate_bias(j))) / m.temperature);
        sum += r(i, j) * off * (e + off) / m.variance(j);
        sum += r(i, j) * kUnit * e * e / m.variance(j);
      }
      sum += kUnit * (2 * gate + std::abs(std::log(by_.y_scale)) + 10);
    }
    return sum;
  }

 private:
  std::string finite() const {
    const auto& m = fit_.model;
    m.validate("test");
    if (!std::isfinite(fit_.log_likelihood) || !std::isfinite(fit_.penalised_log_likelihood)) return "likelihood";
    if (!std::isfinite(fit_.score_norm) || !std::isfinite(fit_.seconds)) return "score norm or seconds not finite";
    for (const double value : fit_.path)
      if (!std::isfinite(value)) return "path not finite";
    if (!fit_.expert_rows.allFinite()) return "expert rows not finite";
    for (const moe::StartReport& run : fit_.runs)
      if (!std::isfinite(run.short_log_likelihood) || std::isinf(run.log_likelihood)) return "start not finite";
    return {};
  }

  std::string likelihood() const {
    const double value = moe::log_likelihood(fit_.model, data_);
    if (std::abs(value - fit_.log_likelihood) <= tolerance() || jumps()) return {};
    return "log-likelihood " + number(fit_.log_likelihood) + ", of the model " + number(value) + ", tolerance " +
           number(tolerance());
  }

  /// A sparse gate whose boundary is so close to a row that rounding decides on which side it is. The normal form has
  /// the last gate subtracted from all, so each coefficient is as exact as the largest.
  bool jumps() const {
    const auto form = fit_.model.form();
    if (!sparse()) return false;
    const auto& m = fit_.model;
    for (Index i = 0; i < data_.num_rows(); ++i) {
      const Eigen::RowVectorXd x = data_.x.row(i).cwiseAbs() + by_.x_center.cwiseAbs();
      const double reach = m.gate_slope.cwiseAbs().colwise().maxCoeff().dot(x) + m.gate_bias.cwiseAbs().maxCoeff();
      for (Index a = 0; a < m.num_experts(); ++a)
        for (Index b = 0; b < a; ++b) {
          const Eigen::RowVectorXd slope = m.gate_slope.row(a) - m.gate_slope.row(b);
          const double bias = form.ranks_bias ? m.gate_bias(a) - m.gate_bias(b) : 0;
          if (std::abs(slope.dot(data_.x.row(i)) + bias) <= 1e-13 * reach) return true;
        }
    }
    return false;
  }

  /// The ridge weighs coefficients relative to one of the experts.
  std::string penalty() const {
    const double penalty = fit_.log_likelihood - fit_.penalised_log_likelihood;
    const auto& m = fit_.model;
    double map = 0;
    const double spread = by_.y_scale * by_.y_scale;
    for (const double nu : m.variance) map += options_.variance_penalty * (spread / nu + std::log(nu / spread));
    double closest = std::numeric_limits<double>::infinity();
    for (Index pin = 0; pin < m.num_experts(); ++pin) closest = std::min(closest, std::abs(map + ridge(pin) - penalty));
    const double scale = 1 + std::abs(map) + std::abs(penalty) + std::abs(fit_.log_likelihood);
    return closest <= 1e-9 * scale ? "" : "penalty " + number(penalty) + ", of the model off by " + number(closest);
  }

  double ridge(Index pin) const {
    const auto& m = fit_.model;
    const auto form = m.form();
    const bool keep_origin = moe::detail::keeps_origin(m);
    moe::Matrix<double> slope = m.gate_slope;
    Eigen::RowVectorXd bias = m.gate_bias;
    const bool linear = std::is_same_v<typename moe::GateModel<Gate>::Inner, moe::Identity>;
    if (linear) slope.rowwise() -= Eigen::RowVectorXd(m.gate_slope.row(pin));
    if (linear || form.bias == moe::BiasPlace::Outside) bias.array() -= double(m.gate_bias(pin));
    if (!keep_origin) bias += by_.x_center * slope.transpose();
    const moe::Matrix<double> scaled = slope * by_.x_scale.asDiagonal();
    if (form.active == 1) return 0;
    return 0.5 * options_.ridge * (scaled.squaredNorm() + bias.squaredNorm());
  }

  /// Sums that round differently may lower a criterion, and the end is evaluated once more.
  std::string path() const {
    if (fit_.path.empty()) return "no path";
    const double rounding = tolerance();
    for (std::size_t i = 1; !sparse() && i < fit_.path.size(); ++i)
      if (fit_.path[i] < fit_.path[i - 1] - 1e-11 * (1 + std::abs(fit_.path[i])) - rounding)
        return "path falls at " + std::to_string(i) + " by " + number(fit_.path[i] - fit_.path[i - 1]);
    const double end = fit_.path.back();
    if (std::abs(end - fit_.penalised_log_likelihood) > 1e-9 * (1 + std::abs(end)) + rounding)
      return "path ends at " + number(end) + ", not at " + number(fit_.penalised_log_likelihood);
    return {};
  }

  std::string normal_form() const {
    const auto& m = fit_.model;
    moe::detail::require_normal_form("test", m);
    const bool all =
        std::is_same_v<typename moe::GateModel<Gate>::Inner, moe::Identity> || m.last_slope == moe::LastSlope::Free;
    for (Index j = 1; j < m.num_experts() - (all ? 0 : 1); ++j)
      if (m.intercept(j) < m.intercept(j - 1)) return "experts are not sorted";
    return {};
  }

  std::string rows() const {
    const double n = static_cast<double>(data_.num_rows());
    if (std::abs(fit_.expert_rows.sum() - n) > 1e-9 * n)
      return "expert rows add up to " + number(fit_.expert_rows.sum());
    const Eigen::RowVectorXd rows = moe::responsibilities(fit_.model, data_).colwise().sum();
    if ((rows - fit_.expert_rows).cwiseAbs().maxCoeff() <= 1e-6 * n + 10 * tolerance() || jumps()) return {};
    return "expert rows are off by " + number((rows - fit_.expert_rows).cwiseAbs().maxCoeff());
  }

  std::string flags() const {
    const auto& f = fit_.flags;
    const double d = static_cast<double>(data_.input_dim()), fewest = fit_.expert_rows.minCoeff();
    const double given = options_.variance_floor, floor = given > 0 ? given : data_.num_rows() < 500 ? 1e-5 : 1e-6;
    const double lowest = fit_.model.variance.minCoeff() / (by_.y_scale * by_.y_scale);
    if (f.at_floor != (lowest <= floor * (1 + 1e-8))) return "at_floor, least variance " + number(lowest);
    if (f.small_expert != (fewest < 5 * (d + 2))) return "small_expert";
    if (f.dead_expert != (fewest < d + 2)) return "dead_expert";
    if (f.decreased && fit_.converged) return "decreased but converged";
    if (const std::string wrong = discarded(); !wrong.empty()) return wrong;
    if (sparse()) return {};  // a maximum at a border has a score
    if (fit_.converged && fit_.score_norm > 10 * options_.score_tolerance)
      return "converged, score " + number(fit_.score_norm);
    return {};
  }

  /// Every value that was found is at most that of the fit, or that which it says it has given up.
  std::string discarded() const {
    const double taken = fit_.penalised_log_likelihood, given_up = fit_.discarded_log_likelihood;
    const double rounding = 1e-12 * (1 + std::abs(taken));
    if (fit_.flags.discarded != (given_up > taken + 1e-3 - rounding)) return "discarded " + number(given_up);
    const double most = fit_.flags.discarded ? given_up : taken + 1e-3;  // within, ends are the same
    const bool all_rows = data_.num_rows() <= 2 * options_.short_rows;
    for (const moe::StartReport& run : fit_.runs)
      if (run.log_likelihood > most + rounding || (all_rows && run.short_log_likelihood > most + rounding))
        return "found " + number(std::max(run.log_likelihood, run.short_log_likelihood)) + " and said nothing";
    return {};
  }

  bool sparse() const { return fit_.model.form().active < fit_.model.num_experts(); }

  std::string counts() const {
    const auto form = fit_.model.form();
    const Index annealing = 5 * (fit_.model.num_experts() - form.active) + 1;  // dense iterations come five times
    const Index most = annealing * options_.short_iterations + 2 * options_.max_iterations + 1;
    if (fit_.iterations > most) return "iterations " + std::to_string(fit_.iterations);
    const Index searches = options_.starts > 0 ? fit_.searches : fit_.starts / 12;
    if (fit_.hits < 1 || fit_.hits > fit_.searches || fit_.searches != std::max<Index>(searches, 1) ||
        fit_.starts != static_cast<Index>(fit_.runs.size()))
      return "hits " + std::to_string(fit_.hits) + " of " + std::to_string(fit_.searches) + ", starts " +
             std::to_string(fit_.starts);
    return {};
  }

  static std::string number(double value) {
    std::ostringstream out;
    out.precision(17);
    out << value;
    return out.str();
  }

  const moe::RegressionData& data_;
  const moe::FitOptions& options_;
  const moe::GaussianFit<Gate>& fit_;
  moe::detail::Standardisation by_;
};

}  // namespace test
