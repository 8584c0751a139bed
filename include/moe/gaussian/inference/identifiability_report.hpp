// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "moe/core/matrix.hpp"

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

}  // namespace moe::inline MOE_ABI
