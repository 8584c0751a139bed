// SPDX-License-Identifier: MIT
// The training runs of digits.cpp: one per gate and seed.
#pragma once

#include <functional>

#include "training.hpp"

namespace digits {

inline constexpr Index kExperts = 8, kHidden = 48, kActive = 2;

using Job = std::function<Run()>;

/// What all runs have in common.
struct Plan {
  const Data& data;  // outlives the jobs
  int seeds, epochs;
};

/// The linear model, a dense network, and all experts at once.
void add_dense_jobs(std::vector<Job>& jobs, const Plan& plan);

/// Gates that choose experts.
void add_sparse_jobs(std::vector<Job>& jobs, const Plan& plan);

/// Adds one job per seed: a classifier with `num_experts` experts of `hidden` units behind this gate.
template <class Gate>
void add(std::vector<Job>& jobs, const Plan& plan, const std::string& name, const Gate& gate, Index num_experts,
         Index hidden, const Options& options) {
  for (int seed = 1; seed <= plan.seeds; ++seed)
    jobs.push_back([=, &data = plan.data] {
      const auto key = static_cast<std::uint64_t>(seed);
      const Classifier<Gate, moe::Mlp> model{
          {moe::MoeLayer(moe::LinearRouter::random(num_experts, kPixels, key), gate,
                         moe::ExpertPool<moe::Mlp>::random(num_experts, kPixels, hidden, key + 10)),
           moe::ScaledIdentity{kPixels}},
          moe::Linear::random(kClasses, kPixels, key + 20)};
      return train(name, seed, model, data, options);
    });
}

/// The linear model: its only "expert" computes nothing, so scores = head(x).
inline void add_linear(std::vector<Job>& jobs, const Plan& plan, const Options& options) {
  for (int seed = 1; seed <= plan.seeds; ++seed)
    jobs.push_back([=, &data = plan.data] {
      using Nothing = moe::ScaledIdentity;
      const Classifier<moe::SoftmaxGate, Nothing> model{
          {moe::MoeLayer(moe::LinearRouter(1, kPixels), moe::SoftmaxGate{},
                         moe::ExpertPool<Nothing>({Nothing{.dim = kPixels, .scale = 0}})),
           moe::ScaledIdentity{kPixels}},
          moe::Linear::random(kClasses, kPixels, static_cast<std::uint64_t>(seed) + 20)};
      return train("linear", seed, model, data, options);
    });
}

}  // namespace digits
