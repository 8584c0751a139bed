// SPDX-License-Identifier: MIT
// The half of digits.cpp with gates that choose experts.
#include "jobs.hpp"

namespace digits {

void add_sparse_jobs(std::vector<Job>& jobs, const Plan& plan) {
  const Options balanced{.epochs = plan.epochs};
  const Options consistent{.epochs = plan.epochs, .balance = 0, .consistency = 1};
  // Gates that end with one expert per token get half as many experts of twice the width: equal parameters and equal
  // active FLOPs. The temperature falls for 60% of the training.
  constexpr Index kFew = kExperts / kActive, kWide = kActive * kHidden;
  const Index updates = plan.epochs * ((plan.data.train.pixels.rows() + kBatch - 1) / kBatch);
  const auto fall = static_cast<std::uint64_t>(updates) * 6 / 10;

  add(jobs, plan, "top_k", moe::TopKGate{.k = kActive}, kExperts, kHidden, balanced);
  add(jobs, plan, "dense_to_sparse",
      moe::DenseToSparseGate<>{.temperature = {.start = 2, .end = 0.3, .updates = fall}, .hard_from = fall}, kFew,
      kWide, balanced);
  add(jobs, plan, "activation",
      moe::ActivationGate<>{.bias = Eigen::RowVectorXd::Zero(kFew),
                            .sparse = {.temperature = {.start = 1, .end = 0.05, .updates = fall}, .hard_from = fall}},
      kFew, kWide, balanced);
  add(jobs, plan, "stochastic", moe::StochasticGate{}, kFew, kWide, consistent);
}

}  // namespace digits
