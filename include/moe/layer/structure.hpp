// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <initializer_list>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/take.hpp"
#include "moe/expert/concatenated.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/moe_layer.hpp"

// Structure is data: layers made of the experts of other layers. Compression, warm starts and placement rest on
// take_experts, concatenate, split_expert, with_experts and transform_experts. Each part of a layer says itself what
// its experts are (TakesExperts, Concatenates, moe/gate/concept.hpp), one of your own, too; nothing here knows a
// shipped type of part.

// Long, as what is asked of parts stands beside the functions that ask.
namespace moe::inline MOE_ABI {

/// Numbers of experts as an argument: {0, 2, 5}, or anything that converts to std::span<const Index>, as a vector. A
/// view of it, for the length of a call.
class ExpertIds {
 public:
  ExpertIds(const std::initializer_list<Index>& ids) : ids_(std::data(ids), ids.size()) {}
  template <class Ids>
    requires std::convertible_to<const Ids&, std::span<const Index>>
  ExpertIds(const Ids& ids) : ids_(ids) {}

  operator std::span<const Index>() const { return ids_; }

 private:
  std::span<const Index> ids_;
};

/// The permutation that undoes `ids`: take_experts(take_experts(layer, ids), inverse_permutation(ids)) is the layer.
/// Throws std::invalid_argument unless `ids` has each number below its size once.
inline std::vector<Index> inverse_permutation(ExpertIds ids) {
  constexpr const char* kFunction = "moe::inverse_permutation";
  const std::span<const Index> order = ids;
  detail::require_ids(kFunction, order, std::ssize(order));
  std::vector<Index> inverse(order.size(), -1);
  for (std::size_t i = 0; i < order.size(); ++i) {
    Index& place = inverse[static_cast<std::size_t>(order[i])];
    if (place >= 0) fail(kFunction, ": ids[", i, "] is ", order[i], " as is ids[", place, "], expected each id once");
    place = static_cast<Index>(i);
  }
  return inverse;
}

namespace detail {

/// Says in a sentence which part of a layer does not say what it is of other experts. Classes, as compilers look into
/// them where they are named.
template <class R, class G, class X>
struct RequireTake {
  static_assert(TakesExperts<R>,
                "moe::take_experts: a Router needs `R take(std::span<const Index> ids) const` "
                "(see moe/router/concept.hpp)");
  static_assert(TakesGate<G>,
                "moe::take_experts: a Gate that names parameters or state, or holds more than plain numbers, needs "
                "`G take(std::span<const Index> ids, Index num_experts) const` (see moe/gate/concept.hpp)");
  static_assert(TakesExperts<X>,
                "moe::take_experts: an ExpertSet or a Mixture needs `X take(std::span<const Index> ids) const` "
                "(see moe/expert/expert_set.hpp)");
  static constexpr bool kHolds = TakesExperts<R> && TakesGate<G> && TakesExperts<X>;
};

template <class R, class G, class X, class Y>
struct RequireConcatenate {
  static constexpr bool kAreSets = ExpertSet<X> && ExpertSet<Y>;
  static_assert(Concatenates<R>,
                "moe::concatenate: a Router needs `R concatenate(const R& other) const` (see moe/router/concept.hpp)");
  static_assert(ConcatenatesGate<G>,
                "moe::concatenate: a Gate that holds more than plain numbers with == needs `G concatenate(const G& "
                "other, Index num_experts, Index other_num_experts) const` (see moe/gate/concept.hpp)");
  static_assert(kAreSets || (std::is_same_v<X, Y> && Concatenates<X>),
                "moe::concatenate: a Mixture needs `M concatenate(const M& other) const`, and another of its own type "
                "(see moe/layer/mixture.hpp)");
  static constexpr bool kHolds =
      Concatenates<R> && ConcatenatesGate<G> && (kAreSets || (std::is_same_v<X, Y> && Concatenates<X>));
};

template <class G>
concept DuplicatesGate = requires(const G& gate) {
  { gate.duplicate(Index{}, Index{}) } -> std::same_as<G>;
};

template <class G>
struct RequireDuplicate {
  static_assert(DuplicatesGate<G>,
                "moe::duplicate_experts: a Gate needs `G duplicate(Index times, Index num_experts) const`, which not "
                "every gate can have: see moe/gate/concept.hpp, and take_experts() for copies with other weights");
};

/// Throws std::invalid_argument for a layer of which a part has been moved away.
template <class R, class G, class X>
void require_whole(const char* function, const MoeLayer<R, G, X>& layer) {
  const Index num_experts = layer.num_experts();
  if (num_experts == 0) fail(function, ": the layer has no experts: it has been moved from");
  if (const Index count = num_logits(layer.gate(), num_experts); layer.router().num_experts() != count)
    fail(function, ": the router scores ", layer.router().num_experts(), " experts, expected ", count,
         " as in the expert set");
}

/// The same branches around another layer.
template <class Inner, class Layer, class... Branches>
auto with_layer(const WithBranches<Layer, Branches...>& layer, Inner inner) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return WithBranches<Inner, Branches...>(std::move(inner), layer.template branch<I>()...);
  }(std::index_sequence_for<Branches...>{});
}

/// One expert set of the experts of two.
template <class X, class Y>
auto concatenate_sets(const X& a, const Y& b) {
  if constexpr (std::is_same_v<X, Y> && Concatenates<X>)
    return a.concatenate(b);
  else
    return Concatenated<X, Y>(a, b);
}

/// 0, 0, 1, 1, ...: every expert `times` times in a row.
inline std::vector<Index> repeated_ids(const char* function, Index num_experts, Index times) {
  if (times < 1) fail(function, ": times is ", times, ", expected at least 1");
  const Index count = checked_size(function, "num_experts", checked_product(function, num_experts, times));
  std::vector<Index> ids(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<Index>(i) / times;
  return ids;
}

}  // namespace detail

/// The layer whose expert i is expert ids[i] of `layer`, with its row of the router, its entries in the gate and its
/// weights: prunes, permutes, and duplicates where an id comes twice. Copies; parameters without an expert, branches
/// and the numbers of the gate stay.
///   const auto small = moe::take_experts(layer, {0, 2, 5, 7});
/// All experts in their order give the layer, bit for bit. Experts in ascending order compute what the layer computes
/// with the logits of the others masked by -infinity: the same choices and, where a weight depends on the chosen logits
/// alone, the same bits; a softmax over all experts sums in another order. What counts experts counts those that are
/// left, as capacities by a factor; random draws are keyed by an expert's number in its layer.
/// Throws std::invalid_argument for no ids, ids out of range and a layer that has been moved from, and where a part
/// refuses: a gate that chooses more experts than are left or whose groups would have unequal sizes (TopKGate::take),
/// sets whose order `ids` breaks (Concatenated::take). Inner layers of a hierarchy are reached by its experts:
///   auto& inner = outer.experts()[1].layer();   inner = moe::take_experts(inner, {0, 1});
template <class R, class G, class X>
MoeLayer<R, G, X> take_experts(const MoeLayer<R, G, X>& layer, ExpertIds ids) {
  if constexpr (!detail::RequireTake<R, G, X>::kHolds) {
    return layer;  // refused in a sentence
  } else {
    constexpr const char* kFunction = "moe::take_experts";
    const Index num_experts = layer.num_experts();
    detail::require_whole(kFunction, layer);
    detail::require_ids(kFunction, ids, num_experts);
    G gate = detail::take_gate(layer.gate(), ids, num_experts);
    return {layer.router().take(detail::logits_of<G>(kFunction, layer.gate(), ids, num_experts)), std::move(gate),
            layer.mixture().take(ids)};
  }
}
template <class Layer, class... Branches>
WithBranches<Layer, Branches...> take_experts(const WithBranches<Layer, Branches...>& layer, ExpertIds ids) {
  return detail::with_layer(layer, take_experts(layer.layer(), ids));
}

/// The layer with every expert `times` times in a row that computes the same as `layer` in inference, up to rounding:
/// take_experts(), and the gate that makes up for the copies. SoftmaxGate shares weights out; TopKGate chooses all
/// copies of its k experts, or with k = 1 the first one, so that a token costs what it did; see the `duplicate` of each
/// gate. In training, noise and gradients set copies apart, and a TopKGate that only an epsilon near 1/100 kept from
/// constant weights is refused, as its epsilon shrinks with the scores. Throws std::invalid_argument for times < 1, and
/// as take_experts(). Gates for which no numbers give the same outputs are refused by the compiler: SparseMixerGate,
/// TopPGate, ReluGate, NullExpertGate, DSelectKGate, annealed and random ones, limits, chances, masks and skipping.
/// Komatsuzaki et al., "Sparse upcycling" (arXiv:2212.05055), start from copies of one expert.
template <class R, class G, class X>
MoeLayer<R, G, X> duplicate_experts(const MoeLayer<R, G, X>& layer, Index times) {
  static_cast<void>(detail::RequireDuplicate<G>{});
  if constexpr (!detail::DuplicatesGate<G> || !detail::RequireTake<R, G, X>::kHolds) {
    return layer;  // refused in a sentence
  } else {
    constexpr const char* kFunction = "moe::duplicate_experts";
    detail::require_whole(kFunction, layer);
    const Index num_experts = layer.num_experts();
    const std::vector<Index> ids = detail::repeated_ids(kFunction, num_experts, times);
    G gate = layer.gate().duplicate(times, num_experts);
    return {layer.router().take(detail::logits_of<G>(kFunction, layer.gate(), ids, num_experts)), std::move(gate),
            layer.mixture().take(ids)};
  }
}
template <class Layer, class... Branches>
WithBranches<Layer, Branches...> duplicate_experts(const WithBranches<Layer, Branches...>& layer, Index times) {
  return detail::with_layer(layer, duplicate_experts(layer.layer(), times));
}

/// One layer with the experts of `a`, then those of `b`, under a router with the rows of both. Expert sets of two types
/// stand side by side (Concatenated). Branches around one of them stay; of two layers that both have some,
/// concatenate their layer()s and say which branches are to stay.
/// Throws std::invalid_argument unless both map as many columns to as many, weights are on the same side (WeightOn),
/// and the gates are equal in all that is not an expert's own; and for a layer that has been moved from, or whose gate
/// wants more logits than experts.
template <class R, class G, class X, class Y>
auto concatenate(const MoeLayer<R, G, X>& a, const MoeLayer<R, G, Y>& b) {
  if constexpr (detail::RequireConcatenate<R, G, X, Y>::kHolds) {
    constexpr const char* kFunction = "moe::concatenate";
    detail::require_whole(kFunction, a);
    detail::require_whole(kFunction, b);
    if (a.input_dim() != b.input_dim() || a.output_dim() != b.output_dim())
      fail(kFunction, ": b maps ", b.input_dim(), " to ", b.output_dim(), ", expected ", a.input_dim(), " to ",
           a.output_dim(), " as a");
    if (a.router().num_experts() != a.num_experts() || b.router().num_experts() != b.num_experts())
      fail(kFunction, ": the gates want ", a.router().num_experts(), " and ", b.router().num_experts(), " logits for ",
           a.num_experts(), " and ", b.num_experts(), " experts, expected one each");
    G gate = detail::concatenate_gates(a.gate(), b.gate(), a.num_experts(), b.num_experts());
    R router = a.router().concatenate(b.router());
    if constexpr (Mixture<X>) {
      return MoeLayer<R, G, X>(std::move(router), std::move(gate), a.mixture().concatenate(b.mixture()));
    } else {
      detail::require_equal_option(kFunction, "WeightOn", a.mixture().weight_on(), b.mixture().weight_on());
      return MoeLayer(std::move(router), std::move(gate), detail::concatenate_sets(a.experts(), b.experts()),
                      a.mixture().weight_on());
    }
  }
}
template <class Layer, class... Branches, class R, class G, class X>
auto concatenate(const WithBranches<Layer, Branches...>& a, const MoeLayer<R, G, X>& b) {
  return detail::with_layer(a, concatenate(a.layer(), b));
}
template <class R, class G, class X, class Layer, class... Branches>
auto concatenate(const MoeLayer<R, G, X>& a, const WithBranches<Layer, Branches...>& b) {
  return detail::with_layer(b, concatenate(a, b.layer()));
}
template <class A, class... OfA, class B, class... OfB>
auto concatenate(const WithBranches<A, OfA...>&, const WithBranches<B, OfB...>&) {
  static_assert(
      sizeof(A) == 0,
      "moe::concatenate: both layers have branches: concatenate their layer()s, and put the branches that are "
      "to stay around the result (see moe/layer/structure.hpp)");
}

/// `parts` experts of consecutive hidden units of `expert`, as even as can be: their outputs add up to its own, but for
/// the order of a sum. Every part has 1 / parts of the output bias, so that none is special. As a layer with all parts
/// of an expert chosen, each with the weight of the expert, it is the layer:
///   auto parts = moe::split_expert(layer.experts()[3], 4);   // fine-grained experts: DeepSeekMoE (arXiv:2401.06066)
/// Of Mlp, Glu, and these behind a gate (GatedExpert); SplitsExpert says what others need. An expert without a hidden
/// layer has no such parts. Throws std::invalid_argument unless 1 <= parts <= hidden_dim.
template <class E>
std::vector<E> split_expert(const E& expert, Index parts) {
  static_assert(SplitsExpert<E>,
                "moe::split_expert: an Expert needs `std::vector<E> split(Index parts) const`, as those with a hidden "
                "layer have (see moe/expert/concept.hpp)");
  if constexpr (SplitsExpert<E>)
    return expert.split(parts);
  else
    return {};
}

/// The router and the gate of `layer` over other experts, an ExpertSet or a Mixture: quantised ones, parts of others,
/// wider ones. Branches stay, as does WeightOn around a set. Throws std::invalid_argument unless there are as many
/// experts with as many inputs as the layer has, and for branches that do not fit their outputs.
///   const auto own = moe::with_experts(layer, std::move(pool));
template <class R, class G, class X, class Y>
MoeLayer<R, G, Y> with_experts(const MoeLayer<R, G, X>& layer, Y experts) {
  constexpr const char* kFunction = "moe::with_experts";
  detail::require_whole(kFunction, layer);
  const auto require = [&](Index num_experts) {
    if (num_experts != layer.num_experts() || experts.input_dim() != layer.input_dim())
      fail(kFunction, ": there are ", num_experts, " experts with ", experts.input_dim(), " inputs, expected ",
           layer.num_experts(), " with ", layer.input_dim(), " as in the layer");
  };
  if constexpr (Mixture<Y>) {
    require(experts.num_experts());
    return {layer.router(), layer.gate(), std::move(experts)};
  } else {
    require(experts.size());
    WeightOn weight_on = WeightOn::Output;
    if constexpr (requires { layer.mixture().weight_on(); }) weight_on = layer.mixture().weight_on();
    return {layer.router(), layer.gate(), std::move(experts), weight_on};
  }
}
template <class Layer, class... Branches, class Y>
auto with_experts(const WithBranches<Layer, Branches...>& layer, Y experts) {
  return detail::with_layer(layer, with_experts(layer.layer(), std::move(experts)));
}

namespace detail {

template <class L>
inline constexpr bool kHasExperts = false;
template <class R, class G, class X>
inline constexpr bool kHasExperts<MoeLayer<R, G, X>> = requires(const MoeLayer<R, G, X>& layer) { layer.experts(); };
template <class Layer, class... Branches>
inline constexpr bool kHasExperts<WithBranches<Layer, Branches...>> = kHasExperts<Layer>;

/// A layer around a set of experts, with branches or without.
template <class L>
concept HasExperts = kHasExperts<L>;

}  // namespace detail

/// The experts of a layer, behind branches if it has some.
template <class L>
  requires detail::HasExperts<std::remove_const_t<L>>
auto& experts_of(L& layer) {
  if constexpr (requires { layer.layer(); })
    return experts_of(layer.layer());
  else
    return layer.experts();
}

/// The layer with f(experts) for its experts; see with_experts(). What quantise(), with_adapters() and others do to a
/// layer is what they do to its experts:
///   const auto few = moe::transform_experts(layer, [](const auto& pool) { return moe::quantise(pool, format); });
template <detail::HasExperts L, class F>
auto transform_experts(const L& layer, const F& f) {
  return with_experts(layer, f(experts_of(layer)));
}

}  // namespace moe::inline MOE_ABI
