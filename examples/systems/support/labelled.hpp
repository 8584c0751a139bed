// SPDX-License-Identifier: MIT
// Rows with a class each: batches of them, and how well scores tell the classes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <moe/core/matrix.hpp>
#include <moe/core/random.hpp>
#include <moe/routing/step.hpp>
#include <moe/train/cross_entropy.hpp>

namespace systems {

struct Labelled {
  moe::Matrix<float> rows;         // [num_rows, input_dim]
  std::vector<moe::Index> labels;  // [num_rows]

  moe::Index size() const { return rows.rows(); }
};

inline double loss_of(const Labelled& data, const moe::Matrix<float>& out, const moe::Step& step,
                      moe::Matrix<float>& dout) {
  return moe::cross_entropy<float>(out, data.labels, step, dout);
}

inline Labelled rows_of(const Labelled& data, const std::vector<moe::Index>& ids) {
  Labelled out{data.rows(ids, Eigen::all), {}};
  for (const moe::Index id : ids) out.labels.push_back(data.labels[static_cast<std::size_t>(id)]);
  return out;
}

/// `size` rows, drawn with replacement; a function of seed and update.
inline Labelled draw_batch(const Labelled& data, moe::Index size, std::uint64_t seed, std::uint64_t update) {
  const moe::RandomField random(moe::Purpose::Shuffle, seed, update);
  std::vector<moe::Index> ids;
  for (moe::Index i = 0; i < size; ++i)
    ids.push_back(static_cast<moe::Index>(random.below(static_cast<std::uint64_t>(data.size()), i)));
  return rows_of(data, ids);
}

/// Gaussian blobs, one per class, whose centres and whose rows around them are standard normal.
struct Blobs {
  moe::Index count = 1000, classes = 6, dim = 10;
  double label_noise = 0;  // share of labels that are drawn anew
};
/// Centres depend on the seed alone, rows on the part, too: training, test.
inline Labelled blobs(const Blobs& what, std::uint64_t seed, std::uint64_t part) {
  const moe::RandomField centre(moe::Purpose::User, seed), random(moe::Purpose::User, seed, part);
  const auto draw = [&](moe::Index i, moe::Index column) {
    return static_cast<moe::Index>(random.below(static_cast<std::uint64_t>(what.classes), i, column));
  };
  Labelled data{moe::Matrix<float>(what.count, what.dim), {}};
  for (moe::Index i = 0; i < what.count; ++i) {
    const moe::Index blob = draw(i, what.dim);
    for (moe::Index j = 0; j < what.dim; ++j)
      data.rows(i, j) = static_cast<float>(centre.normal(blob, j) + random.normal(i, j));
    data.labels.push_back(random.uniform(i, what.dim + 1) < what.label_noise ? draw(i, what.dim + 2) : blob);
  }
  return data;
}

/// Column of the largest score of each row.
inline std::vector<moe::Index> predictions(const moe::Matrix<float>& scores) {
  std::vector<moe::Index> best(static_cast<std::size_t>(scores.rows()));
  for (moe::Index i = 0; i < scores.rows(); ++i) scores.row(i).maxCoeff(&best[static_cast<std::size_t>(i)]);
  return best;
}

/// Share of places where two lists of classes agree: predictions and labels, or the predictions of two models.
inline double agreement(const std::vector<moe::Index>& a, const std::vector<moe::Index>& b) {
  std::size_t equal = 0;
  for (std::size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1 : 0;
  return static_cast<double>(equal) / static_cast<double>(a.size());
}

inline double accuracy(const moe::Matrix<float>& scores, const std::vector<moe::Index>& labels) {
  return agreement(predictions(scores), labels);
}

/// -log softmax(scores)[label] of each row, in nats.
inline std::vector<double> losses(const moe::Matrix<float>& scores, const std::vector<moe::Index>& labels) {
  std::vector<double> loss;
  for (moe::Index i = 0; i < scores.rows(); ++i) {
    const auto above = (scores.row(i).array() - scores(i, labels[static_cast<std::size_t>(i)])).cast<double>();
    const double most = above.maxCoeff();
    loss.push_back(most + std::log((above - most).exp().sum()));
  }
  return loss;
}

}  // namespace systems
