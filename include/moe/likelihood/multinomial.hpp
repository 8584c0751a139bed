// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/likelihood/expert_rows.hpp"

namespace moe::inline MOE_ABI {

/// Experts of classes: y is a class 0 ... C, P(y = c) = exp(eta_c) / sum_l exp(eta_l) with eta_0 = 0 for the reference
/// class and one linear predictor for every other.
///   log f = eta_y - log(1 + sum_c exp(eta_c))
/// The M-step is IRLS on all predictors together. Separated classes as for Binomial.
/// McCullagh & Nelder, "Generalized linear models", 2nd ed. 1989; as experts: Jordan & Jacobs, "Hierarchical mixtures
/// of experts and the EM algorithm", Neural Computation 1994.
struct Multinomial {
  Index classes = 2;  ///< C + 1, 2 to 1000

  static constexpr Index kShapes = 0;
  static constexpr bool kContinuous = false;
  static constexpr double kLargest = 500;
  static constexpr std::string_view kShapeNames[] = {""};

  Index num_predictors() const { return classes - 1; }
  Index num_outputs() const { return classes; }

  /// Throws std::invalid_argument for y that is no class, and for classes out of range.
  void require(const char* function, const ResponseData& data) const {
    if (!(classes >= 2 && classes <= 1000))
      fail(function, ": Multinomial has ", classes, " classes, expected 2 to 1000");
    for (Index i = 0; i < data.num_rows(); ++i)
      if (!(data.y(i) >= 0 && data.y(i) < static_cast<double>(classes) && data.y(i) == std::floor(data.y(i))))
        fail(function, ": y is ", data.y(i), " in row ", i, ", expected a class, 0 to ", classes - 1);
  }

  double log_density(Response r, const double* eta, const double*) const {
    const double most = largest(eta);
    double sum = std::exp(-most);
    for (Index c = 0; c + 1 < classes; ++c) sum += std::exp(eta[c] - most);
    return (r.y > 0 ? eta[static_cast<Index>(r.y) - 1] : 0) - most - std::log(sum);
  }

  void derivatives(Response r, const double* eta, const double*, double* score, double* information) const {
    const Index size = classes - 1;
    const double most = largest(eta);
    double sum = std::exp(-most);
    for (Index c = 0; c < size; ++c) sum += score[c] = std::exp(eta[c] - most);
    for (Index c = 0; c < size; ++c) score[c] /= sum;
    for (Index c = 0; c < size; ++c)
      for (Index l = 0; l < size; ++l) {
        // p (1 - p) as p times the sum of the others, which does not cancel
        double others = std::exp(-most) / sum;
        for (Index m = 0; c == l && m < size; ++m) others += m == c ? 0 : score[m];
        information[c * size + l] = c == l ? score[c] * others : -score[c] * score[l];
      }
    for (Index c = 0; c < size; ++c) score[c] = (static_cast<Index>(r.y) == c + 1 ? 1 : 0) - score[c];
  }

  double link(Response r) const { return r.y; }
  /// The probabilities of all classes.
  void mean(const double* eta, const double*, double* out) const {
    const double most = largest(eta);
    double sum = out[0] = std::exp(-most);
    for (Index c = 1; c < classes; ++c) sum += out[c] = std::exp(eta[c - 1] - most);
    for (Index c = 0; c < classes; ++c) out[c] /= sum;
  }
  double draw(const double* eta, const double*, double, const RandomField& random, Index row) const {
    double rest = random.uniform(row, 1);
    for (Index c = 0; c + 1 < classes; ++c)
      if ((rest -= std::exp(log_density({.y = static_cast<double>(c)}, eta, nullptr))) <= 0)
        return static_cast<double>(c);
    return static_cast<double>(classes - 1);
  }

 private:
  double largest(const double* eta) const { return std::max(0.0, *std::max_element(eta, eta + classes - 1)); }
};

static_assert(ExpertFamily<Multinomial>);

}  // namespace moe::inline MOE_ABI
