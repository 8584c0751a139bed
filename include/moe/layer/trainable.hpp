// SPDX-License-Identifier: MIT
#pragma once

#include "moe/expert/pool.hpp"
#include "moe/gate/concept.hpp"
#include "moe/router/concept.hpp"

namespace moe::inline MOE_ABI::detail {

/// T::Tape, or nothing for a part that cannot be trained through.
template <class T>
struct TapeOfPart {
  struct type {};
};
template <class T>
  requires requires { typename T::Tape; }
struct TapeOfPart<T> {
  using type = typename T::Tape;
};
template <class T>
using TapeOf = typename TapeOfPart<T>::type;

/// Says in a sentence which part of a layer cannot be trained through. A class, as compilers look into it where it is
/// named, before they stumble over the missing members.
template <class R, class G, class X>
struct RequireTrainable {
  static_assert(DifferentiableRouter<R>,
                "moe::MoeLayer: training needs a Router with logits(..., tape), backward and visit "
                "(see moe/router/concept.hpp)");
  static_assert(DifferentiableGate<G, typename R::Scalar>,
                "moe::MoeLayer: training needs a Gate with probabilities, replay, backward and visit "
                "(see moe/gate/concept.hpp)");
  static_assert(DifferentiableExpertSet<X>,
                "moe::MoeLayer: training needs experts with forward(..., tape), backward and visit "
                "(see moe/expert/concept.hpp)");
};

}  // namespace moe::inline MOE_ABI::detail
