// SPDX-License-Identifier: MIT
// The top-K gate by its definition: double, whole rows, sorting. No code shared with the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "moe/gate/top_k.hpp"
#include "support/gates.hpp"

namespace test {

struct ReferenceChoice {
  std::vector<moe::Index> experts;
  std::vector<double> weights;
};

inline std::vector<double> reference_scores(const moe::TopKGate& gate, const std::vector<double>& z) {
  std::vector<double> score(z.size());
  const double largest = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (const double x : z) sum += std::exp(x - largest);
  for (std::size_t e = 0; e < z.size(); ++e)
    score[e] = gate.score == moe::Score::Softmax   ? std::exp(z[e] - largest) / sum
               : gate.score == moe::Score::Sigmoid ? 1 / (1 + std::exp(-z[e]))
                                                   : std::sqrt(std::log(1 + std::exp(z[e])));
  return score;
}

inline std::vector<moe::Index> descending(const std::vector<double>& values) {
  std::vector<moe::Index> order(values.size());
  std::iota(order.begin(), order.end(), moe::Index{0});
  std::stable_sort(order.begin(), order.end(), [&](moe::Index a, moe::Index b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  return order;
}

inline ReferenceChoice reference_top_k(const moe::TopKGate& gate, const std::vector<double>& z) {
  const std::size_t num_experts = z.size(), size = num_experts / static_cast<std::size_t>(gate.groups.count);
  std::vector<double> rank = reference_scores(gate, z), shifted = z;
  for (std::size_t e = 0; e < num_experts; ++e) {
    if (gate.selection_bias.size() != 0) rank[e] += gate.selection_bias(static_cast<moe::Index>(e));
    if (gate.weight_bias.size() != 0) shifted[e] += gate.weight_bias(static_cast<moe::Index>(e));
  }
  std::vector<double> group_rank(static_cast<std::size_t>(gate.groups.count), 0);
  for (std::size_t g = 0; g < group_rank.size(); ++g) {
    const std::vector<double>& ranks = gate.groups.rank == moe::GroupRank::Logits ? z : rank;
    std::vector<double> in_group(&ranks[g * size], &ranks[g * size] + size);
    std::sort(in_group.rbegin(), in_group.rend());
    for (moe::Index i = 0; i < gate.groups.best; ++i) group_rank[g] += in_group[static_cast<std::size_t>(i)];
  }
  const std::vector<moe::Index> group_order = descending(group_rank);
  for (std::size_t place = static_cast<std::size_t>(gate.groups.kept); place < group_order.size(); ++place)
    for (std::size_t i = 0; i < size; ++i) rank[static_cast<std::size_t>(group_order[place]) * size + i] = -INFINITY;

  ReferenceChoice choice{descending(rank), {}};
  choice.experts.resize(static_cast<std::size_t>(gate.k));
  const std::vector<double> score = reference_scores(gate, shifted);
  double sum = 0, powers = 0;
  const double p = gate.normalise == moe::Normalise::PNorm ? gate.norm_p : 2;
  for (const moe::Index e : choice.experts) {
    const double s = score[static_cast<std::size_t>(e)];
    sum += s;
    powers += std::pow(s, p);
  }
  const double norm = gate.normalise == moe::Normalise::Sum ? sum : std::pow(powers, 1 / p);
  const double divisor = gate.normalise == moe::Normalise::Off ? 1 : std::max(norm + gate.epsilon, gate.floor);
  for (const moe::Index e : choice.experts)
    choice.weights.push_back(gate.scale * score[static_cast<std::size_t>(e)] / divisor);
  return choice;
}

/// Calls f(gate) for every combination of the axes of TopKGate that `experts` and `k` allow.
template <class F>
void for_each_top_k_gate(moe::Index experts, moe::Index k, F&& f) {
  for (const moe::Score score : {moe::Score::Softmax, moe::Score::Sigmoid, moe::Score::SqrtSoftplus})
    for (const moe::Normalise normalise :
         {moe::Normalise::Off, moe::Normalise::Sum, moe::Normalise::Euclidean, moe::Normalise::PNorm})
      for (const auto& [epsilon, floor] : {std::pair{0.0, 0.0}, std::pair{0.05, 0.0}, std::pair{0.0, 0.6}})
        for (const bool selection : {false, true})
          for (const bool weight : {false, true})
            for (const moe::ExpertGroups groups :
                 {moe::ExpertGroups{}, moe::ExpertGroups{.count = 4, .kept = 2}, moe::ExpertGroups{4, 2, 2},
                  moe::ExpertGroups{4, 2, 2, moe::GroupRank::Logits}}) {
              moe::TopKGate gate{.k = k, .score = score, .normalise = normalise, .epsilon = epsilon, .scale = 2.5};
              gate.floor = floor;
              gate.norm_p = 3;
              gate.constant_weights = moe::ConstantWeights::Accept;  // numbers are checked, nothing is trained
              const moe::Index size = experts / groups.count;
              if (experts % groups.count != 0 || groups.best > size || k > groups.kept * size) continue;
              if (groups.rank == moe::GroupRank::Logits && selection) continue;
              gate.groups = groups;
              if (selection) gate.selection_bias = random_bias(experts, 5, 0.3);
              if (weight) gate.weight_bias = random_bias(experts, 6, 1.0);
              f(gate);
            }
}

}  // namespace test
