// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <utility>
#include <variant>

#include "moe/compress/merge_adapters.hpp"
#include "moe/io/block/moe_block.hpp"
#include "moe/io/block/quantise_block.hpp"
#include "moe/layer/adapters.hpp"

// Blocks of published models whose routed experts are frozen and adapted: with this header the functions of
// moe/layer/adapters.hpp and merge_adapters() take blocks, whatever the family and the format of their weights. Router
// and shared expert stay, and learn.
namespace moe::inline MOE_ABI {

/// The codec of a block that has LowRank<E> for every expert E in its pool; weights as Codec says.
template <class Codec>
struct Adapted {};

namespace detail {

template <class C>
struct BlockParts<Adapted<C>> {
  using Codec = C;
  template <class E>
  using Routed = LowRank<E>;
};

/// The layer with f(pool) for its pool of experts with weights; identity experts stay.
template <class Pool, class F>
auto with_pool_of(const Pool& pool, const F& f) {
  return f(pool);
}
template <class Pool, class... Others, class F>
auto with_pool_of(const Concatenated<Pool, Others...>& sets, const F& f) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return Concatenated(f(sets.template set<0>()), sets.template set<1 + I>()...);
  }(std::index_sequence_for<Others...>{});
}
template <class To, class From, class F>
BasicMoeBlock<To> with_pools(const BasicMoeBlock<From>& block, const F& f) {
  using Layer = typename BasicMoeBlock<To>::Layer;
  const auto of_layer = [&](const auto& layer) -> Layer {
    return with_experts(layer, with_pool_of(innermost(layer).experts(), f));
  };
  return {block.config(), std::visit(of_layer, block.layer())};
}

/// Floats, shared experts included.
template <class R, class G, class X>
auto merged_layer(const MoeLayer<R, G, X>& layer) {
  return with_experts(layer, with_pool_of(layer.experts(), [](const auto& pool) { return merge_adapters(pool); }));
}
template <class Layer, class Branch>
auto merged_layer(const WithBranches<Layer, Branch>& layer) {
  return WithBranches(merged_layer(layer.layer()), converted_branch<F32>(layer.template branch<0>(), kDecoding));
}

/// The pool of experts with weights.
template <class Set>
auto& pool_in(Set& set) {
  if constexpr (requires { set.template set<0>(); })
    return set.template set<0>();
  else
    return set;
}

}  // namespace detail

using AdaptedMoeBlock = BasicMoeBlock<Adapted<F32>>;
using AdaptedQuantisedMoeBlock = BasicMoeBlock<Adapted<Quantised>>;

/// The block with adapters on its routed experts; what it computes has the bits of what it was before, for rows whose
/// A x is finite. See with_adapters() of layers.
///   auto adapted = moe::with_adapters(moe::load_quantised_block(checkpoint, config), {.rank = 8, .alpha = 16}, 1);
///   moe::set_adapters(adapted, moe::load_peft_adapters("adapter", moe::peft_options(config)).at(layer));
template <class Codec>
BasicMoeBlock<Adapted<Codec>> with_adapters(const BasicMoeBlock<Codec>& block, const LowRankOptions& options,
                                            std::uint64_t seed) {
  return detail::with_pools<Adapted<Codec>>(block,
                                            [&](const auto& pool) { return with_adapters(pool, options, seed); });
}

/// The block that with_adapters() has been given.
template <class Codec>
BasicMoeBlock<Codec> without_adapters(const BasicMoeBlock<Adapted<Codec>>& block) {
  return detail::with_pools<Codec>(block, [](const auto& pool) { return without_adapters(pool); });
}

/// The block of floats that computes the same, up to the rounding that merge_adapters() of experts states.
template <class Codec>
MoeBlock merge_adapters(const BasicMoeBlock<Adapted<Codec>>& block) {
  if constexpr (std::is_same_v<Codec, F32>) {
    return detail::with_pools<F32>(block, [](const auto& pool) { return merge_adapters(pool); });
  } else {
    const auto merge = [](const auto& layer) -> MoeBlock::Layer { return detail::merged_layer(layer); };
    return {block.config(), std::visit(merge, block.layer())};
  }
}

/// A copy of the adapters of a block, and others put in their place; see those of layers.
template <class Codec>
Adapters adapters_of(const BasicMoeBlock<Adapted<Codec>>& block) {
  return std::visit([](const auto& layer) { return adapters_of(detail::pool_in(detail::innermost(layer).experts())); },
                    block.layer());
}
template <class Codec>
void set_adapters(BasicMoeBlock<Adapted<Codec>>& block, const Adapters& adapters) {
  std::visit([&](auto& layer) { set_adapters(detail::pool_in(detail::innermost(layer).experts()), adapters); },
             block.layer());
}

}  // namespace moe::inline MOE_ABI
