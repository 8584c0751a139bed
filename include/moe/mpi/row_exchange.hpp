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
/// at. Each allocates what it tells its communicator. One per rank; copies are the same.
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

    /// Blocks that have come by the ranks of the first level go by those of the second.
    void start_second() {
      if (request_) return;
      const Index from = first_size_, to = second_->size();
      middle_.resize(arrived_.size());
      detail::transpose_blocks(
          arrived_.data(), from, to, [&](Index a, Index b) { return passing(is_there_ ? a * to + b : b * from + a); },
          unit_, middle_.data());
      request_ = second_->start_all_to_all(middle_, sent_bytes_, is_there_ ? result_ : std::span(last_), second_bytes_);
    }
    /// Results come by the place on the node, and go by rank.
    void finish() {
      if (!is_there_ && !has_finished_) {
        const Index places = second_->size();
        const auto size = [&](Index g, Index m) { return counts_->sent[static_cast<std::size_t>(m * places + g)]; };
        detail::transpose_blocks(last_.data(), places, first_size_, size, unit_, result_.data());
      }
      has_finished_ = true;
    }
    Index passing(Index i) const { return counts_->passing[static_cast<std::size_t>(i)]; }

    const C* second_ = nullptr;  ///< the second level; none where exchanges are flat
    const detail::RowCounts* counts_ = nullptr;
    std::span<std::byte> result_;
    std::vector<std::byte> packed_, arrived_, middle_, last_;
    std::vector<Index> sent_bytes_, second_bytes_;  ///< of the second level
    Index unit_ = 0, first_size_ = 0;
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
    return start(true, counts, unit, send, received);
  }
  /// The other way round: what has been received is sent back, in its order, to where it came from.
  Pending start_back(const detail::RowCounts& counts, Index unit, std::span<const std::byte> send,
                     std::span<std::byte> received) const {
    return start(false, counts, unit, send, received);
  }

 private:
  using Levels = std::pair<C, C>;  ///< the ranks of a node, and those of a place on all nodes

  /// Sums of counts [rows][cols], in bytes: of each row, or of each column.
  static std::vector<Index> sums(const std::vector<Index>& counts, Index cols, Index unit, bool of_rows) {
    const Index rows = std::ssize(counts) / cols;
    std::vector<Index> bytes(static_cast<std::size_t>(of_rows ? rows : cols));
    for (Index i = 0; i < std::ssize(counts); ++i)
      bytes[static_cast<std::size_t>(of_rows ? i / cols : i % cols)] += counts[static_cast<std::size_t>(i)] * unit;
    return bytes;
  }
  static std::vector<Index> scaled(const std::vector<Index>& counts, Index unit) { return sums(counts, 1, unit, true); }

  /// There by the ranks of the node, then across nodes; back the same from its end.
  Pending start(bool is_there, const detail::RowCounts& counts, Index unit, std::span<const std::byte> send,
                std::span<std::byte> received) const {
    if (is_flat()) {
      const std::vector<Index> sent = scaled(counts.sent, unit), from = scaled(counts.received, unit);
      return Pending(is_there ? there_.start_all_to_all(send, sent, received, from)
                              : back_.start_all_to_all(send, from, received, sent));
    }
    const auto& [node, across] = is_there ? *levels_there_ : *levels_back_;
    const Index places = node.size(), nodes = across.size();
    // Of this rank by place, of what passes by place and by node, of what stays here by node.
    std::vector<Index> outer = sums(counts.sent, places, unit, false),
                       entering = sums(counts.passing, nodes, unit, true),
                       leaving = sums(counts.passing, nodes, unit, false),
                       inner = sums(counts.received, places, unit, true);
    std::vector<std::byte> packed, arrived(bytes_of(entering));
    if (is_there) {
      packed.resize(send.size());
      detail::transpose_blocks(
          send.data(), nodes, places,
          [&](Index m, Index g) { return counts.sent[static_cast<std::size_t>(m * places + g)]; }, unit, packed.data());
    }
    Pending pending(is_there ? node.start_all_to_all(packed, outer, arrived, entering)
                             : across.start_all_to_all(send, inner, arrived, leaving));
    pending.packed_ = std::move(packed);
    pending.arrived_ = std::move(arrived);
    if (!is_there) pending.last_.resize(received.size());
    pending.second_ = is_there ? &across : &node;
    pending.first_size_ = is_there ? places : nodes;
    pending.sent_bytes_ = std::move(is_there ? leaving : entering);
    pending.second_bytes_ = std::move(is_there ? inner : outer);
    pending.counts_ = &counts;
    pending.result_ = received;
    pending.unit_ = unit;
    pending.is_there_ = is_there;
    return pending;
  }
  static std::size_t bytes_of(const std::vector<Index>& parts) {
    Index sum = 0;
    for (const Index bytes : parts) sum += bytes;
    return static_cast<std::size_t>(sum);
  }

  C there_, back_;
  std::optional<Levels> levels_there_, levels_back_;
};

}  // namespace moe::inline MOE_ABI::mpi
