// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/take.hpp"
#include "moe/expert/checks.hpp"
#include "moe/expert/expert_set.hpp"
#include "moe/kernel/combine.hpp"
#include "moe/mpi/collectives.hpp"
#include "moe/mpi/shard_rows.hpp"

// Long, as forward and backward of one class share every step of an exchange.
namespace moe::inline MOE_ABI::mpi {

/// How experts over ranks work together; the same on all ranks.
struct ShardOptions {
  Index slices = 1;          ///< ranks that share an expert, each with a part of its hidden units
  Index ranks_per_node = 1;  ///< consecutive ranks that are near to each other; divides the ranks
  Exchange exchange = Exchange::Flat;
  /// Exchanges that the rows of a pass go in, each those of some experts: experts compute while others' rows are on
  /// their way. The bits are those of one.
  Index waves = 1;
};

namespace detail {

/// Visitors that are for what every rank has alike, and are given the sets of what it has not: f.shards(set).
template <class F>
inline constexpr bool kSkipsShards = false;
template <class F>
  requires requires { F::kSkipsShards; }
inline constexpr bool kSkipsShards<F> = F::kSkipsShards;

template <class X>
concept IndexedSet = requires(X& experts) { experts[Index{}]; };

/// A number of the names and shapes of all parameters, which two sets share only if these are the same, but for chance.
template <class T>
std::int64_t fingerprint_of_shapes(const T& object) {
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  const auto add = [&](std::uint64_t value) { hash = (hash ^ value) * 1099511628211u; };
  for (const auto& [name, shape] : moe::detail::parameter_shapes(object)) {
    for (const char c : name) add(static_cast<unsigned char>(c));
    for (const Index size : shape) add(static_cast<std::uint64_t>(size) + 256);
  }
  return static_cast<std::int64_t>(hash);
}
/// Learned numbers of an object.
template <class T>
Index count_learned(const T& object) {
  Index count = 0;
  for (const auto& [name, shape] : moe::detail::parameter_shapes(object)) {
    Index of_leaf = 1;
    for (const Index size : shape) of_leaf *= size;
    count += of_leaf;
  }
  return count;
}

/// Throws std::invalid_argument on all ranks if it does not hold on one.
template <Communicator C>
void require_on_all(const C& ranks, const char* function, bool holds, const char* what) {
  const Index own = holds ? 1 : 0;
  const std::vector<Index> all = all_gather<Index>(ranks, std::span(&own, 1));
  for (std::size_t r = 0; r < all.size(); ++r)
    if (all[r] == 0) fail(function, ": rank ", r, what);
}

}  // namespace detail

/// Expert parallelism: the experts of a layer over the ranks of a communicator, as an expert set. Every rank has tokens
/// of its own and the same router and gate; their rows go to the ranks that hold their experts, and come back:
///   moe::mpi::run_ranks(4, [&](const moe::mpi::Threads& ranks) {
///     const auto experts = moe::mpi::ShardedExperts<moe::ExpertPool<moe::Glu>, moe::mpi::Threads>::of(pool, ranks);
///     const moe::MoeLayer layer(router, gate, experts);  // forward(own tokens, ...): collective
///   });
/// size() is that of the whole, and so are routers and gates. Where the ranks' batches are one batch cut into
/// consecutive parts, outputs and gradients of tokens have the bits that one process gives with all experts, and so do
/// gradients of experts, each with the rank that holds it (not with slices, whose outputs are sums of parts, nor for
/// copies, see all_reduce_gradient(), which what is no expert needs, too). Slices of experts with an output bias or
/// gate, of which each has its share, are for inference: a step of an optimiser would move it once for each, and
/// all_reduce_gradient() refuses them. Experts that draw random numbers, or look at ids, groups or keys, get them with
/// the rows: give tokens their global_ids(). Collective: all ranks make the same calls, also without tokens, and a
/// workspace with max_tokens is refused, as are gates that are not kPerToken, which would see the tokens of their rank
/// alone. A rank that throws must tell the others, as run_ranks() does. A pass sends a header to each rank, and per row
/// input_dim scalars there (and three numbers, unless experts are panel experts) and output_dim back; backward the same
/// without header. Immutable but for the communicator: one thread per rank. Lepikhin et al., "GShard"
/// (arXiv:2006.16668); DeepSpeed-MoE (arXiv:2201.05596).
template <class X, Communicator C>
class ShardedExperts {
  static_assert(ExpertSet<X>,
                "moe::mpi::ShardedExperts: what a rank holds is an ExpertSet; wrap experts in moe::ExpertPool (see "
                "moe/expert/expert_set.hpp)");
  using S = typename X::Scalar;
  using Rows = detail::ShardRows<S>;

 public:
  using Scalar = S;
  static constexpr bool kPerToken = kIsPerToken<X>;
  static constexpr bool kCollective = true;

  /// What forward leaves for backward, and the working memory of both.
  struct Tape {
    Rows rows;
    std::vector<moe::detail::TapeOf<X>> waves;
    RowBuffer<S> local;  ///< rows of one wave, in the order of its plan
    RowBuffer<S> drows;  ///< of the plan
    moe::detail::ViewRows of;
    bool is_whole = false;  ///< whether a forward pass has ended
  };

  /// The experts that this rank holds, in the order of layout.experts_of(rank). Collective. Throws
  /// std::invalid_argument on all ranks if they disagree on layout, dimensions or options, or a shard does not fit.
  ShardedExperts(X shard, ShardLayout layout, C ranks, const ShardOptions& options = {})
      : shard_(std::move(shard)),
        layout_(std::move(layout)),
        options_(options),
        exchange_(checked(ranks, layout_, shard_, options), options.exchange, options.ranks_per_node) {}

  /// The shard of this rank out of all experts, which every rank has. Collective; throws as the constructor, and where
  /// there are fewer experts than ranks and no slices. Names and shapes of all parameters are compared; what is none,
  /// as an activation that is chosen when a program runs, is not.
  static ShardedExperts of(const X& whole, const C& ranks, const ShardOptions& options = {})
    requires TakesExperts<X>
  {
    require_same(ranks, kName, "the number of experts", whole.size());
    require_same(ranks, kName, "slices", options.slices);
    ShardLayout layout = ShardLayout::contiguous(whole.size(), ranks.size(), options.slices);
    X shard = shard_of(whole, layout, ranks.rank());
    ShardedExperts sharded(std::move(shard), std::move(layout), ranks, options);
    require_same(ranks, kName, "a hash of the parameters' shapes", detail::fingerprint_of_shapes(whole));
    sharded.slices_are_apart_ = options.slices == 1 || are_apart(whole, options.slices);
    return sharded;
  }
  /// The same with experts and copies of them where a placement has them. A row goes to a copy on its own rank, else on
  /// its node, else to any; they share evenly. Panel experts only: others draw by the place of an expert.
  static ShardedExperts placed(const X& whole, const BalancedPlacement& placement, const C& ranks,
                               const ShardOptions& options = {})
    requires(TakesExperts<X> && !detail::kReadsSteps<X>)
  {
    require_same(ranks, kName, "the number of experts", whole.size());
    ShardLayout layout = ShardLayout::placed(placement, ranks.size());
    X shard = whole.take(layout.experts_of(ranks.rank()));
    ShardedExperts sharded(std::move(shard), std::move(layout), ranks, options);
    require_same(ranks, kName, "a hash of the parameters' shapes", detail::fingerprint_of_shapes(whole));
    return sharded;
  }

  Index size() const { return layout_.num_experts(); }
  Index input_dim() const { return shard_.input_dim(); }
  Index output_dim() const { return shard_.output_dim(); }
  Index row_width() const { return output_dim(); }
  const C& ranks() const { return exchange_.ranks(); }
  const ShardLayout& layout() const { return layout_; }
  const ShardOptions& options() const { return options_; }
  /// Whether a step of an optimiser on each rank is one of the experts: not where slices of an expert have a share each
  /// of one parameter, nor where they are not of of(), which has seen the expert.
  bool slices_are_apart() const { return slices_are_apart_; }
  /// The experts that this rank holds.
  X& shard() { return shard_; }
  const X& shard() const { return shard_; }

  /// See ExpertSet; collective. Throws std::invalid_argument where sizes disagree, and on all ranks where they are at
  /// different steps; std::runtime_error as Communicator says.
  void forward(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, RowBuffer<S>& rows) const {
    auto& memory = context.scratch.template get<Memory>();
    run(tokens, plan, Context{context.step, memory.experts}, rows, memory.rows, memory.local,
        [&](Index, const auto&... arguments) { shard_.forward(arguments..., memory.local); });
  }
  void forward(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, RowBuffer<S>& rows,
               Tape& tape) const
    requires DifferentiableExpertSet<X>
  {
    tape.is_whole = false;
    tape.of = moe::detail::ViewRows(plan);
    tape.waves.resize(static_cast<std::size_t>(options_.waves));
    auto& memory = context.scratch.template get<Memory>();
    run(tokens, plan, Context{context.step, memory.experts}, rows, tape.rows, tape.local,
        [&](Index w, const auto&... arguments) {
          shard_.forward(arguments..., tape.local, tape.waves[static_cast<std::size_t>(w)]);
        });
    tape.is_whole = true;
  }

  /// Throws std::invalid_argument unless the tape is that of a forward pass over `plan`, and the gradient another set
  /// of this shape.
  void require_backward(const PlanView& plan, const Tape& tape, const ShardedExperts& gradient) const
    requires DifferentiableExpertSet<X>
  {
    moe::detail::require_plan_of(kBackward, *this, plan);
    if (!tape.is_whole) fail(kBackward, ": the tape holds no forward pass that has ended");
    tape.of.require(kBackward, plan);
    if (&gradient == this) fail(kBackward, ": gradient is the set itself, expected one of its own (zeros_like)");
    moe::detail::require_gradient_of(kBackward, "gradient", shard_, gradient.shard_);
  }

  /// See DifferentiableExpertSet; collective. `gradient` accumulates what all ranks' tokens give to the experts that
  /// this rank holds.
  void backward(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<S>& dout, ShardedExperts& gradient, MatrixRef<S> dtokens) const
    requires DifferentiableExpertSet<X>
  {
    require_backward_call(tokens, plan, tape, dout, gradient);
    moe::detail::require_dtokens(kBackward, *this, tokens, plan, dout, dtokens);
    Rows& pass = tape.rows;
    const Index inputs = input_dim();
    run_backward(plan, context, tape, dout, inputs,
                 [&](auto& wave, auto& of_wave, const PlanView& part, const Context& own) {
                   shard_.backward(pass.arrived_rows(wave, inputs, stride()), part, own, of_wave, tape.local,
                                   gradient.shard_, MatrixRef<S>(pass.result_rows(wave, inputs)));
                 });
    tape.drows.resize(plan.num_rows(), inputs);
    pass.unpack(plan, inputs, 0, tape.drows);
    kernel::combine_unweighted(tape.drows, plan, dtokens);
  }
  /// The same without dtokens: nothing is sent back. On all ranks, or on none.
  void backward(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<S>& dout, ShardedExperts& gradient) const
    requires SetSkipsTokenGradient<X>
  {
    require_backward_call(tokens, plan, tape, dout, gradient);
    run_backward(plan, context, tape, dout, 0,
                 [&](auto& wave, auto& of_wave, const PlanView& part, const Context& own) {
                   shard_.backward(tape.rows.arrived_rows(wave, input_dim(), stride()), part, own, of_wave, tape.local,
                                   gradient.shard_);
                 });
  }

  /// The experts of this rank by their numbers in the layer, so that names are those of the whole: "5.up.weight".
  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if constexpr (detail::kSkipsShards<std::remove_cvref_t<F>>) {
      f.shards(first, rest...);
    } else if constexpr (detail::IndexedSet<X>) {
      const auto experts = first.layout_.experts_of(first.ranks().rank());
      for (Index l = 0; l < std::ssize(experts); ++l) {
        std::string name = std::to_string(experts[static_cast<std::size_t>(l)]);
        if (first.layout_.slices() > 1)
          name += ".slice." + std::to_string(first.layout_.slice_of(first.ranks().rank()));
        visit_part(f, name, first.shard_[l], rest.shard_[l]...);
      }
    } else {
      moe::visit(f, first.shard_, rest.shard_...);
    }
  }

 private:
  static constexpr const char *kName = "moe::mpi::ShardedExperts", *kBackward = "moe::mpi::ShardedExperts::backward";

  struct Memory {
    Rows rows;
    RowBuffer<S> local;
    Scratch experts;  ///< apart: among them may be another such set
  };

  static X shard_of(const X& whole, const ShardLayout& layout, Index rank) {
    const auto ids = layout.experts_of(rank);
    if (layout.slices() == 1) return whole.take(ids);
    if constexpr (requires { X({whole[0].split(Index{})[0]}); }) {
      auto parts = whole[0].split(layout.slices());
      parts.clear();
      for (const Index e : ids)
        parts.push_back(std::move(whole[e].split(layout.slices())[static_cast<std::size_t>(layout.slice_of(rank))]));
      return X(std::move(parts));
    } else {
      fail(kName, ": slices = ", layout.slices(), ", expected 1 of experts that cannot be split (see SplitsExpert)");
    }
  }

  /// Whether every parameter of the experts is in one slice alone.
  static bool are_apart(const X& whole, Index slices) {
    if constexpr (requires { X({whole[0].split(Index{})[0]}); }) {
      for (Index e = 0; e < whole.size(); ++e) {
        Index of_parts = 0;
        for (const auto& part : whole[e].split(slices)) of_parts += detail::count_learned(part);
        if (of_parts != detail::count_learned(whole[e])) return false;
      }
    }
    return true;
  }

  /// The communicator, where all ranks have come with the same and what fits.
  static const C& checked(const C& ranks, const ShardLayout& layout, const X& shard, const ShardOptions& options) {
    require_same(ranks, kName, "the number of experts", layout.num_experts());
    require_same(ranks, kName, "input_dim", shard.input_dim());
    require_same(ranks, kName, "output_dim", shard.output_dim());
    require_same(ranks, kName, "bytes of a scalar", static_cast<Index>(sizeof(S)));
    require_same(ranks, kName, "ranks_per_node", options.ranks_per_node);
    require_same(ranks, kName, "the kind of exchange", static_cast<Index>(options.exchange));
    require_same(ranks, kName, "waves", options.waves);
    require_same(ranks, kName, "the fingerprint of the layout", layout.fingerprint());
    if (layout.num_ranks() != ranks.size())
      fail(kName, ": the layout is of ", layout.num_ranks(), " ranks, expected ", ranks.size());
    if (options.waves < 1) fail(kName, ": waves is ", options.waves, ", expected at least 1");
    if (options.slices != layout.slices())
      fail(kName, ": slices is ", options.slices, ", expected ", layout.slices(), " as in the layout");
    if (detail::kReadsSteps<X> && !layout.is_contiguous())
      fail(kName, ": copies of experts that draw by the place of an expert, expected a layout without copies");
    detail::require_on_all(ranks, kName, shard.size() == std::ssize(layout.experts_of(ranks.rank())),
                           " has a shard of another size than the layout says");
    return ranks;
  }

  /// Scalars of a row that goes to its expert.
  Index stride() const { return input_dim() + (detail::kReadsSteps<X> ? Rows::kIdScalars : 0); }

  /// The number of this rank's expert 0 among those of the plan that a wave runs: draws are keyed by it.
  Index first_of(const PlanView& plan) const {
    return layout_.is_contiguous() ? plan.first_expert() + layout_.experts_of(ranks().rank()).front() : Index{0};
  }
  PlanView local_plan(const typename Rows::Wave& wave, const PlanView& plan) const {
    return PlanView(wave.plan).part(first_of(plan), shard_.size());
  }

  /// `step` for the rows of a wave.
  static Step step_of(const typename Rows::Wave& wave, const Step& step) {
    Step own = step;
    own.valid = {};
    own.token_id = wave.token_id;
    own.group_id = wave.group_id;
    own.key = wave.key;
    return own;
  }

  /// Rows as they have come to those of the wave's plan, with zeros behind them.
  void scatter(const typename Rows::Wave& wave, const S* from, Index cols, RowBuffer<S>& to) const {
    to.resize(wave.plan.num_rows(), moe::row_width(shard_));
    const auto row_of = wave.plan.row_of_assignment();
    for (Index i = 0; i < to.rows(); ++i) {
      S* const row = to.row(row_of[static_cast<std::size_t>(i)]);
      std::fill(std::copy_n(from + i * cols, cols, row), row + to.cols(), S{0});
    }
  }
  static void gather(const typename Rows::Wave& wave, const RowBuffer<S>& from, Index cols, S* to) {
    const auto row_of = wave.plan.row_of_assignment();
    for (Index i = 0; i < from.rows(); ++i)
      std::copy_n(from.row(row_of[static_cast<std::size_t>(i)]), cols, to + i * cols);
  }

  /// pass.sent, `sent_cols` a row, to where the experts are, `compute` on each wave of it, and pass.results, of
  /// `result_cols`, if any, back to pass.returned. While a wave is computed the next are on their way.
  template <class Compute>
  void run_waves(Rows& pass, Index sent_cols, RowBuffer<S>& received, Index result_cols, const Compute& compute) const {
    using Pending = typename RowExchange<C>::Pending;
    std::vector<Pending> there, back;
    const auto kScalar = static_cast<Index>(sizeof(S));
    for (auto& wave : pass.waves)
      there.push_back(
          exchange_.start_there(wave.counts, sent_cols * kScalar,
                                Rows::bytes_of(pass.sent, wave.first_sent, wave.counts.num_sent(), sent_cols),
                                Rows::bytes_of(received, wave.first_received, wave.counts.num_received(), sent_cols)));
    for (std::size_t w = 0; w < pass.waves.size(); ++w) {
      auto& wave = pass.waves[w];
      there[w].wait();
      for (std::size_t next = w + 1; next < there.size() && there[next].test(); ++next) {
      }
      if (wave.counts.num_received() > 0) compute(static_cast<Index>(w), wave);
      if (result_cols == 0) continue;
      back.push_back(exchange_.start_back(
          wave.counts, result_cols * kScalar,
          Rows::bytes_of(pass.results, wave.first_received, wave.counts.num_received(), result_cols),
          Rows::bytes_of(pass.returned, wave.first_sent, wave.counts.num_sent(), result_cols)));
    }
    for (Pending& pending : back) pending.wait();
  }

  void require_backward_call(const ConstMatrixRef<S>& tokens, const PlanView& plan, const Tape& tape,
                             const RowBuffer<S>& dout, const ShardedExperts& gradient) const {
    require_backward(plan, tape, gradient);
    moe::detail::require_plan_rows(kBackward, *this, tokens, plan, "dout", dout);
  }

  /// dout to where the experts are and, where results have columns, these back; compute(wave, its tape, its plan,
  /// context) has dout in tape.local.
  template <class Compute>
  void run_backward(const PlanView& plan, const Context& context, Tape& tape, const RowBuffer<S>& dout,
                    Index result_cols, const Compute& compute) const {
    Rows& pass = tape.rows;
    const Index outputs = output_dim();
    pass.pack(
        plan, outputs, [&](Index r) { return dout.row(r); }, nullptr, pass.sent);
    // What the experts have read stays where forward has put it.
    pass.gradients.resize(1, pass.num_received() * outputs);
    pass.results.resize(1, pass.num_received() * result_cols);
    pass.returned.resize(1, pass.num_sent() * result_cols);
    auto& memory = context.scratch.template get<Memory>();
    run_waves(pass, outputs, pass.gradients, result_cols, [&](Index w, typename Rows::Wave& wave) {
      scatter(wave, pass.gradients.row(0) + wave.first_received * outputs, outputs, tape.local);
      const Step step = step_of(wave, context.step);
      compute(wave, tape.waves[static_cast<std::size_t>(w)], local_plan(wave, plan), Context{step, memory.experts});
    });
  }

  /// Both forward(); compute(wave, tokens, plan, context) fills `local`.
  template <class Compute>
  void run(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, RowBuffer<S>& rows, Rows& pass,
           RowBuffer<S>& local, const Compute& compute) const {
    constexpr const char* kFunction = "moe::mpi::ShardedExperts::forward";
    moe::detail::require_plan_of(kFunction, *this, plan);
    moe::detail::require_plan_rows(kFunction, *this, tokens, plan, "rows", rows);
    const Index inputs = input_dim(), outputs = output_dim(), rank = ranks().rank();
    pass.announce(plan, context.step, layout_, exchange_, options_.ranks_per_node, options_.waves);
    pass.pack(
        plan, inputs, [&](Index r) { return tokens.data() + plan.token_of_row(r) * tokens.outerStride(); },
        detail::kReadsSteps<X> ? &context.step : nullptr, pass.sent);
    pass.arrived.resize(1, pass.num_received() * stride());
    pass.results.resize(1, pass.num_received() * outputs);
    pass.returned.resize(1, pass.num_sent() * outputs);
    for (Index w = 0; w < options_.waves; ++w)
      pass.build_plan(layout_, rank, w, first_of(plan), first_of(plan) + shard_.size());
    run_waves(pass, stride(), pass.arrived, outputs, [&](Index w, typename Rows::Wave& wave) {
      if constexpr (detail::kReadsSteps<X>) pass.read_ids(wave, inputs);
      const Step step = step_of(wave, context.step);
      const Context own{step, context.scratch};
      local.resize(wave.plan.num_rows(), moe::row_width(shard_));
      compute(w, pass.arrived_rows(wave, inputs, stride()), local_plan(wave, plan), own);
      gather(wave, local, outputs, pass.results.row(0) + wave.first_received * outputs);
    });
    pass.unpack(plan, outputs, plan.first_row(), rows);
  }

  X shard_;
  ShardLayout layout_;
  ShardOptions options_;
  RowExchange<C> exchange_;
  bool slices_are_apart_ = options_.slices == 1;
};

}  // namespace moe::inline MOE_ABI::mpi
