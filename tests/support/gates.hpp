// SPDX-License-Identifier: MIT
// What the tests of all gates share: random logits, dense views of a routing, bit comparisons, gradient checks.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "moe/gate/concept.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/parameters.hpp"
#include "support/routings.hpp"
#include "support/text.hpp"

namespace test {

/// Sizes around the vector width, and one that does not fit the scratch on the stack.
inline const std::vector<moe::Index> kExpertCounts = {1, 2, 7, 8, 9, 16, 17, 35, 64, 130};

/// random_logits rounded to multiples of 1/64: sums with other such numbers of ordinary size are exact.
template <class S>
moe::Matrix<S> exact_logits(moe::Index tokens, moe::Index experts, std::uint64_t seed) {
  return random_logits<S>(tokens, experts, seed).unaryExpr([](S z) { return std::round(z * 64) / 64; });
}

inline Eigen::RowVectorXd random_bias(moe::Index experts, std::uint64_t seed, double scale) {
  return random_logits<double>(1, experts, seed, scale).row(0);
}

template <class S>
moe::Matrix<S> row(std::initializer_list<double> values) {
  moe::Matrix<S> logits(1, static_cast<moe::Index>(values.size()));
  for (moe::Index e = 0; const double value : values) logits(0, e++) = static_cast<S>(value);
  return logits;
}

template <class S, class G>
moe::Routing<S> routed(const G& gate, const moe::Matrix<S>& logits, const moe::Step& step = {}) {
  moe::Routing<S> routing;
  gate.route(logits, step, routing);
  return routing;
}

template <class S, class G>
moe::Matrix<S> probabilities(const G& gate, const moe::Matrix<S>& logits, const moe::Step& step = {}) {
  moe::Matrix<S> p;
  gate.probabilities(logits, step, p);
  return p;
}

/// Weight of each (token, expert); 0 where not chosen.
template <class S>
moe::Matrix<double> dense(const moe::Routing<S>& routing, moe::Index experts) {
  moe::Matrix<double> weights = moe::Matrix<double>::Zero(routing.num_tokens(), experts);
  for (moe::Index t = 0; t < routing.num_tokens(); ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      weights(t, routing.experts(t)[s]) += static_cast<double>(routing.weights(t)[s]);
  return weights;
}

/// sum_ij a_ij b_ij, and sum_ij a_ij, by hand for the reason that largest() gives.
template <class A, class B>
double inner(const A& a, const B& b) {
  double sum = 0;
  for (moe::Index r = 0; r < a.rows(); ++r)
    for (moe::Index c = 0; c < a.cols(); ++c) sum += static_cast<double>(a(r, c)) * static_cast<double>(b(r, c));
  return sum;
}

/// The experts (columns) of a matrix in reverse order, by hand for the same reason.
template <class S>
moe::Matrix<S> reversed_experts(const moe::Matrix<S>& a) {
  moe::Matrix<S> result(a.rows(), a.cols());
  for (moe::Index r = 0; r < a.rows(); ++r)
    for (moe::Index c = 0; c < a.cols(); ++c) result(r, c) = a(r, a.cols() - 1 - c);
  return result;
}

template <class S>
std::vector<moe::Index> experts_of(const moe::Routing<S>& routing, moe::Index token = 0) {
  const auto experts = routing.experts(token);
  return {experts.begin(), experts.end()};
}

template <class A, class B>
bool equal_bits(const A& a, const B& b) {
  return a.size() == b.size() &&
         (a.size() == 0 ||
          std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(a.data()[0])) == 0);
}

template <class S>
bool equal_bits(const moe::Routing<S>& a, const moe::Routing<S>& b) {
  if (a.num_tokens() != b.num_tokens()) return false;
  for (moe::Index t = 0; t <= a.num_tokens(); ++t)
    if (a.begin(t) != b.begin(t)) return false;
  return equal_bits(a.experts(), b.experts()) && equal_bits(a.weights(), b.weights()) &&
         equal_bits(a.dropped(), b.dropped());
}

/// All that backward computes for random dL/dweights and dL/dprobabilities.
template <class S, class G>
struct Backward {
  Backward(const G& gate, const moe::Matrix<S>& logits, const moe::Step& step, const moe::Routing<S>& routing)
      : dweight(routing.weights().size()), gradient(moe::zeros_like(gate)) {
    const moe::Matrix<S> zero = moe::Matrix<S>::Zero(logits.rows(), logits.cols());
    dprobability = random_logits<S>(logits.rows(), probabilities(gate, zero, step).cols(), 77);
    const moe::RandomField random(moe::Purpose::User, 78);
    for (moe::Index t = 0; t < routing.num_tokens(); ++t)  // a function of (token, expert): the same in any batch
      for (moe::Index a = routing.begin(t); a < routing.end(t); ++a)
        dweight[static_cast<std::size_t>(a)] =
            static_cast<S>(random.normal(step.id(t), routing.experts()[static_cast<std::size_t>(a)]));
    gate.backward(logits, step, routing, dweight, dprobability, dlogits, gradient);
  }
  std::vector<S> dweight;
  moe::Matrix<S> dprobability, dlogits;
  G gradient;
};

/// Everything that a gate computes, for comparing bits.
template <class S, class G>
struct Everything {
  Everything(const G& gate, const moe::Matrix<S>& logits, const moe::Step& step)
      : routing(routed(gate, logits, step)), p(probabilities(gate, logits, step)), back(gate, logits, step, routing) {}

  bool equals(const Everything& other) const {
    bool equal =
        equal_bits(routing, other.routing) && equal_bits(p, other.p) && equal_bits(back.dlogits, other.back.dlogits);
    return equal && same_learned(back.gradient, other.back.gradient);
  }

  moe::Routing<S> routing;
  moe::Matrix<S> p;
  Backward<S, G> back;
};

/// Worst relative error of the gradients of  sum_a dw_a w_a + sum_te dp_te p_te  with respect to logits and parameters,
/// the selection (and any drops in `routing`) frozen.
template <class G>
double gate_gradient_error(G gate, moe::Matrix<double> logits, const moe::Step& step,
                           const moe::Routing<double>& routing) {
  const Backward<double, G> back(gate, logits, step, routing);
  const auto loss = [&] {
    moe::Routing<double> replayed = routing;
    gate.replay(logits, step, replayed);
    double sum = 0;
    for (std::size_t a = 0; a < back.dweight.size(); ++a) sum += back.dweight[a] * replayed.weights()[a];
    return sum + inner(back.dprobability, probabilities(gate, logits, step));
  };
  const double of_logits = gradient_error(loss, logits, back.dlogits);
  return std::max(of_logits, parameter_gradient_error(loss, gate, back.gradient));
}

template <class G>
double gate_gradient_error(const G& gate, const moe::Matrix<double>& logits, const moe::Step& step = {}) {
  return gate_gradient_error(gate, logits, step, routed(gate, logits, step));
}

/// Pearson's statistic of counts against expected shares.
inline double chi_square(std::span<const double> counts, std::span<const double> shares) {
  double total = 0, statistic = 0;
  for (const double count : counts) total += count;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double expected = total * shares[i];
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return statistic;
}

}  // namespace test
