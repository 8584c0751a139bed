// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/gaussian/inference/independence.hpp"
#include "moe/gaussian/inference/scaled_information.hpp"
#include "moe/gaussian/model/gate_weights.hpp"
#include "moe/gaussian/model/identified.hpp"
#include "moe/gaussian/model/row_counts.hpp"

// Long, as the report, the checks that fill it and the function that runs them are read together.
namespace moe::inline MOE_ABI {

/// What data cannot, or can hardly, tell about a model.
enum class Identifiability {
  TemperatureRay,     ///< beta_1, beta_0 and a free tau grow together without any change
  PartitionOnly,      ///< one active expert per row: only the regions of the gate matter
  WeakActivation,     ///< the activation is nearly homogeneous on these inputs: tau is poorly determined
  SignSymmetry,       ///< another point has the same likelihood, by the symmetry of the activation
  CoincidingExperts,  ///< two experts are no further apart than their estimation error
  SeparatedGate,      ///< slopes of the gate that go to infinity
  NeverActive,        ///< an expert that no row selects
  NeverTogether,      ///< two experts that no row selects together
  RankDeficient,      ///< a direction along which no row changes its density
  NotAMaximum         ///< the observed information is not positive definite: a saddle, or a ridge of it
};

/// One thing to know.
struct IdentifiabilityFinding {
  Identifiability what = Identifiability::RankDeficient;
  std::string title = {};  ///< what it is, with the numbers of the experts
  std::string why = {};    ///< in a sentence or two
  double number = 0;       ///< what `number_name` says
  std::string number_name = {};
  Eigen::VectorXd direction = {};  ///< in theta of layout(model), largest entry 1; empty where none belongs to it
};

/// What identifiability() says.
struct IdentifiabilityReport {
  std::vector<IdentifiabilityFinding> findings = {};
  std::vector<std::string> names = {};  ///< of the free parameters, those of directions
  Index rank = 0;                       ///< of the scores of the rows, <= number of free parameters
  double score_ratio = 0;               ///< smallest over largest eigenvalue of the scaled sum of s_i s_i^T
  double information_ratio = 0;         ///< and of the observed information

  Index num_parameters() const { return static_cast<Index>(names.size()); }
  bool full_rank() const { return rank == num_parameters(); }

  /// The first finding of a kind, or null.
  const IdentifiabilityFinding* find(Identifiability what) const {
    for (const IdentifiabilityFinding& f : findings)
      if (f.what == what) return &f;
    return nullptr;
  }
};

namespace detail {

/// "beta1[0,0] + 0.5 beta0[0] - 0.3 log tau", the six largest entries above 1e-3 of the largest.
inline std::string describe_direction(const Eigen::VectorXd& direction, const std::vector<std::string>& names) {
  std::vector<Index> order;
  const double largest = direction.cwiseAbs().maxCoeff();
  for (Index i = 0; i < direction.size(); ++i)
    if (std::abs(direction(i)) > 1e-3 * largest) order.push_back(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return std::abs(direction(a)) > std::abs(direction(b)); });
  std::ostringstream text;
  text.precision(3);
  constexpr std::size_t kMost = 6;
  for (std::size_t s = 0; s < std::min(order.size(), kMost); ++s) {
    const double value = direction(order[s]), size = std::abs(value);
    text << (s == 0 ? (value < 0 ? "-" : "") : (value < 0 ? " - " : " + "));
    if (std::abs(size - 1) > 5e-4) text << size << ' ';
    text << names[static_cast<std::size_t>(order[s])];
  }
  if (order.size() > kMost) text << " and " << order.size() - kMost << " more";
  return text.str();
}

}  // namespace detail

/// Writes the report as text, a paragraph per finding.
inline std::ostream& operator<<(std::ostream& to, const IdentifiabilityReport& report) {
  std::ostringstream text;
  text.precision(3);
  text << "rank " << report.rank << " of " << report.num_parameters() << " free parameters; smallest over largest "
       << "eigenvalue of the scores " << report.score_ratio << ", of the observed information "
       << report.information_ratio << '\n';
  if (report.findings.empty()) text << "nothing stands against identification\n";
  for (const IdentifiabilityFinding& f : report.findings) {
    text << "* " << f.title << "\n    " << f.why << '\n';
    if (!f.number_name.empty()) text << "    " << f.number_name << ": " << f.number << '\n';
    if (f.direction.size() > 0)
      text << "    direction: " << detail::describe_direction(f.direction, report.names) << '\n';
  }
  return to << text.str();
}

/// The same as a string.
inline std::string to_string(const IdentifiabilityReport& report) {
  std::ostringstream text;
  text << report;
  return text.str();
}

namespace detail {

/// The checks of identifiability(), in the order in which they are called.
template <class G>
class IdentifiabilityChecks {
 public:
  using Inner = typename GateModel<G>::Inner;
  using Kind = Identifiability;
  static constexpr bool kLinear = std::is_same_v<Inner, Identity>;

  IdentifiabilityChecks(const GaussianMoe<G>& model, const RegressionData& data, const ScaledInformation& at,
                        IdentifiabilityReport& report)
      : model_(model), data_(data), at_(at), report_(report), n_(data.total_weight()) {}

  /// A ray, or an activation that is close to having one.
  void temperature() {
    if (!at_.at.free_temperature || model_.num_experts() < 2) return;
    if (!has_temperature_ray(model_)) return weak_activation();
    ray_ = ray(at_.model);
    const Eigen::VectorXd scale = at_.scores.diagonal().cwiseMax(0).cwiseSqrt();
    const double length = ray_.cwiseProduct(scale).norm(),
                 worst = std::sqrt(std::max(0.0, ray_.dot(at_.scores * ray_)));
    add({.what = Kind::TemperatureRay,
         .title = "the temperature is not identified",
         .why = why_ray(),
         .number = length > 0 ? worst / length : 0,
         .number_name = "score along it, of what its parameters contribute",
         .direction = on_data_scale(ray_)});
  }

  void symmetry() {
    if constexpr (!kLinear) {
      const bool even = symmetric_activation<Inner>(+1);
      const bool swap =
          symmetric_activation<Inner>(-1) && model_.num_experts() == 2 && model_.last_slope == LastSlope::Free;
      if ((!even && !swap) || model_.num_experts() < 2) return;
      const double there = log_likelihood(reflected(swap), data_), here = log_likelihood(model_, data_);
      add({.what = Kind::SignSymmetry,
           .title = "another gate has the same weights",
           .why = swap ? "The activation is odd up to a constant: (beta_1 of expert 0, beta_1 of expert 1) and minus "
                         "the two, exchanged, are the same model. Fits may end at either."
                       : "The activation is even: the sign of every beta_1 is free.",
           .number = std::abs(there - here),
           .number_name = "difference of their log-likelihoods"});
    }
  }

  /// Who is selected, and with whom.
  void sparse() {
    const GateForm form = model_.form();
    const Index k = model_.num_experts();
    if (form.active >= k) return;
    if (form.active == 1)
      add({.what = Kind::PartitionOnly,
           .title = "the gate is only known by the regions that it gives to experts",
           .why = "Every row has one active expert, with weight 1. A positive factor of all coefficients, and whatever "
                  "else leaves the selection of these rows as it is, changes nothing."});
    const Matrix<double> pi = gate_weights(model_, data_.x);
    Eigen::MatrixXi together = Eigen::MatrixXi::Zero(k, k);
    for (Index i = 0; i < pi.rows(); ++i)
      for (Index j = 0; j < k; ++j)
        for (Index l = 0; l < k; ++l) together(j, l) += pi(i, j) > 0 && pi(i, l) > 0 ? 1 : 0;
    for (Index j = 0; j < k; ++j)
      if (together(j, j) == 0)
        add({.what = Kind::NeverActive,
             .title = "expert " + std::to_string(j) + " is never active",
             .why = "No row selects it: nothing is known of its line and variance."});
    for (Index j = 0; form.active > 1 && j < k; ++j)
      for (Index l = j + 1; l < k; ++l)
        if (together(j, j) > 0 && together(l, l) > 0 && together(j, l) == 0)
          add({.what = Kind::NeverTogether,
               .title = "experts " + pair(j, l) + " are never active together",
               .why = "Their weights are only compared by way of other experts, if at all; else a common shift of the "
                      "gates on one side changes the boundary alone."});
  }

  void separation() {
    if (!at_.separated) return;
    add({.what = Kind::SeparatedGate,
         .title = "the gate separates the experts",
         .why = "Its weights are 0 or 1 for nearly all rows, and the likelihood is no lower where it is infinitely "
                "steep: the slopes have no finite maximum. A small ridge gives one.",
         .number = steepness(at_.model),
         .number_name = "largest coefficient on standardised data"});
  }

  /// Pairs closer than what n_i and n_j rows can tell apart.
  void coincidence() {
    Eigen::VectorXd weight(data_.num_rows());
    for (Index i = 0; i < weight.size(); ++i) weight(i) = data_.weight(i);
    Eigen::VectorXd precise = weight;
    if (data_.precision.size() > 0) precise = weight.cwiseProduct(data_.precision);
    const Eigen::RowVectorXd rows = weight.transpose() * responsibilities(model_, data_);
    const Matrix<double> means = expert_means(model_, data_.x);
    const double freedom = static_cast<double>(at_.at.num_coefficients()) + 1;
    for (Index i = 0; i < model_.num_experts(); ++i)
      for (Index j = i + 1; j < model_.num_experts(); ++j) {
        const double nu = 0.5 * (model_.variance(i) + model_.variance(j));
        const double spread = std::log(model_.variance(i) / model_.variance(j));
        const double square =
            precise.dot((means.col(i) - means.col(j)).cwiseAbs2()) / (n_ * nu) + 0.5 * spread * spread;
        if (!(rows(i) > 0 && rows(j) > 0)) continue;
        const double expected = freedom * (1 / rows(i) + 1 / rows(j));
        if (square >= 4 * expected) continue;
        add({.what = Kind::CoincidingExperts,
             .title = "experts " + pair(i, j) + " coincide",
             .why = "Lines and variances are no further apart than estimates from as many rows would be by chance. "
                    "Where experts are the same only the sum of their gates is known, and estimates converge more "
                    "slowly than n^-1/2. Fewer experts may do.",
             .number = std::sqrt(square / expected),
             .number_name = "distance, of what chance alone gives"});
      }
  }

  /// Null directions that no finding above has named.
  void rank() {
    const ScaledEigen scores(at_.scores, at_.gram), information(at_.information, at_.gram);
    report_.score_ratio = scores.ratio();
    report_.information_ratio = information.ratio();
    if (scores.values.size() == 0) return flat(scores);
    report_.rank = static_cast<Index>((scores.values.array() >= kSingular * scores.values.maxCoeff()).count());
    flat(scores);
    bool regular = scores.flat.empty();
    for (Index v = 0; v < scores.values.size(); ++v) {
      if (scores.values(v) >= kSingular * scores.values.maxCoeff()) break;
      regular = false;
      Eigen::VectorXd direction = Eigen::VectorXd::Zero(at_.at.size());
      direction(scores.regular) = scores.vectors.col(v);
      if (along_ray(direction, scores)) continue;
      add({.what = Kind::RankDeficient,
           .title = "a direction of the parameters is not identified",
           .why = "No row changes its density along it.",
           .number = scores.values(v) / scores.values.maxCoeff(),
           .number_name = "its eigenvalue over the largest",
           .direction = on_data_scale(direction)});
    }
    if (!regular || report_.information_ratio >= kSingular) return;
    add({.what = Kind::NotAMaximum,
         .title = "the observed information is not positive definite",
         .why = "The model is not a maximum of the likelihood of these data, or one that is flat to second order, as "
                "with too many experts.",
         .number = report_.information_ratio,
         .number_name = "smallest over largest eigenvalue"});
  }

 private:
  void add(IdentifiabilityFinding finding) { report_.findings.push_back(std::move(finding)); }

  std::string why_ray() const {
    if (model_.form().score.tempers_product())
      return "The temperature divides beta_1 . x and nothing else: beta_1 and tau grow together along a ray without "
             "any change of the weights. Only their ratio is estimated; keep tau fixed, report the ratio, or let the "
             "gate see distances.";
    return std::string("The gate has ") +
           (kLinear ? "no activation" : std::string("the activation ") + Inner::kName + ", which is homogeneous") +
           ": beta_1, beta_0 and tau grow together along a ray without any change of the weights. Only their "
           "ratios are estimated; keep tau fixed, or report the ratios.";
  }

  static std::string pair(Index i, Index j) { return std::to_string(i) + " and " + std::to_string(j); }

  /// d theta / dt along (c beta_1, c^p beta_0, c^p tau), or c beta_0 where it is an argument of the activation.
  Eigen::VectorXd ray(const GaussianParameters& m) const {
    const double p = ray_power(model_);
    Eigen::VectorXd direction = pack(m, at_.at);
    direction.tail(at_.at.size() - at_.at.num_gate()).setZero();
    if (model_.form().score.tempers_product())
      direction.segment(at_.at.gate_bias(0), at_.at.free_biases).setZero();
    else if (!kLinear && model_.form().bias == BiasPlace::Outside)
      direction.segment(at_.at.gate_bias(0), at_.at.free_biases) *= p;
    direction(at_.at.log_temperature()) = p;
    return direction;
  }

  /// A direction on standardised data in theta of the data, largest entry 1.
  Eigen::VectorXd on_data_scale(const Eigen::VectorXd& direction) const {
    Eigen::VectorXd out = at_.to_data * direction;
    Index largest = 0;
    if (out.cwiseAbs().maxCoeff(&largest) > 0) out /= double(out(largest));
    return out;
  }

  bool along_ray(const Eigen::VectorXd& direction, const ScaledEigen<>& scores) const {
    if (ray_.size() == 0) return false;
    const Eigen::VectorXd a = scores.to_unit(direction(scores.regular)), b = scores.to_unit(ray_(scores.regular));
    return std::abs(a.dot(b)) > 0.999 * a.norm() * b.norm();
  }

  /// Parameters on which no row depends at all, where that is not said already.
  void flat(const ScaledEigen<>& scores) {
    Eigen::VectorXd direction = Eigen::VectorXd::Zero(at_.at.size());
    std::string names;
    for (const Index i : scores.flat) {
      if (is_hard(model_) && i < at_.at.num_gate()) continue;
      names += (names.empty() ? "" : ", ") + report_.names[static_cast<std::size_t>(i)];
      direction(i) = 1;
    }
    if (!names.empty())
      add({.what = Kind::RankDeficient,
           .title = "parameters without influence: " + names,
           .why = "No row changes its density with any of them.",
           .direction = direction});
  }

  /// Fewer than 4000 rows, whose singular values do, and their weights (none: 1 each).
  RowCounts sample() const {
    const Index n = data_.num_rows(), stride = std::max<Index>(1, n / 2000);
    const auto weight = [&](Index i) { return data_.weight(i); };
    if (data_.weighted() && stride > 1) return proportional_rows(n, n_, n / stride, weight);
    RowCounts some;
    for (Index i = 0; i < n; i += stride) {
      some.rows.push_back(i);
      if (data_.weighted()) some.counts.push_back(weight(i));
    }
    return some;
  }

  void weak_activation() {
    if (ScoredInner<Inner>) return;  // no activation of inner products
    const bool inside = model_.form().bias == BiasPlace::Inside;
    const RowCounts some = sample();
    for (Index j = 0; j < at_.at.free_slopes; ++j) {
      Eigen::VectorXd u(std::ssize(some.rows));
      for (Index i = 0; i < u.size(); ++i)
        u(i) = data_.x.row(some.rows[static_cast<std::size_t>(i)]).dot(model_.gate_slope.row(j)) +
               (inside ? double(model_.gate_bias(j)) : 0.0);
      const Independence of =
          independence<Inner>(1, u, Eigen::Map<const Eigen::VectorXd>(some.counts.data(), std::ssize(some.counts)));
      const double bound = 2 / (std::max(of.first_order, 1e-300) * std::sqrt(n_));
      if (bound <= 0.5) continue;
      std::ostringstream why;
      why.precision(2);
      why << "On the inputs of expert " << j << ", beta_1 . x from " << u.minCoeff() << " to " << u.maxCoeff() << ", "
          << Inner::kName << " can hardly be told from a function without a scale (smallest singular values "
          << of.first_order << ", second order " << of.second_order() << "): tau and beta_1 trade against each other.";
      add({.what = Kind::WeakActivation,
           .title = "the temperature is poorly determined by expert " + std::to_string(j),
           .why = why.str(),
           .number = bound,
           .number_name = "lower bound of a standard error relative to the gate"});
    }
  }

  /// beta_1 of the other expert with the other sign, or of each with the other sign; so is a bias in the activation.
  GaussianMoe<G> reflected(bool swap) const {
    GaussianMoe<G> out = model_;
    const bool inside = model_.form().bias == BiasPlace::Inside;
    out.gate_slope = -model_.gate_slope;
    if (inside) out.gate_bias = -model_.gate_bias;
    if (!swap) return out;
    out.gate_slope.row(0).swap(out.gate_slope.row(1));
    if (inside) std::swap(out.gate_bias(0), out.gate_bias(1));
    return out;
  }

  const GaussianMoe<G>& model_;
  const RegressionData& data_;
  const ScaledInformation& at_;
  IdentifiabilityReport& report_;
  double n_;
  Eigen::VectorXd ray_ = {};  // on standardised data, if there is one
};

}  // namespace detail

/// What stands against telling the parameters of a model from these data:
///   temperature ray       a free tau without or with a homogeneous activation, or one that divides products alone;
///                         the scores of the rows are checked
///   partition only        one active expert per row
///   weak activation       2 / (sigma sqrt(n)) > 1/2, sigma the smallest singular value of the first-order family of
///                         independence() on u_i = beta_1j . x_i: a row says at most 1/4 of the squared change of a
///                         score about it (pi (1 - pi)), so that is a lower bound of the standard error of the
///                         combination that the family depends on, in units in which its terms are 1
///   sign symmetry         an activation that is even, or odd up to a constant with two experts and both slopes free
///   coinciding experts    D^2 = mean (m_i - m_j)^2 / nu + (log nu_i - log nu_j)^2 / 2 below 4 times its mean under
///                         equality, (d + 2)(1 / n_i + 1 / n_j), nu the average of both
///   separated gate        an infinitely steep gate, that keeps what data know of it, costs less than 1e-3 of the
///                         log-likelihood
///   never active, never together      experts and pairs that a sparse gate selects in no row
///   rank deficient        null directions of sum s_i s_i^T, which is singular at every model, maximum or not, where no
///                         row changes along a direction (to first order)
///   not a maximum         an eigenvalue of the observed information below 1e-8 of the largest, where that sum is
///   regular
/// Ranks are judged at 1e-8 of the largest eigenvalue, in coordinates in which the inputs are uncorrelated, with a unit
/// diagonal.
/// It looks at one model on these data: nothing found is no proof that all is well, and too many experts show only
/// where two of them come close. A model far from the maximum may well be found fault with.
///   model  in normal form
/// Throws std::invalid_argument for bad models or data and constant columns of x. O(n k^2 d^2 + p^3).
/// Nguyen, Nguyen & Ho (arXiv:2305.03288); Nguyen et al. (arXiv:2309.13850); Nguyen, Akbarian & Ho (arXiv:2401.13875).
template <class G>
IdentifiabilityReport identifiability(const GaussianMoe<G>& model, const RegressionData& data) {
  const detail::ScaledInformation at = detail::scaled_information("moe::identifiability", model, data);
  const detail::CountedRows counted(data);
  IdentifiabilityReport report{.names = at.at.names()};
  detail::IdentifiabilityChecks<G> checks(model, counted.data(), at, report);
  checks.temperature();
  checks.symmetry();
  checks.sparse();
  checks.separation();
  checks.coincidence();
  checks.rank();
  return report;
}

}  // namespace moe::inline MOE_ABI
