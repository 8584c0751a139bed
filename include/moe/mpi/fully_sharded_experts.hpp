// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/same_parameters.hpp"
#include "moe/expert/checks.hpp"
#include "moe/expert/lent_experts.hpp"
#include "moe/expert/pool.hpp"
#include "moe/kernel/combine.hpp"
#include "moe/mpi/materialise.hpp"
#include "moe/mpi/shard_rows.hpp"
#include "moe/mpi/sharded_experts.hpp"
#include "moe/mpi/sparse_exchange.hpp"

// Long, as forward, backward and moving shards share the experts that are lent.
namespace moe::inline MOE_ABI::mpi {

/// What becomes of copies of experts between forward and backward: they stay, or are dropped and gathered once more,
/// which takes no memory in between, and the same bits come out.
enum class CopiesForBackward { Kept, GatheredAgain };

struct FullyShardedOptions {
  Exchange exchange = Exchange::Flat;  ///< of rows
  Index ranks_per_node = 0;            ///< 0: all ranks are on one node
  CopiesForBackward copies = CopiesForBackward::Kept;
};

/// Fully sharded sparse data parallelism: an ExpertSet whose experts are spread over ranks, one owner each, which keeps
/// parameters, gradient and the state of the optimiser, and of which the busy ones come to other ranks for an
/// iteration:
///   moe::MoeLayer layer(router, gate, moe::mpi::FullyShardedExperts(ranks, pool, Placement::contiguous(8, p)));
///   layer.forward(tokens of this rank, step, out, tape);      // experts to holders, rows to experts, results back
///   layer.backward(tokens, tape, dout, gradient, dtokens);    // gradients of holders are summed at the owner
///   adam.step(layer, gradient, state, rate);                  // of what this rank owns
///   experts.materialise(moe::mpi::materialise(...));          // for the loads to come
/// A copy takes no part in anything but forward and backward: visit names what is owned, by numbers among all. Rows go
/// where holder_for() says. Outputs and gradients of tokens have the bits of one process with all experts, wherever
/// these are held; gradients of experts, which are sums of those of holders in the order of ranks, differ by rounding
/// where an expert has several. Gradients of what all ranks have (router, gate) are those of a rank's own tokens, and
/// to be summed before a step: all_reduce_gradient(ranks, gradient). Experts that draw find the ids of their rows.
///   Bytes of a rank: to each other one 8 (m + 2), m the most experts that a rank holds; per row there d_in scalars,
///   and 24 bytes unless experts are panel experts, back d_out scalars; in backward per row d_out there, d_in back if
///   somebody asks for dtokens; per copy gathered_bytes(), again where it is GatheredAgain, and reduced_bytes().
/// Exchanges allocate in every pass. Tokens may be none. All ranks must call the same functions in the same order, see
/// Communicator. One per rank; not thread-safe, as the communicator is not. Qing et al., "Hecate: Unlocking efficient
/// sparse model training via fully sharded sparse data parallelism" (arXiv:2502.02581).
template <class E, Communicator C>
class FullyShardedExperts {
 public:
  using Scalar = typename E::Scalar;
  static constexpr bool kPerToken = kIsPerToken<E>;
  static constexpr bool kCollective = true;

 private:
  /// Experts that this rank holds for a while, gathered for a placement.
  struct Held {
    std::shared_ptr<const E> of;  ///< what the copies are shaped as
    Placement placement;
    std::vector<E> copies;  ///< of experts of others, ascending
    moe::detail::LentExperts<E> pool;
    SparseExchange<C> exchange;
    bool is_on_its_way = false;
    bool is_stale = false;  ///< what is on its way, as a pass has thrown since: parameters may have changed
  };
  /// Working memory of a pass.
  struct Pass {
    Held held;
    detail::ShardRows<Scalar> rows;
    std::vector<Index> loads;  ///< rows of this rank's tokens for each expert
    Scratch experts;           ///< apart: among them may be another such set
  };

 public:
  /// The experts that a rank owns, under the numbers that they have among all.
  struct Shard {
    std::vector<Index> ids;  ///< ascending
    std::vector<E> experts;

    template <class F, class First, class... Rest>
    static void visit(F&& f, First& first, Rest&... rest) {
      if (((rest.ids != first.ids) || ...))
        fail("moe::mpi::FullyShardedExperts::visit: the sets have different owners");
      for (std::size_t i = 0; i < first.ids.size(); ++i)
        visit_part(f, std::to_string(first.ids[i]), first.experts[i], rest.experts[i]...);
    }
  };

  /// What forward leaves for backward, and the working memory of both.
  class Tape : Pass {
    friend class FullyShardedExperts;

    typename moe::detail::LentExperts<E>::Tape experts_tape;
    RowBuffer<Scalar> drows;
    std::shared_ptr<const E> gradients_of;  ///< what these are shaped as
    std::vector<E> gradients;  ///< of experts with several holders, as the copies; the last one is nobody's
    moe::detail::LentExperts<E> gradient_pool;
    SparseExchange<C> reduction;
    moe::detail::ViewRows of;
    bool is_whole = false;  ///< whether a forward pass has ended
  };

  /// Of a pool that all ranks have alike, the experts that `shards` says this one owns. Collective. Throws
  /// std::invalid_argument for shards of other experts or ranks, with copies, or that differ between ranks, for nodes
  /// that do not divide them, and for experts that differ in what they are made of.
  FullyShardedExperts(const C& ranks, const ExpertPool<E>& all, const Placement& shards,
                      FullyShardedOptions options = {})
      : topology_{.ranks = ranks.size(), .ranks_per_node = options.ranks_per_node},
        exchange_(require_same_options(ranks, all, shards, options), options.exchange, require_topology(topology_)),
        copies_(options.copies),
        prototype_(std::make_shared<const E>(zeros_like(all[0]))),
        gathered_bytes_(gathered_bytes(all[0])),
        reduced_bytes_(reduced_bytes(all[0])) {
    constexpr const char* kFunction = "moe::mpi::FullyShardedExperts";
    for (Index e = 1; e < all.size(); ++e)
      moe::detail::require_same_parameters(kFunction, "an expert of the pool", all[0], all[e]);
    require_same(this->ranks(), kFunction, "a hash of the sizes of experts",
                 static_cast<std::int64_t>(moe::detail::Fingerprint::of(all[0])));
    own(shards, [&](Index e) -> const E& { return all[e]; });
  }

  Index size() const { return placement_.experts(); }
  Index input_dim() const { return prototype_->input_dim(); }
  Index output_dim() const { return prototype_->output_dim(); }
  Index row_width() const { return output_dim(); }
  const C& ranks() const { return exchange_.ranks(); }
  const Topology& topology() const { return topology_; }
  /// Owners, and holders of the passes to come.
  const Placement& placement() const { return placement_; }
  /// An expert that this rank owns.
  E& owned(Index e) { return shard_.experts[local_[static_cast<std::size_t>(e)]]; }
  const E& owned(Index e) const { return shard_.experts[local_[static_cast<std::size_t>(e)]]; }
  const Shard& shard() const { return shard_; }

  /// Who holds what from the next forward pass on. Collective. Throws std::invalid_argument for other owners, and
  /// placements that differ between ranks, and for copies of experts that are not kPerToken: each holder would look at
  /// the rows that came to it.
  void materialise(const Placement& placement) {
    constexpr const char* kFunction = "moe::mpi::FullyShardedExperts::materialise";
    if (placement.slices() != 1)
      fail(kFunction, ": a placement of ", placement.slices(), " slices of each expert, expected whole ones");
    if (!kPerToken && placement.copies() != 0)
      fail(kFunction, ": ", placement.copies(), " copies of experts that look at several rows, expected none");
    if (placement.shards() != placement_.shards())
      fail(kFunction, ": a placement of other experts, ranks or owners, expected those of this set");
    require_same(ranks(), kFunction, "a hash of the placement", placement.hash());
    placement_ = placement;
  }

  /// Starts to gather experts for the forward pass that `tape` will have, which else does so itself: what is computed
  /// before it then takes place in the meantime. Parameters must stay as they are until then; after materialise() or
  /// reshard() what was gathered is dropped, and forward gathers anew. What the tape held of a pass before is gone.
  /// Collective.
  void start_gather(Tape& tape) const {
    tape.is_whole = false;
    start_gather(tape.held, placement_);
  }

  /// Rows that the tokens of all ranks had for each expert in the forward pass of `tape`. Collective.
  std::vector<Index> loads(const Tape& tape) const {
    std::vector<Index> loads = tape.loads;
    all_reduce<Index>(ranks(), loads);
    return loads;
  }

  /// See ExpertSet. Collective. Throws std::invalid_argument if sizes disagree, and on all ranks where they are at
  /// different steps.
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context,
               RowBuffer<Scalar>& rows) const {
    auto& pass = context.scratch.get<Pass>();
    run(tokens, plan, context.step, pass, rows,
        [&](const auto&... arguments) { pass.held.pool.forward(arguments..., pass.rows.local); });
  }
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, RowBuffer<Scalar>& rows,
               Tape& tape) const
    requires DifferentiableExpert<E>
  {
    tape.is_whole = false;
    tape.of = moe::detail::ViewRows(plan);
    run(tokens, plan, context.step, tape, rows,
        [&](const auto&... arguments) { tape.held.pool.forward(arguments..., tape.rows.local, tape.experts_tape); });
    if (copies_ == CopiesForBackward::GatheredAgain) tape.held.copies = {};
    tape.is_whole = true;
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass over the rows of `plan`, and `gradient` is another
  /// set with the same owners. Says nothing of other ranks.
  void require_backward(const PlanView& plan, const Tape& tape, const FullyShardedExperts& gradient) const
    requires DifferentiableExpert<E>
  {
    require_backward(plan, tape, NoGradient{});
    constexpr const char* kFunction = kBackward;
    if (&gradient == this) fail(kFunction, ": gradient is the set itself, expected one of its own (zeros_like)");
    if (gradient.placement_.shards() != tape.held.placement.shards() || gradient.shard_.ids != shard_.ids)
      fail(kFunction, ": gradient is of other owners, expected those of the forward pass");
    for (std::size_t i = 0; i < shard_.ids.size(); ++i)
      moe::detail::require_gradient_of(kFunction, "gradient", shard_.experts[i], gradient.shard_.experts[i]);
  }
  void require_backward(const PlanView& plan, const Tape& tape, NoGradient) const
    requires DifferentiableExpert<E>
  {
    if (!tape.is_whole) fail(kBackward, ": the tape holds no forward pass that has ended");
    if (tape.rows.num_sent() != plan.num_rows() || std::ssize(tape.loads) != size())
      fail(kBackward, ": the tape is of ", tape.rows.num_sent(), " rows and ", tape.loads.size(), " experts, expected ",
           plan.num_rows(), " and ", size());
    tape.of.require(kBackward, plan);
  }
  /// See DifferentiableExpertSet. Collective: the gradients of all holders are in that of the owner when it returns.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, FullyShardedExperts& gradient, MatrixRef<Scalar> dtokens) const
    requires DifferentiableExpert<E>
  {
    run_backward(tokens, plan, context.step, tape, dout, gradient, &dtokens);
  }
  /// The same without dtokens, which are neither computed nor sent.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, FullyShardedExperts& gradient) const
    requires(DifferentiableExpert<E> && (PanelExpert<E> || SkipsRowGradient<E>))
  {
    run_backward(tokens, plan, context.step, tape, dout, gradient, nullptr);
  }
  /// dtokens alone, as for experts that are frozen: no gradients go to owners.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, NoGradient none, MatrixRef<Scalar> dtokens) const
    requires(DifferentiableExpert<E> && (PanelExpert<E> || SkipsGradient<E>))
  {
    run_backward(tokens, plan, context.step, tape, dout, none, &dtokens);
  }

  /// All experts, on one rank, and none on the others, or on every rank where rank = -1. Collective.
  std::optional<ExpertPool<E>> gathered(Index rank = -1) const {
    Placement wanted = placement_.shards();
    for (Index e = 0; e < size(); ++e)
      for (Index r = 0; r < topology_.ranks; ++r)
        if (rank < 0 || rank == r) wanted.add(e, r);
    Held all;
    start_gather(all, wanted);
    finish_gather(all);
    if (rank >= 0 && rank != ranks().rank()) return std::nullopt;
    std::vector<E> experts;
    for (Index e = 0; e < size(); ++e) experts.push_back(std::as_const(all.pool)[e]);
    return ExpertPool<E>(std::move(experts));
  }

  /// Moves experts to other owners, see heterogeneous_sharding(); copies are none then. The same is to be done with
  /// gradients and with what an optimiser keeps of a layer (state.first, state.second of AdamW). Collective. Throws
  /// std::invalid_argument for shards of other experts or ranks, with copies, or that differ between ranks.
  void reshard(const Placement& shards) {
    constexpr const char* kFunction = "moe::mpi::FullyShardedExperts::reshard";
    require_shards(kFunction, shards, size(), topology_.ranks);
    require_same(ranks(), kFunction, "a hash of the shards", shards.hash());
    Placement both = placement_.shards();
    for (Index e = 0; e < size(); ++e) both.add(e, shards.owner(e));
    Held moved;
    start_gather(moved, both);
    finish_gather(moved);
    const Shard before = std::exchange(shard_, {});  // what the pool was lent stays where it is
    own(shards, [&](Index e) -> const E& { return std::as_const(moved.pool)[e]; });
  }

  /// The shard alone.
  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if constexpr (detail::kSkipsShards<std::remove_cvref_t<F>>)
      moe::detail::visitor_of(f).shards(first, rest...);
    else
      moe::visit(f, first.shard_, rest.shard_...);
  }

 private:
  static constexpr const char* kBackward = "moe::mpi::FullyShardedExperts::backward";

  static const C& require_same_options(const C& ranks, const ExpertPool<E>& all, const Placement& shards,
                                       const FullyShardedOptions& options) {
    constexpr const char* kFunction = "moe::mpi::FullyShardedExperts";
    require_shards(kFunction, shards, all.size(), ranks.size());
    detail::require_same_set(ranks, kFunction, all, shards, options.ranks_per_node, options.exchange);
    require_same(ranks, kFunction, "what becomes of copies", static_cast<std::int64_t>(options.copies));
    return ranks;
  }
  static void require_shards(const char* function, const Placement& shards, Index experts, Index ranks) {
    if (shards.experts() != experts || shards.ranks() != ranks || shards.copies() != 0 || shards.slices() != 1)
      fail(function, ": shards of ", shards.experts(), " experts on ", shards.ranks(), " ranks with ", shards.copies(),
           " copies in ", shards.slices(), " slices, expected ", experts, " experts, ", ranks,
           " ranks, no copies, 1 slice");
  }
  static Index require_topology(const Topology& topology) {
    topology.validate("moe::mpi::FullyShardedExperts");
    return topology.per_node();
  }

  template <class Of>
  void own(const Placement& shards, const Of& of) {
    Shard shard{shards.owned_by(ranks().rank()), {}};
    placement_ = shards;
    local_.assign(static_cast<std::size_t>(size()), 0);
    for (const Index e : shard.ids) {
      local_[static_cast<std::size_t>(e)] = shard.experts.size();
      shard.experts.push_back(of(e));
    }
    shard_ = std::move(shard);
  }
  bool owns(const Placement& placement, Index e) const { return placement.owner(e) == ranks().rank(); }

  void start_gather(Held& held, const Placement& placement) const {
    if (held.is_on_its_way) {
      if (!held.is_stale && held.of == prototype_ && held.placement == placement) return;
      E nobody = *held.of;
      held.exchange.finish_gather([&](Index) -> E& { return nobody; });
      held.is_on_its_way = false;
    }
    if (held.of != prototype_) held.copies.clear();  // those of a set with other sizes
    held.of = prototype_;
    held.placement = placement;
    held.is_stale = false;
    held.exchange.start_gather(ranks(), placement, gathered_bytes_, [&](Index e) -> const E& { return owned(e); });
    held.is_on_its_way = true;
  }
  /// Afterwards the pool has all experts that this rank holds.
  void finish_gather(Held& held) const {
    held.is_on_its_way = false;
    const std::vector<Index> ids = held.placement.held_by(ranks().rank());
    held.pool.resize(*prototype_, size());
    std::size_t copies = 0;
    for (const Index e : ids) copies += owns(held.placement, e) ? 0 : 1;
    if (held.copies.size() < copies) held.copies.resize(copies, *prototype_);
    auto copy = held.copies.begin();
    for (const Index e : ids) held.pool.lend(e, owns(held.placement, e) ? owned(e) : *copy++);
    held.exchange.finish_gather([&](Index e) -> E& { return const_cast<E&>(std::as_const(held.pool)[e]); });
  }

  /// Both forward(); compute(rows, plan, context) fills pass.rows.local with what the pool that is held makes of rows.
  template <class Compute>
  void run(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const Step& step, Pass& pass,
           RowBuffer<Scalar>& rows, const Compute& compute) const {
    constexpr const char* kFunction = "moe::mpi::FullyShardedExperts::forward";
    moe::detail::require_plan_of(kFunction, *this, plan);
    moe::detail::require_plan_rows(kFunction, *this, tokens, plan, "rows", rows);
    pass.loads.clear();
    for (Index e = 0; e < size(); ++e) pass.loads.push_back(plan.rows_of(e));
    pass.held.pool.resize(*prototype_, size());
    const std::vector<Index> held = placement_.held_by(ranks().rank());
    start_gather(pass.held, placement_);
    try {
      pass.rows.forward(exchange_, placement_, topology_,
                        {.function = "moe::mpi::FullyShardedExperts",
                         .inputs = input_dim(),
                         .outputs = output_dim(),
                         .width = pass.held.pool.row_width(),
                         .reads_steps = detail::kReadsSteps<ExpertPool<E>>,
                         .first = plan.first_expert(),
                         .count = size(),
                         .numbers = held},
                        tokens, plan, step, rows,
                        [&](Index, const ConstMatrixRef<Scalar>& arrived, const PlanView& part, const Step& own) {
                          finish_gather(pass.held);
                          compute(arrived, part, Context{own, pass.experts});
                        });
    } catch (...) {
      pass.held.is_stale = true;
      throw;
    }
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const Step& step, Tape& tape,
                    const RowBuffer<Scalar>& dout, Gradient& gradient, MatrixRef<Scalar>* dtokens) const {
    constexpr bool kLearns = !std::is_same_v<std::remove_const_t<Gradient>, NoGradient>;
    require_backward(plan, tape, gradient);
    moe::detail::require_plan_rows(kBackward, *this, tokens, plan, "dout", dout);
    if (dtokens != nullptr) moe::detail::require_dtokens(kBackward, *this, tokens, plan, dout, *dtokens);
    const bool again = copies_ == CopiesForBackward::GatheredAgain;
    if (again) start_gather(tape.held, Placement(tape.held.placement));
    tape.rows.backward(
        exchange_, plan, step, dout, dtokens == nullptr ? nullptr : &tape.drows,
        [&](Index, const ConstMatrixRef<Scalar>& arrived, const PlanView& part, const Step& of_rows,
            MatrixRef<Scalar> drows) {
          if (again) finish_gather(tape.held);
          for (const Index e : shard_.ids) tape.held.pool.lend(e, owned(e));  // this set may have moved since
          const Context own{of_rows, tape.experts};
          const auto run = [&](auto& into) {
            if (dtokens != nullptr) {
              tape.held.pool.backward(arrived, part, own, tape.experts_tape, tape.rows.local, into, drows);
              return;
            }
            if constexpr (requires {
                            tape.held.pool.backward(arrived, part, own, tape.experts_tape, tape.rows.local, into);
                          })
              tape.held.pool.backward(arrived, part, own, tape.experts_tape, tape.rows.local, into);
          };
          if constexpr (kLearns) {
            lend_gradients(tape, gradient);
            run(tape.gradient_pool);
            tape.reduction.start_reduce(ranks(), tape.held.placement, reduced_bytes_, held_gradients(tape));
          } else {
            run(gradient);
          }
        });
    if (dtokens != nullptr) kernel::combine_unweighted(tape.drows, plan, *dtokens);
    if constexpr (kLearns)
      tape.reduction.finish_reduce(held_gradients(tape), [&](Index e) -> E& { return gradient.owned(e); });
    if (again) tape.held.copies = {};
  }

  static auto held_gradients(const Tape& tape) {
    return [&tape](Index e) -> const E& { return tape.gradient_pool[e]; };
  }

  /// Where the gradients of experts are summed up here: at once where nobody else holds the expert.
  void lend_gradients(Tape& tape, FullyShardedExperts& gradient) const {
    const Placement& placement = tape.held.placement;
    std::size_t shared = 0;
    for (Index e = 0; e < size(); ++e) shared += is_shared(placement, e) ? 1 : 0;
    if (tape.gradients_of != prototype_) tape.gradients.clear();
    tape.gradients_of = prototype_;
    if (tape.gradients.size() < shared + 1) tape.gradients.resize(shared + 1, *prototype_);
    auto own = tape.gradients.begin();
    tape.gradient_pool.resize(*prototype_, size());
    for (Index e = 0; e < size(); ++e) {
      if (is_shared(placement, e)) {
        set_zero(*own);
        tape.gradient_pool.lend_gradient(e, *own++);
      } else {
        tape.gradient_pool.lend_gradient(e, owns(placement, e) ? gradient.owned(e) : tape.gradients.back());
      }
    }
  }
  bool is_shared(const Placement& placement, Index e) const {
    return placement.holders(e).size() > 1 && placement.holds(ranks().rank(), e);
  }

  Topology topology_;
  RowExchange<C> exchange_;
  CopiesForBackward copies_;
  std::shared_ptr<const E> prototype_;
  Index gathered_bytes_, reduced_bytes_;
  Placement placement_;
  std::vector<std::size_t> local_;  // [experts]: which of the shard, where it is owned
  Shard shard_;
};

/// The gradient of a shard is whole after backward: nothing to do, see all_reduce_gradient().
template <class E, Communicator C>
void sum_shards(FullyShardedExperts<E, C>&) {}

}  // namespace moe::inline MOE_ABI::mpi
