// SPDX-License-Identifier: MIT
// Bags of frames in the order of time, of which only one label each is known: simulated ones, and ones of digits.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <moe/core/matrix.hpp>
#include <moe/core/random.hpp>

#include "digits.hpp"
#include "task_labels.hpp"

namespace systems {

inline constexpr moe::Index kFrames = 64, kBagClasses = 4;  // of a bag; of events

struct BagSet {
  moe::Matrix<float> rows;          // [bags * kFrames, features]
  moe::Matrix<float> truth;         // [bags * kFrames, 1], 1 during an event, else 0: for the test alone
  std::vector<moe::Index> classes;  // of the event of each bag; -1: none

  moe::Index size() const { return std::ssize(classes); }
  bool is_positive(moe::Index bag) const { return classes[static_cast<std::size_t>(bag)] >= 0; }
};

namespace detail {

/// `count` bags, every other one with an event of 10 to 19 frames and of classes in turn; set(row, class or -1,
/// envelope from 0 to 1, index of the row) fills a frame.
template <class Set>
BagSet make_bags(moe::Index count, moe::Index features, const moe::RandomField& random, const Set& set) {
  BagSet bags{moe::Matrix<float>(count * kFrames, features), moe::Matrix<float>::Zero(count * kFrames, 1), {}};
  for (moe::Index b = 0; b < count; ++b) {
    const moe::Index kind = b % 2 == 1 ? b / 2 % kBagClasses : -1;
    bags.classes.push_back(kind);
    const auto length = 10 + static_cast<moe::Index>(random.below(10, b, -1));
    const auto start =
        2 + static_cast<moe::Index>(random.below(static_cast<std::uint64_t>(kFrames - length - 4), b, -2));
    for (moe::Index t = 0; t < kFrames; ++t) {
      const bool inside = kind >= 0 && t >= start && t < start + length;
      const double from_centre = static_cast<double>(t - start) - static_cast<double>(length) / 2;
      const double envelope = std::exp(-std::pow(from_centre / (0.35 * static_cast<double>(length)), 2));
      const moe::Index row = b * kFrames + t;
      bags.truth(row, 0) = inside ? 1.0f : 0.0f;
      set(bags.rows.row(row), inside ? kind : -1, envelope, row);
    }
  }
  return bags;
}

}  // namespace detail

/// 16 features of normal noise; an event adds a strong core along one direction of its class and weak flanks along
/// another, and frames are 0.4 times the sum of three. Directions depend on the seed alone, bags on the part, too.
inline BagSet simulated_bags(moe::Index count, std::uint64_t seed, std::uint64_t part) {
  constexpr moe::Index kFeatures = 16;
  const moe::RandomField direction(moe::Purpose::User, seed, 21), random(moe::Purpose::User, seed, 22, part);
  moe::Matrix<float> along = moe::Matrix<float>::NullaryExpr(
      2 * kBagClasses, kFeatures,
      [&](moe::Index i, moe::Index j) { return static_cast<float>(direction.normal(i, j)); });
  along.rowwise().normalize();
  BagSet bags =
      detail::make_bags(count, kFeatures, random, [&](auto row, moe::Index kind, double envelope, moe::Index at) {
        for (moe::Index j = 0; j < kFeatures; ++j) row(j) = static_cast<float>(random.normal(at, j));
        if (kind >= 0)
          row += static_cast<float>(3.5 * envelope) * along.row(kind) + 1.6f * along.row(kBagClasses + kind);
      });
  const moe::Matrix<float> sharp = bags.rows;
  for (moe::Index r = 0; r < sharp.rows(); ++r) {
    const moe::Index first = r / kFrames * kFrames, before = std::max(first, r - 1),
                     after = std::min(first + kFrames - 1, r + 1);
    bags.rows.row(r) = 0.4f * (sharp.row(before) + sharp.row(r) + sharp.row(after));
  }
  return bags;
}

/// Images of digits 0 to 5; during an event the images of one of 6 to 9 are blended in, most in its middle.
inline BagSet digit_bags(moe::Index count, const Labelled& images, std::uint64_t seed, std::uint64_t part) {
  const moe::RandomField random(moe::Purpose::User, seed, 23, part);
  std::array<std::vector<moe::Index>, kBagClasses + 1> of;  // the last one: 0 to 5
  for (moe::Index i = 0; i < images.size(); ++i) {
    const moe::Index label = images.labels[static_cast<std::size_t>(i)];
    of[static_cast<std::size_t>(label < 6 ? kBagClasses : label - 6)].push_back(i);
  }
  return detail::make_bags(count, kPixels, random, [&](auto row, moe::Index kind, double envelope, moe::Index at) {
    const auto image = [&](moe::Index of_kind) {
      const auto& ids = of[static_cast<std::size_t>(of_kind)];
      return images.rows.row(ids[random.below(ids.size(), at, of_kind)]);
    };
    const auto share = static_cast<float>(kind < 0 ? 0 : 0.2 + 0.5 * envelope);
    row = (1 - share) * image(kBagClasses);
    if (kind >= 0) row += share * image(kind);
  });
}

/// Area under the curve of scores over the frames of bags with an event, of one class if it is said.
inline double frame_auc(const moe::Matrix<float>& scores, const BagSet& bags, moe::Index kind = -1) {
  std::vector<moe::Index> rows;
  for (moe::Index b = 0; b < bags.size(); ++b)
    if (bags.is_positive(b) && (kind < 0 || bags.classes[static_cast<std::size_t>(b)] == kind))
      for (moe::Index t = 0; t < kFrames; ++t) rows.push_back(b * kFrames + t);
  return area_under_curve(scores(rows, Eigen::all), bags.truth(rows, Eigen::all), 0);
}

}  // namespace systems
