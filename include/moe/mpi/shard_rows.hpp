// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"
#include "moe/expert/pool.hpp"
#include "moe/mpi/dispatch_rule.hpp"
#include "moe/mpi/number_hash.hpp"
#include "moe/mpi/row_exchange.hpp"
#include "moe/routing/plan_view.hpp"

// Long, as who gets which rows, and the way there and back, are read together.
namespace moe::inline MOE_ABI::mpi::detail {

/// Whether experts may read what a step says of their rows, which then travels with these. Panel experts do not.
template <class X>
inline constexpr bool kReadsSteps = true;
template <PanelExpert E>
inline constexpr bool kReadsSteps<ExpertPool<E>> = false;

/// Numbers of step that all ranks must agree on, in one.
inline std::int64_t fingerprint(const Step& step) {
  NumberHash hash;
  for (const std::uint64_t part : {static_cast<std::uint64_t>(step.phase), step.update, step.seed,
                                   std::uint64_t{step.layer}, std::uint64_t{step.pass}})
    hash.add(static_cast<std::int64_t>(part));
  return hash.value();
}

/// What a pass of experts over ranks is made of; the same on all ranks but for the local experts.
struct RowsShape {
  const char* function;  ///< named in errors
  Index num_waves = 1;
  Index inputs = 0, outputs = 0;  ///< columns of rows there and back
  Index width = 0;                ///< columns of rows that local experts write, at least `outputs`
  bool reads_steps = false;       ///< whether ids of tokens travel with their rows
  /// Local expert l is number first + numbers[l] among those of a plan at the experts, first + l where there are no
  /// numbers, and the experts that run it are [first, first + count): draws are keyed by these.
  Index first = 0, count = 0;
  std::span<const Index> numbers = {};
};

/// The rows of a pass on their way to the ranks that hold their experts, there, and back. A wave is an exchange: the
/// rows of some of the experts that each rank holds, all of them if there is one wave. Rows are sent by wave, rank,
/// expert and number, and so an expert reads them by rank and number: in the order of one process whose batch is the
/// ranks' one after the other. Working memory; one per thread. Rows stay where they are from pass to pass; exchanges
/// and lists of them are allocated anew in each.
template <class S>
class ShardRows {
 public:
  /// Rows of one wave at the experts, in the order of its plan: what compute() writes in forward and reads in backward.
  RowBuffer<S> local;

  Index num_sent() const { return num_sent_; }
  Index num_received() const { return num_received_; }

  /// rows[row of plan] = what experts make of its token, slices summed. compute(w, rows, plan, step) fills `local` for
  /// wave w, of which there may be no rows. Collective. Throws std::invalid_argument on all ranks where they are at
  /// different steps, or some have rows with keys and others rows without.
  template <Communicator C, class Compute>
  void forward(const RowExchange<C>& exchange, const Placement& placement, const Topology& topology,
               const RowsShape& shape, const MatrixView<S>& tokens, const PlanView& plan, const Step& step,
               RowBuffer<S>& rows, const Compute& compute) {
    shape_ = shape;
    stride_ = shape.inputs + (shape.reads_steps ? kIdScalars : 0);
    announce(exchange, placement, topology, plan, step);
    shape_.numbers = {};  // of the caller
    pack(
        plan, shape.inputs, [&](Index r) { return tokens.data() + plan.token_of_row(r) * tokens.outerStride(); },
        shape.reads_steps ? &step : nullptr);
    run(exchange, stride_, arrived_, shape.outputs, [&](Index w, Wave& wave) {
      if (shape.reads_steps) read_ids(wave);
      local.resize(wave.plan.num_rows(), shape.width);
      compute(w, arrived_rows(wave), local_plan(wave), step_of(wave, step));
      gather(wave, shape.outputs);
    });
    unpack(plan, shape.outputs, plan.first_row(), rows);
  }

  /// dout to the experts, and where drows, [rows of plan, inputs], are asked for these back. compute(w, rows, plan,
  /// step, drows of the wave) reads `local`; drows are those of the rows as they came. Collective.
  template <Communicator C, class Compute>
  void backward(const RowExchange<C>& exchange, const PlanView& plan, const Step& step, const RowBuffer<S>& dout,
                RowBuffer<S>* drows, const Compute& compute) {
    const Index outputs = shape_.outputs, back = drows == nullptr ? 0 : shape_.inputs;
    pack(
        plan, outputs, [&](Index r) { return dout.row(r); }, nullptr);
    run(exchange, outputs, gradients_, back, [&](Index w, Wave& wave) {
      scatter(wave, outputs);
      compute(w, arrived_rows(wave), local_plan(wave), step_of(wave, step), result_rows(wave, back));
    });
    if (drows == nullptr) return;
    drows->resize(plan.num_rows(), back);
    unpack(plan, back, 0, *drows);
  }

 private:
  enum Keys : Index { kNoRows, kNoKeys, kKeys };
  static constexpr Index kRowsPerTask = 64;
  /// Scalars that hold the id, the group and the key of a token.
  static constexpr Index kIdScalars = static_cast<Index>(3 * sizeof(std::int64_t) / sizeof(S));

  /// What has come for one wave.
  struct Wave {
    RowCounts counts;
    Index first_sent = 0, first_received = 0;  ///< among the rows of all waves
    Routing<S> routing;                        ///< row i of the wave chooses its expert
    DispatchPlan plan;
    std::vector<std::int64_t> token_id, group_id, key;  ///< of the rows
  };

  /// Decides who gets what and tells the others.
  template <Communicator C>
  void announce(const RowExchange<C>& exchange, const Placement& placement, const Topology& topology,
                const PlanView& plan, const Step& step) {
    const Index rank = exchange.ranks().rank(), size = exchange.ranks().size();
    slices_ = placement.slices();
    waves_.resize(static_cast<std::size_t>(shape_.num_waves));
    list_experts(placement);
    choose(plan, placement, topology, rank);
    order(size);
    const Index length = most_local_ + 2;
    headers_.assign(static_cast<std::size_t>(size * length), 0);
    for (Index r = 0; r < size; ++r) {
      const auto to = headers_.begin() + r * length;
      std::copy_n(count_.begin() + r * most_local_, most_local_, to);
      to[most_local_] = plan.num_rows() == 0 ? kNoRows : step.key.empty() ? kNoKeys : kKeys;
      to[most_local_ + 1] = fingerprint(step);
    }
    received_headers_ = exchange.announce(headers_, length, passing_headers_);
    require_one_step(length);
    read_headers(exchange, length);
    for (Index w = 0; w < shape_.num_waves; ++w) build_plan(rank, w);
  }

  /// held_[rank * most_local + l] is local expert l of a rank, place_of_[e] of this one's lists where the holders of
  /// expert e have it.
  void list_experts(const Placement& placement) {
    if (placement == placement_ && !num_held_.empty()) return;
    placement_ = placement;
    num_held_.assign(static_cast<std::size_t>(placement.ranks()), 0);
    local_.assign(static_cast<std::size_t>(placement.experts()), {});
    for (Index e = 0; e < placement.experts(); ++e)
      for (const Index r : placement.holders(e))
        local_[static_cast<std::size_t>(e)].push_back(num_held_[static_cast<std::size_t>(r)]++);
    most_local_ = std::ranges::max(num_held_);
  }
  Index num_held(Index rank) const { return num_held_[static_cast<std::size_t>(rank)]; }

  /// The holder of each slot, as rank * most_local + local number, and how many each holder gets.
  void choose(const PlanView& plan, const Placement& placement, const Topology& topology, Index rank) {
    holder_.clear();
    count_.assign(static_cast<std::size_t>(placement.ranks() * most_local_), 0);
    const auto add = [&](Index e, Index to) {
      const std::span<const Index> holders = placement.holders(e);
      const auto at = std::ranges::lower_bound(holders, to) - holders.begin();
      holder_.push_back(to * most_local_ + local_[static_cast<std::size_t>(e)][static_cast<std::size_t>(at)]);
      ++count_[static_cast<std::size_t>(holder_.back())];
    };
    for (Index e = 0; e < plan.num_experts(); ++e)
      for (Index i = 0; i < plan.rows_of(e); ++i)
        if (slices_ > 1)
          for (const Index slice : placement.holders(e)) add(e, slice);
        else
          add(e, holder_for(placement, topology, rank, e, i));
  }

  Index wave_of(Index rank, Index l) const { return l * std::ssize(waves_) / std::max<Index>(1, num_held(rank)); }

  /// Where each slot is sent from, and how many rows of a wave go to each rank.
  void order(Index size) {
    std::vector<Index> next(count_.size());
    num_sent_ = 0;
    for (Index w = 0; w < std::ssize(waves_); ++w) {
      Wave& wave = waves_[static_cast<std::size_t>(w)];
      wave.first_sent = num_sent_;
      wave.counts.sent.assign(static_cast<std::size_t>(size), 0);
      for (Index r = 0; r < size; ++r)
        for (Index l = 0; l < num_held(r); ++l) {
          if (wave_of(r, l) != w) continue;
          const auto at = static_cast<std::size_t>(r * most_local_ + l);
          next[at] = num_sent_;
          num_sent_ += count_[at];
          wave.counts.sent[static_cast<std::size_t>(r)] += count_[at];
        }
    }
    place_.clear();
    for (const Index h : holder_) place_.push_back(next[static_cast<std::size_t>(h)]++);
  }

  void require_one_step(Index length) {
    Index keys = kNoRows;
    for (Index r = 0; r < std::ssize(received_headers_) / length; ++r) {
      const Index* const header = received_headers_.data() + r * length;
      if (header[most_local_ + 1] != received_headers_[static_cast<std::size_t>(most_local_ + 1)])
        fail(shape_.function, ": rank ", r,
             " is at another step (phase, update, seed, layer or pass), expected that of rank 0");
      if (header[most_local_] == kNoRows) continue;
      if (keys != kNoRows && keys != header[most_local_])
        fail(shape_.function, ": tokens of rank ", r,
             " differ from those of others in having keys, expected a step with keys on all ranks, or on none");
      keys = header[most_local_];
    }
    has_keys_ = keys == kKeys;
  }

  /// From counts by expert to counts by rank.
  template <Communicator C>
  void read_headers(const RowExchange<C>& exchange, Index length) {
    const Index rank = exchange.ranks().rank();
    num_received_ = 0;
    for (Index w = 0; w < std::ssize(waves_); ++w) {
      Wave& wave = waves_[static_cast<std::size_t>(w)];
      const auto rows = [&](const Index* header, Index to) {
        Index sum = 0;
        for (Index l = 0; l < num_held(to); ++l) sum += wave_of(to, l) == w ? header[l] : 0;
        return sum;
      };
      wave.first_received = num_received_;
      wave.counts.received.clear();
      for (Index r = 0; r < exchange.ranks().size(); ++r)
        wave.counts.received.push_back(rows(received_headers_.data() + r * length, rank));
      num_received_ += wave.counts.num_received();
      wave.counts.passing.clear();
      for (Index i = 0; i < std::ssize(passing_headers_) / length; ++i)
        wave.counts.passing.push_back(rows(passing_headers_.data() + i * length, exchange.destination(i)));
    }
  }

  void build_plan(Index rank, Index w) {
    Wave& wave = waves_[static_cast<std::size_t>(w)];
    wave.routing.resize(wave.counts.num_received(), 1);
    Index* chosen = wave.routing.experts().data();
    const Index length = most_local_ + 2;
    for (Index r = 0; r < std::ssize(received_headers_) / length; ++r)
      for (Index l = 0; l < num_held(rank); ++l) {
        if (wave_of(rank, l) != w) continue;
        const Index number = shape_.numbers.empty() ? l : shape_.numbers[static_cast<std::size_t>(l)];
        chosen =
            std::fill_n(chosen, received_headers_[static_cast<std::size_t>(r * length + l)], shape_.first + number);
      }
    wave.plan.build(wave.routing, shape_.first + shape_.count);
  }
  PlanView local_plan(const Wave& wave) const { return PlanView(wave.plan).part(shape_.first, shape_.count); }

  /// `step` for the rows of a wave.
  static Step step_of(const Wave& wave, const Step& step) {
    Step own = step;
    own.valid = {};
    own.token_id = wave.token_id;
    own.group_id = wave.group_id;
    own.key = wave.key;
    return own;
  }

  /// Rows that the local experts read in this wave, without what follows of them.
  auto arrived_rows(const Wave& wave) const {
    return Eigen::Map<const Matrix<S>, 0, Eigen::OuterStride<>>(arrived_.row(0) + wave.first_received * stride_,
                                                                wave.counts.num_received(), shape_.inputs,
                                                                Eigen::OuterStride<>(stride_));
  }
  MatrixRef<S> result_rows(const Wave& wave, Index cols) {
    return Eigen::Map<Matrix<S>>(results_.row(0) + wave.first_received * cols,
                                 cols == 0 ? 0 : wave.counts.num_received(), cols);
  }

  /// Where slot s of a row of the view is among the rows sent: s counts the slices of its expert.
  Index place(Index row, Index s) const { return place_[static_cast<std::size_t>(row * slices_ + s)]; }

  /// sent_ = rows of the view, `cols` scalars each from row(r), where they are sent from; with the ids of their tokens
  /// behind them if asked for.
  template <class Row>
  void pack(const PlanView& plan, Index cols, const Row& row, const Step* ids) {
    const Index stride = cols + (ids ? kIdScalars : 0);
    sent_.resize(1, num_sent_ * stride);
    parallel_ranges(plan.num_rows(), kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index r = begin; r < end; ++r)
        for (Index s = 0; s < slices_; ++s) {
          S* const at = sent_.row(0) + place(r, s) * stride;
          std::copy_n(row(plan.first_row() + r), cols, at);
          if (!ids) continue;
          const Index t = plan.token_of_row(plan.first_row() + r);
          const std::array<std::int64_t, 3> of_token = {ids->id(t), ids->group(t),
                                                        ids->key.empty() ? 0 : ids->key[static_cast<std::size_t>(t)]};
          std::memcpy(at + cols, of_token.data(), sizeof(of_token));
        }
    });
  }

  /// rows[r] = the sum of what the slices of its expert have returned, in their order.
  void unpack(const PlanView& plan, Index cols, Index first_row, RowBuffer<S>& rows) const {
    parallel_ranges(plan.num_rows(), kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index r = begin; r < end; ++r) {
        S* const to = rows.row(first_row + r);
        std::copy_n(returned_.row(0) + place(r, 0) * cols, cols, to);
        for (Index s = 1; s < slices_; ++s) {
          const S* const from = returned_.row(0) + place(r, s) * cols;
          for (Index c = 0; c < cols; ++c) to[c] += from[c];
        }
      }
    });
  }

  /// The ids of a wave's rows from behind them.
  void read_ids(Wave& wave) const {
    const Index count = wave.counts.num_received();
    wave.token_id.clear();
    wave.group_id.clear();
    wave.key.clear();
    for (Index i = 0; i < count; ++i) {
      std::array<std::int64_t, 3> of_token;
      std::memcpy(of_token.data(), arrived_.row(0) + (wave.first_received + i) * stride_ + shape_.inputs,
                  sizeof(of_token));
      wave.token_id.push_back(of_token[0]);
      wave.group_id.push_back(of_token[1]);
      if (has_keys_) wave.key.push_back(of_token[2]);
    }
  }

  /// Gradients as they have come to rows of the wave's plan, with zeros behind them.
  void scatter(const Wave& wave, Index cols) {
    local.resize(wave.plan.num_rows(), shape_.width);
    const auto row_of = wave.plan.row_of_assignment();
    for (Index i = 0; i < local.rows(); ++i) {
      S* const row = local.row(row_of[static_cast<std::size_t>(i)]);
      std::fill(std::copy_n(gradients_.row(0) + (wave.first_received + i) * cols, cols, row), row + local.cols(), S{0});
    }
  }
  void gather(const Wave& wave, Index cols) {
    const auto row_of = wave.plan.row_of_assignment();
    for (Index i = 0; i < local.rows(); ++i)
      std::copy_n(local.row(row_of[static_cast<std::size_t>(i)]), cols,
                  results_.row(0) + (wave.first_received + i) * cols);
  }

  /// The part of a buffer that one wave fills, of so many scalars a row.
  static std::span<std::byte> bytes_of(RowBuffer<S>& buffer, Index first, Index rows, Index cols) {
    return std::as_writable_bytes(
        std::span(buffer.row(0), static_cast<std::size_t>(buffer.cols()))
            .subspan(static_cast<std::size_t>(first * cols), static_cast<std::size_t>(rows * cols)));
  }

  /// sent_, `sent_cols` a row, to where the experts are, `compute` on each wave of it, and results_, of `result_cols`,
  /// if any, back to returned_. While a wave is computed the next are on their way.
  template <Communicator C, class Compute>
  void run(const RowExchange<C>& exchange, Index sent_cols, RowBuffer<S>& received, Index result_cols,
           const Compute& compute) {
    using Pending = typename RowExchange<C>::Pending;
    received.resize(1, num_received_ * sent_cols);
    results_.resize(1, num_received_ * result_cols);
    returned_.resize(1, num_sent_ * result_cols);
    std::vector<Pending> there, back;
    const auto kScalar = static_cast<Index>(sizeof(S));
    for (auto& wave : waves_)
      there.push_back(exchange.start_there(
          wave.counts, sent_cols * kScalar, bytes_of(sent_, wave.first_sent, wave.counts.num_sent(), sent_cols),
          bytes_of(received, wave.first_received, wave.counts.num_received(), sent_cols)));
    for (std::size_t w = 0; w < waves_.size(); ++w) {
      auto& wave = waves_[w];
      there[w].wait();
      for (std::size_t next = w + 1; next < there.size() && there[next].test(); ++next) {
      }
      compute(static_cast<Index>(w), wave);
      if (result_cols == 0) continue;
      back.push_back(
          exchange.start_back(wave.counts, result_cols * kScalar,
                              bytes_of(results_, wave.first_received, wave.counts.num_received(), result_cols),
                              bytes_of(returned_, wave.first_sent, wave.counts.num_sent(), result_cols)));
    }
    for (Pending& pending : back) pending.wait();
  }

  RowsShape shape_{nullptr};
  Placement placement_;  ///< that of the lists
  std::vector<Index> num_held_;
  std::vector<std::vector<Index>> local_;  ///< [experts][holders]: which of the holder's
  std::vector<Wave> waves_;
  /// One row of all rows, as they are sent: to the experts, gradients_ in backward, and from them.
  RowBuffer<S> sent_, arrived_, gradients_, results_, returned_;
  Index most_local_ = 0, slices_ = 1, num_sent_ = 0, num_received_ = 0, stride_ = 0;
  bool has_keys_ = false;
  std::vector<Index> holder_, count_, place_, headers_, received_headers_, passing_headers_;
};

}  // namespace moe::inline MOE_ABI::mpi::detail
