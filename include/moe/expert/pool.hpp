// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/core/overlap.hpp"
#include "moe/core/take.hpp"
#include "moe/expert/expert_set.hpp"
#include "moe/expert/gathered_runner.hpp"
#include "moe/expert/stage/panel_runner.hpp"
#include "moe/expert/widths.hpp"

namespace moe::inline MOE_ABI {

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
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
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

  /// Columns of the rows that forward writes and backward reads; 0 in a pool that has been moved from.
  Index row_width() const { return experts_.empty() ? 0 : Runner::row_width(*this); }

  /// rows[r] = expert(tokens[plan.token_of_row(r)]) for the rows of `plan`; see ExpertSet. Throws
  /// std::invalid_argument if tokens, plan, rows and experts disagree on sizes: experts may be replaced by others of
  /// the same dimensions only. Experts without rows are not looked at.
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context,
               RowBuffer<Scalar>& rows) const {
    require_forward(tokens, plan, rows);
    Runner::forward(*this, tokens, plan, context, rows);
  }
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, RowBuffer<Scalar>& rows,
               Tape& tape) const
    requires DifferentiableExpert<E>
  {
    require_forward(tokens, plan, rows);
    Runner::forward(*this, tokens, plan, context, rows, tape);
  }
  /// Throws std::invalid_argument unless the tape is that of a forward pass over `plan` through experts of these sizes,
  /// and the gradient another pool of them.
  void require_backward(const PlanView& plan, const Tape& tape, const ExpertPool& gradient) const
    requires DifferentiableExpert<E>
  {
    constexpr const char* kFunction = "moe::ExpertPool::backward";
    require_experts(kFunction, plan);
    if (gradient.size() != size()) fail(kFunction, ": gradient has ", gradient.size(), " experts, expected ", size());
    if (&gradient == this) fail(kFunction, ": gradient is the pool itself, expected one of its own (zeros_like)");
    Runner::require_backward(*this, plan, tape, gradient);
  }
  void require_backward(const PlanView& plan, const Tape& tape, NoGradient none) const
    requires DifferentiableExpert<E>
  {
    require_experts("moe::ExpertPool::backward", plan);
    Runner::require_backward(*this, plan, tape, none);
  }
  /// dtokens[t] = sum of dL/d(row) over the rows of token t in `plan`, overwritten; accumulates into `gradient`.
  ///   dout  [all rows of the plan, at least row_width()]
  /// Throws std::invalid_argument, before it writes anything, if sizes or require_backward() say no.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, ExpertPool& gradient, MatrixRef<Scalar> dtokens) const
    requires DifferentiableExpert<E>
  {
    run_backward(tokens, plan, context, tape, dout, gradient, dtokens);
  }
  /// The same without dtokens, which are not computed: a third of the work of Glu, a quarter of that of Mlp.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, ExpertPool& gradient) const
    requires(DifferentiableExpert<E> && (PanelExpert<E> || SkipsRowGradient<E>))
  {
    require_backward_call(tokens, plan, tape, dout, gradient);
    Runner::backward(*this, tokens, plan, context, tape, dout, gradient);
  }

  /// dtokens alone, as for experts that are frozen: a third of the work less.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, NoGradient, MatrixRef<Scalar> dtokens) const
    requires(DifferentiableExpert<E> && (PanelExpert<E> || SkipsGradient<E>))
  {
    run_backward(tokens, plan, context, tape, dout, NoGradient{}, dtokens);
  }

  /// Copies of the given experts, in that order. Throws std::invalid_argument as TakesExperts says.
  ExpertPool take(std::span<const Index> ids) const {
    detail::require_ids("moe::ExpertPool::take", ids, size());
    std::vector<E> taken;
    taken.reserve(ids.size());
    for (const Index e : ids) taken.push_back((*this)[e]);
    return ExpertPool(std::move(taken));
  }
  /// Copies of the experts of this pool, then of those of `other`. Throws std::invalid_argument if their dimensions
  /// differ.
  ExpertPool concatenate(const ExpertPool& other) const {
    std::vector<E> all;
    all.reserve(experts_.size() + other.experts_.size());
    all.insert(all.end(), experts_.begin(), experts_.end());
    all.insert(all.end(), other.experts_.begin(), other.experts_.end());
    return ExpertPool(std::move(all));
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if (((rest.size() != first.size()) || ...)) fail("moe::ExpertPool::visit: the pools have different sizes");
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

  void require_experts(const char* function, const PlanView& plan) const {
    if (size() == 0) fail(function, ": there are no experts: they have been moved from");
    if (plan.num_experts() != size())
      fail(function, ": the plan is of ", plan.num_experts(), " experts, expected ", size());
  }

  /// `rows` are those of the whole plan.
  void require_sizes(const char* function, const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const char* name,
                     const RowBuffer<Scalar>& rows) const {
    require_experts(function, plan);
    detail::require_shape(function, "tokens", tokens, plan.num_tokens(), input_dim());
    if (rows.rows() < plan.last_row() || rows.cols() < row_width())
      fail(function, ": ", name, " is [", rows.rows(), ", ", rows.cols(), "], expected at least [", plan.last_row(),
           ", ", row_width(), "]");
  }

  void require_forward(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan,
                       const RowBuffer<Scalar>& rows) const {
    require_sizes("moe::ExpertPool::forward", tokens, plan, "rows", rows);
    detail::require_apart("moe::ExpertPool::forward", "rows", rows.matrix(), "tokens", tokens);
  }

  template <class Gradient>
  void require_backward_call(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const Tape& tape,
                             const RowBuffer<Scalar>& dout, const Gradient& gradient) const {
    require_sizes("moe::ExpertPool::backward", tokens, plan, "dout", dout);
    require_backward(plan, tape, gradient);
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                    const RowBuffer<Scalar>& dout, Gradient&& gradient, MatrixRef<Scalar> dtokens) const {
    constexpr const char* kFunction = "moe::ExpertPool::backward";
    require_backward_call(tokens, plan, tape, dout, gradient);
    detail::require_shape(kFunction, "dtokens", dtokens, plan.num_tokens(), input_dim());
    detail::require_apart(kFunction, "dtokens", dtokens, "tokens", tokens);
    detail::require_apart(kFunction, "dtokens", dtokens, "dout", dout.matrix());
    Runner::backward(*this, tokens, plan, context, tape, dout, gradient, dtokens);
  }

  std::vector<E> experts_;
};

}  // namespace moe::inline MOE_ABI
