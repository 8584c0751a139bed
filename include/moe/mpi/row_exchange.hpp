// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "moe/mpi/collectives.hpp"

namespace moe::inline MOE_ABI::mpi {

/// How the ranks exchange rows. Flat: each sends to each, p - 1 messages. Hierarchical, of G ranks per node: first to
/// those of the own node, of which each collects what goes to its place on every node, then among the ranks of one
/// place: G - 1 + p / G - 1 messages, of twice the bytes in all, of which no more leave the node than before.
/// Rajbhandari et al., "DeepSpeed-MoE", ICML 2022, section 5.3 (arXiv:2201.05596).
enum class Exchange { Flat, Hierarchical };

namespace detail {

/// Turns blocks [a][b] into [b][a]; size(a, b) units of `unit` bytes each.
template <class Size>
void transpose_blocks(const std::byte* from, Index a_count, Index b_count, const Size& size, Index unit,
                      std::byte* to) {
  std::vector<Index> offset(static_cast<std::size_t>(a_count * b_count));
  Index end = 0;
  for (Index a = 0; a < a_count; ++a)
    for (Index b = 0; b < b_count; ++b) {
      offset[static_cast<std::size_t>(a * b_count + b)] = end;
      end += size(a, b) * unit;
    }
  for (Index b = 0; b < b_count; ++b)
    for (Index a = 0; a < a_count; ++a) {
      const Index bytes = size(a, b) * unit;
      if (bytes > 0)
        std::memcpy(to, from + offset[static_cast<std::size_t>(a * b_count + b)], static_cast<std::size_t>(bytes));
      to += bytes;
    }
}

/// How many rows go between which ranks in one exchange, as one rank sees it.
struct RowCounts {
  std::vector<Index> sent, received;  ///< [size], to and from each rank
  /// [ranks per node][nodes]: from each rank of the node to this one's place on each node; what passes through here.
  /// Empty where exchanges are flat.
  std::vector<Index> passing;

  Index num_sent() const { return sum(sent); }
  Index num_received() const { return sum(received); }

 private:
  static Index sum(const std::vector<Index>& counts) {
    Index total = 0;
    for (const Index c : counts) total += c;
    return total;
  }
};

}  // namespace detail

/// Rows to the ranks that want them and results back, each way the mirror image of the other: <there(x), y> = <x,
/// back(y)>. Exchanges of both directions are started in one order on all ranks, and go on in it when they are looked
/// at. One per rank; copies are the same.
template <Communicator C>
class RowExchange {
 public:
  /// Collective. Throws std::invalid_argument unless the ranks of a node divide all.
  RowExchange(C ranks, Exchange exchange, Index ranks_per_node) : there_(std::move(ranks)), back_(there_) {
    const Index size = there_.size(), rank = there_.rank();
    if (ranks_per_node < 1 || size % ranks_per_node != 0)
      fail("moe::mpi::RowExchange: ranks_per_node is ", ranks_per_node, ", expected a divisor of the ", size, " ranks");
    if (exchange == Exchange::Flat || ranks_per_node == 1 || ranks_per_node == size) return;
    const auto pair = [&] {
      return std::pair(there_.split(rank / ranks_per_node, rank), there_.split(rank % ranks_per_node, rank));
    };
    levels_there_ = pair();
    levels_back_ = pair();
  }

  const C& ranks() const { return there_; }
  bool is_flat() const { return !levels_there_; }
  /// Of block i of what passes through here, see announce().
  Index destination(Index i) const {
    const auto& [node, across] = *levels_there_;
    return i % across.size() * node.size() + node.rank();
  }

  /// An exchange on its way. The memory that it was started with must stay, and all must end in the order of starting.
  class Pending {
   public:
    bool test() {
      if (!first_.test()) return false;
      if (second_ == nullptr) return true;
      start_second();
      if (!request_->test()) return false;
      finish();
      return true;
    }
    void wait() {
      first_.wait();
      if (second_ == nullptr) return;
      start_second();
      request_->wait();
      finish();
    }

   private:
    friend class RowExchange;
    explicit Pending(typename C::Request first) : first_(std::move(first)) {}

    void start_second() {
      if (request_) return;
      const auto& passing = counts_->passing;
      const Index from = std::ssize(first_bytes_);  // blocks lie by the ranks of the first level
      const Index to = second_->size();
      const auto size = [&](Index a, Index b) {
        return passing[static_cast<std::size_t>(is_there_ ? a * to + b : b * from + a)];
      };
      middle_.resize(arrived_.size());
      detail::transpose_blocks(arrived_.data(), from, to, size, unit_, middle_.data());
      std::vector<Index> bytes;
      for (Index b = 0; b < to; ++b) {
        bytes.push_back(0);
        for (Index a = 0; a < from; ++a) bytes.back() += size(a, b) * unit_;
      }
      request_ = second_->start_all_to_all(middle_, bytes, is_there_ ? result_ : std::span(last_), second_bytes_);
    }
    /// Results come by the place on the node, and go by rank.
    void finish() {
      if (!is_there_ && !has_finished_) {
        const Index places = second_->size(), nodes = std::ssize(first_bytes_);
        const auto size = [&](Index g, Index m) { return counts_->sent[static_cast<std::size_t>(m * places + g)]; };
        detail::transpose_blocks(last_.data(), places, nodes, size, unit_, result_.data());
      }
      has_finished_ = true;
    }

    const C* second_ = nullptr;  ///< the second level; none where exchanges are flat
    const detail::RowCounts* counts_ = nullptr;
    std::span<std::byte> result_;
    std::vector<std::byte> packed_, arrived_, middle_, last_;
    std::vector<Index> first_bytes_, second_bytes_;
    Index unit_ = 0;
    bool is_there_ = true, has_finished_ = false;
    typename C::Request first_;  // behind the memory that they go through, before which they must end
    std::optional<typename C::Request> request_;
  };

  /// Every rank's header for every rank, of equal lengths: counts of rows, as a rule. headers [size][length]; the
  /// result likewise, by the rank that it is from. `passing` becomes those that pass through here, [ranks per
  /// node][nodes] [length].
  std::vector<Index> announce(std::span<const Index> headers, Index length, std::vector<Index>& passing) const {
    detail::RowCounts counts;
    const auto size = static_cast<std::size_t>(there_.size());
    counts.sent.assign(size, length);
    counts.received = counts.sent;
    if (!is_flat()) counts.passing = counts.sent;
    std::vector<Index> received(size * static_cast<std::size_t>(length));
    Pending pending = start_there(counts, static_cast<Index>(sizeof(Index)), std::as_bytes(headers),
                                  std::as_writable_bytes(std::span(received)));
    pending.wait();
    if (is_flat()) return received;
    passing.resize(pending.arrived_.size() / sizeof(Index));
    std::memcpy(passing.data(), pending.arrived_.data(), pending.arrived_.size());
    return received;
  }

  /// Starts to send counts.sent[r] units of so many bytes to every rank r, in their order, and to receive
  /// counts.received[r].
  Pending start_there(const detail::RowCounts& counts, Index unit, std::span<const std::byte> send,
                      std::span<std::byte> received) const {
    if (is_flat()) return start_flat(there_, counts.sent, counts.received, unit, send, received);
    const auto& [node, across] = *levels_there_;
    const Index places = node.size(), nodes = across.size();
    std::vector<std::byte> packed(send.size());
    detail::transpose_blocks(
        send.data(), nodes, places,
        [&](Index m, Index g) { return counts.sent[static_cast<std::size_t>(m * places + g)]; }, unit, packed.data());
    std::vector<Index> to(static_cast<std::size_t>(places)), from(to), last(static_cast<std::size_t>(nodes));
    for (Index g = 0; g < places; ++g)
      for (Index m = 0; m < nodes; ++m) {
        to[static_cast<std::size_t>(g)] += counts.sent[static_cast<std::size_t>(m * places + g)] * unit;
        from[static_cast<std::size_t>(g)] += counts.passing[static_cast<std::size_t>(g * nodes + m)] * unit;
        last[static_cast<std::size_t>(m)] += counts.received[static_cast<std::size_t>(m * places + g)] * unit;
      }
    std::vector<std::byte> arrived(total(from));
    Pending pending(node.start_all_to_all(packed, to, arrived, from));
    pending.packed_ = std::move(packed);
    pending.arrived_ = std::move(arrived);
    pending.second_ = &across;
    pending.counts_ = &counts;
    pending.first_bytes_ = std::move(from);
    pending.second_bytes_ = std::move(last);
    pending.result_ = received;
    pending.unit_ = unit;
    return pending;
  }

  /// The other way round: what has been received is sent back, in its order, to where it came from.
  Pending start_back(const detail::RowCounts& counts, Index unit, std::span<const std::byte> send,
                     std::span<std::byte> received) const {
    if (is_flat()) return start_flat(back_, counts.received, counts.sent, unit, send, received);
    const auto& [node, across] = *levels_back_;
    const Index places = node.size(), nodes = across.size();
    std::vector<Index> to(static_cast<std::size_t>(nodes)), from(to), last(static_cast<std::size_t>(places));
    for (Index g = 0; g < places; ++g)
      for (Index m = 0; m < nodes; ++m) {
        to[static_cast<std::size_t>(m)] += counts.received[static_cast<std::size_t>(m * places + g)] * unit;
        from[static_cast<std::size_t>(m)] += counts.passing[static_cast<std::size_t>(g * nodes + m)] * unit;
        last[static_cast<std::size_t>(g)] += counts.sent[static_cast<std::size_t>(m * places + g)] * unit;
      }
    std::vector<std::byte> arrived(total(from));
    Pending pending(across.start_all_to_all(send, to, arrived, from));
    pending.arrived_ = std::move(arrived);
    pending.last_.resize(received.size());
    pending.second_ = &node;
    pending.counts_ = &counts;
    pending.first_bytes_ = std::move(from);
    pending.second_bytes_ = std::move(last);
    pending.result_ = received;
    pending.unit_ = unit;
    pending.is_there_ = false;
    return pending;
  }

 private:
  using Levels = std::pair<C, C>;  ///< the ranks of a node, and those of a place on all nodes

  static std::size_t total(const std::vector<Index>& bytes) {
    Index sum = 0;
    for (const Index b : bytes) sum += b;
    return static_cast<std::size_t>(sum);
  }
  static Pending start_flat(const C& ranks, const std::vector<Index>& sent, const std::vector<Index>& received_counts,
                            Index unit, std::span<const std::byte> send, std::span<std::byte> received) {
    std::vector<Index> to, from;
    for (const Index count : sent) to.push_back(count * unit);
    for (const Index count : received_counts) from.push_back(count * unit);
    return Pending(ranks.start_all_to_all(send, to, received, from));
  }

  C there_, back_;
  std::optional<Levels> levels_there_, levels_back_;
};

}  // namespace moe::inline MOE_ABI::mpi
