// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "moe/compress/calibration.hpp"
#include "moe/compress/latent_factors.hpp"
#include "moe/expert/latent.hpp"

namespace moe::inline MOE_ABI {

struct LatentOptions {
  Index group = 4;  ///< consecutive experts that share projections; the last group has those that are left
  Index latent_dim = 0;
  LatentSides sides = LatentSides::Input;
  Index refinements = 0;  ///< rounds of least squares, where there is a calibration
};

/// Experts that have been made latent, and what that has cost.
template <class E>
struct LatentConversion {
  LatentExperts<E> experts;
  /// Of every group: sum of |W - A B|^2 over the first matrices of its experts and, with LatentSides::Both, of |W - C
  /// A|^2 over the last ones. With a calibration: the squared errors of what they give, summed over the rows seen.
  std::vector<double> input_error, output_error;
};

namespace detail {

/// MLPs and GLUs of scalars.
template <class E>
concept BecomesLatent = HasPanels<E> && requires(const E& expert) {
  expert.down();
  requires LearnedWeight<std::remove_cvref_t<decltype(expert.down())>>;
};

template <class E>
auto& first_matrix(E& expert) {
  if constexpr (requires { expert.gate_up(); })
    return expert.gate_up();
  else
    return expert.up();
}
template <class E>
auto& first_bias(E& expert) {
  if constexpr (requires { expert.gate_up(); })
    return expert.gate_up_bias();
  else
    return expert.up_bias();
}

/// An expert of these widths with the activation of `like`.
template <class Codec, class Act>
BasicMlp<Codec, Act> expert_like(const BasicMlp<Codec, Act>&, const Widths& widths) {
  return BasicMlp<Codec, Act>(widths, Bias::Off);
}
template <class Codec, class Product>
BasicGlu<Codec, Product> expert_like(const BasicGlu<Codec, Product>& like, const Widths& widths) {
  return BasicGlu<Codec, Product>(widths, Bias::Off, like.product());
}

template <class Weights>
Weights panels_from(const Eigen::MatrixXd& values, PanelOrder order) {
  return Weights::from(Matrix<typename Weights::Scalar>(values.template cast<typename Weights::Scalar>()), order);
}

inline Eigen::MatrixXd matrix_of(const SecondMoment& moment, Index dim) {
  Eigen::MatrixXd result = Eigen::MatrixXd::Zero(dim, dim);
  for (Index i = 0; i < moment.dim(); ++i)
    for (Index j = 0; j < moment.dim(); ++j) result(i, j) = static_cast<double>(moment(i, j));
  return result;
}

/// C and C^T W_i, C the first common left singular vectors of the W_i (times the roots of the moments): the best for
/// any moments. As the factors of the transposed matrices.
inline LatentFactors latent_outputs(std::span<const Eigen::MatrixXd> weights, Index latent_dim,
                                    std::span<const Eigen::MatrixXd> moments) {
  std::vector<Eigen::MatrixXd> rooted;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (moments.empty()) {
      rooted.emplace_back(weights[i].transpose());
      continue;
    }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(moments[i]);
    const Eigen::VectorXd roots = solver.eigenvalues().cwiseMax(0.0).cwiseSqrt();
    rooted.emplace_back(roots.asDiagonal() * solver.eigenvectors().transpose() * weights[i].transpose());
  }
  LatentFactors factors = latent_factors(rooted, latent_dim);
  Eigen::MatrixXd basis = factors.shared;  // V^T but for the lengths of its rows
  basis.rowwise().normalize();
  factors.shared = basis;
  for (std::size_t i = 0; i < weights.size(); ++i) factors.own[i] = weights[i].transpose() * basis.transpose();
  balance(factors);
  return factors;
}

template <class E>
LatentConversion<E> to_latent(const char* function, const ExpertPool<E>& pool, const Calibration* calibration,
                              const LatentOptions& options) {
  using Weights = std::remove_cvref_t<decltype(pool[0].down())>;
  using Projection = typename LatentExperts<E>::Projection;
  const bool both = options.sides == LatentSides::Both;
  const Index n = pool.input_dim(), m = options.latent_dim;
  checked_size(function, "group", options.group, 1);
  const Index most = both ? std::min(n, pool.output_dim()) : n;
  if (m < 1 || m > most) fail(function, ": latent_dim is ", m, ", expected 1 <= latent_dim <= ", most);
  if (calibration == nullptr && options.refinements != 0)
    fail(function, ": ", options.refinements, " refinements without a calibration, expected 0");
  if (calibration != nullptr && calibration->num_experts() != pool.size())
    fail(function, ": the calibration is of ", calibration->num_experts(), " experts, expected ", pool.size());
  for (Index e = 0; e < pool.size(); ++e) {
    if (both && !pool[e].down_bias().empty())
      fail(function, ": expert ", e, " has biases of its outputs, expected none with LatentSides::Both");
    if (calibration != nullptr &&
        ((*calibration)[e].inputs.dim() != n || (*calibration)[e].hidden.dim() != pool[e].hidden_dim()))
      fail(function, ": the calibration of expert ", e, " is of ", (*calibration)[e].inputs.dim(), " inputs and ",
           (*calibration)[e].hidden.dim(), " hidden units, expected ", n, " and ", pool[e].hidden_dim());
  }

  std::vector<E> experts;
  std::vector<Projection> input, output;
  std::vector<double> input_error, output_error;
  for (Index first = 0; first < pool.size(); first += options.group) {
    const Index last = std::min(pool.size(), first + options.group);
    std::vector<Eigen::MatrixXd> firsts, lasts, moments, hidden;
    for (Index e = first; e < last; ++e) {
      firsts.emplace_back(first_matrix(pool[e]).matrix().template cast<double>());
      lasts.emplace_back(pool[e].down().matrix().template cast<double>());
      if (calibration == nullptr) continue;
      moments.push_back(matrix_of((*calibration)[e].inputs, n));
      hidden.push_back(matrix_of((*calibration)[e].hidden, pool[e].hidden_dim()));
    }
    const LatentFactors in = latent_factors(firsts, m, moments, options.refinements);
    LatentFactors out;
    if (both) out = latent_outputs(lasts, m, hidden);
    input.emplace_back(m, n, Bias::Off);
    input.back().weight() = panels_from<Weights>(in.shared, PanelOrder::Plain);
    input_error.push_back(in.squared_error);
    if (both) {
      output.emplace_back(pool.output_dim(), m, Bias::Off);
      output.back().weight() = panels_from<Weights>(out.shared.transpose(), PanelOrder::Plain);
      output_error.push_back(out.squared_error);
    }
    for (Index e = first; e < last; ++e) {
      const auto i = static_cast<std::size_t>(e - first);
      E expert =
          expert_like(pool[e], {.input = m, .hidden = pool[e].hidden_dim(), .output = both ? m : pool.output_dim()});
      first_matrix(expert) = panels_from<Weights>(in.own[i], first_matrix(pool[e]).order());
      first_bias(expert) = first_bias(pool[e]);
      expert.down() = both ? panels_from<Weights>(out.own[i].transpose(), PanelOrder::Plain) : pool[e].down();
      expert.down_bias() = pool[e].down_bias();
      experts.push_back(std::move(expert));
    }
  }
  ExpertPool<Projection> projections(std::move(input));
  ExpertPool<E> narrow(std::move(experts));
  if (!both)
    return {LatentExperts<E>(std::move(projections), std::move(narrow), options.group), std::move(input_error), {}};
  return {LatentExperts<E>(std::move(projections), std::move(narrow), ExpertPool<Projection>(std::move(output)),
                           options.group),
          std::move(input_error), std::move(output_error)};
}

}  // namespace detail

/// Trained Mlp or Glu experts as LatentExperts: the first matrices of a group (gates and ups together, so that one
/// product still computes both) become A_e B, and with LatentSides::Both the last ones C A_e, by latent_factors().
///   auto small = moe::with_experts(layer, moe::to_latent(layer.experts(), {.group = 4, .latent_dim = 64}).experts);
/// A start for fine-tuning; with latent_dim at the rank of a group's matrices together it is the same function. Which
/// experts stand beside each other decides what they can share: take_experts() puts them in another order. The error
/// that is reported is that of the formula, to rounding. Throws std::invalid_argument for a latent_dim that is < 1 or
/// wider than what it stands for, a group < 1, refinements without a calibration, output biases where outputs become
/// latent, and weights that are not finite. O(groups input_dim^3 + parameters input_dim). Liu et al., "MoLAE"
/// (arXiv:2503.23100).
template <class E>
  requires detail::BecomesLatent<E>
LatentConversion<E> to_latent(const ExpertPool<E>& pool, const LatentOptions& options) {
  return detail::to_latent("moe::to_latent", pool, nullptr, options);
}
/// The same with the smallest errors of what the matrices give for the rows that calibrate() has seen. Throws
/// std::invalid_argument, too, for a calibration without moments or of other experts.
template <class E>
  requires detail::BecomesLatent<E>
LatentConversion<E> to_latent(const ExpertPool<E>& pool, const Calibration& calibration, const LatentOptions& options) {
  return detail::to_latent("moe::to_latent", pool, &calibration, options);
}

}  // namespace moe::inline MOE_ABI
