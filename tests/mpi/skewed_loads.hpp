// SPDX-License-Identifier: MIT
// Loads of experts as they are found: a few are much busier than the others.
#pragma once

#include <cmath>
#include <vector>

#include "moe/core/random.hpp"

/// Of a Pareto distribution of shape 1.2, from 1 on.
inline std::vector<double> pareto_loads(moe::Index experts, std::uint64_t seed) {
  std::vector<double> loads;
  for (moe::Index e = 0; e < experts; ++e)
    loads.push_back(std::pow(moe::RandomField(moe::Purpose::User, seed).uniform(e), -1 / 1.2));
  return loads;
}
