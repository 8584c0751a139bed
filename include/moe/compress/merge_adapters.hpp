// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "moe/compress/quantise.hpp"
#include "moe/layer/adapters.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// W + scale * B A, summed in double and then rounded.
template <class Codec, class Weights>
PanelMatrix<Codec> folded(const Weights& weights, const LowRankUpdate<Codec>& update) {
  PanelMatrix<Codec> result = [&] {
    if constexpr (requires { weights.decoded(); })
      return weights.decoded();
    else
      return weights;
  }();
  for (Index o = 0; o < result.outputs() && !update.empty(); ++o)
    for (Index i = 0; i < result.inputs(); ++i) {
      double sum = 0;
      for (Index j = 0; j < update.rank(); ++j)
        sum += static_cast<double>(update.b(o, j)) * static_cast<double>(update.a(i, j));
      result(o, i) = static_cast<typename Codec::Scalar>(static_cast<double>(result(o, i)) + update.scale * sum);
    }
  return result;
}

}  // namespace detail

/// The expert, pool or layer without adapters that computes the same, up to rounding: weights W + alpha / rank * B A in
/// floats. Of Linear, Mlp and Glu, whatever the format of their weights. Back into a format, as BF16, or with a
/// quantiser of your own:
///   const auto small = moe::quantise(moe::merge_adapters(layer), moe::WeightFormat::bf16());
/// A sum of x W'^T differs from that of the adapted weight, both before they are rounded, by at most
///   u |x| |W'|^T + (rank + 2) 2^-53 |x| (|W| + |alpha / rank| |A|^T |B|^T),  u = 2^-24 (2^-53 in double),
/// as each weight is summed in double and then rounded; the second term counts where W and the update cancel, and in
/// double. In floating point both are sums of n = inputs products, within gamma_{n+1} |x| |W|^T
/// and gamma_{n + rank + 4} |alpha / rank| |x| |A|^T |B|^T of them (gamma_k = k u / (1 - k u)). Rounding to a format
/// adds what it adds to any weights: an update of less than half a step of INT4 may vanish in it.
/// rank multiplications per weight, experts in parallel.
template <class E>
auto merge_adapters(const LowRank<E>& expert)
  requires detail::HasPanels<E>
{
  return detail::converted<typename LowRank<E>::Codec>(expert.base(), [&](std::string_view name, const auto& weights) {
    if (const auto dot = name.find('.'); dot != name.npos) name = name.substr(0, dot);  // "down.weight"
    return detail::folded(weights, expert.update(name));
  });
}
template <class E>
auto merge_adapters(const ExpertPool<LowRank<E>>& pool)
  requires detail::HasPanels<E>
{
  using Merged = decltype(merge_adapters(pool[0]));
  std::vector<std::optional<Merged>> made(static_cast<std::size_t>(pool.size()));
  parallel_for(pool.size(),
               [&](Index e, Index) { made[static_cast<std::size_t>(e)].emplace(merge_adapters(pool[e])); });
  std::vector<Merged> experts;
  experts.reserve(made.size());
  for (auto& expert : made) experts.push_back(std::move(*expert));
  return ExpertPool<Merged>(std::move(experts));
}
template <class E>
auto merge_adapters(const SharedLowRank<E>& set)
  requires detail::HasPanels<E>
{
  std::vector<LowRank<E>> experts;
  for (Index e = 0; e < set.size(); ++e) experts.emplace_back(set.base()[e]);
  ExpertPool<LowRank<E>> pool(std::move(experts));
  set_adapters(pool, adapters_of(set));
  return merge_adapters(pool);
}
template <detail::HasExperts L>
auto merge_adapters(const L& layer) {
  return transform_experts(layer, [](const auto& experts) { return merge_adapters(experts); });
}

}  // namespace moe::inline MOE_ABI
