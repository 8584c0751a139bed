// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/mpi/dispatch_rule.hpp"
#include "moe/mpi/row_exchange.hpp"
#include "moe/mpi/shard_rows.hpp"
#include "moe/routing/plan_view.hpp"

namespace moe::inline MOE_ABI::mpi::detail {

/// The rows of a plan at the ranks that hold their experts, and what comes back. There they stand by (rank that they
/// are from, expert, row): sorted by expert, which is stable, those of consecutive parts of a batch are in the order
/// that one process has. Working memory; one per thread.
template <class S>
class RowsOfExperts {
 public:
  /// Collective: says who gets how many, so that all know. Throws std::invalid_argument on all ranks if they are at
  /// different steps, or some have rows with keys and others rows without.
  template <Communicator C>
  void build(const RowExchange<C>& exchange, const Placement& placement, const Topology& topology, const PlanView& plan,
             const Step& step) {
    const C& ranks = exchange.ranks();
    const Index size = ranks.size(), experts = placement.experts(), length = experts + 2;
    header_.assign(static_cast<std::size_t>(size * length), 0);
    for_each_row(plan, placement, topology, ranks.rank(),
                 [&](Index e, Index, Index to) { ++header_[static_cast<std::size_t>(to * length + e)]; });
    const Index keys = plan.num_rows() == 0 ? kNoRows : step.key.empty() ? kNoKeys : kKeys;
    for (Index r = 0; r < size; ++r) {
      header_[static_cast<std::size_t>(r * length + experts)] = keys;
      header_[static_cast<std::size_t>(r * length + experts + 1)] = fingerprint(step);
    }
    const std::vector<Index> received = exchange.announce(header_, length, passing_);
    require_one_step(received, length);
    sum_rows(header_, length, counts_.sent);
    sum_rows(received, length, counts_.received);
    sum_rows(passing_, length, counts_.passing);
    sort_rows(plan, placement, topology, ranks.rank());
    loads_.clear();
    for (Index e = 0; e < experts; ++e) loads_.push_back(plan.rows_of(e));
    first_expert_ = plan.first_expert();
    route(received, length);
  }

  /// Rows of this rank's experts, from all ranks, by expert. Experts have the numbers that they had in the plan.
  PlanView plan() const { return PlanView(plan_).part(first_expert_, plan_.num_experts() - first_expert_); }
  /// Rows that this rank's tokens have for each expert.
  std::span<const Index> loads() const { return loads_; }
  Index num_received() const { return counts_.num_received(); }
  Index num_sent() const { return std::ssize(rows_); }
  /// `step` for the rows received; refers to this object.
  Step step(const Step& of_tokens) const {
    Step own = of_tokens;
    own.valid = {};
    own.token_id = token_id_;
    own.group_id = group_id_;
    own.key = has_keys_ ? std::span<const std::int64_t>(key_) : std::span<const std::int64_t>();
    return own;
  }
  /// Bytes that a row takes there with what a Step says of it, and without.
  static Index bytes_there(Index cols) { return cols * kScalar + kKeyBytes; }
  static Index bytes(Index cols) { return cols * kScalar; }

  /// tokens[token of row] of all rows to the ranks that have their experts: received [num_received, cols].
  template <Communicator C>
  void send_tokens(const RowExchange<C>& exchange, const ConstMatrixRef<S>& tokens, const PlanView& plan,
                   const Step& step, RowBuffer<S>& received) {
    const Index cols = tokens.cols(), unit = bytes_there(cols);
    pack(unit, counts_.num_sent(), [&](Index i, std::byte* to) {
      const Index t = plan.token_of_row(rows_[static_cast<std::size_t>(i)]);
      const std::int64_t keys[] = {step.id(t), step.group(t),
                                   step.key.empty() ? 0 : step.key[static_cast<std::size_t>(t)]};
      std::memcpy(to, keys, sizeof(keys));
      std::memcpy(to + kKeyBytes, tokens.data() + t * tokens.outerStride(), static_cast<std::size_t>(cols * kScalar));
    });
    received_.resize(static_cast<std::size_t>(num_received() * unit));
    exchange.start_there(counts_, unit, send_, received_).wait();
    received.resize(num_received(), cols);
    for (auto* ids : {&token_id_, &group_id_, &key_}) ids->resize(static_cast<std::size_t>(num_received()));
    for (Index i = 0; i < num_received(); ++i) {
      const std::byte* from = received_.data() + i * unit;
      std::int64_t keys[3];
      std::memcpy(keys, from, sizeof(keys));
      const auto at = static_cast<std::size_t>(i);
      token_id_[at] = keys[0], group_id_[at] = keys[1], key_[at] = keys[2];
      std::memcpy(received.row(i), from + kKeyBytes, static_cast<std::size_t>(cols * kScalar));
    }
  }

  /// from[row] of all rows of the plan, the same way: into rows of plan(), [num_received, width >= cols], the columns
  /// behind them 0.
  template <Communicator C>
  void send_rows(const RowExchange<C>& exchange, const RowBuffer<S>& from, Index cols, Index width,
                 RowBuffer<S>& received) {
    pack(bytes(cols), counts_.num_sent(), [&](Index i, std::byte* to) {
      std::memcpy(to, from.row(rows_[static_cast<std::size_t>(i)]), static_cast<std::size_t>(cols * kScalar));
    });
    received_.resize(static_cast<std::size_t>(num_received() * bytes(cols)));
    exchange.start_there(counts_, bytes(cols), send_, received_).wait();
    received.resize(num_received(), width);
    for (Index i = 0; i < num_received(); ++i) {
      S* to = received.row(plan_.row_of_assignment()[static_cast<std::size_t>(i)]);
      std::memcpy(to, received_.data() + i * bytes(cols), static_cast<std::size_t>(cols * kScalar));
      std::fill(to + cols, to + width, S{0});
    }
  }

  /// The other way round: row row_of(i) of `from` for the i-th row received becomes row (its row in the plan - first)
  /// of `to` where it was sent.
  template <Communicator C, class RowOf>
  void send_back(const RowExchange<C>& exchange, const RowBuffer<S>& from, Index cols, const RowOf& row_of, Index first,
                 RowBuffer<S>& to) {
    pack(bytes(cols), num_received(), [&](Index i, std::byte* packed) {
      std::memcpy(packed, from.row(row_of(i)), static_cast<std::size_t>(cols * kScalar));
    });
    received_.resize(rows_.size() * static_cast<std::size_t>(bytes(cols)));
    exchange.start_back(counts_, bytes(cols), send_, received_).wait();
    for (std::size_t i = 0; i < rows_.size(); ++i)
      std::memcpy(to.row(rows_[i] - first), received_.data() + static_cast<Index>(i) * bytes(cols),
                  static_cast<std::size_t>(cols * kScalar));
  }
  /// Row of plan() that the i-th row received has.
  Index row_of(Index i) const { return plan_.row_of_assignment()[static_cast<std::size_t>(i)]; }

 private:
  static constexpr Index kScalar = sizeof(S), kKeyBytes = 3 * sizeof(std::int64_t);
  static constexpr Index kNoRows = 0, kNoKeys = 1, kKeys = 2;  ///< what a rank says of its tokens

  /// Calls f(expert, row, rank) in the order of rows.
  template <class F>
  static void for_each_row(const PlanView& plan, const Placement& placement, const Topology& topology, Index rank,
                           const F& f) {
    for (Index e = 0; e < placement.experts(); ++e)
      for (Index r = plan.offset(e); r < plan.offset(e + 1); ++r)
        f(e, r, holder_for(placement, topology, rank, e, r - plan.offset(e)));
  }
  static void sum_rows(const std::vector<Index>& headers, Index length, std::vector<Index>& counts) {
    counts.clear();
    for (auto at = headers.begin(); at != headers.end(); at += length)
      counts.push_back(std::accumulate(at, at + length - 2, Index{0}));
  }
  void sort_rows(const PlanView& plan, const Placement& placement, const Topology& topology, Index rank) {
    next_.assign(counts_.sent.size(), 0);
    std::exclusive_scan(counts_.sent.begin(), counts_.sent.end(), next_.begin(), Index{0});
    rows_.resize(static_cast<std::size_t>(counts_.num_sent()));
    for_each_row(plan, placement, topology, rank, [&](Index, Index r, Index to) {
      rows_[static_cast<std::size_t>(next_[static_cast<std::size_t>(to)]++)] = r;
    });
  }
  /// Whether there are keys, the same wherever there are rows.
  void require_one_step(const std::vector<Index>& received, Index length) {
    Index keys = kNoRows;
    for (Index r = 0; r < std::ssize(received) / length; ++r) {
      const Index* const last = received.data() + (r + 1) * length;
      if (last[-1] != received[static_cast<std::size_t>(length - 1)])
        fail("moe::mpi::FullyShardedExperts: rank ", r,
             " is at another step (phase, update, seed, layer or pass), expected that of rank 0");
      if (last[-2] == kNoRows) continue;
      if (keys != kNoRows && keys != last[-2])
        fail("moe::mpi::FullyShardedExperts: tokens of rank ", r,
             " differ from those of others in having keys, expected a step with keys on all ranks, or on none");
      keys = last[-2];
    }
    has_keys_ = keys == kKeys;
  }
  /// The plan of what comes here.
  void route(const std::vector<Index>& received, Index length) {
    routing_.resize(num_received(), 1);
    std::size_t row = 0;
    for (auto at = received.begin(); at != received.end(); at += length) {
      for (Index e = 0; e + 2 < length; ++e)
        for (Index i = 0; i < at[e]; ++i) routing_.experts()[row++] = first_expert_ + e;
    }
    std::ranges::fill(routing_.weights(), S{1});
    plan_.build(routing_, first_expert_ + length - 2);
  }
  template <class Pack>
  void pack(Index unit, Index count, const Pack& one) {
    send_.resize(static_cast<std::size_t>(count * unit));
    for (Index i = 0; i < count; ++i) one(i, send_.data() + i * unit);
  }

  RowCounts counts_;
  std::vector<Index> header_, passing_, next_, rows_, loads_;
  Index first_expert_ = 0;
  std::vector<std::byte> send_, received_;
  std::vector<std::int64_t> token_id_, group_id_, key_;
  bool has_keys_ = false;
  Routing<S> routing_;
  DispatchPlan plan_;
};

}  // namespace moe::inline MOE_ABI::mpi::detail
