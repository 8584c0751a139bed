// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/gaussian/predict/predict.hpp"

namespace moe::inline MOE_ABI {

/// Values of y [n] and the experts [n] they were drawn from.
struct Draws {
  Eigen::VectorXd y = {};
  std::vector<Index> experts = {};
};

/// Draws one y per row, of x [n, d] or of RegressionData with their offsets and precisions (InputRows): an expert j
/// with probability pi_j(x), then a normal with mean a_j . x + b_j (+ offset) and variance nu_j. A pure function of
/// (model, row of x, index of the row, seed): the same values for any number of threads, and a longer x begins with the
/// same ones. Throws std::invalid_argument for a bad model, another number of inputs, or inputs that are not finite.
/// O(n k d), in parallel.
template <class G>
Draws draw(const GaussianMoe<G>& model, const InputRows& rows, std::uint64_t seed) {
  const RandomField random(Purpose::Draw, seed);
  Draws draws{Eigen::VectorXd(rows.num_rows()), std::vector<Index>(static_cast<std::size_t>(rows.num_rows()))};
  detail::for_each_conditional("moe::draw", model, rows, [&](Index i, const NormalMixture& at) {
    const ExpertDraw one = at.draw(random.uniform(i, 0), random.normal(i, 1));
    draws.y(i) = one.y;
    draws.experts[static_cast<std::size_t>(i)] = one.expert;
  });
  return draws;
}

/// The values of draw() alone, [n].
template <class G>
Eigen::VectorXd sample(const GaussianMoe<G>& model, const InputRows& rows, std::uint64_t seed) {
  return draw(model, rows, seed).y;
}

}  // namespace moe::inline MOE_ABI
