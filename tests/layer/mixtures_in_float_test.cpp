// SPDX-License-Identifier: MIT
// MergedExperts and SoftMoeLayer in both precisions against their definition in double, with bounds on every value.
#include <type_traits>

#include "layer/fixtures.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/layer/merged_experts.hpp"
#include "moe/layer/soft_moe.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using moe::ExpertPool;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Matrix;
using moe::Step;
using test::Bounded;
using test::kModelDim;
using test::Mat;

namespace {

constexpr Index kTokens = 23, kExperts = 3, kSlots = 2;

template <class Codec>
auto pool_of() {
  std::vector<moe::BasicGlu<Codec>> experts;
  for (Index e = 0; e < kExperts; ++e)
    experts.push_back(
        test::random_expert<moe::BasicGlu<Codec>>(kModelDim, test::kHiddenDim, std::uint64_t(100 * e + 1)));
  return ExpertPool<moe::BasicGlu<Codec>>(std::move(experts));
}

template <class Codec>
auto router_of(Index logits) {
  auto router = moe::BasicLinearRouter<Codec>::random(logits, kModelDim, 7, moe::Bias::Zero);
  test::randomise(router, 8);
  return router;
}

/// Three groups that stand in turns, and padding.
struct Batch {
  std::vector<std::int64_t> group;
  std::vector<std::uint8_t> valid = test::every_nth_padding(kTokens, 5);
  Step step;

  Batch() {
    for (Index t = 0; t < kTokens; ++t) group.push_back(t % 3 == 1 ? 40 : t % 3 - 7);
    step.group_id = group;
    step.valid = valid;
  }
  std::vector<Index> tokens(std::int64_t id) const {
    std::vector<Index> members;
    for (Index t = 0; t < kTokens; ++t)
      if (step.is_valid(t) && step.group(t) == id) members.push_back(t);
    return members;
  }
};

template <class M>
Mat rows_of(const M& all, const std::vector<Index>& tokens) {
  Mat rows(std::ssize(tokens), all.cols());
  for (Index i = 0; i < rows.rows(); ++i)
    rows.row(i) = all.row(tokens[static_cast<std::size_t>(i)]).template cast<double>();
  return rows;
}

/// The parameters of an expert, each off by what merging them has rounded, and what it makes of rows that are off, too.
template <class S>
struct BoundedGlu {
  Bounded<S> gate_up, gate_up_bias, down, down_bias;

  template <class Codec>
  explicit BoundedGlu(const moe::BasicGlu<Codec>& expert)
      : gate_up(test::in_double(expert.gate_up())),
        gate_up_bias(test::in_double(expert.gate_up_bias())),
        down(test::in_double(expert.down())),
        down_bias(test::in_double(expert.down_bias())) {}

  template <class F, class... Other>
  void for_each(F&& f, Other&... other) {
    f(gate_up, other.gate_up...);
    f(gate_up_bias, other.gate_up_bias...);
    f(down, other.down...);
    f(down_bias, other.down_bias...);
  }

  /// rows w^T + b: what linear() gives for w and b, and what their errors do to it.
  static Bounded<S> linear(const Bounded<S>& rows, const Bounded<S>& w, const Bounded<S>& b) {
    Bounded<S> out = rows.linear(w.value, b.value);
    const Mat reach = test::magnitude(rows.value) + rows.error;
    out.error += (1 + test::gamma<S>(w.value.cols() + 1)) * reference::linear(reach, w.error, b.error);
    return out;
  }
  Bounded<S> run(const Bounded<S>& rows) const {
    return linear(linear(rows, gate_up, gate_up_bias).gated(reference::silu), down, down_bias);
  }
};

/// sum_e share_e * expert e. Shares are sums and quotients in double, rounded once to S; then a sum of as many
/// products.
template <class Codec, class S = typename Codec::Scalar>
BoundedGlu<S> merged(const ExpertPool<moe::BasicGlu<Codec>>& pool, const std::vector<double>& share) {
  BoundedGlu<S> sum(pool[0]);
  sum.for_each([](Bounded<S>& part) { part.value.setZero(); });
  for (Index e = 0; e < kExperts; ++e) {
    BoundedGlu<S> expert(pool[e]);
    sum.for_each(
        [p = share[static_cast<std::size_t>(e)]](Bounded<S>& to, const Bounded<S>& from) {
          to.value += p * from.value;
          to.error += test::gamma<S>(kExperts + 2 + kTokens / 3) * p * test::magnitude(from.value);
        },
        expert);
  }
  return sum;
}

/// softmax(z) of each row for z that is off: each exponential by a factor of exp(dz), by the rounding of z - max and by
/// 8 ulp, as is their sum, besides the rounding of the sum itself and of the quotient.
template <class S>
Bounded<S> softmax(const Bounded<S>& z) {
  constexpr double u = test::kUnitRoundoff<S> + test::kUnitRoundoff<double>;
  Mat p = z.value, error = z.value;
  for (Index r = 0; r < p.rows(); ++r) {
    const double most = z.value.row(r).maxCoeff(), least = z.value.row(r).minCoeff();
    const double of_one = z.error.row(r).maxCoeff() + u * (most - least + 16);
    const double relative = std::expm1(2 * of_one) + 2 * test::gamma<S>(p.cols() + 1);
    double sum = 0;
    for (Index i = 0; i < p.cols(); ++i) sum += std::exp(z.value(r, i) - most);
    for (Index i = 0; i < p.cols(); ++i) p(r, i) = std::exp(z.value(r, i) - most) / sum;
    error.row(r) = relative * p.row(r);
  }
  return {p, error};
}

/// a b for matrices of which both are off.
template <class S>
Bounded<S> product(const Bounded<S>& a, const Bounded<S>& b) {
  const Mat transposed = b.value.transpose(), error = b.error.transpose();
  return BoundedGlu<S>::linear(a, {transposed, error}, Bounded<S>(Mat(Mat::Zero(1, b.value.cols()))));
}

template <class S>
Bounded<S> transposed(const Bounded<S>& a) {
  return {a.value.transpose(), a.error.transpose()};
}

/// What a layer of soft mixtures makes of the tokens of one group.
template <class Layer, class S = typename Layer::Scalar>
Bounded<S> soft_mixture(const Layer& layer, const Mat& tokens) {
  const Bounded<S> logits =
      Bounded<S>(tokens).linear(test::in_double(layer.router().weight()), test::in_double(layer.router().bias()));
  const Bounded<S> slots = product(softmax(transposed(logits)), Bounded<S>(tokens));
  Mat value(slots.value.rows(), layer.output_dim()), error = value;
  for (Index s = 0; s < value.rows(); ++s) {
    const BoundedGlu<S> expert(layer.experts()[s / layer.slots_per_expert()]);
    const Bounded<S> out = expert.run({Mat(slots.value.row(s)), Mat(slots.error.row(s))});
    value.row(s) = out.value;
    error.row(s) = out.error;
  }
  return product(softmax(logits), Bounded<S>(value, error));
}

/// Runs a layer on 1, 2, 3 and 8 threads, checks that they agree bit for bit, and gives the output.
template <class Layer, class S = typename Layer::Scalar>
Matrix<S> checked_forward(const Layer& layer, const Matrix<S>& tokens, const Step& step) {
  const auto passes = test::on_thread_counts([&] { return test::TrainingPass(layer, tokens, tokens, step); });
  const auto inferred = test::on_thread_counts([&] { return test::forward(layer, tokens, step); });
  for (std::size_t i = 0; i < passes.size(); ++i) {
    CHECK(test::same_bits(passes[i].out, passes[0].out));
    CHECK(test::same_bits(inferred[i], passes[0].out));
    CHECK(test::same_bits(passes[i].dtokens, passes[0].dtokens));
    CHECK(test::same_parameters(passes[i].gradient, passes[0].gradient));
  }
  return passes[0].out;
}

/// Largest difference of the gradients of two layers, relative to the largest of a leaf.
template <class A, class B>
double gradient_difference(const A& a, const B& b) {
  double worst = 0;
  const std::vector<double> left = test::flatten(a), right = test::flatten(b);
  double scale = 0;
  for (std::size_t i = 0; i < right.size(); ++i) {
    worst = std::max(worst, std::abs(left[i] - right[i]));
    scale = std::max(scale, std::abs(right[i]));
  }
  return worst / scale;
}

/// Gradients in float against those in double of the same numbers. A gradient is a sum over at most 23 tokens of
/// products of up to 8 factors, each a sum of at most 23 terms off by gamma_23 of its magnitudes, which cancel to a
/// tenth at most for numbers that are drawn alike: 8 * 23 * 10 roundings, of the largest.
template <class Make>
void check_gradients(const Make& make) {
  const auto in_float = make(F32{});
  auto in_double = make(F64{});
  const std::vector<double> parameters = test::flatten(in_float);
  test::fill(in_double, [&](Index i) { return parameters[static_cast<std::size_t>(i)]; });
  const Batch batch;
  const auto tokens = test::random_matrix<float>(kTokens, kModelDim, 1),
             dout = test::random_matrix<float>(kTokens, kModelDim, 2);
  const test::TrainingPass pass(in_float, tokens, dout, batch.step);
  const test::TrainingPass exact(in_double, Matrix<double>(tokens.cast<double>()), Matrix<double>(dout.cast<double>()),
                                 batch.step);
  const double tolerance = 8 * 23 * 10 * test::kUnitRoundoff<float>;
  CHECK(test::largest(Matrix<double>(pass.dtokens.template cast<double>() - exact.dtokens)) <
        tolerance * test::largest(exact.dtokens));
  CHECK(gradient_difference(pass.gradient, exact.gradient) < tolerance);
}

}  // namespace

TEMPLATE_TEST_CASE("MergedExperts: equals the definition within its rounding, with the bits of any number of threads",
                   "[layer][property]", F32, F64) {
  using S = typename TestType::Scalar;
  const moe::MoeLayer layer(router_of<TestType>(kExperts), moe::SoftmaxGate{}, moe::MergedExperts(pool_of<TestType>()));
  const Batch batch;
  const auto tokens = test::random_matrix<S>(kTokens, kModelDim, 1);
  const Matrix<S> out = checked_forward(layer, tokens, batch.step);
  typename decltype(layer)::Workspace ws;
  Matrix<S> again(kTokens, kModelDim);
  layer.forward(tokens, batch.step, again, ws);
  for (const std::int64_t id : {-7, -5, 40}) {
    const auto members = batch.tokens(id);
    std::vector<double> share(kExperts);
    for (const Index t : members)
      for (std::size_t s = 0; s < kExperts; ++s)
        share[static_cast<std::size_t>(ws.routing.experts(t)[s])] +=
            static_cast<double>(ws.routing.weights(t)[s]) / static_cast<double>(members.size());
    const auto expected = merged(layer.experts(), share).run(Bounded<S>(rows_of(tokens, members)));
    CHECK(expected.worst(rows_of(out, members)) < 1);
    CHECK(test::largest(expected.error) < 1e5 * test::kUnitRoundoff<S>);  // a bound that bounds
  }
  for (Index t = 0; t < kTokens; t += 5) CHECK(test::all_zero(out.row(t)));
}

TEMPLATE_TEST_CASE("SoftMoeLayer: equals the definition within its rounding, with the bits of any number of threads",
                   "[layer][property]", F32, F64) {
  using S = typename TestType::Scalar;
  const moe::SoftMoeLayer layer(router_of<TestType>(kExperts * kSlots), pool_of<TestType>());
  const Batch batch;
  const auto tokens = test::random_matrix<S>(kTokens, kModelDim, 1);
  const Matrix<S> out = checked_forward(layer, tokens, batch.step);
  for (const std::int64_t id : {-7, -5, 40}) {
    const auto members = batch.tokens(id);
    const auto expected = soft_mixture(layer, rows_of(tokens, members));
    CHECK(expected.worst(rows_of(out, members)) < 1);
    CHECK(test::largest(expected.error) < 1e5 * test::kUnitRoundoff<S>);  // a bound that bounds
  }
  for (Index t = 0; t < kTokens; t += 5) CHECK(test::all_zero(out.row(t)));
}

TEST_CASE("MergedExperts and SoftMoeLayer: gradients in float are those in double", "[layer][property]") {
  check_gradients([]<class Codec>(Codec) {
    return moe::MoeLayer(router_of<Codec>(kExperts), moe::SoftmaxGate{}, moe::MergedExperts(pool_of<Codec>()));
  });
  check_gradients(
      []<class Codec>(Codec) { return moe::SoftMoeLayer(router_of<Codec>(kExperts * kSlots), pool_of<Codec>()); });
}
