// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <span>
#include <vector>

#include "moe/core/tape.hpp"
#include "moe/core/visit.hpp"
#include "moe/routing/context.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// The step of one part of a layer (an expert, a branch): the same, with random draws of its own.
inline Step step_of_part(const Step& step, Index part) {
  Step own = step;
  own.layer = static_cast<std::uint32_t>(RandomField(Purpose::Draw, step.layer).bits(part));
  return own;
}

}  // namespace detail

/// Maps rows [num_rows, input_dim] to rows [num_rows, output_dim], each row by itself. Immutable in forward; several
/// threads may call one expert at once. One of your own needs:
///   using Scalar = float;
///   moe::Index input_dim() const, output_dim() const;
///   void forward(const moe::ConstMatrixRef<float>& rows, moe::MatrixRef<float> out, const moe::Context&) const;
template <class E>
concept Expert = requires(const E& expert, const ConstMatrixRef<typename E::Scalar>& rows,
                          MatrixRef<typename E::Scalar> out, const Context& context) {
  { expert.input_dim() } -> std::convertible_to<Index>;
  { expert.output_dim() } -> std::convertible_to<Index>;
  { expert.forward(rows, out, context) } -> std::same_as<void>;
};

/// An expert that can be cut into so many of its type, whose outputs add up to its own, see split_expert():
///   std::vector<E> split(moe::Index parts) const;
/// Throws std::invalid_argument where it cannot be cut into so many.
template <class E>
concept SplitsExpert = Expert<E> && requires(const E& expert, Index parts) {
  { expert.split(parts) } -> std::same_as<std::vector<E>>;
};

/// An expert that is made of hidden units, of which some can be taken, the output bias with them:
///   E take_hidden(std::span<const moe::Index> units) const;
/// Throws std::invalid_argument for no units, and one out of range.
template <class E>
concept TakesHidden = Expert<E> && requires(const E& expert, std::span<const Index> units) {
  { expert.hidden_dim() } -> std::convertible_to<Index>;
  { expert.take_hidden(units) } -> std::same_as<E>;
};

/// Whether a part of a layer decides each token by itself: what it says as `static constexpr bool kPerToken`, else
/// true. Experts map row by row; one that contains a layer with a gate that does not (LayerExpert) says so.
template <class T>
inline constexpr bool kIsPerToken = true;
template <class T>
  requires requires { T::kPerToken; }
inline constexpr bool kIsPerToken<T> = T::kPerToken;

/// Whether several processes make the calls of a part together, see moe/mpi.hpp: what it says as `static constexpr bool
/// kCollective`, else false. All of them must then make equally many.
template <class T>
inline constexpr bool kIsCollective = false;
template <class T>
  requires requires { T::kCollective; }
inline constexpr bool kIsCollective<T> = T::kCollective;

/// An expert that can be trained through. Its tape is a default-constructible struct that forward fills:
///   void forward(rows, out, context, Tape& tape) const;
///   void backward(rows, Tape& tape, dout, drows, E& gradient, const Context& context) const;
/// and declares `visit`, empty where it has nothing to learn (see moe/core/visit.hpp). backward accumulates into
/// `gradient`, an object of its own type, and overwrites drows [num_rows, input_dim]. Layers give it memory for `out`
/// and `drows` that is apart from what it reads. Optional: `void require_backward(num_rows, tape, gradient) const`,
/// which throws std::invalid_argument for a tape or gradient of another expert, before anything is written.
template <class E>
concept DifferentiableExpert =
    Expert<E> && HasParameters<E> && std::default_initializable<typename E::Tape> &&
    requires(const E& expert, const ConstMatrixRef<typename E::Scalar>& rows, MatrixRef<typename E::Scalar> out,
             const Context& context, typename E::Tape& tape, E& gradient) {
      expert.forward(rows, out, context, tape);
      expert.backward(rows, tape, rows, out, gradient, context);
    };

/// One that can leave out the gradient of its rows: backward without `drows`, for layers whose tokens nobody trains.
template <class E>
concept SkipsRowGradient =
    DifferentiableExpert<E> &&
    requires(const E& expert, const ConstMatrixRef<typename E::Scalar>& rows, const Context& context,
             typename E::Tape& tape, E& gradient) { expert.backward(rows, tape, rows, gradient, context); };

/// One whose backward takes NoGradient in place of its gradient and leaves that out: what Frozen asks for.
template <class E>
concept SkipsGradient = DifferentiableExpert<E> &&
                        requires(const E& expert, const ConstMatrixRef<typename E::Scalar>& rows,
                                 MatrixRef<typename E::Scalar> drows, const Context& context, typename E::Tape& tape) {
                          expert.backward(rows, tape, rows, drows, NoGradient{}, context);
                        };

}  // namespace moe::inline MOE_ABI
