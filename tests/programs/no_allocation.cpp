// SPDX-License-Identifier: MIT
// A warm forward pass of a layer does not allocate, nor does training of panel experts on batches of one size; for the
// parts by themselves, see warm_parts.cpp. Exits with 1 after messages about who allocated.
#include <cstdio>
#include <cstdlib>

#include "moe/expert/glu.hpp"
#include "moe/expert/linear.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/expert_choice.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/compressed_experts.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/layer/merged_experts.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/layer/multi_gate_layer.hpp"
#include "moe/layer/separate_experts.hpp"
#include "moe/layer/soft_moe.hpp"
#include "moe/policy/entropy_bounds.hpp"
#include "moe/policy/mixture_gradient.hpp"
#include "moe/policy/mixture_policy.hpp"
#include "moe/router/cosine.hpp"
#include "moe/router/noisy.hpp"
#include "moe/train/customise.hpp"
#include "moe/train/trainer.hpp"
#include "programs/any_gate.hpp"
#include "programs/expect_none.hpp"

namespace {

using moe::Index;
using moe::Matrix;

constexpr Index kTokens = 64, kExperts = 6, kModelDim = 45, kHiddenDim = 37;

using test::expect_none;

void expect_some(const char* name, void* (*allocate)()) {
  const long before = test::allocations.load();
  std::free(allocate());
  if (test::allocations.load() != before) return;
  ++test::num_failed;
  std::printf("%s is not counted\n", name);
}

/// Inference of every number of tokens up to the warm one.
template <class Layer>
void check_forward(const std::string& name, const Layer& layer, const moe::Step& step = {}) {
  typename Layer::Workspace ws;
  const Matrix<float> tokens = Matrix<float>::Random(kTokens, kModelDim);
  Matrix<float> out(kTokens, kModelDim);
  expect_none(name, [&] {
    for (const Index count : {kTokens, Index{0}, Index{1}, Index{17}})
      layer.forward(tokens.topRows(count), step, out.topRows(count), ws);
  });
}

/// Training with a tape for each number of tokens.
template <class Layer>
void check_training(const std::string& name, const Layer& layer) {
  const Matrix<float> tokens = Matrix<float>::Random(kTokens, kModelDim);
  Matrix<float> out(kTokens, kModelDim), dtokens = out;
  Layer gradient = moe::zeros_like(layer);
  for (const Index count : {kTokens, Index{0}, Index{1}, Index{17}}) {
    typename Layer::Tape tape;
    expect_none(name + ", " + std::to_string(count) + " tokens", [&] {
      layer.forward(tokens.topRows(count), moe::Step::train(1), out.topRows(count), tape);
      layer.backward(tokens.topRows(count), tape, tokens.topRows(count), gradient, dtokens.topRows(count));
      layer.backward(tokens.topRows(count), tape, tokens.topRows(count), gradient);
    });
  }
}

/// What a trainer adds to that allocates nothing either; losses and optimisers allocate partial sums and names.
template <class Layer>
void check_trainer(const std::string& name, Layer layer) {
  moe::Trainer trainer(layer);
  const Matrix<float> tokens = Matrix<float>::Random(kTokens, kModelDim);
  expect_none(name, [&] {
    trainer.accumulate(
        tokens, moe::Step::train(1), [](const auto& output, auto& doutput) { return doutput = output, 0.0; },
        [](const moe::RoutedPass<float>& pass) {
          moe::detail::accumulator("test", "logits", pass.losses.logits, kTokens, pass.logits.cols()) += pass.logits;
          moe::detail::accumulator("test", "weight", pass.losses.weight, pass.routing.num_assignments())[0] += 1;
          return 0.0;
        },
        0.5);
  });
}

/// The same sizes with another routing: first an even one, then all tokens to the same experts. With so many tokens the
/// rows of experts go in several waves.
void check_other_routing(const std::string& threads) {
  constexpr Index kMany = 6000, kWide = 1200;
  const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kModelDim, 1), moe::TopKGate{},
                            moe::ExpertPool<moe::Glu>::random(kExperts, kModelDim, kWide, 2));
  for (const Index count : {Index{8}, kTokens, kMany}) {
    const Matrix<float> even = Matrix<float>::Random(count, kModelDim), equal = even.row(0).replicate(count, 1);
    Matrix<float> out(count, kModelDim);
    moe::Workspace ws;
    layer.forward(even, out, ws);
    const long before = test::allocations.load();
    layer.forward(equal, out, ws);
    layer.forward(even, out, ws);
    const long allocated = test::allocations.load() - before;
    if (allocated == 0) continue;
    ++test::num_failed;
    std::printf("other routing, %s, %td tokens: %ld allocations\n", threads.c_str(), count, allocated);
  }
}

template <class E>
void check_panel_experts(const std::string& name) {
  for (const auto& gate : test::per_token_gates<float>(kExperts)) {
    const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kModelDim, 1), gate,
                              moe::ExpertPool<E>::random(kExperts, kModelDim, kHiddenDim, 2));
    check_forward(name + ", " + gate.name, layer);
    check_training(name + ", " + gate.name + ", training", layer);
  }
}

/// Layers in layers, capacity, padding, noise.
void check_compositions(const std::string& threads) {
  const auto router = moe::LinearRouter::random(kExperts, kModelDim, 1);
  const auto pool = moe::ExpertPool<moe::Glu>::random(kExperts, kModelDim, kHiddenDim, 2);
  const moe::MoeLayer layer(router, moe::TopKGate{}, pool);
  check_forward("branches, " + threads, moe::WithBranches(layer, pool[0], moe::ScaledIdentity{kModelDim}));
  check_trainer("trainer", layer);
  check_trainer("trainer of branches", moe::WithBranches(layer, pool[0]));
  const moe::WithCapacity<moe::TopKGate> capacity{.capacity = {.evaluation_factor = 0.5}};
  check_forward("capacity, " + threads, moe::MoeLayer(router, capacity, pool));
  check_forward("noisy router, " + threads,
                moe::MoeLayer(moe::NoisyRouter::random(kExperts, kModelDim, 1), moe::TopKGate{}, pool));

  const auto cosine = moe::CosineRouter::random(kExperts, kModelDim, 8, 1);
  check_forward("cosine router, " + threads, moe::MoeLayer(cosine, moe::TopKGate{}, pool));
  check_training("cosine router, training, " + threads, moe::MoeLayer(cosine, moe::TopKGate{}, pool));
  check_forward("expert choice, " + threads, moe::MoeLayer(router, moe::ExpertChoiceGate{}, pool));
  check_training("expert choice, training, " + threads, moe::MoeLayer(router, moe::ExpertChoiceGate{}, pool));

  using Inner = moe::LayerExpert<std::remove_const_t<decltype(layer)>>;
  using Any = moe::OneOf<moe::Glu, moe::ScaledIdentity, Inner>;
  const std::vector<Any> experts = {Any(pool[0]), Any(moe::ScaledIdentity{kModelDim}), Any(Inner(layer))};
  const moe::ExpertPool<Any> mixed(experts);
  check_forward("hierarchy of several types, " + threads,
                moe::MoeLayer(moe::LinearRouter::random(3, kModelDim, 1), moe::TopKGate{}, mixed));
}

/// Layers without choices.
void check_soft(const std::string& threads) {
  const auto router = moe::LinearRouter::random(kExperts, kModelDim, 1);
  const auto pool = moe::ExpertPool<moe::Glu>::random(kExperts, kModelDim, kHiddenDim, 2);
  const moe::MoeLayer merged(router, moe::SoftmaxGate{}, moe::MergedExperts(pool));
  check_forward("merged experts, " + threads, merged);
  check_training("merged experts, training, " + threads, merged);
  const moe::MoeLayer compressed(router, moe::TopKGate{.k = 3}, moe::CompressedExperts(pool, 1));
  check_forward("compressed experts, " + threads, compressed);
  check_training("compressed experts, training, " + threads, compressed);
  // Three gates of 15 outputs each.
  const moe::MultiGateLayer gates(
      std::vector(3, moe::LinearRouter::random(4, kModelDim, 1)), moe::TopKGate{},
      moe::ExpertPool<moe::Mlp>::random(kExperts, {.input = kModelDim, .hidden = kHiddenDim, .output = 15}, 2),
      moe::ExpertMask(3, kExperts).allow(0, 0, 4).allow(1, 1, 4).allow(2, 2, 4));
  check_forward("several gates, " + threads, gates);
  check_training("several gates, training, " + threads, gates);
  check_trainer("trainer of several gates, " + threads, gates);
  // Fewer gates with the same workspace, and more again.
  const moe::MultiGateLayer two(
      std::vector(2, moe::LinearRouter::random(4, kModelDim, 1)), moe::TopKGate{},
      moe::ExpertPool<moe::Mlp>::random(kExperts, {.input = kModelDim, .hidden = kHiddenDim, .output = 15}, 2),
      moe::ExpertMask(2, kExperts).allow(0, 0, 4).allow(1, 2, 4));
  const Matrix<float> tokens = Matrix<float>::Random(kTokens, kModelDim);
  Matrix<float> of_three(kTokens, gates.output_dim()), of_two(kTokens, two.output_dim());
  moe::Workspace shared;
  expect_none("several gates, then fewer, " + threads, [&] {
    gates.forward(tokens, of_three, shared);
    two.forward(tokens, of_two, shared);
  });
  auto customised =
      moe::customise(moe::Mlp::random(kModelDim, kHiddenDim, 1), moe::Linear::random(kModelDim, kModelDim, 2));
  customised.gate().selection_bias.setZero();  // open: about half of the rows
  customised.router().router() = moe::LinearRouter::random(2, kModelDim + 2, 3, moe::Bias::Zero);
  check_forward("customised, " + threads, customised);
  const moe::SoftMoeLayer soft(moe::LinearRouter::random(3 * kExperts, kModelDim, 1), pool);
  check_forward("soft, " + threads, soft);
  check_training("soft, training, " + threads, soft);
}

/// A policy acts and learns by each of the estimators.
void check_policy(const std::string& threads) {
  const moe::MixturePolicy policy(
      moe::MoeLayer(moe::LinearRouter::random(kExperts, kModelDim, 1), moe::SoftmaxGate{},
                    moe::SeparateExperts(moe::ExpertPool<moe::Mlp>::random(
                        kExperts, {.input = kModelDim, .hidden = kHiddenDim, .output = 6}, 2))),
      {.action_dim = 3});
  using Policy = std::remove_const_t<decltype(policy)>;
  const Matrix<float> states = Matrix<float>::Random(kTokens, kModelDim);
  const moe::Step step = moe::Step::train(1, 2);
  Policy::Workspace ws;
  Policy::Tape tape;
  Policy gradient = moe::zeros_like(policy);
  moe::DiagonalMixture<float> dmixture;
  Matrix<float> actions(kTokens, 3), value = Matrix<float>::Random(kTokens, kExperts);
  std::vector<float> lower(kTokens), upper(kTokens);
  for (const auto kind : {moe::MixtureGradient::Frequency, moe::MixtureGradient::GumbelSoftmax,
                          moe::MixtureGradient::ScoreRatio, moe::MixtureGradient::Marginalised}) {
    moe::MixtureEstimator<float> estimator({.kind = kind});
    Matrix<float> slope(kTokens, 3 * estimator.num_points(kExperts));
    expect_none("policy, " + threads, [&] {
      policy.act(states, step, moe::ActionChoice::Sample, actions, ws);
      moe::entropy_bounds(ws.mixture, lower, upper);
      policy.forward(states, step, tape);
      dmixture.clear_like(tape.mixture);
      estimator.propose(tape.mixture, step);
      tape.mixture.log_density_backward(estimator.latent(), value.leftCols(slope.cols() / 3), dmixture, slope);
      estimator.backward(tape.mixture, value.leftCols(slope.cols() / 3), slope, {}, step, dmixture);
      policy.backward(states, tape, dmixture, gradient);
    });
  }
}

/// More experts than the stack has room for; choices that go by lanes, by parts of a row and through groups.
void check_many_experts(const std::string& threads) {
  constexpr Index kMany = 2052;
  const auto router = moe::LinearRouter::random(kMany, kModelDim, 1);
  const auto pool = moe::ExpertPool<moe::Linear>::random(kMany, kModelDim, kModelDim, 2);
  const auto check = [&](const std::string& name, const auto& gate) {
    check_forward(name + ", many experts, " + threads, moe::MoeLayer(router, gate, pool));
    check_training(name + ", many experts, " + threads, moe::MoeLayer(router, gate, pool));
  };
  check("top 8", moe::TopKGate{.k = 8});
  check("top 40 of groups", moe::TopKGate{.k = 40, .groups = {.count = 4, .kept = 2, .best = 2}});
  check("noisy top 8", moe::NoisyTopKGate{.top_k = {.k = 8}});
  check("stochastic", moe::StochasticGate{});
}

void check_all(const std::string& threads) {
  check_compositions(threads);
  check_soft(threads);
  check_policy(threads);
  check_many_experts(threads);
  check_other_routing(threads);
  check_panel_experts<moe::Glu>("glu, " + threads);
  check_panel_experts<moe::Mlp>("mlp, " + threads);
}

}  // namespace

int main() {
  expect_some("malloc", [] { return std::malloc(8); });
  expect_some("calloc", [] { return std::calloc(1, 8); });
  expect_some("realloc", [] { return std::realloc(nullptr, 8); });
  expect_some("aligned_alloc", [] { return std::aligned_alloc(64, 64); });
  expect_some("posix_memalign", [] {
    void* memory = nullptr;
    return posix_memalign(&memory, 64, 64) == 0 ? memory : nullptr;
  });
#ifdef _OPENMP
  omp_set_num_threads(1);
#endif
  check_all("one thread");
#ifdef _OPENMP
  omp_set_num_threads(3);
  check_all("three OpenMP threads");
#endif
  return test::report();
}
