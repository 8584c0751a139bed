// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/core/overlap.hpp"
#include "moe/expert/gathered_runner.hpp"
#include "moe/expert/stage/panel_runner.hpp"
#include "moe/expert/widths.hpp"

namespace moe::inline MOE_ABI {

/// All experts of a layer over the rows that a plan gives them: the seam where quantised, cached or sharded experts
/// plug in. expert_out holds unweighted rows in plan order, so that combine alone applies weights.
template <class X>
concept ExpertSet =
    requires(const X& experts, const ConstMatrixRef<typename X::Scalar>& tokens, const DispatchPlan& plan,
             const Step& step, RowBuffer<typename X::Scalar>& expert_out, Scratch& scratch) {
      { experts.size() } -> std::convertible_to<Index>;
      { experts.input_dim() } -> std::convertible_to<Index>;
      { experts.output_dim() } -> std::convertible_to<Index>;
      { experts.forward(tokens, plan, step, expert_out, scratch) } -> std::same_as<void>;
    };

/// An expert set that can be trained through:
///   void forward(tokens, plan, step, expert_out, Tape& tape) const;
///   moe::Index backward_width(plan) const;    columns of `dout`, those from output_dim on being zero
///   void backward(tokens, plan, step, Tape& tape, dout, X& gradient, dtoken_rows) const;
/// backward accumulates into `gradient`, an object of its own type, and resizes and overwrites dtoken_rows
/// [plan.num_rows(), at least input_dim]. Optional: backward without dtoken_rows, which then need not be computed, and
/// `void require_backward(plan, tape, gradient) const`, which throws
/// std::invalid_argument for a tape or gradient of another set, before anything is written.
template <class X>
concept DifferentiableExpertSet =
    ExpertSet<X> && HasParameters<X> && std::default_initializable<typename X::Tape> &&
    requires(const X& experts, const ConstMatrixRef<typename X::Scalar>& tokens, const DispatchPlan& plan,
             const Step& step, RowBuffer<typename X::Scalar>& rows, typename X::Tape& tape, X& gradient) {
      experts.forward(tokens, plan, step, rows, tape);
      { experts.backward_width(plan) } -> std::convertible_to<Index>;
      experts.backward(tokens, plan, step, tape, rows, gradient, rows);
    };

namespace detail {

template <class E>
struct RunnerOf {
  using type = GatheredRunner<E>;
};
template <PanelExpert E>
struct RunnerOf<E> {
  using type = PanelRunner<E>;
};

}  // namespace detail

/// Experts of one type and equal outer dimensions as an ExpertSet. Immutable in forward, share freely.
template <class E>
class ExpertPool {
  static_assert(Expert<E>,
                "moe::ExpertPool: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, Context&) const` "
                "(see moe/expert/concept.hpp)");

 public:
  using Scalar = typename E::Scalar;
  using Tape = typename detail::RunnerOf<E>::type::Tape;
  static constexpr bool kPerToken = kIsPerToken<E>;

  /// Throws std::invalid_argument if there is no expert or their dimensions differ.
  explicit ExpertPool(std::vector<E> experts) : experts_(std::move(experts)) {
    if (experts_.empty()) fail("moe::ExpertPool: 0 experts, expected at least 1");
    for (const E& expert : experts_)
      if (expert.input_dim() != input_dim() || expert.output_dim() != output_dim())
        fail("moe::ExpertPool: expert ", &expert - experts_.data(), " maps ", expert.input_dim(), " to ",
             expert.output_dim(), ", expected ", input_dim(), " to ", output_dim(), " as expert 0");
  }

  /// num_experts times E::random(dim, other_dim, a seed of the expert's own, options...): for Mlp and Glu the
  /// dimensions are model_dim and hidden_dim, for Linear output_dim and input_dim.
  template <class... Options>
  static ExpertPool random(Index num_experts, Index dim, Index other_dim, std::uint64_t seed, Options... options) {
    return seeded(num_experts, seed, [&](std::uint64_t own) { return E::random(dim, other_dim, own, options...); });
  }
  /// num_experts times E::random(widths, a seed of the expert's own, options...), as Mlp and Glu have it:
  ///   moe::ExpertPool<moe::Glu>::random(8, {.input = 64, .hidden = 256, .output = 10}, /*seed=*/1)
  template <class... Options>
  static ExpertPool random(Index num_experts, const Widths& widths, std::uint64_t seed, Options... options) {
    return seeded(num_experts, seed, [&](std::uint64_t own) { return E::random(widths, own, options...); });
  }

  Index size() const { return static_cast<Index>(experts_.size()); }
  /// Of expert 0; 0 in a pool that has been moved from.
  Index input_dim() const { return experts_.empty() ? 0 : experts_.front().input_dim(); }
  Index output_dim() const { return experts_.empty() ? 0 : experts_.front().output_dim(); }
  E& operator[](Index e) { return experts_[static_cast<std::size_t>(e)]; }
  const E& operator[](Index e) const { return experts_[static_cast<std::size_t>(e)]; }

  /// expert_out[r] = expert(tokens[plan.token_of_row()[r]]); resized to [plan.num_rows(), at least output_dim].
  /// Throws std::invalid_argument if tokens, plan and experts disagree on sizes: experts may be replaced by others of
  /// the same dimensions only. Experts without rows are not looked at.
  void forward(const MatrixView<Scalar>& tokens, const DispatchPlan& plan, const Step& step,
               RowBuffer<Scalar>& expert_out, Scratch& scratch) const {
    require_forward(tokens, plan, expert_out);
    Runner::forward(*this, tokens, plan, step, expert_out, scratch);
  }
  void forward(const MatrixView<Scalar>& tokens, const DispatchPlan& plan, const Step& step,
               RowBuffer<Scalar>& expert_out, Tape& tape) const
    requires DifferentiableExpert<E>
  {
    require_forward(tokens, plan, expert_out);
    Runner::forward(*this, tokens, plan, step, expert_out, tape);
  }
  /// Columns that `dout` of backward must have, zero from output_dim on.
  Index backward_width(const DispatchPlan&) const
    requires DifferentiableExpert<E>
  {
    return experts_.empty() ? 0 : Runner::backward_width(*this);
  }
  /// Throws std::invalid_argument unless the tape is that of a forward pass over `plan` through experts of these sizes,
  /// and the gradient another pool of them.
  void require_backward(const DispatchPlan& plan, const Tape& tape, const ExpertPool& gradient) const
    requires DifferentiableExpert<E>
  {
    checked_backward_width(plan, tape, gradient);
  }
  /// dtoken_rows[r] = dL/d(row r), [plan.num_rows(), at least input_dim], overwritten; accumulates into `gradient`.
  ///   dout  [plan.num_rows(), at least backward_width()]
  /// Throws std::invalid_argument, before it writes anything, if sizes or require_backward() say no.
  void backward(const MatrixView<Scalar>& tokens, const DispatchPlan& plan, const Step& step, Tape& tape,
                const RowBuffer<Scalar>& dout, ExpertPool& gradient, RowBuffer<Scalar>& dtoken_rows) const
    requires DifferentiableExpert<E>
  {
    constexpr const char* kFunction = "moe::ExpertPool::backward";
    require_backward_call(tokens, plan, tape, dout, gradient);
    if (&dout == &dtoken_rows) fail(kFunction, ": dtoken_rows is dout, expected memory of its own");
    detail::require_apart(kFunction, "dtoken_rows", dtoken_rows.matrix(), "tokens", tokens);
    Runner::backward(*this, tokens, plan, step, tape, dout, gradient, dtoken_rows);
  }
  /// The same without dtoken_rows, which is not computed: a third of the work of Glu, a quarter of that of Mlp.
  void backward(const MatrixView<Scalar>& tokens, const DispatchPlan& plan, const Step& step, Tape& tape,
                const RowBuffer<Scalar>& dout, ExpertPool& gradient) const
    requires(DifferentiableExpert<E> && (PanelExpert<E> || SkipsRowGradient<E>))
  {
    require_backward_call(tokens, plan, tape, dout, gradient);
    Runner::backward(*this, tokens, plan, step, tape, dout, gradient);
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    for (Index e = 0; e < first.size(); ++e) visit_part(f, std::to_string(e), first[e], rest[e]...);
  }

 private:
  template <class Make>
  static ExpertPool seeded(Index num_experts, std::uint64_t seed, const Make& make) {
    std::vector<E> experts;
    const RandomField seeds(Purpose::Initialise, seed);
    for (Index e = 0; e < num_experts; ++e) experts.push_back(make(seeds.bits(e)));
    return ExpertPool(std::move(experts));
  }

  using Runner = typename detail::RunnerOf<E>::type;

  void require_sizes(const char* function, const ConstMatrixRef<Scalar>& tokens, const DispatchPlan& plan) const {
    if (plan.num_experts() != size())
      fail(function, ": the plan is of ", plan.num_experts(), " experts, expected ", size());
    detail::require_shape(function, "tokens", tokens, plan.num_tokens(), input_dim());
  }

  /// backward_width(), after the checks of require_backward().
  Index checked_backward_width(const DispatchPlan& plan, const Tape& tape, const ExpertPool& gradient) const {
    constexpr const char* kFunction = "moe::ExpertPool::backward";
    if (plan.num_experts() != size())
      fail(kFunction, ": the plan is of ", plan.num_experts(), " experts, expected ", size());
    if (gradient.size() != size()) fail(kFunction, ": gradient has ", gradient.size(), " experts, expected ", size());
    return Runner::require_backward(*this, plan, tape, gradient);
  }

  void require_backward_call(const ConstMatrixRef<Scalar>& tokens, const DispatchPlan& plan, const Tape& tape,
                             const RowBuffer<Scalar>& dout, const ExpertPool& gradient) const {
    constexpr const char* kFunction = "moe::ExpertPool::backward";
    require_sizes(kFunction, tokens, plan);
    const Index width = checked_backward_width(plan, tape, gradient);
    if (dout.rows() != plan.num_rows() || dout.cols() < width)
      fail(kFunction, ": dout is [", dout.rows(), ", ", dout.cols(), "], expected [", plan.num_rows(), ", at least ",
           width, "]");
    if (&gradient == this) fail(kFunction, ": gradient is the pool itself, expected one of its own (zeros_like)");
  }

  void require_forward(const ConstMatrixRef<Scalar>& tokens, const DispatchPlan& plan,
                       const RowBuffer<Scalar>& expert_out) const {
    require_sizes("moe::ExpertPool::forward", tokens, plan);
    detail::require_apart("moe::ExpertPool::forward", "expert_out", expert_out.matrix(), "tokens", tokens);
  }

  std::vector<E> experts_;
};

}  // namespace moe::inline MOE_ABI
