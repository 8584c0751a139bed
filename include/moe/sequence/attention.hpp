// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "moe/core/parallel.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/expert/linear.hpp"
#include "moe/numeric/softmax.hpp"
#include "moe/sequence/sequences.hpp"

// Long, as a row of attention forwards and backwards is read together with the checks of what it reads.
namespace moe::inline MOE_ABI {

/// Which keys a query sees: all of its sequence, or none behind its own place. Places are counted from the end, so that
/// the last query sees the last key, also where there are fewer queries than keys (a cache of earlier ones).
enum class AttentionMask { Full, Causal };

/// Whether every query sees a further key of zeros, whose value is zero (add_zero_attn elsewhere). Without it weights
/// add up to 1 over the keys, so that n equal keys give what one gives: attention then cannot count. With it the sum of
/// exp(score) is seen, too, and a query may see nothing.
enum class ZeroKey { Off, On };

struct AttentionOptions {
  Index num_heads = 4;
  AttentionMask mask = AttentionMask::Full;
  ZeroKey zero_key = ZeroKey::Off;
};

/// Multi-head attention: out = concat_h(softmax(Q_h K_h^T / sqrt(d)) V_h) W_o + b_o with Q = x W_q + b_q of the queries
/// x, K and V likewise of what they attend to, the memory; d = model_dim / num_heads columns per head. Self-attention
/// is that of a batch with itself. A query sees the memory of its own sequence alone; one that sees no key gets b_o.
///   moe::MultiHeadAttention attention = moe::MultiHeadAttention::random(64, 64, {.num_heads = 4}, /*seed=*/1);
///   attention.forward({tokens, sentences}, {tokens, sentences}, out, context);
/// A row's bits depend on its query and on the memory of its sequence alone, gradients on no number of threads. Weights
/// are never kept: backward computes them anew, so that memory is linear in the rows. Per head, query and key 4 d
/// operations forward, 10 d backward. Scores that are NaN or +infinity make their rows NaN; one of -infinity counts as
/// masked, and a row whose scores are all so gets b_o. Immutable in forward, share freely; no allocation when warm.
/// Vaswani et al., "Attention is all you need" (arXiv:1706.03762).
template <class Codec>
class BasicMultiHeadAttention {
 public:
  using Scalar = typename Codec::Scalar;
  using Projection = BasicLinear<Codec>;
  using Batch = SequenceRows<Scalar>;

  struct Tape {
    typename Projection::Tape of_query, of_key, of_value, of_output;
    RowBuffer<Scalar> q, k, v, mixed;  ///< projections, and what heads make of them
    RowBuffer<Scalar> dq, dk, dv, dmixed, dmemory;
    RowBuffer<Scalar> weights;  ///< two rows per worker
    Sequences queries, memory;  ///< of the forward pass
  };

  /// Zero weights. The memory may be of another width than the queries, which `out` is as wide as. Throws
  /// std::invalid_argument for sizes below 1 and a number of heads that does not divide model_dim.
  BasicMultiHeadAttention(Index model_dim, Index memory_dim, const AttentionOptions& options = {})
      : BasicMultiHeadAttention(checked(model_dim, memory_dim, options), memory_dim, options, Checked{}) {}

  /// Weights from U(-1/sqrt(inputs), 1/sqrt(inputs)), zero biases.
  static BasicMultiHeadAttention random(Index model_dim, Index memory_dim, const AttentionOptions& options,
                                        std::uint64_t seed) {
    BasicMultiHeadAttention result(model_dim, memory_dim, options);
    const RandomField seeds(Purpose::Initialise, seed);
    Index i = 0;
    for (Projection* part : {&result.query_, &result.key_, &result.value_, &result.output_})
      *part = Projection::random(part->output_dim(), part->input_dim(), seeds.bits(i++));
    return result;
  }

  Index model_dim() const { return query_.input_dim(); }
  Index memory_dim() const { return key_.input_dim(); }
  Index head_dim() const { return query_.output_dim() / options_.num_heads; }
  const AttentionOptions& options() const { return options_; }
  Projection& query() { return query_; }
  const Projection& query() const { return query_; }
  Projection& key() { return key_; }
  const Projection& key() const { return key_; }
  Projection& value() { return value_; }
  const Projection& value() const { return value_; }
  Projection& output() { return output_; }
  const Projection& output() const { return output_; }

  /// out [queries, model_dim], apart from both batches. Throws std::invalid_argument for wrong shapes, another number
  /// of sequences in the memory, and with AttentionMask::Causal for a sequence of more queries than keys.
  void forward(const Batch& queries, const Batch& memory, MatrixRef<Scalar> out, const Context& context) const {
    forward(queries, memory, out, context, context.scratch.get<Memory>().tape);
  }
  void forward(const Batch& queries, const Batch& memory, MatrixRef<Scalar> out, const Context& context,
               Tape& tape) const {
    constexpr const char* kFunction = "moe::MultiHeadAttention::forward";
    require_parts(kFunction);
    require_batches(kFunction, queries, memory);
    detail::require_shape(kFunction, "out", out, queries.rows.rows(), model_dim());
    detail::require_apart(kFunction, "out", out, "queries", queries.rows);
    detail::require_apart(kFunction, "out", out, "memory", memory.rows);
    tape.queries = queries.sequences;
    tape.memory = memory.sequences;
    const auto project = [&](const Projection& part, const Batch& batch, RowBuffer<Scalar>& to, auto& of_part) {
      to.resize(batch.rows.rows(), width());
      part.forward(batch.rows, to, context, of_part);
    };
    project(query_, queries, tape.q, tape.of_query);
    project(key_, memory, tape.k, tape.of_key);
    project(value_, memory, tape.v, tape.of_value);
    tape.mixed.resize(queries.rows.rows(), width());
    for_each_head(tape, [&](Index i, Index column, Scalar* p, Scalar*) { mix(i, column, p, tape); });
    output_.forward(tape.mixed, out, context, tape.of_output);
  }

  /// Throws std::invalid_argument unless the tape is of such sequences through an attention of these sizes, which are
  /// those of `gradient`, too.
  void require_backward(const Sequences& queries, const Sequences& memory, const Tape& tape,
                        const BasicMultiHeadAttention& gradient) const {
    constexpr const char* kFunction = "moe::MultiHeadAttention::backward";
    require_parts(kFunction);
    if (tape.queries != queries || tape.memory != memory)
      fail(kFunction, ": the tape is of ", tape.queries.num_rows(), " queries and ", tape.memory.num_rows(),
           " keys in ", tape.queries.size(), " sequences, expected ", queries.num_rows(), " and ", memory.num_rows(),
           " in ", queries.size(), ", of the same lengths");
    query_.require_backward(queries.num_rows(), tape.of_query, gradient.query_);
    key_.require_backward(memory.num_rows(), tape.of_key, gradient.key_);
    value_.require_backward(memory.num_rows(), tape.of_value, gradient.value_);
    output_.require_backward(queries.num_rows(), tape.of_output, gradient.output_);
    require_tape(kFunction, tape);
  }

  /// Gradient of the pass that `tape` recorded: `gradient` is added to, dqueries [queries, model_dim] and dmemory
  /// [memory, memory_dim] are overwritten, apart from each other and from both batches. For self-attention the gradient
  /// of the rows is the sum of both. Throws std::invalid_argument, before anything is written, for wrong shapes and as
  /// require_backward().
  void backward(const Batch& queries, const Batch& memory, Tape& tape, const MatrixView<Scalar>& dout,
                MatrixRef<Scalar> dqueries, MatrixRef<Scalar> dmemory, BasicMultiHeadAttention& gradient,
                const Context& context) const {
    constexpr const char* kFunction = "moe::MultiHeadAttention::backward";
    require_batches(kFunction, queries, memory);
    require_backward(queries.sequences, memory.sequences, tape, gradient);
    detail::require_shape(kFunction, "dout", dout, queries.rows.rows(), model_dim());
    detail::require_shape(kFunction, "dqueries", dqueries, queries.rows.rows(), model_dim());
    detail::require_shape(kFunction, "dmemory", dmemory, memory.rows.rows(), memory_dim());
    detail::require_apart(kFunction, "dqueries", dqueries, "dmemory", dmemory);
    detail::require_apart(kFunction, "dqueries", dqueries, "queries", queries.rows);
    detail::require_apart(kFunction, "dqueries", dqueries, "memory", memory.rows);
    detail::require_apart(kFunction, "dmemory", dmemory, "queries", queries.rows);
    detail::require_apart(kFunction, "dmemory", dmemory, "memory", memory.rows);
    for (RowBuffer<Scalar>* buffer : {&tape.dq, &tape.dmixed}) buffer->resize(queries.rows.rows(), width());
    for (RowBuffer<Scalar>* buffer : {&tape.dk, &tape.dv}) buffer->resize(memory.rows.rows(), width());
    tape.dmemory.resize(memory.rows.rows(), memory_dim());
    output_.backward(tape.mixed, tape.of_output, dout, tape.dmixed, gradient.output_, context);
    for_each_head(tape, [&](Index i, Index column, Scalar* p, Scalar* dp) { unmix(i, column, p, dp, tape); });
    query_.backward(queries.rows, tape.of_query, tape.dq, dqueries, gradient.query_, context);
    key_.backward(memory.rows, tape.of_key, tape.dk, dmemory, gradient.key_, context);
    value_.backward(memory.rows, tape.of_value, tape.dv, tape.dmemory, gradient.value_, context);
    dmemory += tape.dmemory.matrix();
  }

  /// What the queries of sequence i see of its keys with one head, [queries, keys], of the pass that `tape` recorded:
  /// to be looked at, as it allocates. Rows add up to 1, or less with a zero key. Throws std::invalid_argument for no
  /// such sequence or head, and a tape of an attention of other sizes or without this one's causal mask.
  Matrix<Scalar> weights(const Tape& tape, Index sequence, Index head) const {
    constexpr const char* kFunction = "moe::MultiHeadAttention::weights";
    require_parts(kFunction);
    require_tape(kFunction, tape);
    require_sizes(kFunction, tape.queries, tape.memory);
    if (sequence < 0 || sequence >= tape.queries.size() || head < 0 || head >= options_.num_heads)
      fail(kFunction, ": sequence ", sequence, " and head ", head, ", expected less than ", tape.queries.size(),
           " and ", options_.num_heads);
    const Index num_keys = tape.memory.length(sequence);
    Matrix<Scalar> result = Matrix<Scalar>::Zero(tape.queries.length(sequence), num_keys);
    RowVector<Scalar> p(num_keys + 1);
    for (Index r = 0; r < result.rows(); ++r) {
      const Index seen = weigh(sequence, r, head * head_dim(), p.data(), tape);
      for (Index j = 0; j < seen; ++j) result(r, j) = p(j);
    }
    return result;
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "query", self.query_...);
    visit_part(f, "key", self.key_...);
    visit_part(f, "value", self.value_...);
    visit_part(f, "output", self.output_...);
  }

 private:
  using V = simd::Batch<Scalar>;
  struct Checked {};
  struct Memory {
    Tape tape;
  };

  static Index checked(Index model_dim, Index memory_dim, const AttentionOptions& options) {
    constexpr const char* kType = "moe::MultiHeadAttention";
    detail::checked_size(kType, "model_dim", model_dim, 1);
    detail::checked_size(kType, "memory_dim", memory_dim, 1);
    detail::checked_size(kType, "num_heads", options.num_heads, 1);
    if (model_dim % options.num_heads != 0)
      fail(kType, ": model_dim is ", model_dim, ", expected a multiple of num_heads = ", options.num_heads);
    return model_dim;
  }
  BasicMultiHeadAttention(Index model_dim, Index memory_dim, const AttentionOptions& options, Checked)
      : options_(options),
        query_(model_dim, model_dim),
        key_(model_dim, memory_dim),
        value_(model_dim, memory_dim),
        output_(model_dim, model_dim) {}

  Index width() const { return query_.output_dim(); }  // of all heads

  /// Projections may have been replaced through their references.
  void require_parts(const char* function) const {
    const Index n = width();
    if (n == 0 || n % options_.num_heads != 0)
      fail(function, ": queries are projected to ", n,
           " columns, expected a multiple of num_heads = ", options_.num_heads);
    if (key_.output_dim() != n || value_.output_dim() != n || output_.input_dim() != n)
      fail(function, ": keys and values are projected to ", key_.output_dim(), " and ", value_.output_dim(),
           " columns, of which the output reads ", output_.input_dim(), ", expected ", n, " as of queries");
    if (value_.input_dim() != memory_dim() || output_.output_dim() != model_dim())
      fail(function, ": values are made of ", value_.input_dim(), " columns and the output has ", output_.output_dim(),
           ", expected ", memory_dim(), " and ", model_dim());
  }
  void require_batches(const char* function, const Batch& queries, const Batch& memory) const {
    detail::require_sequences(function, "queries", queries, model_dim());
    detail::require_sequences(function, "memory", memory, memory_dim());
    require_sizes(function, queries.sequences, memory.sequences);
  }
  void require_sizes(const char* function, const Sequences& queries, const Sequences& memory) const {
    if (queries.size() != memory.size())
      fail(function, ": the memory has ", memory.size(), " sequences, expected ", queries.size(), " as the queries");
    for (Index i = 0; i < queries.size() && options_.mask == AttentionMask::Causal; ++i)
      if (queries.length(i) > memory.length(i))
        fail(function, ": sequence ", i, " has ", queries.length(i), " queries, expected at most ", memory.length(i),
             ", the number of its keys, behind a causal mask");
  }
  /// What a tape says of its rows, and as wide as the heads of this attention.
  void require_tape(const char* function, const Tape& tape) const {
    detail::require_shape(function, "tape.q", tape.q, tape.queries.num_rows(), width());
    detail::require_shape(function, "tape.k", tape.k, tape.memory.num_rows(), width());
    detail::require_shape(function, "tape.v", tape.v, tape.memory.num_rows(), width());
    detail::require_shape(function, "tape.mixed", tape.mixed, tape.queries.num_rows(), width());
  }

  /// Calls body(sequence, first column, p, dp) for every head of every sequence, in parallel: columns of heads are
  /// apart. p and dp have room for the weights of a row.
  template <class Body>
  void for_each_head(Tape& tape, const Body& body) const {
    const Index heads = options_.num_heads, count = tape.queries.size() * heads;
    if (count == 0) return;
    double products = 0;
    for (Index i = 0; i < tape.queries.size(); ++i)
      products += static_cast<double>(tape.queries.length(i)) * static_cast<double>(tape.memory.length(i) + 1);
    const auto nanoseconds = static_cast<Index>(products * static_cast<double>(width()) / 4) + 20 * count;
    const Index grain = std::max<Index>(1, kLeastShared / 2 * count / std::max<Index>(1, nanoseconds));
    tape.weights.resize(2 * num_workers(), tape.memory.longest() + 1);
    parallel_ranges(count, grain, nanoseconds, [&](Index begin, Index end, Index worker) {
      Scalar *p = tape.weights.row(2 * worker), *dp = tape.weights.row(2 * worker + 1);
      for (Index task = begin; task < end; ++task) body(task / heads, task % heads * head_dim(), p, dp);
    });
  }

  static Scalar dot(const Scalar* a, const Scalar* b, Index n) {
    V sum(Scalar{0});
    simd::for_each<Scalar>(
        n, [&](Index i) { sum = simd::fma(simd::load(a + i), simd::load(b + i), sum); },
        [&](Index i, Index count) {
          sum =
              simd::fma(simd::load_partial(a + i, count, Scalar{0}), simd::load_partial(b + i, count, Scalar{0}), sum);
        });
    return simd::reduce_add(sum);
  }
  /// to += factor * from.
  static void add_scaled(Scalar factor, const Scalar* from, Index n, Scalar* to) {
    const V f(factor);
    simd::for_each<Scalar>(
        n, [&](Index i) { simd::store(to + i, simd::fma(f, simd::load(from + i), simd::load(to + i))); },
        [&](Index i, Index count) {
          const V sum = simd::fma(f, simd::load_partial(from + i, count, Scalar{0}),
                                  simd::load_partial(to + i, count, Scalar{0}));
          simd::store_partial(to + i, sum, count);
        });
  }
  Scalar scale() const { return static_cast<Scalar>(1 / std::sqrt(static_cast<double>(head_dim()))); }

  /// The weights of the r-th query of a sequence over the keys that it sees, whose number is returned; that of the zero
  /// key behind them.
  Index weigh(Index sequence, Index r, Index column, Scalar* p, const Tape& tape) const {
    const Index behind = options_.mask == AttentionMask::Causal ? tape.queries.length(sequence) - 1 - r : 0;
    const Index seen = tape.memory.length(sequence) - behind, first = tape.memory.begin(sequence);
    const Scalar* q = tape.q.row(tape.queries.begin(sequence) + r) + column;
    for (Index j = 0; j < seen; ++j) p[j] = scale() * dot(q, tape.k.row(first + j) + column, head_dim());
    const bool has_zero = options_.zero_key == ZeroKey::On;
    if (has_zero) p[seen] = 0;
    softmax(p, seen + (has_zero ? 1 : 0), p);
    return seen;
  }

  /// tape.mixed of one head of a sequence.
  void mix(Index sequence, Index column, Scalar* p, Tape& tape) const {
    const Index first = tape.memory.begin(sequence);
    for (Index r = 0; r < tape.queries.length(sequence); ++r) {
      const Index seen = weigh(sequence, r, column, p, tape);
      Scalar* mixed = tape.mixed.row(tape.queries.begin(sequence) + r) + column;
      std::fill_n(mixed, head_dim(), Scalar{0});
      for (Index j = 0; j < seen; ++j) add_scaled(p[j], tape.v.row(first + j) + column, head_dim(), mixed);
    }
  }

  /// dq, dk and dv of one head of a sequence, from dmixed.
  void unmix(Index sequence, Index column, Scalar* p, Scalar* dp, Tape& tape) const {
    const Index first = tape.memory.begin(sequence), num_keys = tape.memory.length(sequence), d = head_dim();
    for (Index j = first; j < first + num_keys; ++j) {
      std::fill_n(tape.dk.row(j) + column, d, Scalar{0});
      std::fill_n(tape.dv.row(j) + column, d, Scalar{0});
    }
    for (Index r = 0; r < tape.queries.length(sequence); ++r) {
      const Index row = tape.queries.begin(sequence) + r, seen = weigh(sequence, r, column, p, tape);
      const Scalar* dmixed = tape.dmixed.row(row) + column;
      for (Index j = 0; j < seen; ++j) dp[j] = dot(dmixed, tape.v.row(first + j) + column, d);
      const bool has_zero = options_.zero_key == ZeroKey::On;
      if (has_zero) dp[seen] = 0;
      for (Index j = 0; j < seen; ++j) add_scaled(p[j], dmixed, d, tape.dv.row(first + j) + column);
      softmax_backward(p, dp, seen + (has_zero ? 1 : 0), dp);
      Scalar* dq = tape.dq.row(row) + column;
      std::fill_n(dq, d, Scalar{0});
      for (Index j = 0; j < seen; ++j) {
        add_scaled(scale() * dp[j], tape.k.row(first + j) + column, d, dq);
        add_scaled(scale() * dp[j], tape.q.row(row) + column, d, tape.dk.row(first + j) + column);
      }
    }
  }

  AttentionOptions options_;
  Projection query_, key_, value_, output_;
};

using MultiHeadAttention = BasicMultiHeadAttention<F32>;

}  // namespace moe::inline MOE_ABI
