// SPDX-License-Identifier: MIT
#pragma once

#include "moe/expert/pool.hpp"
#include "moe/gate/concept.hpp"
#include "moe/layer/routed_experts.hpp"
#include "moe/router/concept.hpp"

namespace moe::inline MOE_ABI::detail {

/// Whether X counts its experts as a Mixture does, and not as an ExpertSet.
template <class X>
concept MeansMixture = requires(const X& x) { x.num_experts(); } && !requires(const X& x) { x.size(); };

/// The mixture that a layer makes of X: X itself if it is meant as one, else the routed experts of a set.
template <class X>
struct MixtureOfPart {
  using type = RoutedExperts<X>;
};
template <class X>
  requires(Mixture<X> || MeansMixture<X>)
struct MixtureOfPart<X> {
  using type = X;
};
template <class X>
using MixtureOf = typename MixtureOfPart<X>::type;

/// Says in a sentence which part of a layer cannot be trained through. A class, as compilers look into it where it is
/// named, before they stumble over the missing members.
template <class R, class G, class X>
struct RequireTrainable {
  static_assert(DifferentiableRouter<R>,
                "moe::MoeLayer: training needs a Router with logits(..., tape), backward and visit "
                "(inside moe::Frozen: backward that takes moe::NoGradient) (see moe/router/concept.hpp)");
  static_assert(DifferentiableGate<G, typename R::Scalar>,
                "moe::MoeLayer: training needs a Gate with probabilities, replay, backward and visit "
                "(see moe/gate/concept.hpp)");
  static_assert(Mixture<X> || DifferentiableExpertSet<X>,
                "moe::MoeLayer: training needs experts with forward(..., tape), backward and visit "
                "(inside moe::Frozen: backward that takes moe::NoGradient) "
                "(see moe/expert/concept.hpp and moe/expert/expert_set.hpp)");
  static_assert(!Mixture<X> || DifferentiableMixture<X>,
                "moe::MoeLayer: training needs a Mixture with forward(..., tape), backward and visit "
                "(see moe/layer/mixture.hpp)");
};

}  // namespace moe::inline MOE_ABI::detail
