// SPDX-License-Identifier: MIT
// Several yes-or-no tasks over the same rows, labels of which may be missing: questions about digits, and clicks; their
// loss, and the area under the ROC curve.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <moe/core/matrix.hpp>
#include <moe/core/random.hpp>
#include <moe/numeric/activation.hpp>
#include <moe/routing/step.hpp>

#include "digits.hpp"

namespace systems {

/// Rows with a label per task: 1, 0, or -1 where it is missing.
struct TaskLabels {
  moe::Matrix<float> rows;    // [num_rows, input_dim]
  moe::Matrix<float> labels;  // [num_rows, num_tasks]

  moe::Index num_tasks() const { return labels.cols(); }
};

/// Mean over rows of the cross-entropies of those tasks whose label is there.
inline double loss_of(const TaskLabels& data, const moe::Matrix<float>& out, const moe::Step&,
                      moe::Matrix<float>& dout) {
  double loss = 0;
  dout.setZero(out.rows(), out.cols());
  for (moe::Index r = 0; r < out.rows(); ++r)
    for (moe::Index t = 0; t < out.cols(); ++t) {
      if (data.labels(r, t) < 0) continue;
      const float sign = data.labels(r, t) > 0 ? -1.0f : 1.0f;
      loss += static_cast<double>(moe::Softplus::value(sign * out(r, t)));
      dout(r, t) = sign * moe::Sigmoid::value(sign * out(r, t)) / static_cast<float>(out.rows());
    }
  return loss / static_cast<double>(out.rows());
}

/// Probability that a row of label 1 has a larger score than one of label 0; ties count half.
inline double area_under_curve(const moe::Matrix<float>& scores, const moe::Matrix<float>& labels, moe::Index task) {
  std::vector<moe::Index> order(static_cast<std::size_t>(scores.rows()));
  std::iota(order.begin(), order.end(), moe::Index{0});
  std::ranges::sort(order, {}, [&](moe::Index r) { return scores(r, task); });
  double positives = 0, negatives = 0, won = 0;
  for (std::size_t i = 0; i < order.size();) {
    double tied[2] = {0, 0};
    const float score = scores(order[i], task);
    for (; i < order.size() && scores(order[i], task) == score; ++i)
      if (labels(order[i], task) >= 0) tied[labels(order[i], task) > 0 ? 1 : 0] += 1;
    won += tied[1] * (negatives + tied[0] / 2);
    negatives += tied[0];
    positives += tied[1];
  }
  return won / (positives * negatives);
}

inline TaskLabels rows_of(const TaskLabels& data, const std::vector<moe::Index>& ids) {
  return {data.rows(ids, Eigen::all), data.labels(ids, Eigen::all)};
}

/// `size` rows, drawn with replacement; a function of seed and update.
inline TaskLabels draw_batch(const TaskLabels& data, moe::Index size, std::uint64_t seed, std::uint64_t update) {
  const moe::RandomField random(moe::Purpose::Shuffle, seed, update);
  std::vector<moe::Index> ids;
  for (moe::Index i = 0; i < size; ++i)
    ids.push_back(static_cast<moe::Index>(random.below(static_cast<std::uint64_t>(data.rows.rows()), i)));
  return rows_of(data, ids);
}

/// Two groups of three tasks each; the last of each group has 3% of the labels in training.
struct TaskData {
  std::vector<std::string> names;
  TaskLabels train, test;
};

/// Takes away 97% of the labels of tasks 2 and 5.
inline void make_sparse(TaskLabels& data, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::Shuffle, seed, 7);
  for (moe::Index r = 0; r < data.labels.rows(); ++r)
    for (const moe::Index task : {2, 5})
      if (random.uniform(r, task) >= 0.03) data.labels(r, task) = -1;
}

/// Questions about the numbers of the digits, and about their shapes.
inline TaskData questions_about_digits(std::uint64_t seed) {
  const auto ask = [](const Labelled& data) {
    constexpr std::array<std::string_view, 6> kYes = {"02468", "56789", "2357", "0689", "0123789", "1457"};
    TaskLabels out{data.rows, moe::Matrix<float>(data.size(), 6)};
    for (moe::Index r = 0; r < data.size(); ++r)
      for (std::size_t t = 0; t < kYes.size(); ++t) {
        const char digit = static_cast<char>('0' + data.labels[static_cast<std::size_t>(r)]);
        out.labels(r, static_cast<moe::Index>(t)) = kYes[t].find(digit) != kYes[t].npos ? 1.0f : 0.0f;
      }
    return out;
  };
  TaskData data{{"even", "at least 5", "prime, 3%", "has a loop", "0 to 3 or 7 to 9", "has straight strokes, 3%"},
                ask(digits().train),
                ask(digits().test)};
  make_sparse(data.train, seed);
  return data;
}

/// Clicks and the like: 32 features of users and videos, and logits of tasks that share a factor with their group, each
/// factor the product of two directions.
inline TaskData clicks(std::uint64_t seed) {
  constexpr moe::Index kDim = 32;
  const moe::RandomField random(moe::Purpose::User, seed);
  const auto direction = [&](const auto& row, moe::Index which) {
    double sum = 0;
    for (moe::Index c = 0; c < kDim; ++c) sum += static_cast<double>(row(c)) * random.normal(which, c);
    return sum / std::sqrt(static_cast<double>(kDim));
  };
  const auto draw = [&](moe::Index count, std::uint64_t part) {
    const moe::RandomField own(moe::Purpose::User, seed, part);
    TaskLabels out{moe::Matrix<float>(count, kDim), moe::Matrix<float>(count, 6)};
    for (moe::Index r = 0; r < count; ++r) {
      for (moe::Index c = 0; c < kDim; ++c) out.rows(r, c) = static_cast<float>(own.normal(r, c));
      const auto factor = [&](moe::Index which) {
        return direction(out.rows.row(r), 2 * which) * direction(out.rows.row(r), 2 * which + 1);
      };
      for (moe::Index t = 0; t < 6; ++t) {
        const double logit = 2 * factor(t / 3) + factor(2 + t) + direction(out.rows.row(r), 20 + t) - 0.5;
        out.labels(r, t) = own.uniform(r, kDim + t) < moe::Sigmoid::value(logit) ? 1.0f : 0.0f;
      }
    }
    return out;
  };
  TaskData data{{"click", "long view", "finish, 3%", "like", "follow", "share, 3%"}, draw(4000, 1), draw(2000, 2)};
  make_sparse(data.train, seed);
  return data;
}

}  // namespace systems
