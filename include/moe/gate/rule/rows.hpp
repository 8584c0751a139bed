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

#include "moe/core/overlap.hpp"
#include "moe/core/parallel.hpp"
#include "moe/numeric/top_k.hpp"
#include "moe/routing/context.hpp"
#include "moe/routing/routing.hpp"

// The loops over tokens that all gates share. A gate contributes a `Rows` object that knows one token at a time:
//   probabilities(t, row, p, scratch)              scores before selection, [E]
//   weigh(t, row, experts, weights, scratch)       weights of a given selection
//   backward(t, row, choices, d, scratch)          in: d = dL/dprobabilities [E]; out: d = dL/dlogits [E]
// with kScratchRows * E scalars of scratch. Selecting is each gate's own business.
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

/// Blocks of consecutive tokens that depend on the number of tokens alone, at most kMost: partial sums over them, added
/// in block order, have the same bits for any number of threads.
struct TokenBlocks {
  static constexpr Index kMost = 64, kSmallest = 32;

  explicit TokenBlocks(Index num_tokens) : size(std::max(kSmallest, (num_tokens + kMost - 1) / kMost)) {}
  Index of(Index token) const { return token / size; }

  Index size;
};

/// A number per block of tokens, summed in block order.
struct BlockSums {
  double total() const {
    double sum = 0;
    for (const double value : block) sum += value;
    return sum;
  }
  std::array<double, static_cast<std::size_t>(TokenBlocks::kMost)> block = {};
};

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

/// Calls body(t, row, scratch) for every valid token, in parallel. Tokens with a NaN or +infinity are not passed on;
/// they and those for which the body returns false end in std::invalid_argument that names the lowest one.
template <class S, class Body>
void for_each_row(const char* function, const ConstMatrixRef<S>& logits, const Context& context, Index needed,
                  Body&& body) {
  const Index num_tokens = logits.rows(), num_experts = logits.cols();
  const Step& step = context.step;
  step.validate(function, num_tokens);
  FirstRejected rejected;
  const auto accepted = [&](Index t, const S* row, S* scratch) {
    if (first_not_below_infinity(row, num_experts) < num_experts) return false;
    if constexpr (std::is_void_v<std::invoke_result_t<Body, Index, const S*, S*>>) {
      body(t, row, scratch);
      return true;
    } else {
      return body(t, row, scratch);
    }
  };
  RowScratch<S> scratch(num_experts, context.scratch);
  parallel_ranges(num_tokens, TokenBlocks(num_tokens).size, [&](Index begin, Index end, Index worker) {
    typename RowScratch<S>::Worker own(scratch, worker);
    for (Index t = begin; t < end; ++t)
      if (step.is_valid(t) && !accepted(t, logits.data() + t * logits.outerStride(), own.data())) rejected.reject(t);
  });
  rejected.raise<S>(function, logits, needed);
}

/// The choices of one token, with their gradients.
template <class S>
struct Choices {
  std::span<const Index> experts;
  std::span<const std::uint8_t> dropped;
  std::span<const S> dweights;

  std::size_t size() const { return experts.size(); }
  Index expert(std::size_t s) const { return experts[s]; }
  S dweight(std::size_t s) const { return dropped[s] ? S{0} : dweights[s]; }
};

/// Sizes `matrix` [T, E] for a loop that writes the rows of valid tokens, the others being zero. It is not that of the
/// logits.
template <class S>
void resize_rows(const char* function, const ConstMatrixRef<S>& logits, const Step& step, Matrix<S>& matrix) {
  require_apart(function, "the matrix to be written", matrix, "logits", logits);
  matrix.resize(logits.rows(), logits.cols());
  if (!step.valid.empty()) matrix.setZero();
}

template <class S>
void require_routing(const char* function, const ConstMatrixRef<S>& logits, const Routing<S>& routing) {
  if (routing.num_tokens() != logits.rows())
    fail(function, ": routing has ", routing.num_tokens(), " tokens, expected num_tokens = ", logits.rows());
  require_experts(function, routing, logits.cols());
}

template <class S, class Rows>
void probabilities_of_rows(const char* function, const Rows& rows, const ConstMatrixRef<S>& logits,
                           const Context& context, Matrix<S>& p) {
  resize_rows<S>(function, logits, context.step, p);
  for_each_row<S>(function, logits, context, 1,
                  [&](Index t, const S* row, S* scratch) { rows.probabilities(t, row, p.row(t).data(), scratch); });
}

template <class S, class Rows>
void replay_rows(const char* function, const Rows& rows, const ConstMatrixRef<S>& logits, const Context& context,
                 Routing<S>& routing) {
  require_routing<S>(function, logits, routing);
  for_each_row<S>(function, logits, context, 1, [&](Index t, const S* row, S* scratch) {
    const std::span<S> weights = routing.weights(t);
    rows.weigh(t, row, std::as_const(routing).experts(t), weights, scratch);
    for (std::size_t s = 0; s < weights.size(); ++s)
      if (routing.dropped(t)[s]) weights[s] = S{0};
  });
}

template <class S, class Rows>
void backward_rows(const char* function, Rows&& rows, const ConstMatrixRef<S>& logits, const Context& context,
                   const Routing<S>& routing, std::span<const S> dweight, const ConstMatrixRef<S>& dprobability,
                   Matrix<S>& dlogits) {
  require_routing<S>(function, logits, routing);
  if (static_cast<Index>(dweight.size()) != routing.num_assignments())
    fail(function, ": dweight has ", dweight.size(),
         " entries, expected one per assignment = ", routing.num_assignments());
  if (dprobability.size() != 0) require_shape(function, "dprobability", dprobability, logits.rows(), logits.cols());
  require_apart(function, "dlogits", dlogits, "dprobability", dprobability);
  resize_rows<S>(function, logits, context.step, dlogits);
  for_each_row<S>(function, logits, context, 1, [&](Index t, const S* row, S* scratch) {
    S* d = dlogits.row(t).data();
    if (dprobability.size() != 0)
      std::copy_n(dprobability.data() + t * dprobability.outerStride(), logits.cols(), d);
    else
      std::fill_n(d, logits.cols(), S{0});
    const auto first = static_cast<std::size_t>(routing.begin(t)), count = routing.experts(t).size();
    rows.backward(t, row, Choices<S>{routing.experts(t), routing.dropped(t), dweight.subspan(first, count)}, d,
                  scratch);
  });
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
