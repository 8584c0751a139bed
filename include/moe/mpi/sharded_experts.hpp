// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
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
#include "moe/expert/lent_experts.hpp"
#include "moe/kernel/combine.hpp"
#include "moe/mpi/collectives.hpp"
#include "moe/mpi/shard_rows.hpp"
#include "moe/mpi/slice_map.hpp"

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
template <class F, moe::detail::Walked walked>
inline constexpr bool kSkipsShards<moe::detail::Walk<F, walked>> = kSkipsShards<F>;

template <class X>
concept IndexedSet = requires(X& experts) { experts[Index{}]; };
/// A set that can be made of slices of its experts.
template <class X>
concept SplitSet = IndexedSet<X> && requires(const X& experts) { X({experts[Index{}].split(Index{})[0]}); };

/// Throws std::invalid_argument on all ranks if it does not hold on one.
template <Communicator C>
void require_on_all(const C& ranks, const char* function, bool holds, const char* what) {
  const Index own = holds ? 1 : 0;
  const std::vector<Index> all = all_gather<Index>(ranks, std::span(&own, 1));
  for (std::size_t r = 0; r < all.size(); ++r)
    if (all[r] == 0) fail(function, ": rank ", r, what);
}

/// What ranks must agree on before rows may go between their experts.
template <Communicator C, class X>
void require_same_set(const C& ranks, const char* function, const X& experts, const Placement& placement,
                      Index ranks_per_node, Exchange exchange) {
  require_same(ranks, function, "the number of experts", placement.experts());
  require_same(ranks, function, "input_dim", experts.input_dim());
  require_same(ranks, function, "output_dim", experts.output_dim());
  require_same(ranks, function, "bytes of a scalar", static_cast<Index>(sizeof(typename X::Scalar)));
  require_same(ranks, function, "ranks_per_node", ranks_per_node);
  require_same(ranks, function, "the kind of exchange", static_cast<Index>(exchange));
  require_same(ranks, function, "a hash of the placement", placement.hash());
  if (placement.ranks() != ranks.size())
    fail(function, ": the placement is on ", placement.ranks(), " ranks, expected ", ranks.size());
}

/// Experts of a pool by their numbers in a layer, of which some are here, where draws are keyed by the number.
template <class X>
struct LentOf {
  static constexpr bool kIsPool = false;
  struct type {};
};
template <class E>
struct LentOf<ExpertPool<E>> {
  static constexpr bool kIsPool = true;
  using type = moe::detail::LentExperts<E>;
};

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
/// copies, see all_reduce_gradient(), which what is no expert needs, too). Of an expert in slices the first one has the
/// output bias, the others zeros; a gate is with each, and all_reduce_gradient() sums up its gradients. Experts that
/// draw random numbers, or look at ids, groups or keys, get them with the rows: give tokens their global_ids().
/// Collective: all ranks make the same calls, also without tokens, and a workspace with max_tokens is refused, as are
/// gates that are not kPerToken, which would see the tokens of their rank alone. A rank that throws must tell the
/// others, as run_ranks() does. A pass sends a header to each rank, and per row input_dim scalars there (and three
/// numbers, unless experts are panel experts) and output_dim back; backward the same without header. Exchanges allocate
/// in every pass. Immutable but for the communicator: one thread per rank. Lepikhin et al., "GShard"
/// (arXiv:2006.16668); DeepSpeed-MoE (arXiv:2201.05596).
template <class X, Communicator C>
class ShardedExperts {
  static_assert(ExpertSet<X>,
                "moe::mpi::ShardedExperts: what a rank holds is an ExpertSet; wrap experts in moe::ExpertPool (see "
                "moe/expert/expert_set.hpp)");
  using S = typename X::Scalar;
  using Rows = detail::ShardRows<S>;
  using Lent = typename detail::LentOf<X>::type;

 public:
  using Scalar = S;
  static constexpr bool kPerToken = kIsPerToken<X>;
  static constexpr bool kCollective = true;

  /// What forward leaves for backward, and the working memory of both.
  struct Tape {
    Rows rows;
    std::vector<moe::detail::TapeOf<X>> waves;
    RowBuffer<S> drows;  ///< of the plan
    Lent lent, lent_gradient;
    moe::detail::ViewRows of;
    bool is_whole = false;  ///< whether a forward pass has ended
  };

  /// The experts that this rank holds, in the order of placement.held_by(rank). Collective. Throws
  /// std::invalid_argument on all ranks if they disagree on placement, dimensions or options, a shard does not fit, or
  /// a rank has none.
  ShardedExperts(X shard, Placement placement, C ranks, const ShardOptions& options = {})
      : shard_(std::move(shard)),
        placement_(std::move(placement)),
        held_(placement_.held_by(ranks.rank())),
        options_(options),
        exchange_(checked(ranks), options.exchange, options.ranks_per_node) {
    if (placement_.slices() > 1) slice_ranks_ = ranks.split(ranks.rank() / placement_.slices(), ranks.rank());
  }

  /// The shard of this rank out of all experts, which every rank has. Collective; throws as the constructor, and where
  /// there are fewer experts than ranks and no slices. Names and shapes of all parameters are compared; what is none,
  /// as an activation that is chosen when a program runs, is not.
  static ShardedExperts of(const X& whole, const C& ranks, const ShardOptions& options = {})
    requires TakesExperts<X>
  {
    require_same(ranks, kName, "slices", options.slices);
    return placed(whole, Placement::contiguous(whole.size(), ranks.size(), options.slices), ranks, options);
  }
  /// The same with experts and copies of them where a placement has them. Rows go where holder_for() says: to a copy on
  /// their own rank, else on its node, else to any, in equal shares. Experts that draw have the draws of one process if
  /// they are in an ExpertPool, or those of each rank are consecutive: a set of another kind draws by the places of its
  /// experts, and nobody can run them one by one for it.
  static ShardedExperts placed(const X& whole, const Placement& placement, const C& ranks,
                               const ShardOptions& options = {})
    requires TakesExperts<X>
  {
    require_same(ranks, kName, "the number of experts", whole.size());
    require_same(ranks, kName, "a hash of the placement", placement.hash());
    require_same(ranks, kName, "slices", options.slices);
    if (placement.experts() != whole.size())
      fail(kName, ": the placement is of ", placement.experts(), " experts, expected ", whole.size());
    require_filled(placement);
    std::shared_ptr<const detail::SliceMap> map;
    if constexpr (detail::SplitSet<X>)
      if (placement.slices() > 1)
        map = std::make_shared<detail::SliceMap>(whole[0], placement.slices(), placement.slice_of(ranks.rank()));
    ShardedExperts sharded(shard_of(whole, placement, ranks.rank(), map.get()), placement, ranks, options);
    require_same(ranks, kName, "a hash of the parameters' shapes",
                 static_cast<std::int64_t>(moe::detail::Fingerprint::of(whole)));
    sharded.slice_map_ = std::move(map);
    return sharded;
  }

  Index size() const { return placement_.experts(); }
  Index input_dim() const { return shard_.input_dim(); }
  Index output_dim() const { return shard_.output_dim(); }
  Index row_width() const { return output_dim(); }
  const C& ranks() const { return exchange_.ranks(); }
  const Placement& placement() const { return placement_; }
  const ShardOptions& options() const { return options_; }
  /// What the slices of this rank have of their experts, none where experts are whole or of() has not cut them; and the
  /// ranks that have the other slices, if there are some.
  const detail::SliceMap* slice_map() const { return slice_map_.get(); }
  const std::optional<C>& slice_ranks() const { return slice_ranks_; }
  /// The experts that this rank holds, and their numbers in the layer, ascending.
  X& shard() { return shard_; }
  const X& shard() const { return shard_; }
  std::span<const Index> held() const { return held_; }
  /// Expert e of the layer, which this rank holds.
  auto& held(Index e)
    requires detail::IndexedSet<X>
  {
    return shard_[local_of(e)];
  }
  const auto& held(Index e) const
    requires detail::IndexedSet<X>
  {
    return shard_[local_of(e)];
  }

  /// See ExpertSet; collective. Throws std::invalid_argument where sizes disagree, and on all ranks where they are at
  /// different steps; std::runtime_error as Communicator says.
  void forward(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, RowBuffer<S>& rows) const {
    auto& memory = context.scratch.template get<Memory>();
    run(tokens, plan, context, rows, memory.rows, memory.lent,
        [&](const auto& experts, Index, const auto&... arguments) {
          experts.forward(arguments..., memory.rows.local);
        });
  }
  void forward(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, RowBuffer<S>& rows,
               Tape& tape) const
    requires DifferentiableExpertSet<X>
  {
    tape.is_whole = false;
    tape.of = moe::detail::ViewRows(plan);
    tape.waves.resize(static_cast<std::size_t>(options_.waves));
    run(tokens, plan, context, rows, tape.rows, tape.lent, [&](const auto& experts, Index w, const auto&... arguments) {
      experts.forward(arguments..., tape.rows.local, tape.waves[static_cast<std::size_t>(w)]);
    });
    tape.is_whole = true;
  }

  /// Throws std::invalid_argument unless the tape is that of a forward pass over `plan`, and the gradient another set
  /// of this shape.
  void require_backward(const PlanView& plan, const Tape& tape, const ShardedExperts& gradient) const
    requires DifferentiableExpertSet<X>
  {
    require_backward(plan, tape, NoGradient{});
    if (&gradient == this) fail(kBackward, ": gradient is the set itself, expected one of its own (zeros_like)");
    moe::detail::require_gradient_of(kBackward, "gradient", shard_, gradient.shard_);
  }
  void require_backward(const PlanView& plan, const Tape& tape, NoGradient) const
    requires DifferentiableExpertSet<X>
  {
    moe::detail::require_plan_of(kBackward, *this, plan);
    if (!tape.is_whole) fail(kBackward, ": the tape holds no forward pass that has ended");
    tape.of.require(kBackward, plan);
  }

  /// See DifferentiableExpertSet; collective. `gradient` accumulates what all ranks' tokens give to the experts that
  /// this rank holds.
  void backward(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<S>& dout, ShardedExperts& gradient, MatrixRef<S> dtokens) const
    requires DifferentiableExpertSet<X>
  {
    run_backward(tokens, plan, context, tape, dout, gradient, &dtokens);
  }
  /// The same without dtokens: nothing is sent back. On all ranks, or on none.
  void backward(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<S>& dout, ShardedExperts& gradient) const
    requires SetSkipsTokenGradient<X>
  {
    run_backward(tokens, plan, context, tape, dout, gradient, nullptr);
  }
  /// dtokens alone, as for experts that are frozen: all_reduce_gradient() has nothing to do for them.
  void backward(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<S>& dout, NoGradient none, MatrixRef<S> dtokens) const
    requires SetSkipsGradient<X>
  {
    run_backward(tokens, plan, context, tape, dout, none, &dtokens);
  }

  /// The experts of this rank by their numbers in the layer, so that names are those of the whole: "5.up.weight".
  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if constexpr (detail::kSkipsShards<std::remove_cvref_t<F>>) {
      moe::detail::visitor_of(f).shards(first, rest...);
    } else if constexpr (detail::IndexedSet<X>) {
      for (Index l = 0; l < std::ssize(first.held_); ++l) {
        std::string name = std::to_string(first.held_[static_cast<std::size_t>(l)]);
        if (first.placement_.slices() > 1)
          name += ".slice." + std::to_string(first.placement_.slice_of(first.ranks().rank()));
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
    Lent lent;
    Scratch experts;  ///< apart: among them may be another such set
  };

  static X shard_of(const X& whole, const Placement& placement, Index rank, const detail::SliceMap* map) {
    const std::vector<Index> ids = placement.held_by(rank);
    if (placement.slices() == 1) return whole.take(ids);
    if constexpr (detail::SplitSet<X>) {
      std::vector<std::remove_cvref_t<decltype(whole[0])>> parts;
      for (const Index e : ids) parts.push_back(map->part_of(whole[e], placement.slices()));
      return X(std::move(parts));
    } else {
      fail(kName, ": slices = ", placement.slices(), ", expected 1 of experts that cannot be split (see SplitsExpert)");
    }
  }

  /// Throws std::invalid_argument where a rank has no expert.
  static void require_filled(const Placement& placement) {
    for (Index r = 0; r < placement.ranks(); ++r)
      if (placement.held_by(r).empty())
        fail(kName, ": rank ", r, " has none of ", placement.experts(), " experts over ", placement.ranks(),
             " ranks in ", placement.slices(), " slices each, expected at least one expert for every ",
             placement.slices(), " ranks: more slices, which cut the hidden units, or fewer ranks");
  }

  bool is_consecutive() const { return held_.back() - held_.front() + 1 == std::ssize(held_); }
  /// Whether the draws of experts are those of their numbers in the layer.
  bool draws_alike() const { return !detail::kReadsSteps<X> || is_consecutive() || detail::LentOf<X>::kIsPool; }
  /// Whether they are run by these numbers, and not by their places here.
  bool is_lent() const { return detail::kReadsSteps<X> && detail::LentOf<X>::kIsPool && !is_consecutive(); }

  /// The communicator, where all ranks have come with the same and what fits.
  const C& checked(const C& ranks) const {
    detail::require_same_set(ranks, kName, shard_, placement_, options_.ranks_per_node, options_.exchange);
    require_same(ranks, kName, "waves", options_.waves);
    require_same(ranks, kName, "slices", options_.slices);
    if (options_.waves < 1) fail(kName, ": waves is ", options_.waves, ", expected at least 1");
    if (options_.slices != placement_.slices())
      fail(kName, ": slices is ", options_.slices, ", expected ", placement_.slices(), " as in the placement");
    require_filled(placement_);
    if (placement_.copies() > 0 && (!kPerToken || !detail::IndexedSet<X>))
      fail(kName, ": ", placement_.copies(),
           " copies of experts that look at several rows, or that no number finds, "
           "expected none");
    detail::require_on_all(ranks, kName, shard_.size() == std::ssize(held_),
                           " has a shard of another size than the placement says");
    detail::require_on_all(ranks, kName, draws_alike(),
                           " has experts that draw by their places in a set, expected consecutive ones, or a pool");
    return ranks;
  }

  Index local_of(Index e) const { return std::ranges::lower_bound(held_, e) - held_.begin(); }

  /// f(experts that run rows of this rank's shard).
  template <class F>
  void on_shard(Lent& lent, const F& f) const {
    if constexpr (detail::kReadsSteps<X> && detail::LentOf<X>::kIsPool) {
      if (is_lent()) {
        lent.resize(shard_[0], size());
        for (Index l = 0; l < shard_.size(); ++l) lent.lend(held_[static_cast<std::size_t>(l)], shard_[l]);
        f(lent);
        return;
      }
    }
    f(shard_);
  }
  template <class Gradient, class F>
  void with_gradient(Tape& tape, Gradient& gradient, const F& f) const {
    on_shard(tape.lent, [&](const auto& experts) {
      if constexpr (std::is_same_v<std::remove_const_t<Gradient>, NoGradient>) {
        f(experts, gradient);
      } else if constexpr (std::is_same_v<std::remove_cvref_t<decltype(experts)>, X>) {
        f(experts, gradient.shard_);
      } else {
        tape.lent_gradient.resize(gradient.shard_[0], size());
        for (Index l = 0; l < shard_.size(); ++l)
          tape.lent_gradient.lend_gradient(held_[static_cast<std::size_t>(l)], gradient.shard_[l]);
        f(experts, tape.lent_gradient);
      }
    });
  }

  /// Both forward(); compute(experts, wave, tokens, plan, context) fills pass.local.
  template <class Compute>
  void run(const MatrixView<S>& tokens, const PlanView& plan, const Context& context, RowBuffer<S>& rows, Rows& pass,
           Lent& lent, const Compute& compute) const {
    constexpr const char* kFunction = "moe::mpi::ShardedExperts::forward";
    moe::detail::require_plan_of(kFunction, *this, plan);
    moe::detail::require_plan_rows(kFunction, *this, tokens, plan, "rows", rows);
    const detail::RowsShape shape{.function = kName,
                                  .num_waves = options_.waves,
                                  .inputs = input_dim(),
                                  .outputs = output_dim(),
                                  .width = moe::row_width(shard_),
                                  .reads_steps = detail::kReadsSteps<X>,
                                  .first = is_lent()          ? plan.first_expert()
                                           : is_consecutive() ? plan.first_expert() + held_.front()
                                                              : Index{0},
                                  .count = is_lent() ? size() : shard_.size(),
                                  .numbers = is_lent() ? std::span<const Index>(held_) : std::span<const Index>()};
    Scratch& scratch = context.scratch.template get<Memory>().experts;
    pass.forward(
        exchange_, placement_, topology(), shape, tokens, plan, context.step, rows,
        [&](Index w, const ConstMatrixRef<S>& arrived, const PlanView& part, const Step& step) {
          if (part.num_rows() == 0) return;
          on_shard(lent, [&](const auto& experts) { compute(experts, w, arrived, part, Context{step, scratch}); });
        });
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<S>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                    const RowBuffer<S>& dout, Gradient& gradient, MatrixRef<S>* dtokens) const {
    require_backward(plan, tape, gradient);
    moe::detail::require_plan_rows(kBackward, *this, tokens, plan, "dout", dout);
    if (dtokens != nullptr) moe::detail::require_dtokens(kBackward, *this, tokens, plan, dout, *dtokens);
    Scratch& scratch = context.scratch.template get<Memory>().experts;
    tape.rows.backward(
        exchange_, plan, context.step, dout, dtokens == nullptr ? nullptr : &tape.drows,
        [&](Index w, const ConstMatrixRef<S>& arrived, const PlanView& part, const Step& step, MatrixRef<S> drows) {
          if (part.num_rows() == 0) return;
          const Context own{step, scratch};
          auto& of_wave = tape.waves[static_cast<std::size_t>(w)];
          with_gradient(tape, gradient, [&](const auto& experts, auto& into) {
            if (dtokens != nullptr) {
              experts.backward(arrived, part, own, of_wave, tape.rows.local, into, drows);
              return;
            }
            if constexpr (requires { experts.backward(arrived, part, own, of_wave, tape.rows.local, into); })
              experts.backward(arrived, part, own, of_wave, tape.rows.local, into);
          });
        });
    if (dtokens != nullptr) kernel::combine_unweighted(tape.drows, plan, *dtokens);
  }

  Topology topology() const { return {.ranks = placement_.ranks(), .ranks_per_node = options_.ranks_per_node}; }

  X shard_;
  Placement placement_;
  std::vector<Index> held_;
  ShardOptions options_;
  RowExchange<C> exchange_;
  std::shared_ptr<const detail::SliceMap> slice_map_;
  std::optional<C> slice_ranks_;
};

}  // namespace moe::inline MOE_ABI::mpi
