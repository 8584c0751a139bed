// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <string>
#include <vector>

#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/gaussian/inference/scaled_information.hpp"
#include "moe/gaussian/model/identified.hpp"

namespace moe::inline MOE_ABI {

/// Why a parameter has no standard error.
enum class NoStandardError {
  Available,        ///< it has one
  TemperatureRay,   ///< tau, which the likelihood does not depend on once ratios to it are given
  HardGate,         ///< of a gate with one active expert per row
  SeparatedGate,    ///< of a gate whose slopes go to infinity
  VarianceAtFloor,  ///< all parameters: the likelihood is unbounded there
  ShapeAtBound,     ///< degrees of freedom of a StudentT expert (moe/likelihood) that are at a bound
  Singular,         ///< a direction of the parameters that moves it has no information
  NotAMaximum       ///< all parameters: the score is not 0, or the information not positive definite
};

/// All reasons, in the order in which they are looked for.
inline constexpr std::array kReasons = {NoStandardError::TemperatureRay, NoStandardError::HardGate,
                                        NoStandardError::SeparatedGate,  NoStandardError::VarianceAtFloor,
                                        NoStandardError::ShapeAtBound,   NoStandardError::Singular,
                                        NoStandardError::NotAMaximum};

/// The reason in words; empty for Available.
constexpr const char* sentence(NoStandardError reason) {
  switch (reason) {
    case NoStandardError::Available:
      return "";
    case NoStandardError::TemperatureRay:
      return "tau has no standard error: beta_1, beta_0 (if tau divides it) and tau may grow together without any "
             "change of the likelihood; those given for ratios to tau do not depend on it.";
    case NoStandardError::HardGate:
      return "The gate has no standard errors: every row has one active expert, so that the likelihood depends on the "
             "gate only through who that is. Those of the experts take the boundaries as known.";
    case NoStandardError::SeparatedGate:
      return "The gate has no standard errors: it separates the experts, and its slopes have no finite maximum. Those "
             "of "
             "the experts take it as known.";
    case NoStandardError::VarianceAtFloor:
      return "There are no standard errors: a variance is at its floor, where the likelihood is unbounded.";
    case NoStandardError::ShapeAtBound:
      return "Degrees of freedom at a bound have no standard errors: those of the other parameters take them as known.";
    case NoStandardError::Singular:
      return "Some parameters have no standard errors: the information is singular, so that some direction of them "
             "leaves the likelihood as it is (see identifiability()); often there are too many experts.";
    case NoStandardError::NotAMaximum:
      return "There are no standard errors: the model is not a maximum of the likelihood of these data. It may have "
             "been fitted with a penalty, to other data, or not to the end, or gate_box holds it back.";
  }
  return "";
}

namespace detail {

/// Which coordinates of theta may have standard errors.
struct Estimable {
  template <class G>
  Estimable(const GaussianMoe<G>& model, const ScaledInformation& at, const FitFlags& known, double floor)
      : names(identified_names(model)), reasons(names.size(), NoStandardError::Available) {
    const auto gate_has_none = [&](NoStandardError reason) {
      for (Index i = 0; i < at.at.num_gate(); ++i) reasons[static_cast<std::size_t>(i)] = reason;
    };
    if (is_hard(model))
      gate_has_none(NoStandardError::HardGate);
    else if (known.separated || at.separated)
      gate_has_none(NoStandardError::SeparatedGate);
    else if (has_temperature_ray(model))
      reasons[static_cast<std::size_t>(at.at.log_temperature())] = NoStandardError::TemperatureRay;
    if (known.at_floor || at_variance_floor(at.model, floor)) whole = NoStandardError::VarianceAtFloor;
  }

  std::vector<Index> coordinates() const {
    std::vector<Index> free;
    for (std::size_t i = 0; i < reasons.size(); ++i)
      if (reasons[i] == NoStandardError::Available) free.push_back(static_cast<Index>(i));
    return free;
  }

  std::vector<std::string> names;
  std::vector<NoStandardError> reasons;
  NoStandardError whole = NoStandardError::Available;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
