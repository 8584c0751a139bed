// SPDX-License-Identifier: MIT
// Routing as it is written without a library: std::partial_sort, std::exp, a counting sort.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/core/parallel.hpp"
#include "problem.hpp"

namespace bench {

/// From logits to the rows of each expert.
struct NaiveRouting {
  std::vector<int> expert;          // [tokens * k], best first
  std::vector<float> weight;        // [tokens * k]
  std::vector<int> row;             // [tokens * k]: where the assignment's row is
  std::vector<int> token, assignment;  // of each row
  std::vector<int> offset;          // [experts + 1]
  Index k = 0;

  void build(const Matrix<float>& logits, Index num_chosen) {
    choose_all(logits, num_chosen);
    sort_by_expert(logits.cols());
  }

  /// Experts and weights only.
  void choose_all(const Matrix<float>& logits, Index num_chosen) {
    k = num_chosen;
    expert.resize(static_cast<std::size_t>(logits.rows() * k));
    weight.resize(expert.size());
    moe::parallel_ranges(logits.rows(), 64, [&](Index begin, Index end, Index) { choose(logits, begin, end); });
  }

 private:
  void choose(const Matrix<float>& logits, Index begin, Index end) {
    std::vector<int> order(static_cast<std::size_t>(logits.cols()));
    for (Index t = begin; t < end; ++t) {
      const float* score = logits.data() + t * logits.cols();
      for (std::size_t e = 0; e < order.size(); ++e) order[e] = static_cast<int>(e);
      std::partial_sort(order.begin(), order.begin() + k, order.end(),
                        [&](int a, int b) { return score[a] > score[b] || (score[a] == score[b] && a < b); });
      float sum = 0;
      for (Index s = 0; s < k; ++s) {
        const auto a = static_cast<std::size_t>(t * k + s);
        expert[a] = order[static_cast<std::size_t>(s)];
        sum += weight[a] = std::exp(score[expert[a]] - score[order[0]]);
      }
      for (Index s = 0; s < k; ++s) weight[static_cast<std::size_t>(t * k + s)] /= sum;
    }
  }

  void sort_by_expert(Index num_experts) {
    for (auto* list : {&row, &token, &assignment}) list->resize(expert.size());
    offset.assign(static_cast<std::size_t>(num_experts) + 1, 0);
    for (const int e : expert) ++offset[static_cast<std::size_t>(e) + 1];
    for (std::size_t e = 1; e < offset.size(); ++e) offset[e] += offset[e - 1];
    std::vector<int> next(offset.begin(), offset.end() - 1);
    for (std::size_t a = 0; a < expert.size(); ++a) {
      row[a] = next[static_cast<std::size_t>(expert[a])]++;
      token[static_cast<std::size_t>(row[a])] = static_cast<int>(a) / static_cast<int>(k);
      assignment[static_cast<std::size_t>(row[a])] = static_cast<int>(a);
    }
  }
};

}  // namespace bench
