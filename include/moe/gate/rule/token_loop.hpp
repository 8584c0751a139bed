// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/core/block_sum.hpp"
#include "moe/core/overlap.hpp"
#include "moe/core/parallel.hpp"
#include "moe/numeric/top_k.hpp"
#include "moe/routing/context.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

/// One token in front of a gate.
template <class S>
struct Token {
  Index index;                ///< row of the logits; context.step.id(index) is the id that keys random draws
  std::span<const S> logits;  ///< [num_experts], each finite or -infinity
  std::span<S> scratch;       ///< working memory, 4 * num_experts
};

}  // namespace moe::inline MOE_ABI

// The loops over tokens that gates share.
namespace moe::inline MOE_ABI::detail {

inline constexpr Index kScratchRows = 4;

/// Scratch of the workers of a parallel loop over tokens, Rows * num_experts scalars each: on their stacks up to 32 KiB
/// for doubles (with Rows = 4 for up to 1024 experts), else in the scratch of the call. One such loop at a time.
///   RowScratch<S> rows(num_experts, context.scratch);
///   parallel_ranges(..., [&](Index begin, Index end, Index worker) {
///     typename RowScratch<S>::Worker own(rows, worker);  ... own.data() ...
template <class S, Index Rows = kScratchRows>
class RowScratch {
  static constexpr Index kStackExperts = 1024 * kScratchRows / std::max(Rows, kScratchRows);

 public:
  RowScratch(Index num_experts, Scratch& scratch) : size_(static_cast<std::size_t>(Rows * num_experts)) {
    if (num_experts <= kStackExperts) return;
    std::vector<S>& memory = scratch.get<Memory>().scalars;
    memory.resize(std::max(memory.size(), static_cast<std::size_t>(num_workers()) * size_));
    heap_ = memory.data();
  }

  class Worker {
   public:
    Worker(RowScratch& all, Index worker)
        : data_(all.heap_ ? all.heap_ + static_cast<std::size_t>(worker) * all.size_ : stack_.data()) {}
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    S* data() { return data_; }

   private:
    std::array<S, static_cast<std::size_t>(Rows* kStackExperts)> stack_;
    S* data_;
  };

 private:
  struct Memory {
    std::vector<S> scalars;
  };

  std::size_t size_;
  S* heap_ = nullptr;
};

/// The blocks of tokens that loops hand out, and that a gate may sum over (BlockSum).
inline constexpr Index kMostTokenBlocks = 64;
inline SumBlocks token_blocks(Index num_tokens) {
  return SumBlocks::at_most<kMostTokenBlocks>(num_tokens, /*smallest=*/32);
}

/// Remembers the lowest token whose logits cannot be routed; told from inside a parallel loop, raised after it.
class FirstRejected {
 public:
  void reject(Index token) {
    Index lowest = token_.load(std::memory_order_relaxed);
    while (token < lowest && !token_.compare_exchange_weak(lowest, token, std::memory_order_relaxed)) {
    }
  }

  /// Throws std::invalid_argument if a token was rejected; `needed` is the number of experts that it had to have.
  template <class S>
  void raise(const char* function, const ConstMatrixRef<S>& logits, Index needed) const {
    const Index t = token_.load();
    if (t == kNone) return;
    const S* row = logits.data() + t * logits.outerStride();
    const Index e = first_not_below_infinity(row, logits.cols());
    if (e < logits.cols())
      fail(function, ": logit of token ", t, " for expert ", e, " is ", row[e],
           ", expected a finite number, or -infinity as a mask");
    fail(function, ": token ", t, " has ", count_finite(row, logits.cols()),
         " finite logits, which leaves fewer experts to choose from than the expected ", needed);
  }

 private:
  static constexpr Index kNone = std::numeric_limits<Index>::max();
  std::atomic<Index> token_{kNone};
};

/// What counts of a gate's nanoseconds, so that it is shared from 8 times the cost of a team on and not from 3: its
/// logits come from another core's cache, and its choices go back to the one that builds the plan (Zen 5 guest).
inline Index shared_part(Index nanoseconds) { return 3 * nanoseconds / 8; }

/// Calls body(token) or body(token, worker) for every valid token, in parallel. Tokens with a NaN or +infinity are not
/// passed on; they and those for which the body returns false end in std::invalid_argument that names the lowest one.
template <class S, class Body>
void for_each_token(const char* function, const ConstMatrixRef<S>& logits, const Context& context, Index needed,
                    Body&& body) {
  const Index num_tokens = logits.rows(), num_experts = logits.cols();
  const Step& step = context.step;
  step.validate(function, num_tokens);
  FirstRejected rejected;
  const auto call = [&](const Token<S>& token, Index worker) -> decltype(auto) {
    if constexpr (std::is_invocable_v<Body&, const Token<S>&, Index>)
      return body(token, worker);
    else
      return body(token);
  };
  const auto accepted = [&](const Token<S>& token, Index worker) {
    if (first_not_below_infinity(token.logits.data(), num_experts) < num_experts) return false;
    if constexpr (std::is_void_v<decltype(call(token, worker))>) {
      call(token, worker);
      return true;
    } else {
      return call(token, worker);
    }
  };
  const auto size = static_cast<std::size_t>(num_experts);
  RowScratch<S> scratch(num_experts, context.scratch);
  // Between what a few choices take and what a sort does.
  const Index nanoseconds = shared_part(num_tokens * (100 + num_experts));
  parallel_ranges(num_tokens, token_blocks(num_tokens).size, nanoseconds, [&](Index begin, Index end, Index worker) {
    typename RowScratch<S>::Worker own(scratch, worker);
    for (Index t = begin; t < end; ++t) {
      if (!step.is_valid(t)) continue;
      const Token<S> token{t,
                           {logits.data() + t * logits.outerStride(), size},
                           {own.data(), static_cast<std::size_t>(kScratchRows) * size}};
      if (!accepted(token, worker)) rejected.reject(t);
    }
  });
  rejected.raise<S>(function, logits, needed);
}

/// Sizes `matrix` [T, cols] for a loop that writes the rows of valid tokens, the others being zero. It is not that of
/// the logits.
template <class S>
void resize_rows(const char* function, const ConstMatrixRef<S>& logits, Index cols, const Step& step,
                 Matrix<S>& matrix) {
  require_apart(function, "the matrix to be written", matrix, "logits", logits);
  matrix.resize(logits.rows(), cols);
  if (!step.valid.empty()) matrix.setZero();
}

/// sums[e] += sum over tokens of rows(t, e), in double, tokens ascending: the gradient of a number added to every logit
/// of an expert. Split by expert, so the bits do not depend on threads.
template <class S>
void add_column_sums(const char* function, const Matrix<S>& rows, Eigen::RowVectorXd& sums) {
  if (sums.size() != rows.cols())
    fail(function, ": the gradient of the bias has ", sums.size(), " entries, expected num_experts = ", rows.cols());
  constexpr Index kColumns = 16;  // two cache lines of double: partial sums stay in registers
  parallel_ranges(rows.cols(), kColumns, [&](Index begin, Index end, Index) {
    std::array<double, static_cast<std::size_t>(kColumns)> sum = {};
    for (Index t = 0; t < rows.rows(); ++t)
      for (Index e = begin; e < end; ++e) sum[static_cast<std::size_t>(e - begin)] += static_cast<double>(rows(t, e));
    for (Index e = begin; e < end; ++e) sums(e) += sum[static_cast<std::size_t>(e - begin)];
  });
}

/// A learnable vector per expert is empty (not there) or has one entry per expert, finite in float.
inline void validate_bias(const char* name, const Eigen::RowVectorXd& bias, Index num_experts) {
  if (bias.size() != 0 && bias.size() != num_experts)
    fail(name, " has ", bias.size(), " entries, expected 0 or num_experts = ", num_experts);
  for (Index e = 0; e < bias.size(); ++e)
    if (!(std::abs(bias(e)) <= std::numeric_limits<float>::max()))
      fail(name, " of expert ", e, " is ", bias(e), ", expected a number that is finite in float");
}

}  // namespace moe::inline MOE_ABI::detail
