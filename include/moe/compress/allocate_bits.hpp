// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "moe/compress/bit_plan.hpp"

namespace moe::inline MOE_ABI {

/// A choice of bits for each item, an expert or a matrix: the sum of costs is to be least, within a budget.
struct BitProblem {
  std::vector<Index> bits = {};      ///< to choose from, ascending
  Matrix<double> costs = {};         ///< [items, choices], finite
  std::vector<Index> sizes = {};     ///< [items], weights of each, or none: all the same size, 1
  Index budget = 0;                  ///< of the sum of size * bits
  std::vector<Index> at_least = {};  ///< [choices], how many items must have these bits, or none
};

namespace detail {

/// A BitProblem in units of what all sizes and bits have in common.
class BitKnapsack {
 public:
  explicit BitKnapsack(const char* function, const BitProblem& problem) : problem_(problem) {
    require_bits(function, problem.bits);
    items_ = problem.costs.rows();
    require_shape(function, "costs", problem.costs, items_, choices());
    for (Index i = 0; i < items_; ++i)
      for (Index b = 0; b < choices(); ++b)
        if (!std::isfinite(problem.costs(i, b)))
          fail(function, ": the cost of item ", i, " with ", bits(b), " bits is ", problem.costs(i, b),
               ", expected a finite number");
    sizes_ = checked_sizes(function, problem.sizes, items_, bits(choices() - 1));
    Index unit = 0;
    for (const Index size : sizes_)
      for (Index b = 1; b < choices(); ++b) unit = std::gcd(unit, size * (bits(b) - bits(0)));
    unit_ = std::max<Index>(1, unit);
    Index least = 0, most = 0;
    for (Index i = 0; i < items_; ++i) least += size(i) * bits(0), most += weight(i, choices() - 1);
    if (problem.budget < least)
      fail(function, ": the budget is ", problem.budget, ", expected at least ", least, " for ", bits(0), " bits each");
    budget_ = std::min(most, (problem.budget - least) / unit_);
    at_least_.assign(static_cast<std::size_t>(choices()), 0);
    if (!problem.at_least.empty() && std::ssize(problem.at_least) != choices())
      fail(function, ": at_least has ", problem.at_least.size(), " numbers, expected ", choices(), " or none");
    for (std::size_t b = 0; b < problem.at_least.size(); ++b) {
      if (problem.at_least[b] < 0 || problem.at_least[b] > items_)
        fail(function, ": at_least[", b, "] is ", problem.at_least[b], ", expected 0 to ", items_,
             " as there are items");
      at_least_[b] = problem.at_least[b];
    }
  }

  Index items() const { return items_; }
  Index choices() const { return std::ssize(problem_.bits); }
  Index bits(Index b) const { return problem_.bits[static_cast<std::size_t>(b)]; }
  double cost(Index i, Index b) const { return problem_.costs(i, b); }
  /// Of what more bits than the fewest take.
  Index weight(Index i, Index b) const { return size(i) * (bits(b) - bits(0)) / unit_; }
  Index budget() const { return budget_; }
  const std::vector<Index>& at_least() const { return at_least_; }

 private:
  Index size(Index i) const { return sizes_[static_cast<std::size_t>(i)]; }

  const BitProblem& problem_;
  std::vector<Index> sizes_, at_least_;
  Index items_ = 0, unit_ = 1, budget_ = 0;
};

/// What the items from some number on cost at least, for every budget and every count of choices that are still due.
class BitTable {
 public:
  BitTable(const char* function, const BitKnapsack& knapsack) : knapsack_(knapsack), width_(knapsack.budget() + 1) {
    for (const Index due : knapsack.at_least()) states_ = checked_product(function, states_, due + 1);
    const Index row = checked_product(function, width_, states_);
    least_.assign(static_cast<std::size_t>(checked_product(function, knapsack.items() + 1, row)), kNever);
    for (Index budget = 0; budget < width_; ++budget) at(knapsack.items(), budget, 0) = 0;
    for (Index i = knapsack.items(); i-- > 0;)
      for (Index budget = 0; budget < width_; ++budget)
        for (Index state = 0; state < states_; ++state)
          for (Index b = 0; b < knapsack.choices(); ++b)
            at(i, budget, state) = std::min(at(i, budget, state), with(i, b, budget, state));
  }

  bool is_feasible() const { return least(0, width_ - 1, states_ - 1) < kNever; }
  /// The choice of every item: the most bits that are as good, first things first.
  std::vector<Index> choices() const {
    std::vector<Index> result;
    Index budget = width_ - 1, state = states_ - 1;
    for (Index i = 0; i < knapsack_.items(); ++i) {
      Index b = knapsack_.choices() - 1;
      while (with(i, b, budget, state) != least(i, budget, state)) --b;
      result.push_back(b);
      budget -= knapsack_.weight(i, b);
      state = after(state, b);
    }
    return result;
  }

 private:
  static constexpr double kNever = std::numeric_limits<double>::infinity();

  std::size_t place(Index i, Index budget, Index state) const {
    return static_cast<std::size_t>((i * width_ + budget) * states_ + state);
  }
  double& at(Index i, Index budget, Index state) { return least_[place(i, budget, state)]; }
  double least(Index i, Index budget, Index state) const { return least_[place(i, budget, state)]; }
  /// Item i with choice b, and the rest.
  double with(Index i, Index b, Index budget, Index state) const {
    const Index left = budget - knapsack_.weight(i, b);
    return left < 0 ? kNever : knapsack_.cost(i, b) + least(i + 1, left, after(state, b));
  }
  /// A state is a number whose digit b is how many choices of b are still due.
  Index after(Index state, Index b) const {
    Index place = 1;
    for (Index c = 0; c < b; ++c) place *= knapsack_.at_least()[static_cast<std::size_t>(c)] + 1;
    const Index due = state / place % (knapsack_.at_least()[static_cast<std::size_t>(b)] + 1);
    return due > 0 ? state - place : state;
  }

  const BitKnapsack& knapsack_;
  Index width_, states_ = 1;
  std::vector<double> least_;
};

}  // namespace detail

/// The bits of every item, [items], with the least sum of costs; exact, but for rounding, by a dynamic programme over
/// items, budget and what at_least still asks for. Of plans that cost the same, the one that gives the first items the
/// most bits.
///   moe::BitPlan plan{.bits = moe::allocate_bits({.bits = {1, 2, 3}, .costs = costs, .budget = 2 * num_experts})};
/// Throws std::invalid_argument for costs that are not finite, numbers out of range, and a budget within which
/// at_least, or all with the fewest bits, has no room. Time and memory O(items * choices * (budget in units that the
/// sizes have in common) * product of (at_least + 1)): microseconds for the experts of a layer. Huang et al., "MC-MoE"
/// (arXiv:2410.06270), who ask an integer programme.
inline std::vector<Index> allocate_bits(const BitProblem& problem) {
  constexpr const char* kFunction = "moe::allocate_bits";
  const detail::BitKnapsack knapsack(kFunction, problem);
  const detail::BitTable table(kFunction, knapsack);
  if (!table.is_feasible())
    fail(kFunction, ": the budget is ", problem.budget, ", expected one that at_least has room in");
  std::vector<Index> bits = table.choices();
  for (Index& choice : bits) choice = knapsack.bits(choice);
  return bits;
}

/// A sum of costs that no plan goes below: that of the best plan where an item may be divided between choices, and
/// without at_least. At most one item is divided, so the bound is close. Throws as allocate_bits(), but not for an
/// at_least without room. O(n log n) of all choices. Sinha & Zoltners, "The multiple-choice knapsack problem",
/// Operations Research 1979.
inline double bit_cost_bound(const BitProblem& problem) {
  const detail::BitKnapsack knapsack("moe::bit_cost_bound", problem);
  struct Gain {
    double per_unit;
    Index units;
  };
  std::vector<Gain> gains;
  double bound = 0;
  for (Index i = 0; i < knapsack.items(); ++i) {
    Index from = 0;  // along the lower convex hull of the costs, as long as they fall
    bound += knapsack.cost(i, 0);
    while (true) {
      Index best = from;
      Gain steepest{0, 0};
      for (Index b = from + 1; b < knapsack.choices(); ++b) {
        const Index units = knapsack.weight(i, b) - knapsack.weight(i, from);
        const double gain = (knapsack.cost(i, from) - knapsack.cost(i, b)) / static_cast<double>(units);
        if (gain > steepest.per_unit) best = b, steepest = {gain, units};
      }
      if (best == from) break;
      gains.push_back(steepest);
      from = best;
    }
  }
  std::ranges::stable_sort(gains, std::ranges::greater{}, &Gain::per_unit);
  Index left = knapsack.budget();
  for (const Gain& gain : gains) {
    const Index units = std::min(left, gain.units);
    bound -= gain.per_unit * static_cast<double>(units);
    left -= units;
  }
  return bound;
}

}  // namespace moe::inline MOE_ABI
