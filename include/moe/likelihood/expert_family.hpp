// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <string_view>

#include "moe/core/random.hpp"
#include "moe/likelihood/data.hpp"

namespace moe::inline MOE_ABI {

/// What a row says: y, of how many trials (Binomial), and further outputs (DiagonalNormal).
struct Response {
  double y = 0, trials = 1;
  const double* further = nullptr;

  double output(Index c) const { return c == 0 ? y : further[c - 1]; }
};

/// A family of distributions of y that experts may have. An expert is C linear predictors eta = b_c . (x, 1) + offset
/// and E positive numbers, its shape: a variance, degrees of freedom. A row of the likelihood is a function of these
/// C + E numbers alone; all that has to do with x, with weights of rows and with the mixture is written once. A family
/// of one's own has
///   static constexpr Index kShapes                       E
///   static constexpr bool kContinuous                    a density on the line, or probabilities of whole numbers?
///   static constexpr double kLargest                     bound of the coefficients on standardised inputs; infinity
///                                                        where the likelihood has a maximum whatever the data
///   static constexpr std::string_view kShapeNames[]      of the shape, for tables; at least one entry
///   Index num_predictors() const                         C
///   Index num_outputs() const                            numbers that mean() writes
///   void require(const char* function, const ResponseData&) const     throws std::invalid_argument for bad y or trials
///   double log_density(Response, const double* eta, const double* shape) const
///   void derivatives(Response, const double* eta, const double* shape, double* score, double* information) const
///       in (eta, log shape): score [C + E], and minus the second derivatives [C + E][C + E]; finite
///   double link(Response) const                          y where linear predictors are, about, for starts
///   void mean(const double* eta, const double* shape, double* out) const        E[y], or probabilities
///   double draw(const double* eta, const double* shape, double trials, const RandomField&, Index row) const
/// and, with a shape, its bounds
///   void shape_bounds(double variance, double floor, double* lower, double* first, double* upper) const
///       [E] each, for y of that variance: bounds, and where a search begins; `floor` is relative to the variance
/// With several outputs kOutputs says how many, each with a linear predictor and a shape of its own; shape_bounds() is
/// then that of one of them. The M-step is one of Newton's method, halved until the weighted likelihood does not fall:
/// IRLS where the link is canonical. A member `improve`, as Normal and StudentT have one, is called in its place.
template <class F>
concept ExpertFamily = requires(const F& family, Response response, const double* numbers, double* out,
                                const RandomField& random, const ResponseData& data, Index row) {
  { F::kShapes } -> std::convertible_to<Index>;
  { F::kContinuous } -> std::convertible_to<bool>;
  { F::kLargest } -> std::convertible_to<double>;
  { F::kShapeNames[0] } -> std::convertible_to<std::string_view>;
  { family.num_predictors() } -> std::same_as<Index>;
  { family.num_outputs() } -> std::same_as<Index>;
  { family.require("", data) } -> std::same_as<void>;
  { family.log_density(response, numbers, numbers) } -> std::same_as<double>;
  { family.derivatives(response, numbers, numbers, out, out) } -> std::same_as<void>;
  { family.link(response) } -> std::same_as<double>;
  { family.mean(numbers, numbers, out) } -> std::same_as<void>;
  { family.draw(numbers, numbers, 1.0, random, row) } -> std::same_as<double>;
};

namespace detail {

/// Outputs of a row.
template <class F>
constexpr Index num_outputs_of() {
  if constexpr (requires { F::kOutputs; }) return F::kOutputs;
  return 1;
}

/// Throws unless the data have the outputs of a family.
template <class F>
void require_outputs(const char* function, const ResponseData& data) {
  constexpr Index kOutputs = num_outputs_of<F>();
  if (data.num_outputs() != kOutputs)
    fail(function, ": the data have ", data.num_outputs(), " outputs (y, and columns of further), expected ", kOutputs,
         ", those of the family");
}

/// Where a count begins to be no whole number.
inline void require_count(const char* function, const char* name, double value, Index row) {
  if (!(value >= 0 && value == std::floor(value) && value <= 9007199254740992))
    fail(function, ": ", name, " is ", value, " in row ", row, ", expected a whole number from 0 to 2^53");
}

/// A distribution on the whole numbers low to high: its moments, the probability at the mode, and up(i) = p(i + 1) /
/// p(i).
template <class Up>
struct CountDistribution {
  double mean, variance, mode, at_mode, low, high;
  Up up;
};

/// A draw by inversion from the mode outwards: exact, O(standard deviation). From deviations of 2^16 on a normal
/// number, rounded, by which probabilities of counts below some number are off by at most 1e-6 (the first term of
/// Edgeworth's series, .07 / deviation).
template <class Up>
double draw_from_mode(const CountDistribution<Up>& of, const RandomField& random, Index row) {
  if (!(of.variance < 4294967296.0))
    return std::clamp(std::round(of.mean + std::sqrt(of.variance) * random.normal(row, 1)), of.low, of.high);
  double uniform = random.uniform(row, 1);
  double above = of.mode, below = of.mode, p_above = of.at_mode, p_below = of.at_mode;
  uniform -= of.at_mode;
  while (uniform > 0) {
    const bool more_above = above < of.high, more_below = of.low < below;
    if (!more_above && !more_below) break;
    if (more_above) {
      p_above *= of.up(above++);
      if ((uniform -= p_above) <= 0) return above;
    }
    if (more_below) {
      p_below /= of.up(--below);
      if ((uniform -= p_below) <= 0) return below;
    }
    if (!(p_above + p_below > 1e-300)) break;  // what rounding has left over
  }
  return of.mode;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
