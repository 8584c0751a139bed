// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "moe/gaussian/model/parameters.hpp"

// What a likelihood can tell about the gate of a model.
namespace moe::inline MOE_ABI::detail {

/// Points at which an activation is looked at; its kinks, if any, are at 0.
inline constexpr std::array<double, 8> kProbes = {-4.3, -1.9, -0.7, -0.25, 0.25, 0.7, 1.9, 4.3};

/// p > 0 if act(c u) = c^p act(u) + constant for all c > 0, else 0: 1 for Identity and Relu. Such functions, and among
/// those that are continuous at 0 only such, solve u act'(u) = p (act(u) - act(0)).
template <Activation Act>
double homogeneity() {
  if (ScoredInner<Act>) return 0;  // a length is no multiple of the coefficients
  const double origin = Act::value(0.0);
  double exponent = 0;
  for (const double u : kProbes)
    if (Act::value(u) != origin) exponent = u * Act::derivative(u) / (Act::value(u) - origin);
  for (const double u : kProbes) {
    const double left = u * Act::derivative(u), right = exponent * (Act::value(u) - origin);
    if (std::abs(left - right) > 1e-12 * (std::abs(left) + std::abs(right))) return 0;
  }
  return exponent > 0 ? exponent : 0;
}

/// Is act(-u) = constant + sign act(u)? sign -1: odd up to a constant; +1: even.
template <Activation Act>
bool symmetric_activation(double sign) {
  if (ScoredInner<Act>) return false;
  const double constant = (1 - sign) * Act::value(0.0);
  for (const double u : kProbes)
    if (std::abs(Act::value(-u) - constant - sign * Act::value(u)) > 1e-14 * (1 + std::abs(Act::value(u))))
      return false;
  return true;
}

/// Is there a ray of gates with one and the same likelihood, along which slopes, the free temperature and, where that
/// divides them, biases grow?
template <class G>
bool has_temperature_ray(const GaussianMoe<G>& model) {
  if (!GateModel<G>::kFreeTemperature || model.num_experts() < 2) return false;
  return model.form().score.tempers_product() || homogeneity<typename GateModel<G>::Inner>() > 0;
}

/// Has every row one active expert, with weight 1 whatever the gate's numbers are?
template <class G>
bool is_hard(const GaussianMoe<G>& model) {
  return model.form().active == 1;
}

/// Power p of a factor of beta_1 in the factor of tau that makes up for it; 0 without a ray.
template <class G>
double ray_power(const GaussianMoe<G>& model) {
  return model.form().score.tempers_product() ? 1 : homogeneity<typename GateModel<G>::Inner>();
}

/// Moves the temperature to 1 along the ray: beta_1 / tau^(1 / p) and beta_0 / tau, or tau^(1 / p) where it is an
/// argument of the activation; beta_0 stays where only the score is divided. No weight changes.
template <class G>
void to_unit_temperature(GaussianMoe<G>& model) {
  const double p = ray_power(model);
  MOE_ASSERT(p > 0);
  const double root = p == 1 ? model.temperature : std::pow(model.temperature, 1 / p);
  const bool outside = model.form().bias == BiasPlace::Outside;
  model.gate_slope /= root;
  model.gate_bias /= outside ? model.form().score.bias_unit(model.temperature) : root;
  model.temperature = 1;
}

/// The names of layout(model); along a ray, those of the ratios that are identified.
template <class G>
std::vector<std::string> identified_names(const GaussianMoe<G>& model) {
  const ParameterLayout at = layout(model);
  std::vector<std::string> names = at.names();
  if (!has_temperature_ray(model)) return names;
  const bool linear = ray_power(model) == 1;
  const bool outside = model.form().bias == BiasPlace::Outside;
  const Index divided = model.form().score.tempers_product() ? at.gate_bias(0) : at.log_temperature();
  for (Index i = 0; i < divided; ++i) {
    const bool plain = linear || (outside && i >= at.gate_bias(0));
    names[static_cast<std::size_t>(i)] += plain ? "/tau" : "/tau^(1/p)";
  }
  return names;
}

/// Directions of a cosine gate's parameters along which no weight changes. The weights know gamma_j = beta_1j /
/// (|beta_1j| + weight_shift) up to a common shift of all: d directions, and one more with a free temperature, which
/// multiplies gamma and beta_0. Without a weight_shift no length is known, and shifts that keep the lengths of gamma
/// are those across all k of them.
template <class G>
Index num_idle_directions(const GaussianMoe<G>& model) {
  const ParameterLayout at = layout(model);
  const GateScore score = model.form().score;
  if (score.kind != GateScoreKind::Cosine) return 0;
  const Index d = at.gate_dim(), k = at.num_experts;
  const bool pinned = at.free_slopes < k;
  if (score.ignores_length()) return at.free_slopes + (pinned ? 0 : std::max<Index>(0, d - k));
  return (pinned ? 0 : d) + (at.free_temperature ? 1 : 0);
}

/// Dimension of the set of densities that the gates describe: free gate parameters without the ray, or the idle
/// directions of cosines; boundaries alone
/// where one expert is active, which a common positive factor does not move.
template <class G>
Index num_identified_gate(const GaussianMoe<G>& model) {
  const ParameterLayout at = layout(model);
  const Index k = at.num_experts, d = at.gate_dim();
  if (k == 1) return 0;
  if (is_hard(model)) return (k - 1) * (model.form().ranks_bias ? d + 1 : d) - 1;
  return at.num_gate() - num_idle_directions(model) - (has_temperature_ray(model) ? 1 : 0);
}

}  // namespace moe::inline MOE_ABI::detail
