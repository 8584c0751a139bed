// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "moe/gaussian/model/model.hpp"
#include "moe/gaussian/theory/known_slopes.hpp"

// Long, as the losses of all kinds of gates are sums over the same cells.
namespace moe::inline MOE_ABI {

/// Which powers of the errors a Voronoi loss adds up; see voronoi_loss().
enum class VoronoiKind {
  Automatic,   ///< Softmax for linear gates, Activation for the others
  Softmax,     ///< of (beta_1, beta_0) / tau, which is what a linear gate with a temperature identifies
  Activation,  ///< of beta_1 and tau, where the gate does not interact with the experts
  Power        ///< of beta_1 and tau, the same power `order` everywhere
};

/// Where the gates of the two models are before they are compared.
enum class VoronoiShift {
  Off,     ///< as they are: for models in normal form (beta_1k = 0, beta_0k = 0)
  Centred  ///< both at a reference cell: no common shift of either gate changes the loss
};

struct VoronoiOptions {
  VoronoiKind kind = VoronoiKind::Automatic;
  VoronoiShift shift = VoronoiShift::Off;
  double order = 1;  ///< r >= 1 of Power
};

/// An expert of the fitted model: the true expert whose cell it is in, and how far it is from that one.
struct VoronoiAtom {
  Index cell = 0;
  double weight = 0;       ///< omega = exp(beta_0 / tau); 1 with the bias inside of an activation
  double gate_slope = 0;   ///< |Delta beta_1|, Euclidean; of what is compared in its place, see voronoi_loss()
  double temperature = 0;  ///< |Delta tau|; 0 for Softmax
  double slope = 0;        ///< |Delta a|, Euclidean
  double intercept = 0;    ///< |Delta b|
  double variance = 0;     ///< |Delta nu|
};

/// The terms of one true expert.
struct VoronoiCell {
  Index atoms = 0;        ///< fitted experts in the cell
  double parameters = 0;  ///< sum over them of omega * (powers of their errors)
  double mass = 0;        ///< |sum over them of omega - omega*|; 0 with the bias inside of an activation

  double loss() const { return parameters + mass; }
};

/// Result of voronoi_loss().
struct VoronoiLoss {
  double total = 0;                     ///< >= 0; +infinity if a fitted omega overflows
  std::vector<VoronoiCell> cells = {};  ///< one per true expert
  std::vector<VoronoiAtom> atoms = {};  ///< one per fitted expert
};

/// rbar(m): the power of errors in a cell of m >= 1 experts. 1, 4 and 6 for m = 1, 2, 3 are known (rbar(2), rbar(3):
/// the smallest order at which a system of polynomial equations has no solution); from m = 4 on it is open, and 2 m a
/// convention. Throws std::invalid_argument for m < 1. Nguyen, Nguyen & Ho (arXiv:2305.03288).
inline double voronoi_exponent(Index m) {
  if (m < 1) fail("moe::voronoi_exponent: m is ", m, ", expected at least 1");
  return m == 1 ? 1 : 2 * static_cast<double>(m);
}

namespace detail {

/// What a loss compares: the experts of a model as points with a weight.
struct VoronoiMeasure {
  Matrix<double> gate_slope = {};
  double temperature = 1;
  Eigen::RowVectorXd log_weight = {};
  Matrix<double> slope = {};
  Eigen::RowVectorXd intercept = {}, variance = {};
  bool has_mass = true;  ///< are weights masses?

  VoronoiMeasure(const GaussianParameters& model, double bias_unit)
      : gate_slope(model.gate_slope),
        temperature(model.temperature),
        log_weight(model.gate_bias / bias_unit),
        slope(model.slope),
        intercept(model.intercept),
        variance(model.variance) {}

  /// The gate as (beta_1, beta_0) / tau, at temperature 1.
  void to_ratio() {
    gate_slope /= temperature;
    temperature = 1;
  }

  /// Biases as one more column of beta_1, and weights that are all 1.
  void bias_to_slope() {
    gate_slope.conservativeResize(Eigen::NoChange, gate_slope.cols() + 1);
    gate_slope.rightCols(1) = log_weight.transpose() * temperature;
    log_weight.setZero();
    has_mass = false;
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
  const Eigen::RowVectorXd zero = Eigen::RowVectorXd::Zero(truth.gate_slope.cols());
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

/// omega * (powers of the errors) of a fitted expert in a cell of m.
inline double voronoi_term(const VoronoiAtom& atom, Index m, VoronoiKind kind, double order) {
  double gate = order, slope = order, intercept = order, variance = order;  // powers
  if (kind != VoronoiKind::Power && m == 1) gate = slope = intercept = variance = 1;
  if (kind != VoronoiKind::Power && m > 1) {
    const double rbar = voronoi_exponent(m);
    const bool interacts = kind == VoronoiKind::Softmax;
    gate = interacts ? rbar : 2;
    slope = interacts ? rbar / 2 : 2;
    intercept = rbar;
    variance = rbar / 2;
  }
  const double errors = std::pow(atom.gate_slope, gate) + std::pow(atom.temperature, gate) +
                        std::pow(atom.slope, slope) + std::pow(atom.intercept, intercept) +
                        std::pow(atom.variance, variance);
  return atom.weight > 0 && errors > 0 ? atom.weight * errors : 0;  // no 0 times infinity
}

/// What models are compared by: of cosines what is known of beta_1, with a bias inside of an activation (beta_1,
/// beta_0).
template <class G>
VoronoiMeasure voronoi_measure(const GaussianMoe<G>& model, bool ratio) {
  VoronoiMeasure measure(model, model.form().score.bias_unit(model.temperature));
  measure.gate_slope = known_slopes(model);
  if (ratio) measure.to_ratio();
  if (bias_in_slope(model)) measure.bias_to_slope();
  return measure;
}

/// Throws where gates are of one type and yet not comparable.
template <class FittedGate, class TrueGate>
void require_comparable(const char* function, const GaussianMoe<FittedGate>& fitted,
                        const GaussianMoe<TrueGate>& truth) {
  if (fitted.input_dim() != truth.input_dim())
    fail(function, ": fitted has ", fitted.input_dim(), " inputs, expected as many as the truth, ", truth.input_dim());
  if (bias_in_slope(fitted) != bias_in_slope(truth))
    fail(function, ": the bias of one model alone is inside of the activation, expected the same place in both");
  const GateScore a = fitted.form().score, b = truth.form().score;
  if (a.weight_shift != b.weight_shift || a.input_shift != b.input_shift)
    fail(function, ": the shifts of the fitted cosines are ", a.weight_shift, " and ", a.input_shift,
         ", expected those of the truth, ", b.weight_shift, " and ", b.input_shift);
}

/// All but the total.
inline VoronoiLoss voronoi_terms(VoronoiMeasure fitted, VoronoiMeasure truth, bool linear,
                                 const VoronoiOptions& options) {
  const auto cells = options.shift == VoronoiShift::Centred ? centre(fitted, truth, linear)
                                                            : voronoi_cells(fitted, truth, /*with_gate=*/true);
  VoronoiLoss loss;
  loss.cells.resize(static_cast<std::size_t>(truth.size()));
  std::vector<double> mass(loss.cells.size());
  for (Index i = 0; i < fitted.size(); ++i) {
    const Index j = cells[static_cast<std::size_t>(i)];
    loss.atoms.push_back({.cell = j,
                          .weight = std::exp(fitted.log_weight(i)),
                          .gate_slope = (fitted.gate_slope.row(i) - truth.gate_slope.row(j)).norm(),
                          .temperature = std::abs(fitted.temperature - truth.temperature),
                          .slope = (fitted.slope.row(i) - truth.slope.row(j)).norm(),
                          .intercept = std::abs(fitted.intercept(i) - truth.intercept(j)),
                          .variance = std::abs(fitted.variance(i) - truth.variance(j))});
    ++loss.cells[static_cast<std::size_t>(j)].atoms;
    mass[static_cast<std::size_t>(j)] += loss.atoms.back().weight;
  }
  for (const VoronoiAtom& atom : loss.atoms) {
    VoronoiCell& cell = loss.cells[static_cast<std::size_t>(atom.cell)];
    cell.parameters += voronoi_term(atom, cell.atoms, options.kind, options.order);
  }
  for (std::size_t j = 0; j < mass.size(); ++j) {
    const double weight = std::exp(truth.log_weight(static_cast<Index>(j)));
    if (!std::isfinite(weight))
      fail("moe::voronoi_loss: exp(beta_0 / tau) of true expert ", j, " overflows, expected a smaller gate_bias");
    if (truth.has_mass) loss.cells[j].mass = std::abs(mass[j] - weight);
  }
  return loss;
}

/// Sum of the `count` largest terms.
inline double largest_terms(const std::vector<VoronoiCell>& cells, Index count) {
  std::vector<double> terms;
  for (const VoronoiCell& cell : cells) terms.push_back(cell.loss());
  std::sort(terms.begin(), terms.end(), std::greater<>());
  double sum = 0;
  for (Index j = 0; j < count; ++j) sum += terms[static_cast<std::size_t>(j)];
  return sum;
}

}  // namespace detail

/// Voronoi loss between a fitted model and the truth: how far estimates are off, expert by expert, at the rates of the
/// theory. Cell A_j holds the fitted experts that are nearest to true expert j in (beta_1, a, b, nu), ties to the lower
/// j; tau is the same for all experts of a model and decides no cell. With omega_i = exp(beta_0i / tau),
///   cell_j = sum_{i in A_j} omega_i (|D beta_1|^p1 + |D tau|^p1 + |D a|^p2 + |D b|^p3 + |D nu|^p4)
///            + |sum_{i in A_j} omega_i - omega*_j|
///   total  = sum of the K largest cells; K = k of a TopKGate of the truth (the largest sum over K true experts),
///            all of them for other gates
/// Powers (p1, p2, p3, p4) by kind are, in cells of one expert, (1, 1, 1, 1); in cells of m > 1, r = rbar(m):
///   Softmax     (r, r/2, r, r/2) of gamma = (beta_1, beta_0) / tau at tau = 1: D1 and D2. A linear gate's temperature
///               is not identified, gamma is
///   Activation  (2, 2, r, r/2)
///   Power       (order, order, order, order) in all cells; with a linear gate the estimates are slower than any order
/// where rbar(2) = 4, rbar(3) = 6, and beyond 2 m, a convention. Gates may differ in type, not in
/// activation. With one active expert (k = 1) a TopKGate's weights do not depend on the gate, and its terms mean
/// little. Shift Off compares the models as they are, which suits the normal form of normalise(). Centred moves both
/// first: the truth to beta_1 = 0, beta_0 = 0 at its last expert, the fitted one to weighted mean 0 of beta_1 and mass
/// 1 in the cell of that expert, which is the infimum over common shifts up to a factor; cells and shift take turns, at
/// most 3 times. With an activation only beta_0 has a common shift, with the bias inside of it none has.
/// What data do not identify is left out: of cosines, gamma_j = beta_1j / (|beta_1j| + weight_shift) stands for
/// beta_1j, the direction alone without a weight_shift (whose length is any number), and with one, up to the common
/// shift that Centred removes (and over tau, where that is free). Where a temperature divides products alone
/// (SigmoidGate), beta_1 / tau stands for beta_1 if it is free, and omega_i is exp(beta_0i). With the bias inside of an
/// activation, as in the theory of sigmoid gates, beta_0 counts as one more coefficient of beta_1, omega is 1, and
/// there is no mass to compare. The weights are not normalised: an expert with beta_0 = -8 counts 3e-4. In
/// over-specified models the singleton cells and the masses dominate, so a loss of order n^-1/2 goes with errors of
/// order n^-1/8. Throws std::invalid_argument for a bad model, models of different input_dim, with the bias in
/// different places or cosines of different shifts, order < 1, a true weight that overflows, and kind Softmax with an
/// activation. O(k k* d), allocates. Nguyen, Nguyen & Ho (arXiv:2305.03288); top-K: Nguyen et al. (arXiv:2309.13850);
/// temperature and activation: Nguyen, Akbarian & Ho (arXiv:2401.13875), whose over-specified powers are read off its
/// Laplace-gated sibling (arXiv:2402.03226); sigmoid: Nguyen, Ho & Rinaldo (arXiv:2405.13997); cosines: Nguyen et al.
/// (arXiv:2405.14131).
template <class FittedGate, class TrueGate>
VoronoiLoss voronoi_loss(const GaussianMoe<FittedGate>& fitted, const GaussianMoe<TrueGate>& truth,
                         VoronoiOptions options = {}) {
  constexpr const char* kName = "moe::voronoi_loss";
  using Inner = typename GateModel<TrueGate>::Inner;
  static_assert(std::is_same_v<typename GateModel<FittedGate>::Inner, Inner>,
                "moe::voronoi_loss: both gates need the same activation (Identity for linear gates)");
  constexpr bool kLinear = std::is_same_v<Inner, Identity>;
  fitted.validate(kName);
  truth.validate(kName);
  detail::require_comparable(kName, fitted, truth);
  if (!(options.order >= 1 && std::isfinite(options.order)))
    fail(kName, ": order is ", options.order, ", expected a finite number >= 1");
  if (options.kind == VoronoiKind::Automatic) options.kind = kLinear ? VoronoiKind::Softmax : VoronoiKind::Activation;
  if (!kLinear && options.kind == VoronoiKind::Softmax)
    fail(kName, ": kind is Softmax with an activation, expected Activation or Power");
  const bool shifts = detail::slopes_shift(truth);
  const bool ray = shifts || truth.form().score.tempers_product();
  const bool ratio = options.kind == VoronoiKind::Softmax || (!kLinear && ray && GateModel<TrueGate>::kFreeTemperature);
  if (detail::bias_in_slope(truth)) options.shift = VoronoiShift::Off;  // nothing is known up to a shift alone
  VoronoiLoss loss = detail::voronoi_terms(detail::voronoi_measure(fitted, ratio),
                                           detail::voronoi_measure(truth, ratio), shifts, options);
  loss.total = detail::largest_terms(loss.cells, truth.form().active);
  return loss;
}

}  // namespace moe::inline MOE_ABI
