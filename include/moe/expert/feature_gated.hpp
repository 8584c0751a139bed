// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/part_of_gradient.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/expert/checks.hpp"
#include "moe/expert/linear.hpp"

namespace moe::inline MOE_ABI {

struct FeatureGateOptions {
  Index rank = 8;       ///< of each gate, >= 1; far below input_dim
  Index num_gates = 1;  ///< whose mean it is, >= 1
};

/// y = E(x o f(x)) with f(x) = (1 / L) sum_l 2 sigmoid((x A_l) B_l): an expert with a view of its own of its inputs,
/// each of which a gate of low rank scales by a number in (0, 2). A is [input_dim, rank], B [rank, input_dim]. B is
/// zero at first, and the expert is then E, bit for bit; A is random, as no gradient would tell its columns apart
/// otherwise.
///   moe::FeatureGated expert(moe::Mlp::random(64, 128, 1), {.rank = 4}, /*seed=*/2);
/// Parameters of gate l are "down.l.weight" [rank, input_dim] and "up.l.weight" [input_dim, rank]. Immutable in
/// forward, share freely. 4 * num_gates * rank * input_dim operations per row beside those of E; no allocation when
/// warm. Wang et al., "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou" (arXiv:2408.05430).
template <class E>
class FeatureGated {
  static_assert(Expert<E>,
                "moe::FeatureGated: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
                "(see moe/expert/concept.hpp)");

 public:
  using Scalar = typename E::Scalar;
  using Linear = BasicLinear<CodecOf<Scalar>>;
  static constexpr bool kPerToken = kIsPerToken<E>;

  struct Tape {
    struct OfGate {
      typename Linear::Tape down, up;
      RowBuffer<Scalar> hidden;   ///< x A, [num_rows, rank]
      RowBuffer<Scalar> sigmoid;  ///< of (x A) B, [num_rows, input_dim]
    };
    std::vector<OfGate> gates;
    RowBuffer<Scalar> factor, gated;  ///< f(x), x o f(x)
    detail::TapeOf<E> expert;
    RowBuffer<Scalar> dgated, dscore, dhidden, drows;
  };

  /// Throws std::invalid_argument for numbers out of range.
  explicit FeatureGated(E expert, const FeatureGateOptions& options = {}, std::uint64_t seed = 0)
      : expert_(std::move(expert)) {
    if (options.rank < 1) fail("moe::FeatureGated: rank is ", options.rank, ", expected at least 1");
    if (options.num_gates < 1) fail("moe::FeatureGated: num_gates is ", options.num_gates, ", expected at least 1");
    const RandomField seeds(Purpose::Initialise, seed);
    for (Index l = 0; l < options.num_gates; ++l) {
      down_.push_back(Linear::random(options.rank, input_dim(), seeds.bits(l), Bias::Off));
      up_.emplace_back(input_dim(), options.rank, Bias::Off);
    }
  }

  Index input_dim() const { return expert_.input_dim(); }
  Index output_dim() const { return expert_.output_dim(); }
  Index num_gates() const { return std::ssize(down_); }
  E& expert() { return expert_; }
  const E& expert() const { return expert_; }
  /// A of gate l, as the linear map x A.
  Linear& down(Index l) { return down_[static_cast<std::size_t>(l)]; }
  const Linear& down(Index l) const { return down_[static_cast<std::size_t>(l)]; }
  /// B of gate l.
  Linear& up(Index l) { return up_[static_cast<std::size_t>(l)]; }
  const Linear& up(Index l) const { return up_[static_cast<std::size_t>(l)]; }

  /// out [num_rows, output_dim]; throws std::invalid_argument on other shapes.
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context) const {
    require_gates("moe::FeatureGated::forward", rows);
    Memory& memory = context.scratch.get<Memory>();
    start(rows, memory.factor);
    for (Index l = 0; l < num_gates(); ++l) {
      memory.hidden.resize(rows.rows(), down(l).output_dim());
      memory.score.resize(rows.rows(), input_dim());
      down(l).forward(rows, memory.hidden, context);
      up(l).forward(memory.hidden, memory.score, context);
      add_sigmoid(memory.score, memory.factor);
    }
    apply(rows, memory.factor, memory.gated);
    expert_.forward(memory.gated, out, Context{context.step, memory.of_expert});
  }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, Tape& tape) const
    requires DifferentiableExpert<E>
  {
    require_gates("moe::FeatureGated::forward", rows);
    tape.gates.resize(down_.size());
    start(rows, tape.factor);
    for (Index l = 0; l < num_gates(); ++l) {
      auto& own = tape.gates[static_cast<std::size_t>(l)];
      own.hidden.resize(rows.rows(), down(l).output_dim());
      own.sigmoid.resize(rows.rows(), input_dim());
      down(l).forward(rows, own.hidden, context, own.down);
      up(l).forward(own.hidden, own.sigmoid, context, own.up);
      add_sigmoid(own.sigmoid, tape.factor);
    }
    apply(rows, tape.factor, tape.gated);
    expert_.forward(tape.gated, out, Context{context.step, context.scratch.get<Memory>().of_expert}, tape.expert);
  }

  /// Throws std::invalid_argument unless tape and gradient are those of an expert of these sizes.
  void require_backward(Index num_rows, const Tape& tape, const FeatureGated& gradient) const
    requires DifferentiableExpert<E>
  {
    require_pass(num_rows, tape, gradient);
  }
  void require_backward(Index num_rows, const Tape& tape, NoGradient none) const
    requires SkipsGradient<E>
  {
    require_pass(num_rows, tape, none);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                FeatureGated& gradient, const Context& context) const
    requires DifferentiableExpert<E>
  {
    run_backward(rows, tape, dout, drows, gradient, context);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                NoGradient none, const Context& context) const
    requires SkipsGradient<E>
  {
    run_backward(rows, tape, dout, drows, none, context);
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if (((rest.num_gates() != first.num_gates()) || ...))
      fail("moe::FeatureGated::visit: the experts have different numbers of gates");
    for (Index l = 0; l < first.num_gates(); ++l) {
      visit_part(f, "down." + std::to_string(l), first.down(l), rest.down(l)...);
      visit_part(f, "up." + std::to_string(l), first.up(l), rest.up(l)...);
    }
    visit_part(f, "expert", first.expert_, rest.expert_...);
  }

 private:
  struct Memory {
    RowBuffer<Scalar> hidden, score, factor, gated;
    Scratch of_expert;  // apart: it may be another such expert
  };

  /// Parts may have been replaced since the constructor saw them.
  void require_gates(const char* function, const ConstMatrixRef<Scalar>& rows) const {
    detail::require_shape(function, "rows", rows, rows.rows(), input_dim());
    for (Index l = 0; l < num_gates(); ++l)
      if (down(l).input_dim() != input_dim() || up(l).output_dim() != input_dim() ||
          up(l).input_dim() != down(l).output_dim())
        fail(function, ": gate ", l, " maps ", down(l).input_dim(), " to ", down(l).output_dim(), " and ",
             up(l).input_dim(), " to ", up(l).output_dim(), ", expected ", input_dim(), " to the rank and back");
  }

  template <class Gradient>
  void require_pass(Index num_rows, const Tape& tape, const Gradient& gradient) const {
    constexpr const char* kFunction = "moe::FeatureGated::backward";
    if (std::ssize(tape.gates) != num_gates())
      fail(kFunction, ": tape has ", tape.gates.size(), " gates, expected ", num_gates());
    if constexpr (!detail::kIsNoGradient<Gradient>)
      if (gradient.num_gates() != num_gates())
        fail(kFunction, ": gradient has ", gradient.num_gates(), " gates, expected ", num_gates());
    detail::require_shape(kFunction, "tape.gated", tape.gated, num_rows, input_dim());
    detail::require_backward_of(kFunction, "gradient.expert", expert_, num_rows, tape.expert,
                                detail::part_of(gradient, &FeatureGated::expert_));
    for (Index l = 0; l < num_gates(); ++l) {
      const auto& own = tape.gates[static_cast<std::size_t>(l)];
      down(l).require_backward(num_rows, own.down, down_of(gradient, l));
      up(l).require_backward(num_rows, own.up, up_of(gradient, l));
    }
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& rows, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                    MatrixRef<Scalar> drows, Gradient& gradient, const Context& context) const {
    constexpr const char* kFunction = "moe::FeatureGated::backward";
    require_gates(kFunction, rows);
    detail::require_backward_rows(kFunction, *this, rows, dout, drows);
    require_pass(rows.rows(), tape, gradient);
    tape.dgated.resize(rows.rows(), input_dim());
    expert_.backward(tape.gated, tape.expert, dout, tape.dgated, detail::part_of(gradient, &FeatureGated::expert_),
                     Context{context.step, context.scratch.get<Memory>().of_expert});
    apply(tape.dgated, tape.factor, drows);
    for (Index l = 0; l < num_gates(); ++l) {
      auto& own = tape.gates[static_cast<std::size_t>(l)];
      dscore_of(rows, own.sigmoid, tape.dgated, tape.dscore);
      tape.dhidden.resize(rows.rows(), down(l).output_dim());
      tape.drows.resize(rows.rows(), input_dim());
      up(l).backward(own.hidden, own.up, tape.dscore, tape.dhidden, up_of(gradient, l), context);
      down(l).backward(rows, own.down, tape.dhidden, tape.drows, down_of(gradient, l), context);
      drows += tape.drows.matrix();
    }
  }
  template <class Gradient>
  static decltype(auto) down_of(Gradient& gradient, Index l) {
    return detail::part_of(gradient, [l](auto& of) -> auto& { return of.down(l); });
  }
  template <class Gradient>
  static decltype(auto) up_of(Gradient& gradient, Index l) {
    return detail::part_of(gradient, [l](auto& of) -> auto& { return of.up(l); });
  }

  void start(const ConstMatrixRef<Scalar>& rows, RowBuffer<Scalar>& factor) const {
    factor.resize(rows.rows(), input_dim());
    factor.matrix().setZero();
  }
  /// score = sigmoid(score), of which 2 / L is added to `factor`: first 2, then 1 / L, so that L halves are one.
  void add_sigmoid(RowBuffer<Scalar>& score, RowBuffer<Scalar>& factor) const {
    for (Index r = 0; r < score.rows(); ++r)
      for (Index c = 0; c < score.cols(); ++c) {
        const Scalar s = Sigmoid::value(score.row(r)[c]);
        score.row(r)[c] = s;
        factor.row(r)[c] += 2 * s;
      }
  }
  /// gated = rows o factor / L.
  void apply(const ConstMatrixRef<Scalar>& rows, const RowBuffer<Scalar>& factor, RowBuffer<Scalar>& gated) const {
    gated.resize(rows.rows(), rows.cols());
    apply(rows, factor, MatrixRef<Scalar>(gated.matrix()));
  }
  void apply(const ConstMatrixRef<Scalar>& rows, const RowBuffer<Scalar>& factor, MatrixRef<Scalar> gated) const {
    const auto count = static_cast<Scalar>(num_gates());
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index c = 0; c < rows.cols(); ++c) gated(r, c) = rows(r, c) * (factor.row(r)[c] / count);
  }
  /// dL/d((x A) B) = dL/d(x o f) o x * 2 s (1 - s) / L.
  void dscore_of(const ConstMatrixRef<Scalar>& rows, const RowBuffer<Scalar>& sigmoid, const RowBuffer<Scalar>& dgated,
                 RowBuffer<Scalar>& dscore) const {
    const auto scale = Scalar{2} / static_cast<Scalar>(num_gates());
    dscore.resize(rows.rows(), rows.cols());
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index c = 0; c < rows.cols(); ++c) {
        const Scalar s = sigmoid.row(r)[c];
        dscore.row(r)[c] = dgated.row(r)[c] * rows(r, c) * (scale * s * (1 - s));
      }
  }

  E expert_;
  std::vector<Linear> down_, up_;
};

template <class E>
FeatureGated(E) -> FeatureGated<E>;
template <class E>
FeatureGated(E, const FeatureGateOptions&, std::uint64_t) -> FeatureGated<E>;

}  // namespace moe::inline MOE_ABI
