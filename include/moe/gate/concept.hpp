// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/core/take.hpp"
#include "moe/core/visit.hpp"
#include "moe/routing/context.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

/// Has `route`: a pure function of (logits, context) that fills a routing.
template <class G, class S>
concept HasRoute = requires(const G& gate, const Matrix<S>& logits, const Context& context, Routing<S>& routing) {
  { gate.route(logits, context, routing) } -> std::same_as<void>;
};

/// Says at compile time whether each token is decided by itself, from its own logits, id, group and key alone.
template <class G>
concept StatesPerToken = requires {
  { G::kPerToken } -> std::convertible_to<bool>;
};

/// Turns router logits [num_tokens, num_experts] into a routing. A gate is a plain aggregate of numbers, immutable in
/// use and free to share between threads; it owns no buffers. One of your own needs two things:
///   static constexpr bool kPerToken = true;
///   void route(const moe::Logits<float>& logits, const moe::Context& context, moe::Routing<float>& routing) const;
/// Optional: `void validate(Index num_experts) const`, called once by the layer's constructor; `visit` (HasParameters)
/// and `state` (HasState); `Index num_logits(Index num_experts) const` where it wants more columns of logits than there
/// are experts, as for two scores per expert: its router then has that many, and the routing names experts all the
/// same. Shipped gates are templates over the scalar of the logits.
/// Optional, for the functions of moe/layer/structure.hpp; a gate of plain numbers that names no parameters or state
/// is copied where it does not have them, as it has nothing per expert; one that points at such numbers has to say so:
///   MyGate take(std::span<const moe::Index> ids, moe::Index num_experts) const;
///     the gate whose expert i is expert ids[i] of the num_experts of this one; throws std::invalid_argument where
///     there is none. `return *this;` where nothing is an expert's own.
///   MyGate concatenate(const MyGate& other, moe::Index num_experts, moe::Index other_num_experts) const;
///     the gate of the experts of this one, then those of `other`; throws unless both are equal in all else. Without
///     it a gate of plain numbers needs ==, and both to be equal.
///   MyGate duplicate(moe::Index times, moe::Index num_experts) const;
///     the gate with which a layer whose experts stand `times` times in a row computes the same; throws where there is
///     none.
///   std::vector<moe::Index> logits_of(std::span<const moe::Index> ids, moe::Index num_experts) const;
///     where it has num_logits: which logits of this gate are those of take(ids, num_experts), in their order.
template <class G, class S = float>
concept Gate = HasRoute<G, S> && StatesPerToken<G>;

/// A gate that can be trained through. Optional: `void require_backward(Index num_experts) const`, which throws
/// std::invalid_argument where training makes no sense, before a layer writes any gradient. It declares `visit`, empty
/// where it has nothing to learn (see moe/core/visit.hpp). The selection is frozen in all three:
///   probabilities(logits, context, p)      scores [T, E] before selection, which balance losses use; resizes p
///   replay(logits, context, routing)       weights anew for the experts that `routing` already names (gradient checks,
///                                          recomputation, recorded choices); dropped ones keep weight 0
///   backward(logits, context, routing, dweight, dprobability, dlogits, gradient)
///     dweight       [num_assignments], dL/dweight per assignment; ignored where dropped
///     dprobability  [T, E], dL/dprobabilities, or empty (0 x 0) for none
///     dlogits       [T, E], overwritten (resized); not the memory of logits or dprobability
///     gradient      same type as the gate; its parameters are accumulated into
template <class G, class S = float>
concept DifferentiableGate = Gate<G, S> && HasParameters<G> &&
                             requires(const G& gate, const Matrix<S>& logits, const Context& context,
                                      Routing<S>& routing, std::span<const S> dweight, Matrix<S>& out, G& gradient) {
                               gate.probabilities(logits, context, out);
                               gate.replay(logits, context, routing);
                               gate.backward(logits, context, routing, dweight, logits, out, gradient);
                             };

namespace detail {

/// Throws std::invalid_argument, in the name of the `duplicate` of a gate, for fewer than one copy.
inline void require_times(const char* function, Index times) {
  if (times < 1) fail(function, ": times is ", times, ", expected at least 1");
}

/// A gate that says how many columns of logits it wants.
template <class G>
concept StatesNumLogits = requires(const G& gate) {
  { gate.num_logits(Index{}) } -> std::convertible_to<Index>;
};

/// Columns of logits that `gate` wants from its router for so many experts: what its num_logits() says, else one per
/// expert. A layer asks for router.num_experts() to be this.
template <class G>
Index num_logits([[maybe_unused]] const G& gate, Index num_experts) {
  if constexpr (StatesNumLogits<G>)
    return gate.num_logits(num_experts);
  else
    return num_experts;
}

template <class G>
concept GateHasTake = requires(const G& gate, std::span<const Index> ids) {
  { gate.take(ids, Index{}) } -> std::same_as<G>;
};
template <class G>
concept GateHasConcatenate = requires(const G& gate) {
  { gate.concatenate(gate, Index{}, Index{}) } -> std::same_as<G>;
};

/// Gates that take_gate() serves: those that say how, and plain numbers of which none is named as learned or kept.
template <class G>
concept TakesGate = GateHasTake<G> || (std::is_trivially_copyable_v<G> && !HasParameters<G> && !HasState<G>);
/// Gates that concatenate_gates() serves.
template <class G>
concept ConcatenatesGate = GateHasConcatenate<G> || (std::is_trivially_copyable_v<G> && std::equality_comparable<G>);

/// The gate whose expert i is expert ids[i] of the num_experts of `gate`.
template <TakesGate G>
G take_gate(const G& gate, [[maybe_unused]] std::span<const Index> ids, [[maybe_unused]] Index num_experts) {
  if constexpr (GateHasTake<G>)
    return gate.take(ids, num_experts);
  else
    return gate;
}

/// The gate of the experts of `a`, then those of `b`. Throws std::invalid_argument unless both are equal in all else.
template <ConcatenatesGate G>
G concatenate_gates(const G& a, const G& b, [[maybe_unused]] Index num_a, [[maybe_unused]] Index num_b) {
  if constexpr (GateHasConcatenate<G>) {
    return a.concatenate(b, num_a, num_b);
  } else {
    if (!(a == b)) fail("moe::concatenate: the gates are not equal, expected equal options");
    visit_all(
        [](const std::string& name, const auto& leaf) {
          if (!parameter_shape(leaf).empty())
            fail("moe::concatenate: '", name, "' of the gate is not one number, expected a gate with `concatenate`");
        },
        a);
    return a;
  }
}

/// Columns of the logits of `gate` that belong to the experts `ids`: the ids themselves, unless it has other columns.
/// Throws std::invalid_argument where it has and does not say which.
template <class G>
std::vector<Index> logits_of(const char* function, const G& gate, std::span<const Index> ids, Index num_experts) {
  if constexpr (requires { gate.logits_of(ids, num_experts); }) {
    return gate.logits_of(ids, num_experts);
  } else {
    if (const Index count = num_logits(gate, num_experts); count != num_experts)
      fail(function, ": the gate wants ", count, " logits for ", num_experts,
           " experts, expected one each, or a gate with logits_of (see moe/gate/concept.hpp)");
    return {ids.begin(), ids.end()};
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
