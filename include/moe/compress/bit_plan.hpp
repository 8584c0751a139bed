// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "moe/compress/expert_plan.hpp"
#include "moe/compress/quantise.hpp"

// How many bits the weights of each expert get.
namespace moe::inline MOE_ABI {

/// Bits per weight, of experts or of each of their matrices. A choice of formats for quantise() is made of it:
///   const auto few = moe::quantise(layer, plan.planes(32), moe::Gptq{}, calibration);
///   const auto few = moe::quantise(layer, [&](const moe::ExpertMatrix& m) { return my_format(plan(m)); });
struct BitPlan {
  std::vector<Index> bits = {};  ///< [num_experts, matrices]
  Index matrices = 1;  ///< 1: both matrices of an expert alike; 2: what makes hidden units, then "down.weight"
  Index shared = 8;    ///< of an expert below 0, the shared one of a MoeBlock

  Index num_experts() const { return std::ssize(bits) / std::max<Index>(1, matrices); }
  /// Throws std::invalid_argument for an expert that the plan does not have, unless `matrices` is 1 or 2, and for
  /// numbers of bits that are not so many for each expert.
  Index operator()(const ExpertMatrix& matrix) const {
    if ((matrices != 1 && matrices != 2) || std::ssize(bits) % matrices != 0)
      fail("moe::BitPlan: ", bits.size(), " numbers of bits for matrices = ", matrices,
           ", expected 1 or 2 matrices, and as many numbers for each expert");
    if (matrix.expert < 0) return shared;
    if (matrix.expert >= num_experts())
      fail("moe::BitPlan: expert ", matrix.expert, ", expected one below ", num_experts());
    const Index place = matrices == 2 && matrix.name == "down.weight" ? 1 : 0;
    return bits[static_cast<std::size_t>(matrix.expert * matrices + place)];
  }
  /// WeightFormat::planes() of these bits, in groups of so many inputs; none() for 0 bits. A copy of the plan.
  /// The function throws std::invalid_argument as the plan, and unless there are 0 to 8 bits.
  auto planes(Index group = 64) const {
    return [plan = *this, group](const ExpertMatrix& matrix) {
      const Index b = plan(matrix);
      if (b < 0 || b > 8) fail("moe::BitPlan::planes: expert ", matrix.expert, " has ", b, " bits, expected 0 to 8");
      return b == 0 ? WeightFormat::none() : WeightFormat::planes(static_cast<int>(b), group);
    };
  }
  /// WeightFormat::integers() of these bits, which checkpoints of other programs have: 4 and 8 bits as most run them,
  /// without zero points, others with. Errors are larger than those of planes, the fewer bits the more, as 0 is one of
  /// the values. The function throws std::invalid_argument as the plan, and unless there are 1 to 8 bits.
  auto integers(Index group = 64, ScaleType scale = ScaleType::F16) const {
    return [plan = *this, group, scale](const ExpertMatrix& matrix) {
      const Index b = plan(matrix);
      if (b < 1 || b > 8) fail("moe::BitPlan::integers: expert ", matrix.expert, " has ", b, " bits, expected 1 to 8");
      const WeightFormat format = WeightFormat::integers(static_cast<int>(b), group, scale);
      return b == 4 || b == 8 ? format : format.with_zero_points();
    };
  }
};

namespace detail {

/// Sizes of `count` items, 1 each where none are given. Throws std::invalid_argument for other numbers, sizes < 1, and
/// where an Index does not hold the sum of sizes times `most_bits`, and one more.
inline std::vector<Index> checked_sizes(const char* function, std::span<const Index> sizes, Index count,
                                        Index most_bits) {
  std::vector<Index> result(sizes.begin(), sizes.end());
  if (sizes.empty()) result.assign(static_cast<std::size_t>(count), 1);
  if (std::ssize(result) != count) fail(function, ": ", sizes.size(), " sizes, expected ", count, " or none");
  const Index most = (std::numeric_limits<Index>::max() - 1) / std::max<Index>(1, most_bits);
  Index left = most;
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (result[i] < 1) fail(function, ": size ", i, " is ", result[i], ", expected at least 1");
    if (result[i] > left)
      fail(function, ": sizes up to ", i, " add up to more than ", most, " for ", most_bits, " bits");
    left -= result[i];
  }
  return result;
}
/// Throws std::invalid_argument unless there are bits, ascending and not negative.
inline void require_bits(const char* function, std::span<const Index> bits) {
  if (bits.empty()) fail(function, ": 0 numbers of bits, expected at least 1");
  for (std::size_t b = 0; b < bits.size(); ++b)
    if (bits[b] < 0 || (b > 0 && bits[b] <= bits[b - 1]))
      fail(function, ": bits[", b, "] is ", bits[b], ", expected ascending numbers from 0");
}

}  // namespace detail

/// Sum of size * bits over the sum of sizes, sizes as in BitProblem. 0 of an empty plan.
inline double average_bits(std::span<const Index> bits, std::span<const Index> sizes = {}) {
  const std::vector<Index> size = detail::checked_sizes("moe::average_bits", sizes, std::ssize(bits), 1);
  double sum = 0, whole = 0;
  for (std::size_t i = 0; i < size.size(); ++i)
    sum += static_cast<double>(size[i]) * static_cast<double>(bits[i]), whole += static_cast<double>(size[i]);
  return whole > 0 ? sum / whole : 0;
}

/// `high` bits for the items with the highest scores, one after the other as long as the average stays at or below
/// `average`, and `low` bits for all others; ties go to the lower number. An item that does not fit any more is left
/// out, smaller ones may follow. With the frequencies of experts the heuristic of QuantMoE-Bench (arXiv:2406.08155).
/// Throws std::invalid_argument for scores that are not finite, unless 0 <= low <= high, and for an average below low;
/// above `high` all get that.
inline std::vector<Index> bits_by_score(std::span<const double> scores, Index low, Index high, double average,
                                        std::span<const Index> sizes = {}) {
  constexpr const char* kFunction = "moe::bits_by_score";
  detail::require_scores(kFunction, scores);
  if (low < 0 || low > high) fail(kFunction, ": low is ", low, ", expected 0 <= low <= high = ", high);
  if (!(average >= static_cast<double>(low)))
    fail(kFunction, ": average is ", average, ", expected at least low = ", low);
  const std::vector<Index> size = detail::checked_sizes(kFunction, sizes, std::ssize(scores), high);
  double whole = 0, used = 0;
  for (const Index s : size) whole += static_cast<double>(s);
  std::vector<Index> bits(scores.size(), low);
  for (const Index item : detail::best_first(scores)) {
    const double more = static_cast<double>(size[static_cast<std::size_t>(item)] * (high - low));
    // An average of decimal places is not exact: a millionth of a bit is not what an item fails by.
    if (static_cast<double>(low) * whole + used + more > (average + 1e-6) * whole) continue;
    used += more;
    bits[static_cast<std::size_t>(item)] = high;
  }
  return bits;
}

/// A plan by lot, to compare with: each item draws its bits, then items that are drawn lose a step until the sum of
/// size * bits is at most `budget`, or get one as long as any fits. Throws std::invalid_argument for a budget that the
/// fewest bits exceed.
inline std::vector<Index> random_bits(Index count, std::span<const Index> bits, Index budget, const RandomField& random,
                                      std::span<const Index> sizes = {}) {
  constexpr const char* kFunction = "moe::random_bits";
  detail::require_bits(kFunction, bits);
  const std::vector<Index> size =
      detail::checked_sizes(kFunction, sizes, detail::checked_size(kFunction, "count", count), bits.back());
  Index least = 0;
  for (const Index s : size) least += s * bits[0];
  if (budget < least)
    fail(kFunction, ": the budget is ", budget, ", expected at least ", least, " for the fewest bits");
  std::vector<std::size_t> level;
  Index left = budget;
  for (const Index s : size) {
    level.push_back(static_cast<std::size_t>(random.below(bits.size(), std::ssize(level), 0)));
    left -= s * bits[level.back()];
  }
  const auto step = [&](std::size_t i, std::size_t from) { return size[i] * (bits[from + 1] - bits[from]); };
  for (Index draw = 0;; ++draw) {
    const bool is_over = left < 0;
    std::vector<std::size_t> can;
    for (std::size_t i = 0; i < size.size(); ++i)
      if (is_over ? level[i] > 0 : level[i] + 1 < bits.size() && step(i, level[i]) <= left) can.push_back(i);
    if (can.empty()) break;
    const std::size_t i = can[static_cast<std::size_t>(random.below(can.size(), draw, 1))];
    left += is_over ? step(i, level[i] - 1) : -step(i, level[i]);
    level[i] = is_over ? level[i] - 1 : level[i] + 1;
  }
  std::vector<Index> result;
  for (const std::size_t l : level) result.push_back(bits[l]);
  return result;
}

struct PmqExponents {
  double frequency = 1, weight = 1.5, error = 2;  ///< as published
};

/// frequency^a * weight^b * error^c of every expert and number of bits, [num_experts, choices]: the cost of PMQ, with
/// errors of quantisation_errors(). Those are measured on the tokens of an expert and hold how often and with which
/// weight it is used already: exponents 0, 0, 2 do as well. Throws std::invalid_argument for other shapes, and for
/// numbers that are negative or not finite. Huang et al., "MC-MoE" (arXiv:2410.06270), "MC#" (arXiv:2510.10962).
inline Matrix<double> pmq_costs(const Matrix<double>& errors, std::span<const double> frequencies,
                                std::span<const double> weights, const PmqExponents& exponents = {}) {
  constexpr const char* kFunction = "moe::pmq_costs";
  if (std::ssize(frequencies) != errors.rows() || std::ssize(weights) != errors.rows())
    fail(kFunction, ": ", frequencies.size(), " frequencies and ", weights.size(), " weights, expected ",
         errors.rows());
  Matrix<double> costs(errors.rows(), errors.cols());
  for (Index e = 0; e < errors.rows(); ++e)
    for (Index b = 0; b < errors.cols(); ++b) {
      const auto id = static_cast<std::size_t>(e);
      if (!(frequencies[id] >= 0) || !(weights[id] >= 0) || !(errors(e, b) >= 0))
        fail(kFunction, ": expert ", e, " has frequency ", frequencies[id], ", weight ", weights[id], " and error ",
             errors(e, b), ", expected numbers >= 0");
      costs(e, b) = std::pow(frequencies[id], exponents.frequency) * std::pow(weights[id], exponents.weight) *
                    std::pow(errors(e, b), exponents.error);
      if (!std::isfinite(costs(e, b))) fail(kFunction, ": the cost of expert ", e, " is not finite");
    }
  return costs;
}

}  // namespace moe::inline MOE_ABI
