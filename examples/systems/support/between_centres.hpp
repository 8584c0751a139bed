// SPDX-License-Identifier: MIT
// Tokens of known difficulty: near one of eight centres, or midway between two or four, which only several experts
// serve.
#pragma once

#include <array>
#include <numeric>
#include <utility>

#include "regression.hpp"

namespace systems {

inline constexpr moe::Index kCentres = 8, kCentreDim = 16;
inline constexpr std::array<moe::Index, 3> kMeansOf = {1, 2, 4};

/// Rows around the mean of 1, 2 or 4 centres, drawn anew, whose number is the key; targets are the means of A_c x of
/// those. What is drawn is normal; centres and maps depend on the seed alone.
inline Regression between_centres(moe::Index count, std::uint64_t seed, std::uint64_t part) {
  const moe::RandomField fixed(moe::Purpose::User, seed), random(moe::Purpose::User, seed, 1, part);
  Regression data{moe::Matrix<float>::Zero(count, kCentreDim), moe::Matrix<float>::Zero(count, 1)};
  for (moe::Index i = 0; i < count; ++i) {
    const moe::Index of = kMeansOf[random.below(kMeansOf.size(), i, 100)];
    std::array<moe::Index, kCentres> order;
    std::iota(order.begin(), order.end(), moe::Index{0});
    moe::Matrix<float> map = moe::Matrix<float>::Zero(1, kCentreDim);
    for (moe::Index m = 0; m < of; ++m) {
      const auto left = static_cast<std::uint64_t>(kCentres - m);
      std::swap(order[static_cast<std::size_t>(m)],
                order[static_cast<std::size_t>(m) + static_cast<std::size_t>(random.below(left, i, 101 + m))]);
      const moe::Index c = order[static_cast<std::size_t>(m)];
      for (moe::Index j = 0; j < kCentreDim; ++j) {
        data.rows(i, j) += static_cast<float>(2 * fixed.normal(c, j) / static_cast<double>(of));
        map(0, j) += static_cast<float>(fixed.normal(c, 50 + j) / static_cast<double>(of));
      }
    }
    for (moe::Index j = 0; j < kCentreDim; ++j) data.rows(i, j) += static_cast<float>(0.25 * random.normal(i, j));
    data.targets(i, 0) = data.rows.row(i).dot(map.row(0));
    data.key.push_back(of);
  }
  return data;
}

}  // namespace systems
