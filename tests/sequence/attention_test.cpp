// SPDX-License-Identifier: MIT
// Multi-head attention against plain loops, its gradients, and what a row may depend on.
#include "moe/sequence/attention.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/parameters.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::AttentionMask;
using moe::AttentionOptions;
using moe::Index;
using moe::Matrix;
using moe::Sequences;
using moe::ZeroKey;
using Attention = moe::BasicMultiHeadAttention<moe::F64>;

namespace {

constexpr Index kModel = 6, kMemory = 5, kHeads = 2;  // 3 columns a head
const Sequences kQueries(std::vector<Index>{3, 0, 1, 2});
const Sequences kKeys(std::vector<Index>{4, 2, 1, 11});  // 11 keys are more than a register of doubles

template <class Codec = moe::F64>
auto attention(const AttentionOptions& options, std::uint64_t seed = 1) {
  moe::BasicMultiHeadAttention<Codec> result(kModel, kMemory, options);
  test::randomise(result, seed);
  return result;
}

template <class A, class S = typename A::Scalar>
Matrix<S> run(const A& attention, const Matrix<S>& queries, const Sequences& of_queries, const Matrix<S>& memory,
              const Sequences& of_memory) {
  moe::Scratch scratch;
  auto out = test::nan_matrix<S>(queries.rows(), attention.model_dim());
  attention.forward({queries, of_queries}, {memory, of_memory}, out, {moe::Step{}, scratch});
  return out;
}

template <class Codec>
Matrix<double> projected(const moe::BasicLinear<Codec>& part, const Matrix<double>& rows) {
  Matrix<double> out(rows.rows(), part.output_dim());
  const Matrix<double> weight = part.weight().matrix().template cast<double>();
  const Matrix<double> bias = part.bias().matrix().template cast<double>();
  for (Index r = 0; r < rows.rows(); ++r)
    for (Index o = 0; o < out.cols(); ++o) {
      out(r, o) = bias(o, 0);
      for (Index c = 0; c < rows.cols(); ++c) out(r, o) += weight(o, c) * rows(r, c);
    }
  return out;
}

/// The formula, in double.
template <class Codec>
Matrix<double> reference_of(const moe::BasicMultiHeadAttention<Codec>& a, const Matrix<double>& queries,
                            const Matrix<double>& memory) {
  const auto q = projected(a.query(), queries), k = projected(a.key(), memory), v = projected(a.value(), memory);
  Matrix<double> mixed = Matrix<double>::Zero(queries.rows(), kModel);
  const Index d = kModel / kHeads;
  for (Index i = 0; i < kQueries.size(); ++i)
    for (Index h = 0; h < kHeads; ++h)
      for (Index r = kQueries.begin(i); r < kQueries.end(i); ++r) {
        const Index behind = a.options().mask == AttentionMask::Causal ? kQueries.end(i) - 1 - r : 0;
        double sum = a.options().zero_key == ZeroKey::On ? 1 : 0;
        std::vector<double> e;
        for (Index j = kKeys.begin(i); j < kKeys.end(i) - behind; ++j) {
          double score = 0;
          for (Index c = h * d; c < (h + 1) * d; ++c) score += q(r, c) * k(j, c) / std::sqrt(static_cast<double>(d));
          sum += e.emplace_back(std::exp(score));
        }
        for (std::size_t j = 0; j < e.size(); ++j)
          for (Index c = h * d; c < (h + 1) * d; ++c)
            mixed(r, c) += e[j] / sum * v(kKeys.begin(i) + static_cast<Index>(j), c);
      }
  return projected(a.output(), mixed);
}

std::vector<AttentionOptions> all_options() {
  std::vector<AttentionOptions> result;
  for (const auto mask : {AttentionMask::Full, AttentionMask::Causal})
    for (const auto zero : {ZeroKey::Off, ZeroKey::On}) result.push_back({kHeads, mask, zero});
  return result;
}

}  // namespace

TEST_CASE("Sequences: lie one behind the other, of any lengths", "[sequence]") {
  CHECK(kQueries.size() == 4);
  CHECK(kQueries.num_rows() == 6);
  CHECK((kQueries.begin(1) == 3 && kQueries.end(1) == 3 && kQueries.begin(3) == 4 && kQueries.length(3) == 2));
  CHECK(kKeys.longest() == 11);
  CHECK(Sequences().num_rows() == 0);
  CHECK(Sequences::equal(3, 2) == Sequences(std::vector<Index>{2, 2, 2}));
  CHECK_THROWS_WITH(Sequences(std::vector<Index>{2, -1}), ContainsSubstring("length is -1, expected at least 0"));
  constexpr Index kMost = Index{1} << 48;
  CHECK_THROWS_WITH(Sequences(std::vector<Index>{kMost, 1}),
                    ContainsSubstring("the number of rows is 281474976710657, expected at most 2^48"));
  CHECK_THROWS_WITH(Sequences::equal(kMost, 2), ContainsSubstring("the number of rows is 562949953421312"));
  Sequences from = kKeys;
  const Sequences to = std::move(from);
  CHECK(to == kKeys);
  CHECK((from.size() == 0 && from.num_rows() == 0 && from.longest() == 0 && from == Sequences()));
  from.push_back(2);
  CHECK(from == Sequences::equal(1, 2));
}

TEST_CASE("MultiHeadAttention: is the formula, masked or not, with a zero key or without", "[sequence]") {
  const auto queries = test::random_matrix<double>(6, kModel, 1), memory = test::random_matrix<double>(18, kMemory, 2);
  for (const AttentionOptions& options : all_options()) {
    const auto a = attention(options);
    const Matrix<double> expected = reference_of(a, queries, memory);
    // Some 40 roundings of numbers below 8.
    CHECK(test::largest(Matrix<double>(run(a, queries, kQueries, memory, kKeys) - expected)) < 1e-13);
  }
}

TEST_CASE("MultiHeadAttention: in float, too", "[sequence]") {
  const auto queries = test::random_matrix<float>(6, kModel, 1), memory = test::random_matrix<float>(18, kMemory, 2);
  const auto a = attention<moe::F32>({.num_heads = kHeads, .zero_key = ZeroKey::On});
  const auto expected = reference_of(a, queries.cast<double>(), memory.cast<double>());
  // Some 40 roundings of numbers below 8.
  CHECK(test::largest(Matrix<double>(run(a, queries, kQueries, memory, kKeys).cast<double>() - expected)) < 2e-5);
}

TEST_CASE("MultiHeadAttention: gradients are central differences", "[sequence]") {
  for (const AttentionOptions& options : all_options()) {
    auto a = attention(options, 3);
    auto queries = test::random_matrix<double>(6, kModel, 1), memory = test::random_matrix<double>(18, kMemory, 2);
    const auto c = test::random_matrix<double>(6, kModel, 4);
    Attention::Tape tape;
    Attention gradient = moe::zeros_like(a);
    auto out = test::nan_matrix<double>(6, kModel), dqueries = out, dmemory = test::nan_matrix<double>(18, kMemory);
    const moe::Context context(moe::Step::train(1));
    a.forward({queries, kQueries}, {memory, kKeys}, out, context, tape);
    CHECK(test::same_bits(out, run(a, queries, kQueries, memory, kKeys)));
    a.backward({queries, kQueries}, {memory, kKeys}, tape, c, dqueries, dmemory, gradient, context);
    const auto loss = [&] { return run(a, queries, kQueries, memory, kKeys).cwiseProduct(c).eval().sum(); };
    CHECK(test::gradient_error(loss, queries, dqueries) < 1e-8);
    CHECK(test::gradient_error(loss, memory, dmemory) < 1e-8);
    CHECK(test::parameter_gradient_error(loss, a, gradient) < 1e-8);
    CHECK(test::all_zero(dmemory.middleRows(4, 2)));  // nobody asks the second sequence
  }
}

TEST_CASE("MultiHeadAttention: a row depends on its sequence alone, and on keys it sees", "[sequence][property]") {
  const auto queries = test::random_matrix<double>(6, kModel, 1), memory = test::random_matrix<double>(18, kMemory, 2);
  const auto a = attention({.num_heads = kHeads});
  const auto all = run(a, queries, kQueries, memory, kKeys);
  for (Index i = 0; i < 4; ++i) {
    const Index n = kQueries.length(i), m = kKeys.length(i);
    const Matrix<double> own = queries.middleRows(kQueries.begin(i), n), keys = memory.middleRows(kKeys.begin(i), m);
    CHECK(test::same_bits(run(a, own, Sequences::equal(1, n), keys, Sequences::equal(1, m)),
                          all.middleRows(kQueries.begin(i), n)));
  }

  const auto causal = attention({.num_heads = kHeads, .mask = AttentionMask::Causal});
  const auto first = run(causal, queries, kQueries, memory, kKeys);
  Matrix<double> changed = memory;
  changed.row(17).setConstant(9);  // the last key of the last sequence, of which its last query alone knows
  const auto second = run(causal, queries, kQueries, changed, kKeys);
  CHECK(test::same_bits(first.topRows(5), second.topRows(5)));
  CHECK(!test::same_bits(first.row(5), second.row(5)));
}

TEST_CASE("MultiHeadAttention: rows and gradients have the same bits for any threads", "[sequence][property]") {
  const auto a = attention({.num_heads = kHeads, .zero_key = ZeroKey::On});
  Sequences of_queries, of_keys;  // some 30 microseconds of heads, which are shared in blocks of 4
  for (Index i = 0; i < 64; ++i) of_queries.push_back(13 + i % 7), of_keys.push_back(19 - i % 7);
  const auto queries = test::random_matrix<double>(of_queries.num_rows(), kModel, 1), c = queries;
  const auto memory = test::random_matrix<double>(of_keys.num_rows(), kMemory, 2);
  struct Pass {
    Matrix<double> out, dqueries, dmemory;
    Attention gradient;
  };
  const auto pass = [&](Index workers) {
    test::ThreadExecutor threads(workers);
    const moe::UseExecutor use(threads);
    Pass result{queries, queries, memory, moe::zeros_like(a)};
    Attention::Tape tape;
    const moe::Context context(moe::Step::train(1));
    a.forward({queries, of_queries}, {memory, of_keys}, result.out, context, tape);
    a.backward({queries, of_queries}, {memory, of_keys}, tape, c, result.dqueries, result.dmemory, result.gradient,
               context);
    return result;
  };
  const Pass one = pass(1), three = pass(3);
  CHECK(test::same_bits(one.out, three.out));
  CHECK(test::same_bits(one.dqueries, three.dqueries));
  CHECK(test::same_bits(one.dmemory, three.dmemory));
  CHECK(test::same_parameters(one.gradient, three.gradient));
}

TEST_CASE("MultiHeadAttention: counts equal keys with a zero key only", "[sequence]") {
  const auto query = test::random_matrix<double>(1, kModel, 1), key = test::random_matrix<double>(1, kMemory, 2);
  const Matrix<double> twice = key.replicate(2, 1);
  const auto difference = [&](ZeroKey zero) {
    const auto a = attention({.num_heads = kHeads, .zero_key = zero});
    return test::largest(Matrix<double>(run(a, query, Sequences::equal(1, 1), key, Sequences::equal(1, 1)) -
                                        run(a, query, Sequences::equal(1, 1), twice, Sequences::equal(1, 2))));
  };
  CHECK(difference(ZeroKey::Off) < 1e-14);
  CHECK(difference(ZeroKey::On) > 0.01);
}

TEST_CASE("MultiHeadAttention: who sees no key gets the bias, and weights add up to 1", "[sequence]") {
  const auto queries = test::random_matrix<double>(2, kModel, 1), memory = test::random_matrix<double>(3, kMemory, 2);
  const Sequences of_queries = Sequences::equal(2, 1), of_memory(std::vector<Index>{0, 3});
  for (const auto zero : {ZeroKey::Off, ZeroKey::On}) {
    const auto a = attention({.num_heads = kHeads, .zero_key = zero});
    Attention::Tape tape;
    Matrix<double> out(2, kModel);
    a.forward({queries, of_queries}, {memory, of_memory}, out, moe::Step{}, tape);
    for (Index c = 0; c < kModel; ++c) CHECK(std::abs(out(0, c) - a.output().bias().matrix()(c, 0)) < 1e-15);
    CHECK(a.weights(tape, 0, 0).cols() == 0);
    const Matrix<double> weights = a.weights(tape, 1, 1);
    const double sum = weights(0, 0) + weights(0, 1) + weights(0, 2);
    CHECK(((zero == ZeroKey::Off) == (std::abs(sum - 1) < 1e-15)));
    CHECK((sum > 0 && sum < 1 + 1e-15));
    CHECK_THROWS_WITH(a.weights(tape, 2, 0), ContainsSubstring("sequence 2 and head 0, expected less than 2 and 2"));
  }
}

TEST_CASE("MultiHeadAttention: empty batches, and shapes that do not fit", "[sequence][error]") {
  const auto a = attention({.num_heads = kHeads, .mask = AttentionMask::Causal});
  const Matrix<double> none(0, kModel), no_memory(0, kMemory);
  CHECK(run(a, none, {}, no_memory, {}).rows() == 0);
  const auto queries = test::random_matrix<double>(6, kModel, 1), memory = test::random_matrix<double>(18, kMemory, 2);
  CHECK_THROWS_WITH(run(a, queries, kQueries, memory, kQueries),
                    ContainsSubstring("memory is [18, 5], expected [6, 5]"));
  CHECK_THROWS_WITH(run(a, queries, Sequences::equal(6, 1), memory, kKeys),
                    ContainsSubstring("the memory has 4 sequences, expected 6 as the queries"));
  CHECK_THROWS_WITH(run(a, queries, Sequences(std::vector<Index>{6, 0, 0, 0}), memory, kKeys),
                    ContainsSubstring("sequence 0 has 6 queries, expected at most 4, the number of its keys"));
  CHECK_THROWS_WITH(Attention(6, 5, {.num_heads = 4}),
                    ContainsSubstring("model_dim is 6, expected a multiple of num_heads = 4"));
  Attention::Tape tape;
  auto gradient = moe::zeros_like(a);
  CHECK_THROWS_WITH(a.require_backward(kQueries, kKeys, tape, gradient),
                    ContainsSubstring("the tape is of 0 queries and 0 keys in 0 sequences, expected 6 and 18 in 4"));
  auto other = a;
  other.key() = moe::BasicLinear<moe::F64>(4, kMemory);
  CHECK_THROWS_WITH(run(other, queries, kQueries, memory, kKeys),
                    ContainsSubstring("keys and values are projected to 4 and 6 columns"));
}

TEST_CASE("MultiHeadAttention: gradients over what is still to be read are refused, before anything is written",
          "[sequence][error]") {
  const auto a = moe::BasicMultiHeadAttention<moe::F64>::random(kModel, kModel, {.num_heads = kHeads}, 1);
  auto rows = test::random_matrix<double>(6, kModel, 1), memory = test::random_matrix<double>(6, kModel, 2);
  const auto c = test::random_matrix<double>(6, kModel, 3);
  Matrix<double> out(6, kModel), first(6, kModel), second(6, kModel);
  const moe::Context context(moe::Step::train(1));
  Attention::Tape tape;
  auto gradient = moe::zeros_like(a);
  a.forward({rows, kQueries}, {memory, kQueries}, out, context, tape);
  const auto backward = [&](moe::MatrixRef<double> dqueries, moe::MatrixRef<double> dmemory) {
    a.backward({rows, kQueries}, {memory, kQueries}, tape, c, dqueries, dmemory, gradient, context);
  };
  CHECK_THROWS_WITH(backward(first, first), ContainsSubstring("dqueries overlaps dmemory"));
  CHECK_THROWS_WITH(backward(rows, second), ContainsSubstring("dqueries overlaps queries"));
  CHECK_THROWS_WITH(backward(memory, second), ContainsSubstring("dqueries overlaps memory"));
  CHECK_THROWS_WITH(backward(first, rows), ContainsSubstring("dmemory overlaps queries"));
  CHECK_THROWS_WITH(backward(first, memory), ContainsSubstring("dmemory overlaps memory"));
  CHECK(test::same_parameters(gradient, moe::zeros_like(a)));
  backward(first, second);
  CHECK(!test::same_parameters(gradient, moe::zeros_like(a)));
}

TEST_CASE("MultiHeadAttention: weights of a foreign tape are refused", "[sequence][error]") {
  const auto queries = test::random_matrix<double>(3, kModel, 1), memory = test::random_matrix<double>(2, kMemory, 2);
  const auto of_queries = Sequences::equal(1, 3), of_memory = Sequences::equal(1, 2);
  Attention::Tape tape, narrow_tape;
  Matrix<double> out(3, kModel), narrow_out(3, 4);
  const auto full = attention({.num_heads = kHeads}),
             causal = attention({.num_heads = kHeads, .mask = AttentionMask::Causal});
  full.forward({queries, of_queries}, {memory, of_memory}, out, moe::Step{}, tape);
  CHECK(full.weights(tape, 0, 1).rows() == 3);
  CHECK_THROWS_WITH(causal.weights(tape, 0, 1), ContainsSubstring("sequence 0 has 3 queries, expected at most 2"));
  const auto narrow = Attention::random(4, kMemory, {.num_heads = kHeads}, 1);
  narrow.forward({test::random_matrix<double>(3, 4, 1), of_queries}, {memory, of_memory}, narrow_out, moe::Step{},
                 narrow_tape);
  CHECK_THROWS_WITH(full.weights(narrow_tape, 0, 1), ContainsSubstring("tape.q is [3, 4], expected [3, 6]"));
  CHECK_THROWS_WITH(full.require_backward(of_queries, of_memory, narrow_tape, full), ContainsSubstring("tape"));
  tape.memory = {};
  CHECK_THROWS_WITH(full.weights(tape, 0, 1), ContainsSubstring("tape.k is [2, 6], expected [0, 6]"));
}
