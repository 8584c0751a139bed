// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/gaussian/model/parameters.hpp"

namespace moe::inline MOE_ABI {

/// A standard deviation that depends on the number of rows: scale * n^-power.
struct NoiseLevel {
  double scale = 0;  ///< >= 0
  double power = 0;  ///< >= 0; 0: the same at every n

  /// The same at every n, as large as this one is at num_rows.
  NoiseLevel at(Index num_rows) const { return {scale * std::pow(static_cast<double>(num_rows), -power), 0}; }
};

/// Normal noise that is added to the truth for a start. The defaults are those of the authors' simulations.
struct StartNoise {
  NoiseLevel gate = {.scale = 0.005, .power = 0.083};     ///< of beta_1 and beta_0
  NoiseLevel expert = {.scale = 0.05, .power = 0.083};    ///< of a and b
  NoiseLevel variance = {.scale = 0.005, .power = 0.25};  ///< of nu, its absolute value is added
  NoiseLevel log_temperature = {};  ///< z of (beta_1, beta_0, tau) e^z, which leaves linear gates as they are (of
                                    ///< (beta_1, tau) e^z or, with distances, tau e^z in a SigmoidGate); only for
                                    ///< gates whose temperature is estimated

  /// The levels at num_rows.
  StartNoise at(Index num_rows) const {
    return {gate.at(num_rows), expert.at(num_rows), variance.at(num_rows), log_temperature.at(num_rows)};
  }

  /// Throws std::invalid_argument, naming the first level that is out of range.
  void validate(const char* function) const {
    const auto check = [&](const char* name, const NoiseLevel& level) {
      if (!(level.scale >= 0 && std::isfinite(level.scale) && level.power >= 0 && std::isfinite(level.power)))
        fail(function, ": noise of ", name, " is ", level.scale, " n^-", level.power, ", expected finite numbers >= 0");
    };
    check("gate", gate);
    check("expert", expert);
    check("variance", variance);
    check("log_temperature", log_temperature);
  }
};

/// What a start near the truth is drawn for.
struct StartDraw {
  Index num_rows = 1;  ///< n of the noise
  std::uint64_t seed = 1;
};

namespace detail {

inline void require_experts(const char* function, Index fitted, Index truth) {
  if (truth < 1) fail(function, ": the truth has ", truth, " experts, expected at least 1");
  if (fitted < truth) fail(function, ": there are ", fitted, " fitted experts, expected at least the true ", truth);
}

/// Is beta_1 of the last expert held at 0 without being free to choose? Then that expert stays what it is.
template <class G>
bool last_expert_is_fixed(const GaussianMoe<G>& model) {
  return !std::is_same_v<typename GateModel<G>::Inner, Identity> && model.last_slope == LastSlope::Zero;
}

}  // namespace detail

/// Every way to give each of `fitted` experts a true one so that no true one is left out, up to the order of the fitted
/// ones: ascending lists of true experts, binomial(fitted - 1, truth - 1) of them. With one expert too many they are
/// the `truth` ways to double one. Throws std::invalid_argument for truth < 1, fitted < truth, and above 1000 ways.
inline std::vector<std::vector<Index>> expert_allocations(Index fitted, Index truth) {
  constexpr const char* kName = "moe::expert_allocations";
  detail::require_experts(kName, fitted, truth);
  std::vector<std::vector<Index>> all;
  std::vector<Index> cells(static_cast<std::size_t>(fitted));
  const auto fill = [&](const auto& self, std::size_t at, Index cell) -> void {
    if (at == cells.size()) {
      if (cell != truth - 1) return;
      if (all.size() == 1000) fail(kName, ": there are more than 1000 ways, expected fewer surplus experts");
      all.push_back(cells);
      return;
    }
    const auto left = static_cast<Index>(cells.size() - at);
    if (truth - 1 - cell > left) return;  // too few to reach the last true expert
    for (const Index next : {cell, cell + 1}) {
      if (next >= truth) continue;
      cells[at] = next;
      self(self, at + 1, next);
    }
  };
  cells.front() = 0;
  fill(fill, 1, 0);
  return all;
}

/// Which true expert the last fitted one belongs to.
enum class LastExpert {
  Any,  ///< any one, as all others
  Last  ///< the last one
};

/// A random map of `fitted` experts onto `truth` ones that hits every true one: each once, the surplus anywhere, in
/// random order. Errors as above.
inline std::vector<Index> random_allocation(Index fitted, Index truth, LastExpert last, std::uint64_t seed) {
  detail::require_experts("moe::random_allocation", fitted, truth);
  const RandomField random(Purpose::Shuffle, seed);
  std::vector<Index> cells(static_cast<std::size_t>(fitted));
  for (Index i = 0; i < fitted; ++i)
    cells[static_cast<std::size_t>(i)] =
        i < truth ? truth - 1 - i : static_cast<Index>(random.below(static_cast<std::uint64_t>(truth), i, 1));
  if (last == LastExpert::Last) std::swap(cells.front(), cells.back());
  for (Index i = last == LastExpert::Last ? fitted - 2 : fitted - 1; i > 0; --i)  // Fisher-Yates
    std::swap(cells[static_cast<std::size_t>(i)], cells[random.below(static_cast<std::uint64_t>(i) + 1, i, 0)]);
  return cells;
}

namespace detail {

/// How many entries of `cells` name each true expert. Throws for entries that near_truth() does not take.
template <class G>
std::vector<double> cell_sizes(const char* function, const GaussianMoe<G>& truth, const std::vector<Index>& cells) {
  const Index last = truth.num_experts() - 1;
  if (cells.empty()) fail(function, ": cells is empty, expected one entry per expert");
  std::vector<double> sizes(static_cast<std::size_t>(last + 1));
  for (const Index cell : cells) {
    if (cell < 0 || cell > last) fail(function, ": cells holds ", cell, ", expected true experts 0 to ", last);
    ++sizes[static_cast<std::size_t>(cell)];
  }
  if (last_expert_is_fixed(truth) && cells.back() != last)
    fail(function, ": the last entry of cells is ", cells.back(), ", expected the true expert whose gate slope is 0, ",
         last);
  return sizes;
}

/// Is the weight of an expert proportional to exp(beta_0 / tau), whoever is active?
template <class G>
bool bias_is_mass(const GaussianMoe<G>& model) {
  const GateForm form = model.form();
  const bool outside = form.bias == BiasPlace::Outside || std::is_same_v<typename GateModel<G>::Inner, Identity>;
  return outside && (form.active == model.num_experts() || !form.ranks_bias);
}

/// Writes the numbers of true expert j plus noise to expert i.
template <class G>
void put_near(const GaussianMoe<G>& truth, Index j, const RandomField& random, const StartNoise& sd,
              GaussianMoe<G>& start, Index i) {
  const Index d = truth.input_dim();
  for (Index c = 0; c < d; ++c) {
    if (reads(truth.gate_inputs, c))
      start.gate_slope(i, c) = truth.gate_slope(j, c) + sd.gate.scale * random.normal(i, c);
    if (reads(truth.expert_inputs, c))
      start.slope(i, c) = truth.slope(j, c) + sd.expert.scale * random.normal(i, d + c);
  }
  start.gate_bias(i) = truth.gate_bias(j) + sd.gate.scale * random.normal(i, 2 * d);
  start.intercept(i) = truth.intercept(j);
  if (truth.expert_intercept == Intercept::Free) start.intercept(i) += sd.expert.scale * random.normal(i, 2 * d + 1);
  start.variance(i) = truth.variance(j) + std::abs(sd.variance.scale * random.normal(i, 2 * d + 2));
}

}  // namespace detail

/// A model near the truth with one expert per entry of `cells`, its true expert: the numbers of that one plus noise. A
/// true expert that m fitted ones share gives each the m-th part of its weight (beta_0 less tau log m, or log m),
/// unless beta_0 is inside of an activation or decides who is active. In normal form; the gate is the truth's, and so
/// is a last gate slope that is pinned. Throws std::invalid_argument for a bad truth, an entry that is no true expert,
/// noise out of range, and, where the last gate slope is pinned, a last entry that is not the last true expert. O(k d).
template <class G>
GaussianMoe<G> near_truth(const GaussianMoe<G>& truth, const std::vector<Index>& cells, const StartNoise& noise,
                          const StartDraw& draw) {
  constexpr const char* kName = "moe::near_truth";
  truth.validate(kName);
  noise.validate(kName);
  const std::vector<double> sizes = detail::cell_sizes(kName, truth, cells);
  const auto k = static_cast<Index>(cells.size());
  auto start = GaussianMoe<G>::zero(k, truth.input_dim(),
                                    GateModel<G>::with(truth.gate, Eigen::RowVectorXd::Zero(k), truth.temperature));
  start.last_slope = truth.last_slope;
  start.gate_inputs = truth.gate_inputs;
  start.expert_inputs = truth.expert_inputs;
  start.expert_intercept = truth.expert_intercept;
  start.temperature = truth.temperature;
  const RandomField random(Purpose::Initialise, draw.seed);
  const StartNoise sd = noise.at(draw.num_rows);
  for (Index i = 0; i < k; ++i) {
    const Index j = cells[static_cast<std::size_t>(i)];
    detail::put_near(truth, j, random, sd, start, i);
    if (detail::bias_is_mass(truth))
      start.gate_bias(i) -=
          truth.form().score.bias_unit(truth.temperature) * std::log(sizes[static_cast<std::size_t>(j)]);
  }
  if (detail::last_expert_is_fixed(truth)) {
    start.gate_slope.row(k - 1).setZero();
    if (truth.form().bias == BiasPlace::Inside) start.gate_bias(k - 1) = 0;  // no shift moves it there
  }
  normalise(start);
  if constexpr (GateModel<G>::kFreeTemperature) {
    const double scale = std::exp(sd.log_temperature.scale * random.normal(k, 0));
    const GateScore score = truth.form().score;
    if (score.link == ScoreLink::Identity) start.gate_bias *= scale;
    if (score.link == ScoreLink::Identity || score.is_product()) start.gate_slope *= scale;
    start.temperature *= scale;
  }
  return start;
}

}  // namespace moe::inline MOE_ABI
