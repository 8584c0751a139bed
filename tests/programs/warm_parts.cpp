// SPDX-License-Identifier: MIT
// No shipped router, gate, expert set or expert allocates when warm, in inference and in training. programs/warm_parts
// has every one of them: programs/warm_parts_all compares its includes with moe/moe.hpp. Exits with 1 after messages
// about who allocated.
#include <cmath>

#include "moe/compress/quantise.hpp"
#include "moe/compress/sparsify.hpp"
#include "moe/expert/concatenated.hpp"
#include "moe/expert/feature_gated.hpp"
#include "moe/expert/film.hpp"
#include "moe/expert/frozen.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/latent.hpp"
#include "moe/expert/linear.hpp"
#include "moe/expert/low_rank.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/normalised.hpp"
#include "moe/expert/offset.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/pool.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/expert/shared_low_rank.hpp"
#include "moe/gate/activation.hpp"
#include "moe/gate/balanced.hpp"
#include "moe/gate/dense_to_sparse.hpp"
#include "moe/gate/dselect_k.hpp"
#include "moe/gate/dselect_k_loss.hpp"
#include "moe/gate/expert_choice.hpp"
#include "moe/gate/hash.hpp"
#include "moe/gate/hash_tables.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/null_expert.hpp"
#include "moe/gate/prototype.hpp"
#include "moe/gate/rank.hpp"
#include "moe/gate/relu.hpp"
#include "moe/gate/scored.hpp"
#include "moe/gate/self_gate.hpp"
#include "moe/gate/sinkhorn.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/sparse_mixer.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/gate/threshold.hpp"
#include "moe/gate/token_gate.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/top_p.hpp"
#include "moe/gate/wrap/grouped.hpp"
#include "moe/gate/wrap/straight_through.hpp"
#include "moe/gate/wrap/top_any.hpp"
#include "moe/gate/wrap/top_any_loss.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "moe/gate/wrap/with_level_capacity.hpp"
#include "moe/gate/wrap/with_levels.hpp"
#include "moe/gate/wrap/with_levels_loss.hpp"
#include "moe/gate/wrap/with_skipping.hpp"
#include "moe/layer/film_experts.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/columns.hpp"
#include "moe/router/cosine.hpp"
#include "moe/router/frozen.hpp"
#include "moe/router/least_squares.hpp"
#include "moe/router/linear.hpp"
#include "moe/router/noisy.hpp"
#include "moe/router/none.hpp"
#include "moe/router/normalised.hpp"
#include "moe/router/uncertain.hpp"
#include "moe/sequence/distribution_transformer.hpp"
#include "programs/expect_none.hpp"

namespace {

using moe::Index;
using moe::Matrix;

constexpr Index kTokens = 300, kExperts = 6, kDim = 45;

const Matrix<float> tokens = Matrix<float>::Random(kTokens, kDim);
const std::vector<std::int64_t> keys(kTokens, 3);
const moe::Step step = [] {
  moe::Step keyed = moe::Step::train(1, 2);
  keyed.key = keys;
  return keyed;
}();

template <class R>
void check_router(const std::string& name, const R& router) {
  const moe::Context context(step);
  const Matrix<float> dlogits = Matrix<float>::Random(kTokens, kExperts);
  Matrix<float> logits(kTokens, kExperts), dtokens = Matrix<float>::Zero(kTokens, kDim);
  typename R::Tape tape;
  R gradient = moe::zeros_like(router);
  test::expect_none(name, [&] {
    router.logits(tokens, context, logits);
    router.logits(tokens, context, logits, tape);
    router.backward(tokens, context, tape, dlogits, gradient, dtokens);
    if constexpr (requires { router.backward(tokens, context, tape, dlogits, gradient); })
      router.backward(tokens, context, tape, dlogits, gradient);
  });
  moe::Step of_half = step;
  of_half.key = step.key.first(kTokens / 2);
  const moe::Context half(of_half, context.scratch);
  if constexpr (!requires { tape.noise_std; })  // whose tape holds matrices
    test::expect_none(name + ", batches of two sizes", [&] {
      router.logits(tokens, context, logits, tape);
      router.logits(tokens.topRows(kTokens / 2), half, logits.topRows(kTokens / 2), tape);
    });
}

template <class G>
void check_gate(const std::string& name, const G& gate) {
  const moe::Context context(step);
  const Matrix<float> logits = Matrix<float>::Random(kTokens, moe::detail::num_logits(gate, kExperts));
  moe::Routing<float> routing;
  Matrix<float> p, dlogits;
  G gradient = moe::zeros_like(gate);
  gate.route(moe::Logits<float>(logits), context, routing);
  const std::vector<float> dweight(static_cast<std::size_t>(routing.num_assignments()), 0.5f);
  test::expect_none(name, [&] {
    gate.route(moe::Logits<float>(logits), context, routing);
    gate.probabilities(moe::Logits<float>(logits), context, p);
    gate.replay(moe::Logits<float>(logits), context, routing);
    gate.backward(moe::Logits<float>(logits), context, routing, std::span<const float>(dweight), p, dlogits, gradient);
  });
  moe::Step of_half = step;
  of_half.key = step.key.first(kTokens / 2);
  const moe::Context half(of_half, context.scratch);
  test::expect_none(name + ", batches of two sizes", [&] {
    gate.route(moe::Logits<float>(logits), context, routing);
    gate.route(moe::Logits<float>(logits.topRows(kTokens / 2)), half, routing);
  });
}

/// Runs a set over four experts' rows, and all others empty.
template <class X>
void check_set(const std::string& name, const X& experts) {
  const moe::Context context(step);
  moe::Routing<float> routing;
  routing.resize(kTokens, 2);
  for (Index t = 0; t < kTokens; ++t)
    for (Index k = 0; k < 2; ++k) routing.experts(t)[std::size_t(k)] = (t + k) % std::min<Index>(4, experts.size());
  moe::DispatchPlan plan;
  plan.build(routing, experts.size());
  moe::RowBuffer<float> rows;
  rows.resize(plan.num_rows(), moe::row_width(experts));
  for (float& value : rows.storage()) value = 0;
  Matrix<float> dtokens(kTokens, kDim);
  typename X::Tape tape;
  X gradient = moe::zeros_like(experts);
  test::expect_none(name, [&] {
    experts.forward(tokens, plan, context, rows);
    experts.forward(tokens, plan, context, rows, tape);
    experts.backward(tokens, plan, context, tape, rows, gradient, dtokens);
    if constexpr (moe::SetSkipsTokenGradient<X>) experts.backward(tokens, plan, context, tape, rows, gradient);
  });
}

/// Experts that differ: who is warm with all rows at one of them is so for all rows at another.
template <class E>
void check_mixed(const std::string& name, const std::vector<E>& experts) {
  const moe::ExpertPool<E> pool(experts);
  std::vector<moe::DispatchPlan> plans(experts.size());
  for (std::size_t e = 0; e < experts.size(); ++e) {
    moe::Routing<float> routing;
    routing.resize(kTokens, 1);
    for (Index t = 0; t < kTokens; ++t) routing.experts(t)[0] = static_cast<Index>(e);
    plans[e].build(routing, pool.size());
  }
  moe::RowBuffer<float> rows;
  rows.resize(kTokens, moe::row_width(pool));
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const moe::Context context(step);
    typename moe::ExpertPool<E>::Tape tape;
    std::size_t next = e;  // that alone at first
    test::expect_none(name + ", warm with expert " + std::to_string(e), [&] {
      for (std::size_t i = e; i <= next; ++i) {
        pool.forward(tokens, plans[i % experts.size()], context, rows);
        pool.forward(tokens, plans[i % experts.size()], context, rows, tape);
      }
      next = e + experts.size() - 1;
    });
  }
}

/// An expert alone, and some of it as a set.
template <class E>
void check_expert(const std::string& name, const E& expert) {
  const moe::Context context(step);
  const Matrix<float> dout = Matrix<float>::Random(kTokens, expert.output_dim());
  Matrix<float> out(kTokens, expert.output_dim()), drows(kTokens, kDim);
  typename E::Tape tape;
  E gradient = moe::zeros_like(expert);
  test::expect_none(name, [&] {
    expert.forward(tokens, out, context);
    expert.forward(tokens, out, context, tape);
    expert.backward(tokens, tape, dout, drows, gradient, context);
    if constexpr (moe::SkipsRowGradient<E>) expert.backward(tokens, tape, dout, gradient, context);
  });
  check_set("pool of " + name, moe::ExpertPool(std::vector<E>(kExperts, expert)));
}

/// The k best, each with weight 1 / k.
struct EqualRule {
  Index k = 2;

  Index choices(Index) const { return k; }
  template <class S>
  Index select(const moe::Token<S>& token, std::span<Index> chosen) const {
    moe::top_k(token.logits.data(), std::ssize(token.logits), chosen);
    return k;
  }
  template <class S>
  void probabilities(const moe::Token<S>& token, std::span<S> p) const {
    for (std::size_t e = 0; e < p.size(); ++e) p[e] = std::exp(token.logits[e]);
  }
  template <class S>
  void weigh(const moe::Token<S>&, std::span<const Index>, std::span<S> weights) const {
    for (S& weight : weights) weight = S{1} / static_cast<S>(k);
  }
  template <class S>
  void backward(const moe::Token<S>&, const moe::Choices<S>&, std::span<S>) const {}
};

void check_routers() {
  const auto linear = moe::LinearRouter::random(kExperts, kDim, 1, moe::Bias::Zero);
  check_router("LinearRouter", linear);
  check_router("CosineRouter", moe::CosineRouter::random(kExperts, kDim, 8, 1));
  check_router("NoisyRouter", moe::NoisyRouter::random(kExperts, kDim, 1));
  check_router("NormalisedRouter", moe::NormalisedRouter(linear));
  for (const auto calibration :
       {moe::RouterCalibration::LogitMoment, moe::RouterCalibration::MeanProbability, moe::RouterCalibration::Whitened})
    check_router("UncertainRouter", moe::UncertainRouter(linear, {.calibration = calibration}));
  check_router("ColumnsRouter", moe::ColumnsRouter(moe::LinearRouter::random(kExperts, kDim - 9, 1), kDim, 4));
  check_router("LeastSquaresRouter", moe::LeastSquaresRouter(kExperts, kDim));
  check_router("NoRouter", moe::NoRouter(kExperts, kDim));
  check_router("Frozen router", moe::Frozen(linear));
}

void check_gates() {
  check_gate("SoftmaxGate", moe::SoftmaxGate{});
  check_gate("TopKGate", moe::TopKGate{.k = 2});
  check_gate("TopKGate of groups", moe::TopKGate{.k = 2, .groups = {.count = 3, .kept = 2, .best = 1}});
  check_gate("NoisyTopKGate", moe::NoisyTopKGate{});
  check_gate("DenseToSparseGate", moe::DenseToSparseGate<moe::LearnableTemperature>{});
  check_gate("ActivationGate", moe::ActivationGate<moe::Sigmoid, moe::LearnableTemperature>{});
  check_gate("CosineGate", moe::CosineGate<moe::LearnableTemperature>{});
  check_gate("LaplaceGate", moe::LaplaceGate<>{});
  check_gate("StochasticGate", moe::StochasticGate{});
  check_gate("SparseMixerGate", moe::SparseMixerGate{});
  check_gate("ExpertChoiceGate", moe::ExpertChoiceGate{});
  check_gate("BalancedGate", moe::BalancedGate{});
  check_gate("BalancedGate by auction", moe::BalancedGate{.assignment = {.solver = moe::AssignmentSolver::Auction}});
  check_gate("SinkhornGate", moe::SinkhornGate{});
  check_gate("DSelectKGate", moe::DSelectKGate{.num_experts = kExperts});
  check_gate("TokenGate", moe::TokenGate<EqualRule>{});
  check_gate("TopPGate", moe::TopPGate{});
  check_gate("RankGate", moe::RankGate{{2, 0}});
  check_gate("ThresholdGate", moe::ThresholdGate{});
  check_gate("WithSkipping", moe::WithSkipping<moe::TopKGate>{.skipped = moe::SkippedWeight::Shared});
  check_gate("ReluGate", moe::ReluGate{});
  check_gate("PrototypeGate", moe::PrototypeGate{.groups = 3});
  check_gate("NullExpertGate", moe::NullExpertGate{.k = 3, .nulls = 2});
  check_gate("SelfGate", moe::SelfGate{.own = 2});
  check_gate("HashGate", moe::HashGate{.table = moe::random_hash_table(9, kExperts, 2, 1)});
  check_gate("GroupedGate", moe::GroupedGate<moe::TopKGate>{});
  check_gate("StraightThrough", moe::StraightThrough<moe::TopKGate>{});
  check_gate("TopAnyGate", moe::TopAnyGate<moe::TopKGate>{.skipped = moe::SkippedWeight::Shared});
  check_gate("WithLevels", moe::WithLevels<moe::TopKGate>{.levels = 3});
  check_gate("WithLevelCapacity",
             moe::WithLevelCapacity<moe::TopKGate>{.gate = {.levels = 3}, .capacity = {0.3, 0.4, 0.3}});
  check_gate("WithCapacity", moe::WithCapacity<moe::TopKGate>{.capacity = {.factor = 0.8}});
  check_gate("WithChance", moe::WithChance<moe::TopKGate>{});
}

void check_experts() {
  const auto glu = moe::Glu::random(kDim, 37, 1);
  const auto mlp = moe::Mlp::random(kDim, 37, 1);
  check_expert("Linear", moe::Linear::random(kDim, kDim, 1));
  check_expert("Mlp", mlp);
  check_expert("Glu", glu);
  for (const char* format : {"bf16", "f16", "fp8", "fp8-e5m2", "int8", "int4", "int4-zero", "mxfp4", "nvfp4", "3bit"})
    check_expert(std::string("Glu of ") + format, moe::quantise(glu, moe::WeightFormat::named(format)));
  for (const char* format : {"int8", "int4-g128", "mxfp4"})
    check_expert(std::string("Glu of rounded rows, ") + format,
                 moe::with_dot(moe::quantise(glu, moe::WeightFormat::named(format)), moe::Dot::Int8));
  check_expert("LowRank of Glu", moe::LowRank(glu, {.rank = 3}, 2));
  check_expert("LowRank of Mlp in int4", moe::LowRank(moe::quantise(mlp, moe::WeightFormat::int4()), {}, 2));
  const auto rounded = [&](const char* format) {
    return moe::with_dot(moe::quantise(glu, moe::WeightFormat::named(format)), moe::Dot::Int8);
  };
  check_mixed("pool of formats", std::vector{rounded("int4-g128"), rounded("int8-g8"),
                                             moe::quantise(glu, moe::WeightFormat::named("int4-g128"))});
  check_mixed("pool of ranks", std::vector{moe::LowRank(glu, {.rank = 3}, 2), moe::LowRank(glu, {.rank = 40}, 2),
                                           moe::LowRank(glu, {.targets = {"down"}}, 2)});
  check_expert("Glu that skips zeros", moe::skip_zeros(glu));
  check_expert("Offset", moe::Offset(kDim));
  check_expert("ScaledIdentity", moe::ScaledIdentity{kDim});
  check_expert("GatedExpert", moe::GatedExpert<moe::Mlp, moe::F32>(mlp, moe::Linear::random(1, kDim, 2)));
  const moe::FeatureGated featured(mlp, {.rank = 3, .num_gates = 2}, 2);
  check_expert("FeatureGated", featured);
  check_expert("Normalised", moe::Normalised(featured));
  check_expert("OneOf", moe::OneOf<moe::Glu, moe::Mlp>(glu));
  check_expert("Frozen panel expert", moe::Frozen(glu));
  check_expert("Frozen expert", moe::Frozen(moe::Offset(kDim)));
  const moe::ExpertPool<moe::Glu> pool(std::vector<moe::Glu>(kExperts, glu));
  check_expert("LayerExpert",
               moe::LayerExpert(moe::MoeLayer(moe::LinearRouter::random(kExperts, kDim, 1), moe::TopKGate{}, pool)));
  check_set("Concatenated", moe::Concatenated(pool, moe::ExpertPool<moe::Mlp>({mlp, mlp})));
  check_set("Frozen set", moe::Frozen(pool));
  check_set("SharedLowRank of an A", moe::SharedLowRank(pool, moe::SharedFactor::A, {.rank = 3}, 1));
  check_set("SharedLowRank of a B", moe::SharedLowRank(pool, moe::SharedFactor::B, {.rank = 3}, 1));
  for (const auto sides : {moe::LatentSides::Input, moe::LatentSides::Both})
    check_set("LatentExperts",
              moe::LatentExperts<moe::Glu>::random(kExperts, {.model = kDim, .latent = 9, .hidden = 37}, 4, sides, 1));
}

/// A mixture over a routing with dropped choices, some tokens without any.
template <class M>
void check_mixture(const std::string& name, const M& mixture) {
  const moe::Context context(step);
  moe::Routing<float> routing;
  routing.resize(kTokens, 2);
  for (Index a = 0; a < routing.num_assignments(); ++a) {
    routing.experts()[std::size_t(a)] = a % mixture.num_experts();
    routing.weights()[std::size_t(a)] = 0.5f;
  }
  for (Index a = 0; a < 11; ++a) routing.drop(a, moe::kDroppedByGate);
  Matrix<float> out(kTokens, mixture.output_dim()), dtokens(kTokens, kDim);
  std::vector<float> dweight(std::size_t(routing.num_assignments()));
  typename M::Tape tape;
  M gradient = moe::zeros_like(mixture);
  test::expect_none(name, [&] {
    mixture.forward(tokens, routing, context, out);
    mixture.forward(tokens, routing, context, out, tape);
    mixture.backward(tokens, routing, context, tape, out, gradient, dweight, dtokens);
    mixture.backward(tokens, routing, context, tape, out, gradient, dweight);
  });
}

/// A decoder block, with its norms and its attention, to itself and to a memory.
void check_block() {
  using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;
  const moe::DecoderBlock<Layer> block(Layer(moe::LinearRouter::random(kExperts, kDim, 1), moe::TopKGate{},
                                             moe::ExpertPool<moe::Mlp>::random(kExperts, kDim, 37, 1)),
                                       kDim, {.num_heads = 5}, {.num_heads = 3, .zero_key = moe::ZeroKey::On}, 1);
  const auto of_tokens = moe::Sequences::equal(4, kTokens / 4), of_memory = moe::Sequences::equal(4, 7);
  const Matrix<float> memory = Matrix<float>::Random(28, kDim), dout = Matrix<float>::Random(kTokens, kDim);
  Matrix<float> out(kTokens, kDim), dtokens(kTokens, kDim), dmemory(28, kDim);
  moe::DecoderBlock<Layer>::Tape tape;
  auto gradient = moe::zeros_like(block);
  moe::Workspace ws;
  test::expect_none("DecoderBlock", [&] {
    block.forward({tokens, of_tokens}, {memory, of_memory}, step, out, ws);
    block.forward({tokens, of_tokens}, {memory, of_memory}, step, out, tape);
    block.backward({tokens, of_tokens}, {memory, of_memory}, tape, dout, gradient, dtokens, dmemory);
  });
}

/// Posteriors of problems of 3 components and 5 rows of data each, some without data.
void check_posteriors() {
  using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;
  const moe::DistributionTransformer<Layer> model(
      {.dim = 2, .data_dim = 3, .hidden_dim = 19, .num_heads = 5},
      std::vector(2, Layer(moe::LinearRouter::random(kExperts, kDim, 1), moe::TopKGate{},
                           moe::ExpertPool<moe::Mlp>::random(kExperts, kDim, 37, 1))),
      1);
  const auto components = moe::Sequences::equal(50, 3);
  moe::Sequences rows;
  for (Index i = 0; i < 50; ++i) rows.push_back(i % 7 == 0 ? 0 : 5);
  const Matrix<float> priors = Matrix<float>::Random(150, model.row_size()),
                      data = Matrix<float>::Random(rows.num_rows(), 3),
                      dout = Matrix<float>::Random(150, model.row_size());
  Matrix<float> out(150, model.row_size()), dpriors(150, model.row_size());
  const moe::Step training = moe::Step::train(1, 2);
  moe::DistributionTransformer<Layer>::Tape tape;
  auto gradient = moe::zeros_like(model);
  moe::Workspace ws;
  test::expect_none("DistributionTransformer", [&] {
    model.forward({priors, components}, {data, rows}, training, out, ws);
    model.forward({priors, components}, {data, rows}, training, out, tape);
    model.backward({priors, components}, {data, rows}, tape, dout, gradient, dpriors);
  });
}

void check_mixtures() {
  check_mixture("FilmExperts", moe::FilmExperts(moe::Mlp::random(kDim, 37, 1), kExperts));
  check_mixture("FilmExperts by features",
                moe::FilmExperts(moe::Mlp::random(kDim, 37, 1),
                                 moe::RoutedExperts(moe::ExpertPool<moe::Film<moe::Linear>>(
                                     std::vector(kExperts, moe::Film(moe::Linear::random(2 * kDim, kDim, 1)))))));
}

/// A gradient of frozen experts takes no more memory than that of the router.
void check_frozen() {
  const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kDim, 1), moe::TopKGate{},
                            moe::Frozen(moe::ExpertPool<moe::Glu>::random(kExperts, kDim, 400, 1)));
  const auto held_by = [](const auto& make) {
    const long before = test::bytes_held.load();
    [[maybe_unused]] const auto object = make();
    return test::bytes_held.load() - before;
  };
  const long of_layer = held_by([&] { return moe::zeros_like(layer); });
  const long of_router = held_by([&] { return moe::zeros_like(layer.router()); });
  std::printf("gradient of a layer of frozen experts: %ld bytes, of its router: %ld\n", of_layer, of_router);
  if (of_layer != of_router) ++test::num_failed;
}

}  // namespace

int main() {
  check_routers();
  check_gates();
  check_experts();
  check_mixtures();
  check_block();
  check_posteriors();
  check_frozen();
  return test::report();
}
