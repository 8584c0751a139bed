// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// How the rows of a batch fall into sequences: they lie one behind the other, sequence i in rows begin(i) to end(i) -
/// 1, so that sequences of any lengths, 0 included, need no padding and no mask (cu_seqlens elsewhere).
///   const moe::Sequences sentences(std::vector<moe::Index>{7, 0, 12});  // 19 rows
///   const auto pairs = moe::Sequences::equal(256, 2);                   // 512 rows
/// A plain value; share freely while nobody writes.
class Sequences {
 public:
  Sequences() = default;
  /// Throws std::invalid_argument for a negative length, and more than 2^48 rows in all.
  explicit Sequences(std::span<const Index> lengths) {
    for (const Index length : lengths) push_back(length);
  }
  /// So many of one length.
  static Sequences equal(Index count, Index length) {
    detail::checked_size(kName, "count", count);
    detail::checked_size(kName, "the number of rows",
                         detail::checked_product(kName, count, detail::checked_size(kName, "length", length)));
    Sequences result;
    result.end_.reserve(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) result.push_back(length);
    return result;
  }

  void push_back(Index length) {
    detail::checked_size(kName, "length", length);
    end_.push_back(detail::checked_size(kName, "the number of rows", num_rows() + length));
  }
  /// Forgets all, and keeps the memory.
  void clear() { end_.clear(); }

  Index size() const { return std::ssize(end_); }
  Index num_rows() const { return end_.empty() ? 0 : end_.back(); }
  Index begin(Index i) const { return i == 0 ? 0 : end(i - 1); }
  Index end(Index i) const { return end_[static_cast<std::size_t>(i)]; }
  Index length(Index i) const { return end(i) - begin(i); }
  Index longest() const {
    Index most = 0;
    for (Index i = 0; i < size(); ++i) most = length(i) > most ? length(i) : most;
    return most;
  }

  friend bool operator==(const Sequences&, const Sequences&) = default;

 private:
  static constexpr const char* kName = "moe::Sequences";

  std::vector<Index> end_;  // nothing where it has been moved from: no sequences
};

/// A batch of sequences: rows [sequences.num_rows(), dim], to which it refers. Made on the spot, as {rows, sequences}.
template <class S>
struct SequenceRows {
  ConstMatrixRef<S> rows;
  const Sequences& sequences;
};

namespace detail {

/// Throws std::invalid_argument unless there are as many rows as the sequences have, of `dim` columns.
template <class S>
void require_sequences(const char* function, const char* name, const SequenceRows<S>& batch, Index dim) {
  require_shape(function, name, batch.rows, batch.sequences.num_rows(), dim);
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
