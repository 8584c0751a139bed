// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI::mpi {

/// What the experts of a layer will have to do: the mean of the last `window` iterations. Ranks that add the same have
/// the same bits. Does not allocate after the constructor.
class LoadEstimate {
 public:
  /// Throws std::invalid_argument for a negative number of experts, and a window below 1.
  explicit LoadEstimate(Index experts, Index window = 5) {
    if (experts < 0 || window < 1)
      fail("moe::mpi::LoadEstimate: ", experts, " experts, window = ", window, ", expected at least 0 and 1");
    last_.setZero(window, experts);
    mean_.assign(static_cast<std::size_t>(experts), 0);
  }

  /// Throws std::invalid_argument for loads of other experts.
  void add(std::span<const Index> loads) {
    if (std::ssize(loads) != last_.cols())
      fail("moe::mpi::LoadEstimate::add: ", loads.size(), " loads, expected one per expert, ", last_.cols());
    for (Index e = 0; e < last_.cols(); ++e) last_(iterations_ % last_.rows(), e) = loads[static_cast<std::size_t>(e)];
    ++iterations_;
    const auto seen = static_cast<double>(std::min(iterations_, last_.rows()));
    for (Index e = 0; e < last_.cols(); ++e)
      mean_[static_cast<std::size_t>(e)] = static_cast<double>(last_.col(e).sum()) / seen;
  }

  /// Iterations that have been added.
  Index iterations() const { return iterations_; }
  /// [experts]; zeros before the first iteration.
  std::span<const double> mean() const { return mean_; }

 private:
  Matrix<Index> last_;  // [window, experts]
  Index iterations_ = 0;
  std::vector<double> mean_;
};

}  // namespace moe::inline MOE_ABI::mpi
