// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/core/part_of_gradient.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/take.hpp"
#include "moe/expert/checks.hpp"
#include "moe/kernel/dispatch.hpp"

// Long, as each verb of a set stands here once with its checks and once more as what it hands to every set.
namespace moe::inline MOE_ABI {

/// Expert sets side by side under one router, each on its own fast path. Experts are numbered set after set: with sets
/// of n and m experts, expert e < n is expert e of the first, expert n + i is expert i of the second.
///   const moe::Concatenated experts(moe::ExpertPool<moe::Glu>::random(8, 64, 256, 1),
///                                   moe::ExpertPool(std::vector<moe::ScaledIdentity>(2, {64})));
/// What one pool of OneOf computes, without taking panel experts off their path; for types that are not known before
/// run time there is OneOf. Forward rows have the bits that each set gives by itself, for any number of threads;
/// dL/dtokens is the sum of those of the sets, in their order. Draws are the same however experts are cut into sets, as
/// of any set that keys them by PlanView::first_expert(). Immutable in forward, share freely.
template <class First, class... Rest>
class Concatenated {
  static_assert(ExpertSet<First> && (ExpertSet<Rest> && ...),
                "moe::Concatenated: an ExpertSet needs `Scalar`, `size()`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const PlanView& plan, const Context&, RowBuffer<Scalar>& rows) const`; wrap "
                "experts in moe::ExpertPool (see moe/expert/expert_set.hpp)");
  static constexpr std::size_t kNumSets = 1 + sizeof...(Rest);
  static constexpr bool kDifferentiable = DifferentiableExpertSet<First> && (DifferentiableExpertSet<Rest> && ...);
  static constexpr bool kSkipsGradient = SetSkipsGradient<First> && (SetSkipsGradient<Rest> && ...);

 public:
  using Scalar = typename First::Scalar;
  static_assert((std::is_same_v<Scalar, typename Rest::Scalar> && ...),
                "moe::Concatenated: all expert sets need the same Scalar");
  static constexpr bool kPerToken = kIsPerToken<First> && (kIsPerToken<Rest> && ...);
  static constexpr bool kCollective = kIsCollective<First> || (kIsCollective<Rest> || ...);

  struct Tape {
    std::tuple<detail::TapeOf<First>, detail::TapeOf<Rest>...> sets;
    RowBuffer<Scalar> dtokens;  ///< of all sets but the first, on their way into the sum
  };

  /// Throws std::invalid_argument if a set has no experts or the sets disagree on dimensions.
  explicit Concatenated(First first, Rest... rest) : sets_(std::move(first), std::move(rest)...) {
    constexpr const char* kFunction = "moe::Concatenated";
    for_each_set([&](auto i, const auto& set) {
      if (set.size() == 0) fail(kFunction, ": set ", i + 0, " has 0 experts, expected at least 1");
    });
    require_sets(kFunction);
  }

  /// Of all sets together; 0 in an object that has been moved from.
  Index size() const {
    Index sum = 0;
    for_each_set([&](auto, const auto& set) { sum += set.size(); });
    return sum;
  }
  Index input_dim() const { return set<0>().input_dim(); }
  Index output_dim() const { return set<0>().output_dim(); }
  /// The widest of all sets: columns that another set does not write are read by nobody.
  Index row_width() const {
    Index width = 0;
    for_each_set([&](auto, const auto& set) { width = std::max(width, moe::row_width(set)); });
    return width;
  }
  /// Set number `At`, which may be replaced by another of the same dimensions.
  template <std::size_t At>
  auto& set() {
    return std::get<At>(sets_);
  }
  template <std::size_t At>
  const auto& set() const {
    return std::get<At>(sets_);
  }
  /// Calls f(std::integral_constant i, set<i>()) for every set, in order.
  template <class F>
  void for_each_set(const F& f) const {
    [&]<std::size_t... At>(std::index_sequence<At...>) {
      (f(std::integral_constant<std::size_t, At>{}, std::get<At>(sets_)), ...);
    }(std::make_index_sequence<kNumSets>{});
  }

  /// rows[r] = expert(tokens[plan.token_of_row(r)]) for the rows of `plan`; see ExpertSet. Every set runs, also one
  /// whose experts have no rows. Throws std::invalid_argument if tokens, plan, rows and sets disagree on sizes.
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context,
               RowBuffer<Scalar>& rows) const {
    require_sizes("moe::Concatenated::forward", tokens, plan, "rows", rows);
    for_each_part(plan, context, [&](auto, const auto& set, const PlanView& part, const Context& own) {
      set.forward(tokens, part, own, rows);
    });
  }
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, RowBuffer<Scalar>& rows,
               Tape& tape) const
    requires kDifferentiable
  {
    require_sizes("moe::Concatenated::forward", tokens, plan, "rows", rows);
    for_each_part(plan, context, [&](auto i, const auto& set, const PlanView& part, const Context& own) {
      set.forward(tokens, part, own, rows, std::get<i>(tape.sets));
    });
  }

  /// Throws std::invalid_argument unless the tape is that of a forward pass over `plan` through sets of these sizes,
  /// and the gradient others of them.
  void require_backward(const PlanView& plan, const Tape& tape, const Concatenated& gradient) const
    requires kDifferentiable
  {
    require_pass(plan, tape, gradient);
  }
  void require_backward(const PlanView& plan, const Tape& tape, NoGradient none) const
    requires kSkipsGradient
  {
    require_pass(plan, tape, none);
  }
  /// dtokens[t] = sum of dL/d(row) over the rows of token t in `plan`, overwritten; accumulates into `gradient`.
  ///   dout  [all rows of the plan, at least row_width()]
  /// Beside the work of the sets it writes, reads and adds dtokens once for every set but the first. Throws
  /// std::invalid_argument, before it writes anything, if sizes or require_backward() say no.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, Concatenated& gradient, MatrixRef<Scalar> dtokens) const
    requires kDifferentiable
  {
    run_backward(tokens, plan, context, tape, dout, gradient, dtokens);
  }
  /// dtokens alone, where no set has a gradient to compute.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, NoGradient none, MatrixRef<Scalar> dtokens) const
    requires kSkipsGradient
  {
    run_backward(tokens, plan, context, tape, dout, none, dtokens);
  }
  /// The same without dtokens, which are not computed by the sets that can leave them out.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, Concatenated& gradient) const
    requires kDifferentiable
  {
    require_backward_call(tokens, plan, tape, dout, gradient);
    for_each_part(plan, context, [&](auto i, const auto& set, const PlanView& part, const Context& own) {
      const auto run = [&](const auto&... all_or_no_tokens) {
        set.backward(tokens, part, own, std::get<i>(tape.sets), dout, std::get<i>(gradient.sets_), all_or_no_tokens...);
      };
      if constexpr (SetSkipsTokenGradient<std::remove_cvref_t<decltype(set)>>) {
        run();
      } else {
        tape.dtokens.resize(plan.num_tokens(), input_dim());
        run(MatrixRef<Scalar>(tape.dtokens.matrix()));
      }
    });
  }

  /// Each set with those of its experts that `ids` names, where they are in the order of the sets: experts of set 0,
  /// then of set 1, and so on, at least one of each. Throws std::invalid_argument otherwise, and as TakesExperts says.
  Concatenated take(std::span<const Index> ids) const
    requires(TakesExperts<First> && (TakesExperts<Rest> && ...))
  {
    constexpr const char* kFunction = "moe::Concatenated::take";
    detail::require_ids(kFunction, ids, size());
    std::array<std::vector<Index>, kNumSets> own;
    std::size_t last = 0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto [at, expert] = place_of(ids[i]);
      if (at < last)
        fail(kFunction, ": ids[", i, "] is ", ids[i], " of set ", at, " behind one of set ", last,
             ", expected ids in the order of the sets");
      own[last = at].push_back(expert);
    }
    for (std::size_t at = 0; at < kNumSets; ++at)
      if (own[at].empty()) fail(kFunction, ": ids name 0 experts of set ", at, ", expected at least 1 of each set");
    return [&]<std::size_t... At>(std::index_sequence<At...>) {
      return Concatenated(std::get<At>(sets_).take(own[At])...);
    }(std::make_index_sequence<kNumSets>{});
  }

  /// Parameters of set i are "i." and their name in the set, as "0.3.gate_up.weight".
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    [&]<std::size_t... At>(std::index_sequence<At...>) {
      (visit_set<At>(f, self...), ...);
    }(std::make_index_sequence<kNumSets>{});
  }

 private:
  /// One for each set, as sets of one type would find the same objects in one.
  struct Scratches {
    std::array<Scratch, kNumSets> of;
  };

  /// Set of an expert and its number there.
  std::pair<std::size_t, Index> place_of(Index id) const {
    std::pair<std::size_t, Index> place;
    Index first = 0;
    for_each_set([&](auto i, const auto& set) {
      if (id >= first) place = {i, id - first};
      first += set.size();
    });
    return place;
  }

  template <std::size_t At, class F, class... Self>
  static void visit_set(F&& f, Self&... self) {
    visit_part(f, std::to_string(At), std::get<At>(self.sets_)...);
  }

  /// Calls body(i, set, its part of the plan, its context) for every set, in order.
  template <class Body>
  void for_each_part(const PlanView& plan, const Context& context, const Body& body) const {
    auto& scratches = context.scratch.template get<Scratches>().of;
    Index first = 0;
    for_each_set([&](auto i, const auto& set) {
      body(i, set, plan.part(first, set.size()), Context{context.step, scratches[i]});
      first += set.size();
    });
  }

  /// Sets may have been replaced since the constructor saw them.
  void require_sets(const char* function) const {
    for_each_set([&](auto i, const auto& set) {
      if (set.input_dim() != input_dim() || set.output_dim() != output_dim())
        fail(function, ": set ", i + 0, " maps ", set.input_dim(), " to ", set.output_dim(), ", expected ", input_dim(),
             " to ", output_dim(), " as set 0");
    });
  }
  void require_experts(const char* function, const PlanView& plan) const {
    require_sets(function);
    detail::require_plan_of(function, *this, plan);
  }
  /// `rows` are those of the whole plan.
  void require_sizes(const char* function, const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const char* name,
                     const RowBuffer<Scalar>& rows) const {
    require_experts(function, plan);
    detail::require_plan_rows(function, *this, tokens, plan, name, rows);
  }
  template <std::size_t At, class Gradient>
  static decltype(auto) gradient_of(Gradient& gradient) {
    return detail::part_of(gradient, [](auto& sets) -> auto& { return std::get<At>(sets.sets_); });
  }
  template <class Gradient>
  void require_pass(const PlanView& plan, const Tape& tape, const Gradient& gradient) const {
    constexpr const char* kFunction = "moe::Concatenated::backward";
    require_experts(kFunction, plan);
    if (static_cast<const void*>(&gradient) == this)
      fail(kFunction, ": gradient is the object itself, expected one of its own (zeros_like)");
    Index first = 0;
    for_each_set([&](auto i, const auto& set) {
      const auto& of_set = gradient_of<decltype(i)::value>(gradient);
      if constexpr (!detail::kIsNoGradient<Gradient>)
        if (of_set.size() != set.size())
          fail(kFunction, ": set ", i + 0, " of gradient has ", of_set.size(), " experts, expected ", set.size());
      detail::require_backward_of(kFunction, "gradient of a set", set, plan.part(first, set.size()),
                                  std::get<i>(tape.sets), of_set);
      first += set.size();
    });
  }
  template <class Gradient>
  void require_backward_call(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const Tape& tape,
                             const RowBuffer<Scalar>& dout, const Gradient& gradient) const {
    require_sizes("moe::Concatenated::backward", tokens, plan, "dout", dout);
    require_pass(plan, tape, gradient);
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                    const RowBuffer<Scalar>& dout, Gradient& gradient, MatrixRef<Scalar> dtokens) const {
    constexpr const char* kFunction = "moe::Concatenated::backward";
    require_backward_call(tokens, plan, tape, dout, gradient);
    detail::require_dtokens(kFunction, *this, tokens, plan, dout, dtokens);
    for_each_part(plan, context, [&](auto i, const auto& set, const PlanView& part, const Context& own) {
      const auto run = [&](MatrixRef<Scalar> to) {
        set.backward(tokens, part, own, std::get<i>(tape.sets), dout, gradient_of<decltype(i)::value>(gradient), to);
      };
      if constexpr (decltype(i)::value == 0) {
        run(dtokens);
      } else {
        tape.dtokens.resize(dtokens.rows(), dtokens.cols());
        run(tape.dtokens);
        add(tape.dtokens, dtokens);
      }
    });
  }

  static void add(const RowBuffer<Scalar>& from, MatrixRef<Scalar> to) {
    parallel_ranges(to.rows(), kernel::kRowsPerTask, [&](Index begin, Index end, Index) {
      to.middleRows(begin, end - begin) += from.matrix().middleRows(begin, end - begin);
    });
  }

  std::tuple<First, Rest...> sets_;
};

}  // namespace moe::inline MOE_ABI
