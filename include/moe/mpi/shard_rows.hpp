// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"
#include "moe/expert/pool.hpp"
#include "moe/mpi/row_exchange.hpp"
#include "moe/mpi/shard_layout.hpp"
#include "moe/routing/plan_view.hpp"

namespace moe::inline MOE_ABI::mpi::detail {

/// Whether experts may read what a step says of their rows, which then travels with these. Panel experts do not.
template <class X>
inline constexpr bool kReadsSteps = true;
template <PanelExpert E>
inline constexpr bool kReadsSteps<ExpertPool<E>> = false;

/// Numbers of step that all ranks must agree on, in one.
inline std::int64_t fingerprint(const Step& step) {
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const std::uint64_t part : {static_cast<std::uint64_t>(step.phase), step.update, step.seed,
                                   std::uint64_t{step.layer}, std::uint64_t{step.pass}})
    hash = (hash ^ part) * 1099511628211u;
  return static_cast<std::int64_t>(hash);
}

/// The rows of a pass on their way to the ranks that hold their experts, and there. A wave is an exchange: the rows of
/// some of the experts that each rank holds, all of them if there is one wave. Rows are sent by wave, rank, expert and
/// number, and so an expert reads them by rank and number: in the order of one process whose batch is the ranks' one
/// after the other. Working memory; one per thread.
template <class S>
class ShardRows {
 public:
  /// What has come for one wave.
  struct Wave {
    RowCounts counts;
    Index first_sent = 0, first_received = 0;  ///< among the rows of all waves
    Routing<S> routing;                        ///< row i of the wave chooses its expert
    DispatchPlan plan;
    std::vector<std::int64_t> token_id, group_id, key;  ///< of the rows
  };

  std::vector<Wave> waves;
  /// One row of all rows, as they are sent: to the experts, `gradients` in backward, and from them.
  RowBuffer<S> sent, arrived, gradients, results, returned;

  Index num_sent() const { return num_sent_; }
  Index num_received() const { return num_received_; }
  Index slices() const { return slices_; }
  /// Where slot s of a row of the view is among the rows sent: s counts the slices of its expert.
  Index place(Index row, Index s) const { return place_[static_cast<std::size_t>(row * slices_ + s)]; }

  /// Decides who gets what and tells the others. Collective. Throws std::invalid_argument on all ranks where they are
  /// at different steps.
  template <Communicator C>
  void announce(const PlanView& plan, const Step& step, const ShardLayout& layout, const RowExchange<C>& exchange,
                Index ranks_per_node, Index num_waves) {
    const Index rank = exchange.ranks().rank(), size = exchange.ranks().size();
    most_local_ = layout.most_local();
    slices_ = layout.slices();
    waves.resize(static_cast<std::size_t>(num_waves));
    choose(plan, layout, rank, ranks_per_node);
    order(layout, size);
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
    read_headers(layout, exchange, length);
  }

  /// The plan of a wave, in which expert l of the rank is number first + l of `num_experts`.
  void build_plan(const ShardLayout& layout, Index rank, Index w, Index first, Index num_experts) {
    Wave& wave = waves[static_cast<std::size_t>(w)];
    wave.routing.resize(wave.counts.num_received(), 1);
    Index* chosen = wave.routing.experts().data();
    const Index length = most_local_ + 2;
    for (Index r = 0; r < std::ssize(received_headers_) / length; ++r)
      for (Index l = 0; l < std::ssize(layout.experts_of(rank)); ++l)
        if (wave_of(layout, rank, l) == w)
          chosen = std::fill_n(chosen, received_headers_[static_cast<std::size_t>(r * length + l)], first + l);
    wave.plan.build(wave.routing, num_experts);
  }

  /// Rows that the local experts read in this wave: `cols` columns, and what follows of them.
  auto arrived_rows(const Wave& wave, Index cols, Index stride) const {
    return Eigen::Map<const Matrix<S>, 0, Eigen::OuterStride<>>(
        arrived.row(0) + wave.first_received * stride, wave.counts.num_received(), cols, Eigen::OuterStride<>(stride));
  }
  auto result_rows(const Wave& wave, Index cols) {
    return Eigen::Map<Matrix<S>, 0, Eigen::OuterStride<>>(results.row(0) + wave.first_received * cols,
                                                          wave.counts.num_received(), cols, Eigen::OuterStride<>(cols));
  }

  /// Scalars that hold the id, the group and the key of a token.
  static constexpr Index kIdScalars = static_cast<Index>(3 * sizeof(std::int64_t) / sizeof(S));

  /// to = rows of the view, `cols` scalars each from row(r), where they are sent from; with the ids of their tokens
  /// behind them if asked for.
  template <class Row>
  void pack(const PlanView& plan, Index cols, const Row& row, const Step* ids, RowBuffer<S>& to) const {
    const Index stride = cols + (ids ? kIdScalars : 0);
    to.resize(1, num_sent_ * stride);
    parallel_ranges(plan.num_rows(), kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index r = begin; r < end; ++r)
        for (Index s = 0; s < slices_; ++s) {
          S* const at = to.row(0) + place(r, s) * stride;
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
        std::copy_n(returned.row(0) + place(r, 0) * cols, cols, to);
        for (Index s = 1; s < slices_; ++s) {
          const S* const from = returned.row(0) + place(r, s) * cols;
          for (Index c = 0; c < cols; ++c) to[c] += from[c];
        }
      }
    });
  }

  /// The ids of a wave's rows from behind them.
  void read_ids(Wave& wave, Index cols) const {
    const Index count = wave.counts.num_received(), stride = cols + kIdScalars;
    wave.token_id.clear();
    wave.group_id.clear();
    wave.key.clear();
    for (Index i = 0; i < count; ++i) {
      std::array<std::int64_t, 3> of_token;
      std::memcpy(of_token.data(), arrived.row(0) + (wave.first_received + i) * stride + cols, sizeof(of_token));
      wave.token_id.push_back(of_token[0]);
      wave.group_id.push_back(of_token[1]);
      if (has_keys_) wave.key.push_back(of_token[2]);
    }
  }

  /// The part of a buffer that one wave fills, of so many scalars a row.
  static std::span<std::byte> bytes_of(RowBuffer<S>& buffer, Index first, Index rows, Index cols) {
    return std::as_writable_bytes(
        std::span(buffer.row(0), static_cast<std::size_t>(buffer.cols()))
            .subspan(static_cast<std::size_t>(first * cols), static_cast<std::size_t>(rows * cols)));
  }

  static constexpr Index kRowsPerTask = 64;

 private:
  enum Keys : Index { kNoRows, kNoKeys, kKeys };

  /// The holder of each slot, as rank * most_local + local number, and how many each holder gets.
  void choose(const PlanView& plan, const ShardLayout& layout, Index rank, Index ranks_per_node) {
    holder_.clear();
    count_.assign(static_cast<std::size_t>(layout.num_ranks() * most_local_), 0);
    const auto add = [&](const ShardLayout::Holder& h) {
      holder_.push_back(h.rank * most_local_ + h.local);
      ++count_[static_cast<std::size_t>(holder_.back())];
    };
    for (Index e = 0; e < plan.num_experts(); ++e)
      for (Index i = 0; i < plan.rows_of(e); ++i)
        if (layout.is_contiguous())
          for (const auto& slice : layout.holders(e)) add(slice);
        else
          add(layout.copy_for(e, rank, ranks_per_node, i));
  }

  Index wave_of(const ShardLayout& layout, Index rank, Index local) const {
    return local * std::ssize(waves) / std::max<Index>(1, std::ssize(layout.experts_of(rank)));
  }

  /// Where each slot is sent from, and how many rows of a wave go to each rank.
  void order(const ShardLayout& layout, Index size) {
    std::vector<Index> next(count_.size());
    num_sent_ = 0;
    for (Index w = 0; w < std::ssize(waves); ++w) {
      Wave& wave = waves[static_cast<std::size_t>(w)];
      wave.first_sent = num_sent_;
      wave.counts.sent.assign(static_cast<std::size_t>(size), 0);
      for (Index r = 0; r < size; ++r)
        for (Index l = 0; l < std::ssize(layout.experts_of(r)); ++l) {
          if (wave_of(layout, r, l) != w) continue;
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
        fail("moe::mpi::ShardedExperts: rank ", r,
             " is at another step (phase, update, seed, layer or pass), expected that of rank 0");
      if (header[most_local_] == kNoRows) continue;
      if (keys != kNoRows && keys != header[most_local_])
        fail("moe::mpi::ShardedExperts: tokens of rank ", r,
             " differ from those of others in having keys, expected a step with keys on all ranks, or on none");
      keys = header[most_local_];
    }
    has_keys_ = keys == kKeys;
  }

  /// From counts by expert to counts by rank.
  template <Communicator C>
  void read_headers(const ShardLayout& layout, const RowExchange<C>& exchange, Index length) {
    const Index rank = exchange.ranks().rank();
    num_received_ = 0;
    for (Index w = 0; w < std::ssize(waves); ++w) {
      Wave& wave = waves[static_cast<std::size_t>(w)];
      const auto rows = [&](const Index* header, Index to) {
        Index sum = 0;
        for (Index l = 0; l < std::ssize(layout.experts_of(to)); ++l)
          sum += wave_of(layout, to, l) == w ? header[l] : 0;
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

  Index most_local_ = 0, slices_ = 1, num_sent_ = 0, num_received_ = 0;
  bool has_keys_ = false;
  std::vector<Index> holder_, count_, place_, headers_, received_headers_, passing_headers_;
};

}  // namespace moe::inline MOE_ABI::mpi::detail
