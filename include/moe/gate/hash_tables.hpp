// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <span>
#include <tuple>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/numeric/k_means.hpp"

namespace moe::inline MOE_ABI {

/// A table of HashGate that is drawn at random: for every key k distinct experts, each set of them as likely as any
/// other; [num_keys, k]. A function of the arguments alone.
/// Throws std::invalid_argument for num_keys < 1 and unless 1 <= k <= num_experts. O(num_keys k^2).
/// Roller et al., "Hash Layers" (arXiv:2106.04426).
inline Matrix<double> random_hash_table(Index num_keys, Index num_experts, Index k, std::uint64_t seed) {
  constexpr const char* kName = "moe::random_hash_table";
  detail::checked_size(kName, "num_keys", num_keys, 1);
  detail::checked_size(kName, "num_experts", num_experts, 1);
  if (k < 1 || k > num_experts) fail(kName, ": k is ", k, ", expected 1 <= k <= num_experts = ", num_experts);
  detail::checked_product(kName, num_keys, k);
  const RandomField random(Purpose::Initialise, seed);
  Matrix<double> table(num_keys, k);
  for (Index key = 0; key < num_keys; ++key)
    for (Index s = 0; s < k; ++s) {  // Floyd: one of the first num_experts - k + s + 1, the last of them if it is taken
      const Index last = num_experts - k + s;
      const auto drawn = static_cast<double>(random.below(static_cast<std::uint64_t>(last) + 1, key, s));
      const double *row = table.row(key).data(), *end = row + s;
      table(key, s) = std::find(row, end, drawn) == end ? drawn : static_cast<double>(last);
    }
  return table;
}

/// A table of HashGate under which experts are equally busy, one per key: the most frequent key that is left goes to
/// the expert that has least to do (then to that of fewest keys, then to the lowest); [num_keys, 1]. A key more
/// frequent than the mean load of an expert has one to itself.
///   frequency  [num_keys], how often each key is met, >= 0
/// Throws std::invalid_argument for no keys, num_experts < 1 and a frequency that is negative or not finite.
/// O(num_keys log(num_keys num_experts)).
/// Roller et al., "Hash Layers" (arXiv:2106.04426), balanced assignment.
inline Matrix<double> balanced_hash_table(std::span<const double> frequency, Index num_experts) {
  constexpr const char* kName = "moe::balanced_hash_table";
  detail::checked_size(kName, "num_keys", std::ssize(frequency), 1);
  detail::checked_size(kName, "num_experts", num_experts, 1);
  for (std::size_t key = 0; key < frequency.size(); ++key)
    if (!(frequency[key] >= 0 && std::isfinite(frequency[key])))
      fail(kName, ": frequency of key ", key, " is ", frequency[key], ", expected a finite number >= 0");
  std::vector<std::size_t> order(frequency.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return frequency[a] > frequency[b]; });
  using Bin = std::tuple<double, Index, Index>;  // load, keys, expert
  std::vector<Bin> bins;
  for (Index e = 0; e < num_experts; ++e) bins.emplace_back(0.0, 0, e);
  std::priority_queue<Bin, std::vector<Bin>, std::greater<>> least(std::greater<>{}, std::move(bins));
  Matrix<double> table(std::ssize(frequency), 1);
  for (const std::size_t key : order) {
    const auto [load, keys, expert] = least.top();
    least.pop();
    table(static_cast<Index>(key), 0) = static_cast<double>(expert);
    least.emplace(load + frequency[key], keys + 1, expert);
  }
  return table;
}

/// A table of HashGate that sends keys which mean alike to the same expert: the clusters of their embeddings by
/// k_means(), one expert each; [num_keys, 1]. A function of the arguments alone.
///   embedding  [num_keys, d], finite
/// Throws std::invalid_argument as k_means(): for num_experts out of [1, num_keys]. Clusters may be of any size.
/// Roller et al., "Hash Layers" (arXiv:2106.04426), clustered hashes.
template <class S>
Matrix<double> clustered_hash_table(const Matrix<S>& embedding, Index num_experts, std::uint64_t seed) {
  const KMeans<S> clusters = k_means(embedding, num_experts, RandomField(Purpose::Initialise, seed));
  Matrix<double> table(embedding.rows(), 1);
  for (Index key = 0; key < table.rows(); ++key)
    table(key, 0) = static_cast<double>(clusters.labels[static_cast<std::size_t>(key)]);
  return table;
}

}  // namespace moe::inline MOE_ABI
