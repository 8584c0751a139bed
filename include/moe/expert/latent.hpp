// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/part_of_gradient.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/take.hpp"
#include "moe/expert/checks.hpp"
#include "moe/expert/latent_plans.hpp"
#include "moe/expert/linear.hpp"
#include "moe/expert/pool.hpp"

// Long, as the passes through the three pools stand beside the checks of a set that is made of them.
namespace moe::inline MOE_ABI {

/// Which ends of experts are cut to latent width.
enum class LatentSides { Input, Both };

/// Sizes of LatentExperts::random(), each at least 1.
struct LatentWidths {
  Index model = 0, latent = 0, hidden = 0;
};

/// Experts that read their tokens through a projection which a group of them shares, and may write through another:
///   rows[r] = C_q expert_e(B_q x)      e in group q, B_q [latent_dim, input_dim], C_q [output_dim, latent_dim] or none
/// B_q x is computed once for every token and group that has a row of it, however many experts of the group the token
/// chose; groups without rows cost nothing. The experts are an ordinary pool over the latent rows, on the fast path
/// where they are panel experts: gate and up of a Glu read the same latent row, so that one product computes both.
///   auto experts = moe::LatentExperts<moe::Glu>::random(
///       64, {.model = 1024, .latent = 256, .hidden = 512}, /*group=*/8, moe::LatentSides::Both, /*seed=*/1);
///   moe::MoeLayer layer(router, gate, experts);
/// Multiplications per token for K choices in G groups, with GLUs of h units, n columns and m latent ones: G m n + K h
/// (2 m + n), or G m n + K (3 h m + m n) with both sides, for K 3 h n without. Immutable in forward, share freely. Same
/// bits as experts of their own that were given B_q x; for any number of threads, and whatever else is in the batch
/// where the experts are per token. No allocation when warm. Trained ones become latent by to_latent().
/// Liu et al., "MoLAE: mixture of latent experts" (arXiv:2503.23100).
template <class E>
class LatentExperts {
  static_assert(Expert<E>,
                "moe::LatentExperts: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
                "(see moe/expert/concept.hpp)");

 public:
  using Scalar = typename E::Scalar;
  using Projection = BasicLinear<CodecOf<Scalar>>;
  static constexpr bool kPerToken = kIsPerToken<E>;

  struct Tape {
    detail::LatentPlans plans;  ///< plans.input.num_rows() is the number of projected rows
    detail::LatentRows<Scalar> rows;
    typename ExpertPool<Projection>::Tape input, output;
    typename ExpertPool<E>::Tape experts;
    RowBuffer<Scalar> dlatent, dnarrow;
    detail::ViewRows of;  ///< the view that forward ran
  };

  /// Consecutive experts share: `group` of them each projection, the last one those that are left. Throws
  /// std::invalid_argument for a group < 1, and where numbers or sizes do not fit.
  LatentExperts(ExpertPool<Projection> input, ExpertPool<E> experts, Index group)
      : LatentExperts(std::move(input), std::move(experts), std::optional<ExpertPool<Projection>>(), group) {}
  LatentExperts(ExpertPool<Projection> input, ExpertPool<E> experts, ExpertPool<Projection> output, Index group)
      : LatentExperts(std::move(input), std::move(experts), std::optional(std::move(output)), group) {}

  /// Random projections without biases, and E::random() of the widths that are left. Throws std::invalid_argument for
  /// sizes below 1.
  static LatentExperts random(Index num_experts, const LatentWidths& widths, Index group, LatentSides sides,
                              std::uint64_t seed) {
    constexpr const char* kName = "moe::LatentExperts::random";
    const Index model = detail::checked_size(kName, "model", widths.model, 1),
                latent = detail::checked_size(kName, "latent", widths.latent, 1);
    detail::checked_size(kName, "num_experts", num_experts, 1);
    const Index groups = std::ssize(begins_of(num_experts, group)) - 1;
    const RandomField seeds(Purpose::Initialise, seed);
    const auto projections = [&](Index outputs, Index inputs, Index part) {
      return ExpertPool<Projection>::random(groups, outputs, inputs, seeds.bits(part), Bias::Off);
    };
    const bool both = sides == LatentSides::Both;
    auto experts = ExpertPool<E>::random(
        num_experts, Widths{.input = latent, .hidden = widths.hidden, .output = both ? latent : model}, seeds.bits(1));
    auto input = projections(latent, model, 0);
    if (!both) return LatentExperts(std::move(input), std::move(experts), group);
    return LatentExperts(std::move(input), std::move(experts), projections(model, latent, 2), group);
  }

  Index size() const { return experts_.size(); }
  Index input_dim() const { return input_.input_dim(); }
  Index latent_dim() const { return input_.output_dim(); }
  Index output_dim() const { return output_ ? output_->output_dim() : experts_.output_dim(); }
  Index row_width() const { return output_ ? output_->row_width() : experts_.row_width(); }
  Index num_groups() const { return input_.size(); }
  /// The first expert of each group, then size(): [num_groups + 1].
  std::span<const Index> group_begin() const { return group_begin_; }
  LatentSides sides() const { return output_ ? LatentSides::Both : LatentSides::Input; }

  /// B of every group, the experts over latent rows, C of every group: parts may be replaced by others of the same
  /// dimensions. Throws std::invalid_argument where there is no C.
  ExpertPool<Projection>& input() { return input_; }
  const ExpertPool<Projection>& input() const { return input_; }
  ExpertPool<E>& experts() { return experts_; }
  const ExpertPool<E>& experts() const { return experts_; }
  const ExpertPool<Projection>& output() const {
    if (!output_) fail("moe::LatentExperts::output: there are projections of inputs alone, expected LatentSides::Both");
    return *output_;
  }
  ExpertPool<Projection>& output() { return const_cast<ExpertPool<Projection>&>(std::as_const(*this).output()); }

  /// rows[r] of the experts of tokens[plan.token_of_row(r)]; see ExpertSet. Throws std::invalid_argument if tokens,
  /// plan, rows and experts disagree on sizes.
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context,
               RowBuffer<Scalar>& rows) const {
    require_sizes("moe::LatentExperts::forward", tokens, plan, "rows", rows);
    auto& [plans, kept] = context.scratch.template get<Memory>();
    prepare(plan, context.step, plans, kept);
    Scratches& own = scratches(context);
    input_.forward(tokens, plans.input, Context{context.step, own.input}, kept.latent);
    const Step step = kept.keys.of_rows(context.step, 0, plans.input.num_rows());
    const PlanView of_experts = plan.over(plans.experts);
    if (!output_) return experts_.forward(latent_of(kept), of_experts, Context{step, own.experts}, rows);
    experts_.forward(latent_of(kept), of_experts, Context{step, own.experts}, kept.narrow);
    output_->forward(narrow_of(kept), plans.output_view(), Context{context.step, own.output}, rows);
  }
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, RowBuffer<Scalar>& rows,
               Tape& tape) const
    requires DifferentiableExpert<E>
  {
    require_sizes("moe::LatentExperts::forward", tokens, plan, "rows", rows);
    tape.of = {};
    prepare(plan, context.step, tape.plans, tape.rows);
    Scratches& own = scratches(context);
    input_.forward(tokens, tape.plans.input, Context{context.step, own.input}, tape.rows.latent, tape.input);
    const Step step = tape.rows.keys.of_rows(context.step, 0, tape.plans.input.num_rows());
    experts_.forward(latent_of(tape.rows), plan.over(tape.plans.experts), Context{step, own.experts},
                     output_ ? tape.rows.narrow : rows, tape.experts);
    if (output_)
      output_->forward(narrow_of(tape.rows), tape.plans.output_view(), Context{context.step, own.output}, rows,
                       tape.output);
    tape.of = detail::ViewRows(plan);
  }

  /// Throws std::invalid_argument unless the tape is that of a forward pass over `plan` through experts of these sizes,
  /// and the gradient another set of them.
  void require_backward(const PlanView& plan, const Tape& tape, const LatentExperts& gradient) const
    requires DifferentiableExpert<E>
  {
    constexpr const char* kFunction = "moe::LatentExperts::backward";
    if (&gradient == this) fail(kFunction, ": gradient is the set itself, expected one of its own (zeros_like)");
    if (gradient.group_begin_ != group_begin_ || gradient.sides() != sides())
      fail(kFunction, ": gradient has ", gradient.size(), " experts in ", gradient.num_groups(),
           " groups, expected the groups and sides of this set, of ", size(), " in ", num_groups());
    require_pass(plan, tape, gradient);
  }
  void require_backward(const PlanView& plan, const Tape& tape, NoGradient none) const
    requires DifferentiableExpert<E>
  {
    require_pass(plan, tape, none);
  }

  /// dtokens[t] = sum of dL/d(row) over the rows of token t in `plan`, overwritten; accumulates into `gradient`.
  ///   dout  [all rows of the plan, at least row_width()]
  /// Throws std::invalid_argument, before it writes anything, if sizes or require_backward() say no.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, LatentExperts& gradient, MatrixRef<Scalar> dtokens) const
    requires DifferentiableExpert<E>
  {
    run_backward(tokens, plan, context, tape, dout, gradient, dtokens);
  }
  /// The same without dtokens, which are not computed.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, LatentExperts& gradient) const
    requires DifferentiableExpert<E>
  {
    run_backward(tokens, plan, context, tape, dout, gradient);
  }
  /// dtokens alone, as for experts that are frozen.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, NoGradient none, MatrixRef<Scalar> dtokens) const
    requires(DifferentiableExpert<E> && (PanelExpert<E> || SkipsGradient<E>))
  {
    run_backward(tokens, plan, context, tape, dout, none, dtokens);
  }

  /// The given experts; consecutive ones of one group stay a group, and others get copies of their projections. Throws
  /// std::invalid_argument as TakesExperts says.
  LatentExperts take(std::span<const Index> ids) const {
    detail::require_ids("moe::LatentExperts::take", ids, size());
    std::vector<Index> groups, begins;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const Index group = group_of(ids[i]);
      if (!groups.empty() && groups.back() == group) continue;
      groups.push_back(group);
      begins.push_back(static_cast<Index>(i));
    }
    begins.push_back(std::ssize(ids));
    std::optional<ExpertPool<Projection>> output;
    if (output_) output = output_->take(groups);
    return LatentExperts(input_.take(groups), experts_.take(ids), std::move(output), std::move(begins));
  }
  /// The groups of this set, then those of `other`. Throws std::invalid_argument unless both have the same sizes and
  /// sides.
  LatentExperts concatenate(const LatentExperts& other) const {
    detail::require_equal_option("moe::LatentExperts::concatenate", "LatentSides", sides(), other.sides());
    std::vector<Index> begins(group_begin_.begin(), group_begin_.end() - 1);
    for (const Index begin : other.group_begin_) begins.push_back(size() + begin);
    std::optional<ExpertPool<Projection>> output;
    if (output_) output = output_->concatenate(*other.output_);
    return LatentExperts(input_.concatenate(other.input_), experts_.concatenate(other.experts_), std::move(output),
                         std::move(begins));
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if (((rest.output_.has_value() != first.output_.has_value()) || ...))
      fail("moe::LatentExperts::visit: the sets differ in LatentSides, expected the same in all");
    visit_part(f, "input", first.input_, rest.input_...);
    visit_part(f, "experts", first.experts_, rest.experts_...);
    if (first.output_) visit_part(f, "output", *first.output_, *rest.output_...);
  }

 private:
  /// One for each pool, as pools of one type would find the same objects in one.
  struct Scratches {
    Scratch input, experts, output;
  };
  /// Working memory at inference.
  struct Memory {
    detail::LatentPlans plans;
    detail::LatentRows<Scalar> rows;
  };
  static Scratches& scratches(const Context& context) { return context.scratch.template get<Scratches>(); }

  LatentExperts(ExpertPool<Projection>&& input, ExpertPool<E>&& experts, std::optional<ExpertPool<Projection>>&& output,
                std::vector<Index> group_begin)
      : input_(std::move(input)),
        experts_(std::move(experts)),
        output_(std::move(output)),
        group_begin_(std::move(group_begin)) {
    require_fit("moe::LatentExperts");
  }

  LatentExperts(ExpertPool<Projection>&& input, ExpertPool<E>&& experts, std::optional<ExpertPool<Projection>>&& output,
                Index group)
      : LatentExperts(std::move(input), std::move(experts), std::move(output), begins_of(experts.size(), group)) {}

  static std::vector<Index> begins_of(Index num_experts, Index group) {
    detail::checked_size("moe::LatentExperts", "group", group, 1);
    std::vector<Index> begins;
    for (Index e = 0; e < num_experts; e += group) begins.push_back(e);
    begins.push_back(num_experts);
    return begins;
  }

  Index group_of(Index expert) const {
    return std::ranges::upper_bound(group_begin_, expert) - group_begin_.begin() - 1;
  }

  /// Parts may have been replaced since the constructor saw them.
  void require_fit(const char* function) const {
    if (size() == 0) fail(function, ": there are no experts: they have been moved from");
    const Index groups = std::ssize(group_begin_) - 1;
    const auto require = [&](const char* what, Index found, Index expected) {
      if (found != expected) fail(function, ": ", what, " is ", found, ", expected ", expected);
    };
    require("the number of input projections", input_.size(), groups);
    require("the number of experts", size(), group_begin_.back());
    require("the input_dim of experts", experts_.input_dim(), latent_dim());
    if (!output_) return;
    require("the number of output projections", output_->size(), groups);
    require("the output_dim of experts", experts_.output_dim(), output_->input_dim());
  }

  /// `rows` are those of the whole plan.
  void require_sizes(const char* function, const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const char* name,
                     const RowBuffer<Scalar>& rows) const {
    require_fit(function);
    detail::require_plan_of(function, *this, plan);
    detail::require_plan_rows(function, *this, tokens, plan, name, rows);
  }

  void prepare(const PlanView& plan, const Step& step, detail::LatentPlans& plans,
               detail::LatentRows<Scalar>& rows) const {
    plans.build(plan, group_begin_);
    rows.keys.build(step, plans.input);
    rows.latent.resize(plans.input.num_rows(), input_.row_width());
    if (!output_) return;
    plans.build_output(plan, group_begin_);
    rows.narrow.resize(plan.last_row(), experts_.row_width());
  }
  auto latent_of(const detail::LatentRows<Scalar>& rows) const { return rows.latent.matrix().leftCols(latent_dim()); }
  auto narrow_of(const detail::LatentRows<Scalar>& rows) const {
    return rows.narrow.matrix().leftCols(experts_.output_dim());
  }

  template <class Gradient>
  static decltype(auto) input_of(Gradient& gradient) {
    return detail::part_of(gradient, [](auto& set) -> auto& { return set.input_; });
  }
  template <class Gradient>
  static decltype(auto) experts_of(Gradient& gradient) {
    return detail::part_of(gradient, [](auto& set) -> auto& { return set.experts_; });
  }
  template <class Gradient>
  static decltype(auto) output_of(Gradient& gradient) {
    return detail::part_of(gradient, [](auto& set) -> auto& { return *set.output_; });
  }

  template <class Gradient>
  void require_pass(const PlanView& plan, const Tape& tape, const Gradient& gradient) const {
    constexpr const char* kFunction = "moe::LatentExperts::backward";
    require_fit(kFunction);
    detail::require_plan_of(kFunction, *this, plan);
    tape.of.require(kFunction, plan);
    if (tape.rows.latent.rows() != tape.plans.input.num_rows() || tape.plans.input.num_tokens() != plan.num_tokens() ||
        tape.plans.input.num_experts() != num_groups())
      fail(kFunction, ": the tape is of ", tape.plans.input.num_tokens(), " tokens and ",
           tape.plans.input.num_experts(), " groups, expected ", plan.num_tokens(), " and ", num_groups());
    detail::require_backward_of(kFunction, "gradient.input", input_, PlanView(tape.plans.input), tape.input,
                                input_of(gradient));
    detail::require_backward_of(kFunction, "gradient.experts", experts_, plan.over(tape.plans.experts), tape.experts,
                                experts_of(gradient));
    if (output_)
      detail::require_backward_of(kFunction, "gradient.output", *output_, tape.plans.output_view(), tape.output,
                                  output_of(gradient));
  }

  /// dtokens or nothing.
  template <class Gradient, class... DTokens>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                    const RowBuffer<Scalar>& dout, Gradient& gradient, DTokens... dtokens) const {
    constexpr const char* kFunction = "moe::LatentExperts::backward";
    require_sizes(kFunction, tokens, plan, "dout", dout);
    if constexpr (detail::kIsNoGradient<Gradient>)
      require_pass(plan, tape, gradient);
    else
      require_backward(plan, tape, gradient);
    (detail::require_dtokens(kFunction, *this, tokens, plan, dout, dtokens), ...);
    Scratches& own = scratches(context);
    if (output_) {
      const MatrixRef<Scalar> dnarrow =
          resized(tape.dnarrow, plan.last_row(), experts_.row_width(), experts_.output_dim());
      output_->backward(narrow_of(tape.rows), tape.plans.output_view(), Context{context.step, own.output}, tape.output,
                        dout, output_of(gradient), dnarrow);
    }
    const MatrixRef<Scalar> dlatent =
        resized(tape.dlatent, tape.plans.input.num_rows(), input_.row_width(), latent_dim());
    const Step step = tape.rows.keys.of_rows(context.step, 0, tape.plans.input.num_rows());
    experts_.backward(latent_of(tape.rows), plan.over(tape.plans.experts), Context{step, own.experts}, tape.experts,
                      output_ ? tape.dnarrow : dout, experts_of(gradient), dlatent);
    input_.backward(tokens, tape.plans.input, Context{context.step, own.input}, tape.input, tape.dlatent,
                    input_of(gradient), dtokens...);
  }

  /// The first `cols` columns of a buffer; the others are zero.
  static MatrixRef<Scalar> resized(RowBuffer<Scalar>& buffer, Index rows, Index width, Index cols) {
    buffer.resize(rows, width);
    buffer.matrix().rightCols(width - cols).setZero();
    return buffer.matrix().leftCols(cols);
  }

  ExpertPool<Projection> input_;
  ExpertPool<E> experts_;
  std::optional<ExpertPool<Projection>> output_;
  std::vector<Index> group_begin_;
};

}  // namespace moe::inline MOE_ABI
