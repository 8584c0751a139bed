// SPDX-License-Identifier: MIT
// Regressions that experts can share out: clusters of inputs, each with a map of its own, and what all have in common.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <moe/core/matrix.hpp>
#include <moe/core/random.hpp>
#include <moe/routing/step.hpp>
#include <moe/train/squared_error.hpp>

namespace systems {

struct Regression {
  moe::Matrix<float> rows, targets;
  std::vector<std::int64_t> key = {};  // where a teacher drew them, the cluster of each row
};

inline double loss_of(const Regression& data, const moe::Matrix<float>& out, const moe::Step& step,
                      moe::Matrix<float>& dout) {
  return moe::squared_error<float>(out, data.targets, step, dout);
}

/// Mean over rows of |out - target|^2.
inline double squared_error(const moe::Matrix<float>& out, const Regression& data) {
  return static_cast<double>((out - data.targets).squaredNorm()) / static_cast<double>(out.rows());
}

/// Rows x around the centre of a cluster c, and targets A_c (x - centre_c) + b_c + common V tanh(W x).
struct Clusters {
  moe::Index clusters = 8, dim = 8, outputs = 1;
  double centre = 2, width = 0.5;  // deviations of centres, and of rows around them
  double offset = 2, common = 0;   // of b_c; weight of what all clusters share
};

/// A function of the seed; everything that is drawn is normal.
class Teacher {
 public:
  Teacher(const Clusters& what, std::uint64_t seed)
      : what_(what),
        seed_(seed),
        centre_(drawn(0, what.clusters, what.dim, what.centre)),
        offset_(drawn(1, what.clusters, what.outputs, what.offset)),
        own_(drawn(2, what.clusters * what.outputs, what.dim, 1)),
        in_(drawn(3, 2 * what.dim, what.dim, 1 / std::sqrt(static_cast<double>(what.dim)))),
        out_(drawn(4, what.outputs, 2 * what.dim, what.common / std::sqrt(static_cast<double>(what.dim)))) {}

  /// Other rows for another part: an update, or what is kept for the test.
  Regression sample(moe::Index count, std::uint64_t part) const {
    const moe::RandomField random(moe::Purpose::User, seed_, 5, part);
    Regression data{moe::Matrix<float>(count, what_.dim), moe::Matrix<float>(count, what_.outputs)};
    for (moe::Index i = 0; i < count; ++i) {
      const auto c = static_cast<moe::Index>(random.below(static_cast<std::uint64_t>(what_.clusters), i, what_.dim));
      data.key.push_back(c);
      for (moe::Index j = 0; j < what_.dim; ++j)
        data.rows(i, j) = centre_(c, j) + static_cast<float>(what_.width * random.normal(i, j));
      data.targets.row(i).noalias() =
          (data.rows.row(i) - centre_.row(c)) * own_.middleRows(c * what_.outputs, what_.outputs).transpose() +
          offset_.row(c);
      if (what_.common != 0)
        data.targets.row(i) += (data.rows.row(i) * in_.transpose()).array().tanh().matrix() * out_.transpose();
    }
    return data;
  }

 private:
  moe::Matrix<float> drawn(int which, moe::Index rows, moe::Index cols, double deviation) const {
    const moe::RandomField random(moe::Purpose::User, seed_, which);
    return moe::Matrix<float>::NullaryExpr(
        rows, cols, [&](moe::Index i, moe::Index j) { return static_cast<float>(deviation * random.normal(i, j)); });
  }

  Clusters what_;
  std::uint64_t seed_;
  moe::Matrix<float> centre_, offset_, own_, in_, out_;
};

}  // namespace systems
