// SPDX-License-Identifier: MIT
#pragma once

#include <utility>
#include <variant>

#include "moe/core/part_of_gradient.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/expert/concept.hpp"

namespace moe::inline MOE_ABI {

/// An expert that is one of several types, decided at run time: ExpertPool<OneOf<Glu, ScaledIdentity, MyExpert>> is a
/// heterogeneous set. Immutable in forward, share freely.
template <class First, class... Rest>
class OneOf {
  static_assert(Expert<First> && (Expert<Rest> && ...),
                "moe::OneOf: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
                "(see moe/expert/concept.hpp)");
  static constexpr bool kDifferentiable = DifferentiableExpert<First> && (DifferentiableExpert<Rest> && ...);
  static constexpr bool kSkipsGradient = SkipsGradient<First> && (SkipsGradient<Rest> && ...);

 public:
  using Scalar = typename First::Scalar;
  static constexpr bool kPerToken = kIsPerToken<First> && (kIsPerToken<Rest> && ...);
  static_assert((std::is_same_v<Scalar, typename Rest::Scalar> && ...), "moe::OneOf: all experts need the same Scalar");
  /// The tape of one alternative; tapes of several may be of one type.
  template <class E>
  struct TapeOfExpert {
    detail::TapeOf<E> tape;
  };
  using Tape = std::variant<TapeOfExpert<First>, TapeOfExpert<Rest>...>;

  template <class E>
    requires(std::is_same_v<E, First> || (std::is_same_v<E, Rest> || ...))
  OneOf(E expert) : expert_(std::move(expert)) {}

  /// The alternative that this expert is: std::visit, std::get and std::holds_alternative work on it.
  std::variant<First, Rest...>& get() { return expert_; }
  const std::variant<First, Rest...>& get() const { return expert_; }

  Index input_dim() const {
    return std::visit([](const auto& expert) -> Index { return expert.input_dim(); }, expert_);
  }
  Index output_dim() const {
    return std::visit([](const auto& expert) -> Index { return expert.output_dim(); }, expert_);
  }

  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context) const {
    std::visit([&](const auto& expert) { expert.forward(rows, out, context); }, expert_);
  }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, Tape& tape) const
    requires kDifferentiable
  {
    std::visit(
        [&](const auto& expert) {
          using Own = TapeOfExpert<std::remove_cvref_t<decltype(expert)>>;
          if (!std::holds_alternative<Own>(tape)) tape.template emplace<Own>();
          expert.forward(rows, out, context, std::get<Own>(tape).tape);
        },
        expert_);
  }
  /// Throws std::invalid_argument unless tape and gradient are of the same alternative and its sizes.
  void require_backward(Index num_rows, const Tape& tape, const OneOf& gradient) const
    requires kDifferentiable
  {
    require_pass(num_rows, tape, gradient, gradient.expert_.index());
  }
  void require_backward(Index num_rows, const Tape& tape, NoGradient none) const
    requires kSkipsGradient
  {
    require_pass(num_rows, tape, none, expert_.index());
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                OneOf& gradient, const Context& context) const
    requires kDifferentiable
  {
    run_backward(rows, tape, dout, drows, gradient, context);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                NoGradient none, const Context& context) const
    requires kSkipsGradient
  {
    run_backward(rows, tape, dout, drows, none, context);
  }

  /// Throws std::invalid_argument unless all are of one alternative.
  template <class F, class Self, class... Others>
  static void visit(F&& f, Self& self, Others&... others) {
    if (((others.expert_.index() != self.expert_.index()) || ...))
      fail("moe::OneOf::visit: the objects are of other alternatives than ", self.expert_.index());
    std::visit(
        [&](auto& expert) {
          using E = std::remove_cvref_t<decltype(expert)>;
          moe::visit(f, expert, std::get<E>(others.expert_)...);
        },
        self.expert_);
  }

 private:
  template <class E, class Gradient>
  static decltype(auto) gradient_of(Gradient& gradient) {
    return detail::part_of(gradient, [](auto& one) -> auto& { return std::get<E>(one.expert_); });
  }

  /// `alternative` is that of the gradient.
  template <class Gradient>
  void require_pass(Index num_rows, const Tape& tape, const Gradient& gradient, std::size_t alternative) const {
    constexpr const char* kFunction = "moe::OneOf::backward";
    if (tape.index() != expert_.index() || alternative != expert_.index())
      fail(kFunction, ": the tape is of alternative ", tape.index(), " and the gradient of ", alternative,
           ", expected ", expert_.index());
    std::visit(
        [&](const auto& expert) {
          using E = std::remove_cvref_t<decltype(expert)>;
          detail::require_backward_of(kFunction, "gradient", expert, num_rows, std::get<TapeOfExpert<E>>(tape).tape,
                                      gradient_of<E>(gradient));
        },
        expert_);
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& rows, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                    MatrixRef<Scalar> drows, Gradient& gradient, const Context& context) const {
    require_backward(rows.rows(), tape, gradient);
    std::visit(
        [&](const auto& expert) {
          using E = std::remove_cvref_t<decltype(expert)>;
          expert.backward(rows, std::get<TapeOfExpert<E>>(tape).tape, dout, drows, gradient_of<E>(gradient), context);
        },
        expert_);
  }

  std::variant<First, Rest...> expert_;
};

}  // namespace moe::inline MOE_ABI
