// SPDX-License-Identifier: MIT
// Random logits, probabilities and routings for the tests of losses and capacity, independent of gates.
#pragma once

#include <cmath>
#include <initializer_list>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/numeric/top_k.hpp"
#include "moe/routing/routing.hpp"
#include "support/matrices.hpp"
#include "support/thread_executor.hpp"

namespace test {

template <class S>
moe::Matrix<S> matrix(std::initializer_list<std::initializer_list<S>> rows) {
  moe::Matrix<S> result(static_cast<moe::Index>(rows.size()), static_cast<moe::Index>(rows.begin()->size()));
  moe::Index t = 0;
  for (const auto& row : rows) {
    moe::Index e = 0;
    for (const S value : row) result(t, e++) = value;
    ++t;
  }
  return result;
}

/// Standard normal logits times `scale`.
template <class S>
moe::Matrix<S> random_logits(moe::Index num_tokens, moe::Index num_experts, std::uint64_t seed = 1, double scale = 1) {
  return random_matrix<S>(num_tokens, num_experts, seed, scale);
}

/// Row-wise softmax, in the plainest form.
template <class S>
moe::Matrix<S> probabilities_of(const moe::Matrix<S>& logits) {
  moe::Matrix<S> p(logits.rows(), logits.cols());
  for (moe::Index t = 0; t < p.rows(); ++t) {
    S sum = 0;
    for (moe::Index e = 0; e < p.cols(); ++e) sum += p(t, e) = std::exp(logits(t, e));
    for (moe::Index e = 0; e < p.cols(); ++e) p(t, e) /= sum;
  }
  return p;
}

/// By hand, as largest() is.
template <class M>
double total(const M& matrix) {
  double result = 0;
  for (moe::Index t = 0; t < matrix.rows(); ++t)
    for (moe::Index e = 0; e < matrix.cols(); ++e) result += static_cast<double>(matrix(t, e));
  return result;
}

/// The k largest of each row with these values as weights: softmax-then-top-k, raw.
template <class S>
moe::Routing<S> top_k_routing(const moe::Matrix<S>& probability, moe::Index k) {
  moe::Routing<S> routing;
  routing.resize(probability.rows(), k);
  for (moe::Index t = 0; t < probability.rows(); ++t) {
    moe::top_k(probability.row(t).data(), probability.cols(), routing.experts(t));
    for (moe::Index s = 0; s < k; ++s)
      routing.weights(t)[static_cast<std::size_t>(s)] = probability(t, routing.experts(t)[static_cast<std::size_t>(s)]);
  }
  return routing;
}

/// A routing from lists of experts, one per token, all weights 1.
template <class S = double>
moe::Routing<S> routing_of(const std::vector<std::vector<moe::Index>>& experts) {
  moe::Routing<S> routing;
  routing.resize_ragged(static_cast<moe::Index>(experts.size()), [&](moe::Index t) {
    return static_cast<moe::Index>(experts[static_cast<std::size_t>(t)].size());
  });
  for (moe::Index t = 0; t < routing.num_tokens(); ++t) {
    std::copy(experts[static_cast<std::size_t>(t)].begin(), experts[static_cast<std::size_t>(t)].end(),
              routing.experts(t).begin());
    for (S& w : routing.weights(t)) w = 1;
  }
  return routing;
}

/// Ragged: token t names 0 to num_experts distinct experts, drawn at random.
inline moe::Routing<double> random_ragged_routing(moe::Index num_tokens, moe::Index num_experts,
                                                  std::uint64_t seed = 1) {
  const moe::RandomField random(moe::Purpose::User, seed);
  std::vector<std::vector<moe::Index>> experts(static_cast<std::size_t>(num_tokens));
  for (moe::Index t = 0; t < num_tokens; ++t)
    for (moe::Index e = 0; e < num_experts; ++e)
      if (random.uniform(t, e) < 0.4) experts[static_cast<std::size_t>(t)].push_back(e);
  return routing_of(experts);
}

/// Marks every `period`-th token as padding.
inline std::vector<std::uint8_t> every_nth_padding(moe::Index num_tokens, moe::Index period) {
  std::vector<std::uint8_t> valid(static_cast<std::size_t>(num_tokens), 1);
  for (std::size_t t = 0; t < valid.size(); t += static_cast<std::size_t>(period)) valid[t] = 0;
  return valid;
}

/// Calls f on 1, 2, 3 and 8 threads and returns the results, for comparison of bits.
template <class F>
auto on_thread_counts(F&& f) {
  std::vector<decltype(f())> results;
  for (const moe::Index workers : {1, 2, 3, 8}) {
    ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    results.push_back(f());
  }
  return results;
}

template <class Results>
bool all_equal(const Results& results) {
  for (const auto& result : results)
    if (!(result == results.front())) return false;
  return true;
}

template <class T>
std::vector<T> copy_of(std::span<T> values) {
  return {values.begin(), values.end()};
}
template <class T>
std::vector<T> copy_of(std::span<const T> values) {
  return {values.begin(), values.end()};
}

}  // namespace test
