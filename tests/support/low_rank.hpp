// SPDX-License-Identifier: MIT
// Updates of low rank for tests: random ones, and what an adapted expert has to compute, by plain loops.
#pragma once

#include "moe/layer/adapters.hpp"
#include "support/experts.hpp"

namespace test {

/// The expert with all numbers of its updates random.
template <class E>
moe::LowRank<E> random_low_rank(E base, const moe::LowRankOptions& options, std::uint64_t seed, double scale = 0.3) {
  moe::LowRank<E> expert(std::move(base), options, seed);
  fill(expert,
       [random = moe::RandomField(moe::Purpose::User, seed), scale](Index k) { return scale * random.normal(k); });
  return expert;
}
/// The pool with all numbers of its updates random.
template <class E>
auto random_adapters(const moe::ExpertPool<E>& base, const moe::LowRankOptions& options, std::uint64_t seed) {
  auto pool = moe::with_adapters(base, options, seed);
  fill(pool, [random = moe::RandomField(moe::Purpose::User, seed)](Index k) { return 0.3 * random.normal(k); });
  return pool;
}

/// x (W + scale * B A)^T + bias, and how far a sum in S of x W^T, bias and the update may be off: n products, and for
/// the update n, one by the scale, `rank` and one addition.
template <class S, class Codec>
Bounded<S> adapted(const Bounded<S>& x, Mat w, const Mat& bias, const moe::LowRankUpdate<Codec>& update) {
  Mat absolute = magnitude(w);
  for (Index o = 0; o < w.rows(); ++o)
    for (Index i = 0; i < w.cols(); ++i)
      for (Index j = 0; j < update.rank(); ++j) {
        const double product = update.scale * double(update.b(o, j)) * double(update.a(i, j));
        w(o, i) += product;
        absolute(o, i) += std::abs(product);
      }
  const Mat reach = magnitude(x.value) + x.error;
  return {reference::linear(x.value, w, bias),
          reference::linear(x.error, absolute) +
              gamma<S>(w.cols() + update.rank() + 3) * reference::linear(reach, absolute, magnitude(bias))};
}

template <class Codec>
auto reference_of(const moe::LowRank<moe::BasicLinear<Codec>>& expert, const Mat& rows) {
  const auto& base = expert.base();
  return adapted(Bounded<typename Codec::Scalar>(rows), in_double(base.weight()), in_double(base.bias()),
                 expert.update("weight"));
}
template <class Codec, class Act>
auto reference_of(const moe::LowRank<moe::BasicMlp<Codec, Act>>& expert, const Mat& rows) {
  const auto& base = expert.base();
  const auto hidden = adapted(Bounded<typename Codec::Scalar>(rows), in_double(base.up()), in_double(base.up_bias()),
                              expert.update("up"))
                          .map([](double x) { return Act::value(x); });
  return adapted(hidden, in_double(base.down()), in_double(base.down_bias()), expert.update("down"));
}
template <class Codec, class Act>
auto reference_of(const moe::LowRank<moe::BasicGlu<Codec, moe::GatedBy<Act>>>& expert, const Mat& rows) {
  const auto& base = expert.base();
  const auto hidden = adapted(Bounded<typename Codec::Scalar>(rows), in_double(base.gate_up()),
                              in_double(base.gate_up_bias()), expert.update("gate_up"))
                          .gated([](double x) { return Act::value(x); });
  return adapted(hidden, in_double(base.down()), in_double(base.down_bias()), expert.update("down"));
}

}  // namespace test
