// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <Eigen/Dense>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

// Tian et al., "Towards greater leverage: scaling laws for efficient mixture-of-experts language models"
// (arXiv:2507.17702): how much compute of a dense model a mixture of experts replaces.
namespace moe::inline MOE_ABI {

/// Numbers of an MoE layer that the law asks for.
struct MoeShape {
  Index experts = 0, active = 0, shared = 0;  ///< routed, routed per token, always on
  Index model_dim = 0, expert_dim = 0;

  /// A: share of the experts that a token goes through, shared ones included.
  double activation_ratio() const {
    return static_cast<double>(active + shared) / static_cast<double>(experts + shared);
  }
  /// S: share of the shared ones among those.
  double sharing_ratio() const { return static_cast<double>(shared) / static_cast<double>(active + shared); }
  /// G = 2 model_dim / expert_dim.
  double granularity() const { return 2 * static_cast<double>(model_dim) / static_cast<double>(expert_dim); }
};

/// A point of the law: activation ratio A in (0, 1], granularity G > 0, compute C > 1 in FLOPs of training.
struct LeveragePoint {
  double activation_ratio = 1, granularity = 1, compute = 1;
  double leverage = 1;  ///< EL, where it is known: C of a dense model with the same loss over that of this one
};

/// Efficiency leverage EL(A, G, C) = Â^(α + γ log2² G + β log2 G) with α = a + d log10 C and
/// 1/Â = 1 / (A + (1/A_start - 1/A_max)^-1) + 1/A_max. The publication leaves the bases of the logarithms open: these
/// are the pair that gives both its numbers and its best granularity. The default is the published fit, of models up to
/// 28B parameters between 1e18 and 1e22 FLOPs; it turns round where the exponent is not negative, which is below 1.5e16
/// for G = 1, below 3e13 for the best G, and below 5.4e22 for G = 1024. A plain value.
struct EfficiencyLeverageLaw {
  double a = 1.23, d = -7.61e-2, gamma = 1.67e-2, beta = -1.17e-1;
  double a_start = 1.63e-2, a_max = 5.28e16;  ///< a_start = 0 and a_max = infinity: Â = A

  /// Â of an activation ratio.
  double effective_ratio(double activation_ratio) const {
    const double shifted = activation_ratio + shift();
    return 1 / (1 / shifted + 1 / a_max);
  }
  double exponent(double granularity, double compute) const {
    const double g = std::log2(granularity);
    return a + d * std::log10(compute) + gamma * g * g + beta * g;
  }
  /// EL. Throws std::invalid_argument for an activation ratio outside (0, 1], a granularity or compute that is not
  /// positive, and where the exponent is not negative: there the law says nothing.
  double operator()(double activation_ratio, double granularity, double compute) const {
    constexpr const char* kFunction = "moe::EfficiencyLeverageLaw";
    require(kFunction, activation_ratio, granularity, compute);
    return std::pow(effective_ratio(activation_ratio), negative_exponent(kFunction, granularity, compute));
  }
  double operator()(const MoeShape& shape, double compute) const {
    return (*this)(shape.activation_ratio(), shape.granularity(), compute);
  }
  /// 2^(-β / 2γ): best for every A and C. Throws std::invalid_argument unless γ > 0.
  double best_granularity() const {
    if (!(gamma > 0)) fail("moe::EfficiencyLeverageLaw: gamma = ", gamma, ", expected > 0: no granularity is best");
    return std::exp2(-beta / (2 * gamma));
  }
  /// The A that has a leverage, the inverse of the law; may be above 1 or not above 0 where no A in between has it.
  /// Throws as the law does, and for a leverage that is not positive.
  double activation_ratio(double leverage, double granularity, double compute) const {
    constexpr const char* kFunction = "moe::EfficiencyLeverageLaw::activation_ratio";
    require(kFunction, 1, granularity, compute);
    if (!(leverage > 0)) fail(kFunction, ": leverage = ", leverage, ", expected > 0");
    const double effective = std::pow(leverage, 1 / negative_exponent(kFunction, granularity, compute));
    return 1 / (1 / effective - 1 / a_max) - shift();
  }

 private:
  double shift() const { return a_start > 0 ? 1 / (1 / a_start - 1 / a_max) : 0; }
  double negative_exponent(const char* function, double granularity, double compute) const {
    const double result = exponent(granularity, compute);
    if (!(result < 0))
      fail(function, ": the exponent is ", result, " for granularity ", granularity, " and compute ", compute,
           ", expected a negative one");
    return result;
  }
  static void require(const char* function, double activation_ratio, double granularity, double compute) {
    if (!(activation_ratio > 0 && activation_ratio <= 1))
      fail(function, ": activation ratio ", activation_ratio, ", expected in (0, 1]");
    if (!(granularity > 0)) fail(function, ": granularity ", granularity, ", expected > 0");
    if (!(compute > 0)) fail(function, ": compute ", compute, ", expected > 0");
  }
};

/// A law with the parameters of one's own runs, and how far off it is.
struct LeverageFit {
  EfficiencyLeverageLaw law = {};
  double deviation = 0;  ///< root mean square of log EL, points beyond the Huber threshold counting linearly
};

/// Fits the law to measured leverages by the Huber loss of log EL. A_max is infinity, as no data between 0 and 1 tell
/// it from any large number. For a given A_start the law is linear in the rest: that is solved by reweighted least
/// squares, and A_start sought between 1e-4 and 1, on a grid and then by golden sections. Compare predictions, not
/// parameters, which trade off. Throws std::invalid_argument for fewer than 6 points, and points that the law does not
/// have.
inline LeverageFit fit_efficiency_leverage(std::span<const LeveragePoint> points, double huber = 0.05);

/// L = coefficient * C^-exponent.
struct LossCurve {
  double coefficient = 1, exponent = 0;
  double operator()(double compute) const { return coefficient * std::pow(compute, -exponent); }
};

/// Through points (compute, loss), all positive, at least two of different compute, by least squares of log L. Throws
/// std::invalid_argument otherwise.
inline LossCurve fit_loss_curve(std::span<const std::pair<double, double>> points) {
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (const auto& [compute, loss] : points) {
    if (!(compute > 0 && loss > 0))
      fail("moe::fit_loss_curve: compute ", compute, " and loss ", loss, ", expected both > 0");
    const double u = std::log(compute), v = std::log(loss);
    n += 1, x += u, y += v, xx += u * u, xy += u * v;
  }
  const double spread = n * xx - x * x;
  if (!(n >= 2 && spread > 1e-12 * n * xx))
    fail("moe::fit_loss_curve: ", points.size(), " points, expected at least 2 of different compute");
  const double slope = (n * xy - x * y) / spread;
  return {std::exp((y - slope * x) / n), -slope};
}

/// EL at compute C of a mixture: the compute at which the dense curve has its loss, over C. Throws
/// std::invalid_argument unless C > 0 and the loss of the dense models falls.
inline double efficiency_leverage(const LossCurve& dense, const LossCurve& mixture, double compute) {
  if (!(compute > 0 && dense.exponent > 0))
    fail("moe::efficiency_leverage: compute ", compute, " and a dense exponent of ", dense.exponent,
         ", expected both > 0");
  return std::pow(mixture(compute) / dense.coefficient, -1 / dense.exponent) / compute;
}

/// What recommend() may choose from.
struct LeverageBudget {
  double compute = 0;        ///< FLOPs of training
  Index expert_weights = 0;  ///< most weights that the experts of a layer may have, shared ones included
  Index active_weights = 0;  ///< those of them that a token goes through
  Index model_dim = 0;
  Index shared = 1;     ///< experts that are always on
  Index matrices = 3;   ///< per expert: 3 of a GLU, 2 of an MLP
  Index multiple = 16;  ///< of which expert_dim is one
};

/// The shape with the largest leverage within a budget: of all widths of an expert the law's best, with as many active
/// and routed experts as the budget has room for. Widths of which the law says nothing, as its exponent is not negative
/// there, are left out. Nothing where no expert fits beside the shared ones, or no width is left. Throws
/// std::invalid_argument for sizes below 1 (shared: 0) and compute that is not positive. O(model_dim / multiple).
inline std::optional<MoeShape> recommend(const LeverageBudget& budget, const EfficiencyLeverageLaw& law = {}) {
  for (const auto& [name, number] :
       {std::pair("expert_weights", budget.expert_weights), std::pair("active_weights", budget.active_weights),
        std::pair("model_dim", budget.model_dim), std::pair("shared + 1", budget.shared + 1),
        std::pair("matrices", budget.matrices), std::pair("multiple", budget.multiple)})
    if (number < 1) fail("moe::recommend: ", name, " = ", number, ", expected at least 1");
  if (!(budget.compute > 0)) fail("moe::recommend: compute = ", budget.compute, ", expected > 0");
  std::optional<MoeShape> best;
  double most = 0;
  for (Index width = budget.multiple; width <= 4 * budget.model_dim; width += budget.multiple) {
    const double weights = static_cast<double>(budget.matrices) * static_cast<double>(width) *
                           static_cast<double>(budget.model_dim);  // of an expert
    const auto room = [&](Index of) { return static_cast<Index>(static_cast<double>(of) / weights) - budget.shared; };
    const Index experts = room(budget.expert_weights), active = std::min(experts, room(budget.active_weights));
    if (active < 1) continue;
    const MoeShape shape{experts, active, budget.shared, budget.model_dim, width};
    if (!(law.exponent(shape.granularity(), budget.compute) < 0)) continue;
    const double leverage = law(shape, budget.compute);
    if (leverage > most) best = shape, most = leverage;
  }
  return best;
}

namespace detail {

/// Huber loss of the best law for one A_start.
class LeverageRegression {
 public:
  LeverageRegression(std::span<const LeveragePoint> points, double huber)
      : terms_(std::ssize(points), 4), target_(std::ssize(points)), points_(points), huber_(huber) {}

  double loss(double a_start, EfficiencyLeverageLaw& law) {
    law = {.a_start = a_start, .a_max = std::numeric_limits<double>::infinity()};
    for (Index i = 0; i < terms_.rows(); ++i) {
      const LeveragePoint& point = points_[static_cast<std::size_t>(i)];
      const double ratio = std::log(law.effective_ratio(point.activation_ratio)), g = std::log2(point.granularity);
      terms_.row(i) << ratio, ratio * (std::log10(point.compute) - kCentre), ratio * g * g, ratio * g;
      target_(i) = std::log(point.leverage);
    }
    Eigen::ArrayXd root = Eigen::ArrayXd::Ones(terms_.rows());  // of the weights
    Eigen::VectorXd rest;
    for (int round = 0; round < 30; ++round) {
      const Eigen::MatrixXd weighted = root.matrix().asDiagonal() * terms_;
      const Eigen::VectorXd of_target = root * target_.array();
      const Eigen::VectorXd solution = weighted.colPivHouseholderQr().solve(of_target);
      law.a = solution(0) - kCentre * solution(1);
      law.d = solution(1), law.gamma = solution(2), law.beta = solution(3);
      rest = (target_ - terms_ * solution).cwiseAbs();
      root = (huber_ / rest.array().max(huber_)).sqrt();
    }
    double sum = 0;
    for (const double r : rest) sum += r <= huber_ ? r * r : huber_ * (2 * r - huber_);
    return sum;
  }

 private:
  static constexpr double kCentre = 20;  ///< of log10 C, so that terms are far from parallel
  Eigen::MatrixXd terms_;
  Eigen::VectorXd target_;
  std::span<const LeveragePoint> points_;
  double huber_;
};

}  // namespace detail

inline LeverageFit fit_efficiency_leverage(std::span<const LeveragePoint> points, double huber) {
  constexpr const char* kFunction = "moe::fit_efficiency_leverage";
  if (points.size() < 6) fail(kFunction, ": ", points.size(), " points, expected at least 6");
  if (!(huber > 0)) fail(kFunction, ": huber = ", huber, ", expected > 0");
  for (const LeveragePoint& p : points)
    if (!(p.activation_ratio > 0 && p.activation_ratio <= 1 && p.granularity > 0 && p.compute > 0 && p.leverage > 0))
      fail(kFunction, ": point ", &p - points.data(), " has A = ", p.activation_ratio, ", G = ", p.granularity,
           ", C = ", p.compute, ", EL = ", p.leverage, ", expected A in (0, 1] and the others > 0");
  detail::LeverageRegression regression(points, huber);
  EfficiencyLeverageLaw law;
  const auto loss = [&](double log_start) { return regression.loss(std::exp(log_start), law); };
  const double low = std::log(1e-4), step = -low / 32;
  double best = low, least = loss(low);
  for (int i = 1; i <= 32; ++i)
    if (const double at = loss(low + i * step); at < least) best = low + i * step, least = at;
  double left = best - step, right = best + step;
  constexpr double kGolden = 1 / std::numbers::phi;
  for (int i = 0; i < 40; ++i) {
    const double a = right - kGolden * (right - left), b = left + kGolden * (right - left);
    if (loss(a) < loss(b))
      right = b;
    else
      left = a;
  }
  const double sum = loss((left + right) / 2);
  return {law, std::sqrt(sum / static_cast<double>(points.size()))};
}

}  // namespace moe::inline MOE_ABI
