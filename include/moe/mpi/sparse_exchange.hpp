// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "moe/mpi/communicator.hpp"
#include "moe/mpi/expert_bytes.hpp"
#include "moe/mpi/placement.hpp"

namespace moe::inline MOE_ABI::mpi {

/// SparseAllGather and SparseReduceScatter: what owners have of their experts goes to the other holders of a placement,
/// and what holders have comes back as sums. Each is one exchange, that of the other the other way round, and the two
/// are adjoint. A rank sends and receives the bytes of an expert once for each pair of expert and holder without it.
/// Between start and finish there may be other work; test() lets the exchange go on where nothing else does.
///   exchange.start_gather(ranks, placement, bytes, [&](Index e) -> const Glu& { return own(e); });
///   exchange.finish_gather([&](Index e) -> Glu& { return copy(e); });
/// All ranks must have the same placement. Working memory and an exchange on its way; one per thread, one at a time.
/// Qing et al., "Hecate: Unlocking efficient sparse model training via fully sharded sparse data parallelism"
/// (arXiv:2502.02581).
template <Communicator C>
class SparseExchange {
 public:
  /// Sends the experts that this rank owns, own(e) -> const E&, to their other holders.
  ///   bytes  of an expert, gathered_bytes(), the same of all
  template <class Own>
  void start_gather(const C& ranks, const Placement& placement, Index bytes, const Own& own) {
    prepare("moe::mpi::SparseExchange::start_gather", ranks, placement, bytes, Direction::ToHolders);
    std::byte* to = send_.data();
    for_each_sent([&](Index e) {
      require_bytes("moe::mpi::SparseExchange::start_gather", gathered_bytes(own(e)));
      visit_all(detail::WriteBytes{to}, own(e));
    });
    start(ranks);
  }
  /// Waits, and writes the experts that this rank holds and does not own: held(e) -> E&, of the sizes of the owner's.
  /// Throws std::invalid_argument for others, and unless a gather is on its way; it stays on its way then.
  template <class Held>
  void finish_gather(const Held& held) {
    constexpr const char* kFunction = "moe::mpi::SparseExchange::finish_gather";
    require_started(kFunction, Direction::ToHolders);
    for_each_received([&](Index e, Index) { require_bytes(kFunction, gathered_bytes(std::as_const(held(e)))); });
    request_->wait();
    request_.reset();
    const std::byte* from = received_.data();
    for_each_received([&](Index e, Index) { visit_all(detail::ReadBytes{from}, held(e)); });
  }

  /// Sends the gradients of experts that this rank holds and does not own, held(e) -> const E&, to their owners.
  ///   bytes  of a gradient, reduced_bytes(), the same of all
  template <class Held>
  void start_reduce(const C& ranks, const Placement& placement, Index bytes, const Held& held) {
    prepare("moe::mpi::SparseExchange::start_reduce", ranks, placement, bytes, Direction::ToOwners);
    std::byte* to = send_.data();
    for_each_sent([&](Index e) {
      require_bytes("moe::mpi::SparseExchange::start_reduce", reduced_bytes(held(e)));
      visit(detail::WriteBytes{to}, held(e));
    });
    start(ranks);
  }
  /// Waits, and adds to sum(e) -> E&, for all experts that this rank owns, the gradients of all holders, which are
  /// summed in the order of ranks: g_0 + g_1 + ..., that of this rank, held(e) -> const E&, in its place. The same bits
  /// whenever they come. Where held(e) is sum(e) itself, it becomes the sum. Throws as finish_gather().
  template <class Held, class Sum>
  void finish_reduce(const Held& held, const Sum& sum) {
    constexpr const char* kFunction = "moe::mpi::SparseExchange::finish_reduce";
    require_started(kFunction, Direction::ToOwners);
    for (const Index e : placement_.owned_by(rank_)) {
      require_bytes(kFunction, reduced_bytes(std::as_const(held(e))));
      require_bytes(kFunction, reduced_bytes(std::as_const(sum(e))));
    }
    request_->wait();
    request_.reset();
    blocks_.assign(static_cast<std::size_t>(placement_.experts()), {});
    const std::byte* from = received_.data();
    own_.resize(static_cast<std::size_t>(bytes_));
    for_each_received([&](Index e, Index) {
      blocks_[static_cast<std::size_t>(e)].push_back(from);
      from += bytes_;
    });
    for (const Index e : placement_.owned_by(rank_)) {
      const bool is_itself = &std::as_const(held(e)) == &std::as_const(sum(e));
      if (is_itself && placement_.holders(e).size() == 1) continue;
      std::byte* to = own_.data();
      visit(detail::WriteBytes{to}, held(e));
      auto& blocks = blocks_[static_cast<std::size_t>(e)];
      const auto before = std::ranges::lower_bound(placement_.holders(e), rank_) - placement_.holders(e).begin();
      blocks.insert(blocks.begin() + before, own_.data());
      Index at = 0;
      visit(detail::SumBlocks{blocks, at, !is_itself}, sum(e));
    }
  }

  /// Whether what was started has come; see ExchangeRequest.
  bool test() { return !request_ || request_->test(); }

 private:
  enum class Direction { ToHolders, ToOwners };

  void prepare(const char* function, const C& ranks, const Placement& placement, Index bytes, Direction direction) {
    if (request_) fail(function, ": an exchange is on its way, expected it to be finished first");
    if (placement.ranks() != ranks.size())
      fail(function, ": placement on ", placement.ranks(), " ranks, expected ", ranks.size());
    placement_ = placement;
    rank_ = ranks.rank();
    bytes_ = bytes;
    direction_ = direction;
    send_bytes_.assign(static_cast<std::size_t>(ranks.size()), 0);
    received_bytes_ = send_bytes_;
    for_each(true, [&](Index, Index to) { send_bytes_[static_cast<std::size_t>(to)] += bytes; });
    for_each(false, [&](Index, Index from) { received_bytes_[static_cast<std::size_t>(from)] += bytes; });
    const auto sum = [](const std::vector<Index>& of) {
      return static_cast<std::size_t>(std::accumulate(of.begin(), of.end(), Index{0}));
    };
    send_.resize(sum(send_bytes_));
    received_.resize(sum(received_bytes_));
  }
  void start(const C& ranks) {
    request_.emplace(ranks.start_all_to_all(send_, send_bytes_, received_, received_bytes_));
  }

  void require_started(const char* function, Direction direction) const {
    if (!request_ || direction_ != direction) fail(function, ": nothing is on its way, expected the start before");
  }
  void require_bytes(const char* function, Index bytes) const {
    if (bytes != bytes_) fail(function, ": an expert of ", bytes, " bytes, expected ", bytes_, " as all have");
  }

  /// Calls f(expert, other rank) for all that is sent, or received, in the order of ranks, then of experts.
  template <class F>
  void for_each(bool sent, const F& f) const {
    const bool as_owner = sent == (direction_ == Direction::ToHolders);
    for (Index other = 0; other < placement_.ranks(); ++other) {
      if (other == rank_) continue;
      for (Index e = 0; e < placement_.experts(); ++e)
        if (placement_.owner(e) == (as_owner ? rank_ : other) && placement_.holds(as_owner ? other : rank_, e))
          f(e, other);
    }
  }
  template <class F>
  void for_each_sent(const F& f) const {
    for_each(true, [&](Index e, Index) { f(e); });
  }
  template <class F>
  void for_each_received(const F& f) const {
    for_each(false, f);
  }

  Placement placement_;
  Index rank_ = 0, bytes_ = 0;
  Direction direction_ = Direction::ToHolders;
  std::vector<Index> send_bytes_, received_bytes_;
  std::vector<std::byte> send_, received_, own_;
  std::vector<std::vector<const std::byte*>> blocks_;  // of each expert that is owned, in the order of ranks
  std::optional<typename C::Request> request_;
};

/// start_gather and finish_gather.
template <Communicator C, class Own, class Held>
void sparse_all_gather(const C& ranks, const Placement& placement, Index bytes, const Own& own, const Held& held,
                       SparseExchange<C>& exchange) {
  exchange.start_gather(ranks, placement, bytes, own);
  exchange.finish_gather(held);
}
/// start_reduce and finish_reduce.
template <Communicator C, class Held, class Sum>
void sparse_reduce_scatter(const C& ranks, const Placement& placement, Index bytes, const Held& held, const Sum& sum,
                           SparseExchange<C>& exchange) {
  exchange.start_reduce(ranks, placement, bytes, held);
  exchange.finish_reduce(held, sum);
}

}  // namespace moe::inline MOE_ABI::mpi
