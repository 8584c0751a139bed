// SPDX-License-Identifier: MIT
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "io/patterns.hpp"
#include "io/plain_reader.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/io/block/moe_block.hpp"
#include "moe/io/file/parameters.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/moe.hpp"
#include "moe/policy/mixture_policy.hpp"
#include "moe/sequence.hpp"
#include "support/catch.hpp"
#include "support/family_configs.hpp"
#include "support/files.hpp"
#include "support/parameters.hpp"

namespace {

using moe::Bias;
using moe::ExpertPool;
using moe::F64;
using moe::Glu;
using moe::Index;
using moe::Linear;
using moe::LinearRouter;
using moe::Mlp;

constexpr Index kDim = 5, kHidden = 11, kExperts = 3;  // none fills a register

template <class T>
Index num_saved(const T& object) {
  return moe::num_parameters(object) + moe::num_state(object);
}

/// What a file says under a name, against what the layer holds.
template <class T>
void require_same(const test::PlainFile& file, const T& layer) {
  std::size_t count = 0;
  moe::visit_all(
      [&](const std::string& name, const auto& leaf) {
        using S = moe::ParameterScalar<decltype(leaf)>;
        CAPTURE(name);
        const test::PlainTensor& tensor = file.tensors.at(name);
        const std::vector<Index> shape = moe::parameter_shape(leaf);
        REQUIRE(tensor.dtype == (sizeof(S) == 4 ? "F32" : "F64"));
        REQUIRE(tensor.shape == std::vector<std::size_t>(shape.begin(), shape.end()));
        std::vector<S> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        moe::read_parameter(leaf, std::span<S>(values));
        REQUIRE(tensor.bytes == std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(S)));
        ++count;
      },
      layer);
  REQUIRE(file.tensors.size() == count);
}

/// Saves an object full of bit patterns, reads the file plainly, loads it into another and compares all bits.
template <class T>
void require_same_again(const char* what, const T& object) {
  const test::TemporaryDirectory directory;
  T saved = object, loaded = object;
  test::fill_with_patterns(saved);
  REQUIRE(test::same_parameters(saved, loaded) == (num_saved(object) == 0));
  moe::save_parameters(directory / "x", saved, {{"what", what}});
  const test::PlainFile file = test::read_plainly(test::read_bytes(directory / "x"));
  REQUIRE(file.metadata == moe::Metadata{{"what", what}});
  require_same(file, saved);
  REQUIRE(moe::load_parameters(directory / "x", loaded) == moe::Metadata{{"what", what}});
  REQUIRE(test::same_parameters(loaded, saved));
  REQUIRE(directory.num_files() == 1);
}

/// `least`: numbers that there must be, so that no `visit` and no `state` is empty by mistake.
template <class T>
void require_round_trip(const char* what, const T& object, Index least = 1) {
  CAPTURE(what);
  REQUIRE(num_saved(object) >= least);
  // What does not say what its parameters are cannot be saved, see compile_fail/save_without_visit.cpp.
  if constexpr (moe::HasParameters<T>) require_same_again(what, object);
}

template <class S>
Eigen::RowVector<S, Eigen::Dynamic> zeros() {
  return Eigen::RowVector<S, Eigen::Dynamic>::Zero(kExperts);
}
moe::TopKGate biased_gate() { return {.k = 2, .selection_bias = zeros<double>(), .weight_bias = zeros<double>()}; }

template <class E>
ExpertPool<E> pool(const E& expert) {
  return ExpertPool<E>(std::vector<E>(static_cast<std::size_t>(kExperts), expert));
}
template <class R, class G, class X>
auto layer(R router, G gate, X experts) {
  return moe::MoeLayer(std::move(router), std::move(gate), std::move(experts));
}
auto glu_layer() { return layer(LinearRouter(kExperts, kDim), biased_gate(), pool(Glu(kDim, kHidden))); }

/// Whether a header has a type with parameters or state.
bool names_numbers(const std::string& text) {
  return text.find("static void visit(F&& f") != text.npos || text.find("static void state(F&& f") != text.npos;
}

}  // namespace

TEST_CASE("Round trip: every router", "[io]") {
  require_round_trip("linear", LinearRouter(kExperts, kDim), kExperts * kDim);
  require_round_trip("linear, bias", LinearRouter(kExperts, kDim, Bias::Zero), kExperts * (kDim + 1));
  require_round_trip("linear, double", moe::BasicLinearRouter<F64>(kExperts, kDim, Bias::Zero));
  require_round_trip("noisy", moe::NoisyRouter(kExperts, kDim), 2 * kExperts * kDim);
  require_round_trip("cosine", moe::CosineRouter(kExperts, kDim, 3), 3 * (kDim + 1) + 3 * kExperts + 1);
  require_round_trip("columns", moe::ColumnsRouter(LinearRouter(kExperts, kDim), kDim + 3, 2), kExperts * kDim);
  require_round_trip("least squares", moe::LeastSquaresRouter(kExperts, kDim), kExperts * (kDim + 1));
  require_round_trip("none", moe::NoRouter(kExperts, kDim), 0);
  require_round_trip("uncertain", moe::UncertainRouter(LinearRouter(kExperts, kDim)), kExperts * kDim);
  require_round_trip("normalised", moe::NormalisedRouter(LinearRouter(kExperts, kDim)), kExperts * kDim);
  require_round_trip("noisy, double", moe::BasicNoisyRouter<F64>(kExperts, kDim), 2 * kExperts * kDim);
}

TEST_CASE("Round trip: every gate, with all that it can learn and with nothing", "[io]") {
  using Learnt = moe::LearnableTemperature;
  require_round_trip("softmax", moe::SoftmaxGate{}, 0);
  require_round_trip("top-k", moe::TopKGate{}, 0);
  require_round_trip("top-k, biases", biased_gate(), 2 * kExperts);
  require_round_trip("noisy top-k", moe::NoisyTopKGate{.top_k = biased_gate()}, 2 * kExperts);
  require_round_trip("dense to sparse", moe::DenseToSparseGate<>{}, 0);
  require_round_trip("dense to sparse, learnt", moe::DenseToSparseGate<Learnt>{}, 1);
  require_round_trip("activation", moe::ActivationGate<>{.bias = zeros<double>()}, kExperts);
  require_round_trip("activation, learnt", moe::ActivationGate<moe::Tanh, Learnt>{.bias = zeros<double>()},
                     kExperts + 1);
  require_round_trip("stochastic", moe::StochasticGate{}, 0);
  require_round_trip("sparse mixer", moe::SparseMixerGate{}, 0);
  require_round_trip("capacity", moe::WithCapacity<moe::TopKGate>{.gate = biased_gate()}, 2 * kExperts);
  require_round_trip("chance", moe::WithChance<moe::TopKGate>{.gate = biased_gate()}, 2 * kExperts);
  require_round_trip("expert choice", moe::ExpertChoiceGate{}, 0);
  require_round_trip("balanced", moe::BalancedGate{}, 0);
  require_round_trip("sinkhorn", moe::SinkhornGate{.top_k = biased_gate()}, 2 * kExperts);
  require_round_trip("hash", moe::HashGate{.table = moe::random_hash_table(7, kExperts, 2, 1)}, 7 * 2);
  require_round_trip("threshold", moe::ThresholdGate{}, 0);
  require_round_trip("thresholds", moe::ThresholdGate{.thresholds = zeros<double>()}, kExperts);
  require_round_trip("skipping", moe::WithSkipping<moe::TopKGate>{.gate = biased_gate()}, 2 * kExperts);
  require_round_trip("grouped", moe::GroupedGate<moe::TopKGate>{.gate = biased_gate()}, 2 * kExperts);
  require_round_trip("straight through", moe::StraightThrough<moe::TopKGate>{.gate = biased_gate()}, 2 * kExperts);
  require_round_trip("top any", moe::TopAnyGate<moe::TopKGate>{.gate = biased_gate()}, 2 * kExperts);
  require_round_trip("capacity, learnt", moe::WithCapacity<moe::DenseToSparseGate<Learnt>>{}, 1);
}

TEST_CASE("Round trip: every expert, with and without biases, in float and double", "[io]") {
  for (const Bias bias : {Bias::Off, Bias::Zero}) {
    const Index up = bias == Bias::Off ? 0 : kHidden, out = bias == Bias::Off ? 0 : kDim;
    require_round_trip("linear", Linear(kHidden, kDim, bias), kDim * kHidden + up);
    require_round_trip("mlp", Mlp(kDim, kHidden, bias), 2 * kDim * kHidden + up + out);
    require_round_trip("relu mlp", moe::ReluMlp(kDim, kHidden, bias), 2 * kDim * kHidden + up + out);
    require_round_trip("mlp, double", moe::BasicMlp<F64>(kDim, kHidden, bias), 2 * kDim * kHidden + up + out);
    require_round_trip("glu", Glu(kDim, kHidden, bias), 3 * kDim * kHidden + 2 * up + out);
    require_round_trip("clamped glu", moe::ClampedGlu(kDim, kHidden, bias), 3 * kDim * kHidden + 2 * up + out);
    require_round_trip("glu, double", moe::BasicGlu<F64>(kDim, kHidden, bias), 3 * kDim * kHidden + 2 * up + out);
  }
  constexpr moe::Widths kNarrow{.input = kDim, .hidden = kHidden, .output = 3};
  require_round_trip("narrow mlp", Mlp(kNarrow), kHidden * (kDim + 3) + kHidden + 3);
  require_round_trip("narrow glu", Glu(kNarrow), kHidden * (2 * kDim + 3));
  require_round_trip("narrow layer", layer(LinearRouter(kExperts, kDim), moe::TopKGate{}, pool(Mlp(kNarrow))),
                     kExperts * (kDim + kHidden * (kDim + 3)));
  require_round_trip("low rank", moe::LowRank(Glu(kDim, kHidden), {.rank = 2}, 1),
                     3 * kDim * kHidden + 2 * (2 * kDim + 3 * kHidden));
  require_round_trip("identity", moe::ScaledIdentity{kDim}, 0);
  require_round_trip("offset", moe::Offset(kDim), kDim);
  require_round_trip("feature gated", moe::FeatureGated(Mlp(kDim, kHidden), {.rank = 2, .num_gates = 3}, 1),
                     2 * kDim * kHidden + 3 * 2 * 2 * kDim);
  require_round_trip("normalised", moe::Normalised(Mlp(kDim, kHidden)), 2 * kDim * kHidden + 4 * kDim);
  require_round_trip("film", moe::Film(Linear(2 * kDim, kDim)), 2 * kDim * (kDim + 1));
  require_round_trip("gated", moe::GatedExpert<Glu, moe::F32>(Glu(kDim, kHidden), Linear(1, kDim, Bias::Zero)),
                     3 * kDim * kHidden + kDim + 1);
}

TEST_CASE("Round trip: pools of like and of mixed experts, sets, and layers as experts", "[io]") {
  using Mixed = moe::OneOf<Glu, Mlp, moe::ScaledIdentity>;
  require_round_trip("pool", pool(Glu(kDim, kHidden)), kExperts * 3 * kDim * kHidden);
  require_round_trip("pool, double", pool(moe::BasicMlp<F64>(kDim, kHidden)));
  const ExpertPool<Mixed> mixed(
      std::vector<Mixed>{Glu(kDim, kHidden), Mlp(kDim, kHidden), moe::ScaledIdentity{kDim}, Glu(kDim, 2)});
  require_round_trip("mixed", mixed, 5 * kDim * kHidden + 3 * kDim * 2);
  const moe::Concatenated sets(pool(Glu(kDim, kHidden)), pool(moe::ScaledIdentity{kDim}), mixed);
  require_round_trip("sets", sets, kExperts * 3 * kDim * kHidden + moe::num_parameters(mixed));
  require_round_trip("layer of sets", layer(LinearRouter(sets.size(), kDim), moe::TopKGate{}, sets),
                     sets.size() * kDim + moe::num_parameters(sets));
  for (const auto sides : {moe::LatentSides::Input, moe::LatentSides::Both})
    require_round_trip(
        "latent",
        moe::LatentExperts<Glu>::random(kExperts, {.model = kDim, .latent = 2, .hidden = kHidden}, 2, sides, 1),
        2 * 2 * kDim + kExperts * kHidden * 6);
  const moe::LayerExpert inner(glu_layer());
  require_round_trip("hierarchy", layer(LinearRouter(kExperts, kDim), moe::SoftmaxGate{}, pool(inner)),
                     kExperts * kExperts * 3 * kDim * kHidden);
}

TEST_CASE("Round trip: layers, with branches, and what optimisers remember of them", "[io]") {
  const auto plain = glu_layer();
  require_round_trip("layer", plain, kExperts * 3 * kDim * kHidden + kExperts * kDim + 2 * kExperts);
  require_round_trip("noisy layer", layer(moe::NoisyRouter(kExperts, kDim), moe::TopKGate{}, pool(Mlp(kDim, kHidden))));
  require_round_trip("double layer",
                     layer(moe::BasicLinearRouter<F64>(kExperts, kDim), moe::ActivationGate<>{.bias = zeros<double>()},
                           pool(moe::BasicGlu<F64>(kDim, kHidden))));
  require_round_trip("capacity", layer(LinearRouter(kExperts, kDim), moe::WithCapacity<moe::TopKGate>{biased_gate()},
                                       pool(Mlp(kDim, kHidden))));
  require_round_trip(
      "merged experts",
      layer(LinearRouter(kExperts, kDim), moe::SoftmaxGate{}, moe::MergedExperts(pool(Mlp(kDim, kHidden)))),
      kExperts * (kDim + 2 * kDim * kHidden));
  require_round_trip(
      "compressed experts",
      layer(LinearRouter(kExperts, kDim), moe::TopKGate{}, moe::CompressedExperts(pool(Mlp(kDim, kHidden)), 1)),
      kExperts * (2 * kDim + 2 * kDim * kHidden));
  require_round_trip(
      "film experts",
      layer(LinearRouter(kExperts, kDim), moe::TopKGate{}, moe::FilmExperts(Glu(kDim, kHidden), kExperts)),
      kExperts * kDim + 3 * kDim * kHidden + 2 * kDim * kExperts);
  require_round_trip("adapters", moe::adapters_of(moe::with_adapters(plain, {.rank = 2}, 1)),
                     kExperts * 2 * (2 * kDim + 3 * kHidden));
  const moe::ExpertMask mask = moe::ExpertMask(2, kExperts).allow(0, 0, 2).allow(1, 1, 2);
  const moe::Normalised home(moe::FeatureGated(Mlp(kDim, kHidden), {.rank = 2, .num_gates = 2}, 1));
  require_round_trip("several gates",
                     moe::MultiGateLayer(std::vector(2, LinearRouter(3, kDim)), moe::SelfGate{}, pool(home), mask),
                     2 * 3 * kDim + kExperts * (moe::num_parameters(home) + 2 * kDim));
  const auto shared = moe::with_shared_adapters(plain, moe::SharedFactor::A, {.rank = 2}, 1).experts();
  require_round_trip("adapters with a common A", shared.adapters(),
                     2 * (kDim + kHidden + kExperts * (2 * kHidden + kDim)));
  require_round_trip("pool with them", shared, num_saved(shared.adapters()) + kExperts * 3 * kDim * kHidden);
  require_round_trip("soft", moe::SoftMoeLayer(LinearRouter(2 * kExperts, kDim), pool(Mlp(kDim, kHidden))),
                     kExperts * (2 * kDim + 2 * kDim * kHidden));
  require_round_trip("recomputed", layer(plain.router(), plain.gate(), moe::Recomputed(plain.mixture())),
                     num_saved(plain));
  require_round_trip("policy",
                     moe::MixturePolicy(layer(LinearRouter(kExperts, kDim), moe::SoftmaxGate{},
                                              moe::SeparateExperts(pool(Mlp(moe::Widths{kDim, kHidden, 4})))),
                                        {.action_dim = 2}),
                     kExperts * (kDim + kHidden * (kDim + 4) + kHidden + 4));
  require_round_trip("branches",
                     moe::WithBranches(plain, Glu(kDim, 2), moe::Offset(kDim),
                                       moe::GatedExpert<Glu, moe::F32>(Glu(kDim, 3), Linear(1, kDim))),
                     num_saved(plain) + 5 * 3 * kDim + 2 * kDim + 1);
  require_round_trip("attention", moe::MultiHeadAttention(kDim, 2, {.num_heads = 1}),
                     2 * (kDim * kDim + kDim) + 2 * (2 * kDim + kDim));
  require_round_trip("layer norm", moe::LayerNorm<float>(kDim), 2 * kDim);
  require_round_trip("decoder block", moe::DecoderBlock(plain, 2, {.num_heads = 1}, {.num_heads = 1}, 1),
                     num_saved(plain) + 6 * kDim + 6 * kDim * kDim + 2 * 2 * kDim + 8 * kDim);
  require_round_trip("distribution transformer",
                     moe::DistributionTransformer({.dim = 2, .data_dim = 3, .hidden_dim = 4, .num_heads = 1},
                                                  std::vector(2, plain), 1),
                     4 * (6 + kDim) + 4 + kDim +        // embedding of components, rows of 6
                         4 * (3 + kDim) + 4 + kDim +    // embedding of data
                         2 * (8 * (kDim * kDim + kDim)  // attention to both
                              + 6 * kDim + num_saved(plain)) +
                         2 * kDim + 6 * (kDim + 1));  // norm and head
  require_round_trip("customised", moe::customise(Linear(2, kDim), std::vector(2, Linear(2, kDim))),
                     (3 * 2 + 3) * (kDim + 1) + 3);
  require_round_trip("adam", moe::AdamW::State<std::remove_const_t<decltype(plain)>>(plain),
                     2 * moe::num_parameters(plain));
  require_round_trip("sgd", moe::Sgd::State<std::remove_const_t<decltype(plain)>>(plain), moe::num_parameters(plain));
}

TEST_CASE("Round trip: the block of every published family", "[io]") {
  for (const auto& [model_type, text] : test::family_configs()) {
    const moe::MoeConfig config = test::config_of(model_type);
    require_round_trip(model_type.c_str(), moe::MoeBlock(config),
                       config.num_experts * config.model_dim * config.hidden_dim);
  }
}

TEST_CASE("Round trip: no type with parameters or state is left out above", "[io]") {
  std::set<std::string> found;
  const std::filesystem::path include = std::string(MOE_TEST_DATA) + "/../../include/moe/";
  for (const char* folder : {"layer", "expert", "router", "gate", "sequence", "policy"})
    for (const auto& file : std::filesystem::recursive_directory_iterator(include / folder))
      if (file.is_regular_file() && names_numbers(test::read_bytes(file.path())))
        found.insert(file.path().lexically_relative(include).replace_extension().generic_string());
  REQUIRE(found == std::set<std::string>{"expert/concatenated",
                                         "expert/feature_gated",
                                         "expert/film",
                                         "expert/gated_expert",
                                         "expert/glu",
                                         "expert/latent",
                                         "expert/linear",
                                         "expert/low_rank",
                                         "expert/mlp",
                                         "expert/normalised",
                                         "expert/offset",
                                         "expert/one_of",
                                         "expert/pool",
                                         "expert/shared_low_rank",
                                         "gate/activation",
                                         "gate/dense_to_sparse",
                                         "gate/hash",
                                         "gate/noisy_top_k",
                                         "gate/rule/temperature",
                                         "gate/sinkhorn",
                                         "gate/threshold",
                                         "gate/top_k",
                                         "gate/wrap/top_any",
                                         "gate/wrap/grouped",
                                         "gate/wrap/straight_through",
                                         "gate/wrap/with_capacity",
                                         "gate/wrap/with_chance",
                                         "gate/wrap/with_level_capacity",
                                         "gate/wrap/with_levels",
                                         "gate/wrap/with_skipping",
                                         "layer/adapters",
                                         "layer/branches",
                                         "layer/compressed_experts",
                                         "layer/film_experts",
                                         "layer/layer_expert",
                                         "layer/merged_experts",
                                         "layer/moe_layer",
                                         "layer/multi_gate_layer",
                                         "layer/recomputed",
                                         "layer/routed_experts",
                                         "layer/separate_experts",
                                         "layer/soft_moe",
                                         "layer/vector_film",
                                         "policy/mixture_policy",
                                         "router/columns",
                                         "router/cosine",
                                         "router/least_squares",
                                         "router/linear",
                                         "router/noisy",
                                         "router/normalised",
                                         "router/uncertain",
                                         "sequence/attention",
                                         "sequence/decoder_block",
                                         "sequence/distribution_transformer",
                                         "sequence/layer_norm"});
}
