// SPDX-License-Identifier: MIT
// Training steps of experts on two ranks, how long they take, and how long a model of costs says they take that has
// been fitted to exchanges and products alone. Ranks are processes, or threads behind a network that is made up.
#pragma once

#include <algorithm>
#include <vector>

#include <moe/core/parallel.hpp>
#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/layer/routed_experts.hpp>
#include <moe/mpi/calibrate.hpp>
#include <moe/mpi/fully_sharded_experts.hpp>
#include <moe/mpi/threads.hpp>

namespace systems {

struct RankBench {
  static constexpr moe::Index kRanks = 2, kExperts = 8, kDim = 128, kHidden = 256, kChoices = 2;
  moe::Index tokens = 512;  ///< of a rank
  moe::Index repeats = 15;
  moe::mpi::ThreadsOptions network = {.latency = 2e-4, .bytes_per_second = 5e7};

  using Pool = moe::ExpertPool<moe::Mlp>;
  Pool pool = Pool::random(kExperts, kDim, kHidden, 1);

  /// A token chooses expert e with a chance that is proportional to loads[e], and another one likewise.
  moe::Routing<float> routing(const std::vector<double>& loads, moe::Index rank) const {
    std::vector<moe::Index> chosen;
    for (moe::Index t = 0; t < tokens; ++t) {
      std::vector<double> left = loads;
      for (moe::Index choice = 0; choice < kChoices; ++choice) {
        double sum = 0;
        for (const double load : left) sum += load;
        double at = sum * moe::RandomField(moe::Purpose::User, 7).uniform(rank * tokens + t, choice);
        std::size_t e = 0;
        while (e + 1 < left.size() && at >= left[e]) at -= left[e++];
        if (left[e] == 0) e = static_cast<std::size_t>(std::ranges::max_element(left) - left.begin());
        left[e] = 0;
        chosen.push_back(static_cast<moe::Index>(e));
      }
    }
    const std::vector<float> weights(chosen.size(), 0.5f);
    return moe::Routing<float>::from(tokens, chosen, weights, kExperts);
  }
  moe::mpi::RankMatrix rows(const std::vector<double>& loads) const {
    moe::mpi::RankMatrix counts = moe::mpi::RankMatrix::Zero(kRanks, kExperts);
    for (moe::Index r = 0; r < kRanks; ++r) {
      const moe::Routing<float> of_rank = routing(loads, r);
      for (const moe::Index e : of_rank.experts()) counts(r, e) += 1;
    }
    return counts;
  }
  moe::mpi::StepWork work() const {
    const double row = kDim * sizeof(float);
    return {.row_bytes = row,
            .row_operations = 12.0 * kDim * kHidden,  // 4 forward, 8 backward
            .calls = 1,
            .exchanges = 4,
            .expert_bytes = static_cast<double>(moe::mpi::gathered_bytes(pool[0])),
            .gathers = 2,
            .overlaps = false};
  }

  /// Median seconds of forward and backward on both ranks with experts as the placement has them.
  template <class C>
  double measure(const C& ranks, const std::vector<double>& loads, const moe::mpi::Placement& placement) const {
    moe::mpi::FullyShardedExperts experts(ranks, pool, placement.shards());
    experts.materialise(placement);
    const moe::RoutedExperts mixture(std::move(experts));
    auto gradient = moe::zeros_like(mixture);
    return seconds(ranks, mixture, gradient, routing(loads, ranks.rank()));
  }
  double measure(const std::vector<double>& loads, const moe::mpi::Placement& placement) const {
    return on_ranks(network, [&](const moe::mpi::Threads& ranks) { return this->measure(ranks, loads, placement); });
  }

  /// Fitted to all-to-alls, and to experts of which each rank has all, with few rows and with many.
  template <class C>
  moe::mpi::CostModel fit(const C& ranks) const {
    moe::mpi::CostModel model;
    const moe::Index sizes[] = {64, 4096, 65536, 262144, 1048576};
    model.between_nodes = moe::mpi::fit_cost(moe::mpi::measure_all_to_all(ranks, sizes, repeats));
    model.within_node = model.between_nodes;
    std::vector<moe::mpi::Measured> products;
    for (const moe::Index share : {8, 4, 2, 1}) {
      RankBench few = *this;
      few.tokens = tokens / share;
      const std::vector<double> even(kExperts, 1.0);
      const moe::RoutedExperts mixture(pool);
      auto gradient = moe::zeros_like(mixture);
      products.push_back({1, static_cast<double>(few.tokens * kChoices) * work().row_operations,
                          few.seconds(ranks, mixture, gradient, few.routing(even, ranks.rank()))});
    }
    model.compute = moe::mpi::fit_cost(products);
    return model;
  }
  /// The same on threads: messages of ranks on different nodes go over the network.
  moe::mpi::CostModel fit() const {
    moe::mpi::CostModel model;
    const auto fit_to = [&](const moe::mpi::ThreadsOptions& of, moe::mpi::CostModel& found) {
      on_ranks(of, [&](const moe::mpi::Threads& ranks) {
        const moe::mpi::CostModel own = this->fit(ranks);
        if (ranks.rank() == 0) found = own;
        return 0.0;
      });
    };
    moe::mpi::CostModel without;
    fit_to(network, model);
    fit_to({}, without);
    return {.within_node = without.within_node, .between_nodes = model.between_nodes, .compute = without.compute};
  }
  /// What the model says of measure(): ranks are nodes.
  moe::mpi::StepTime predict(const moe::mpi::CostModel& model, const std::vector<double>& loads,
                             const moe::mpi::Placement& placement) const {
    return moe::mpi::step_time(model, {.ranks = kRanks, .ranks_per_node = 1}, work(), rows(loads), placement);
  }

 private:
  /// What f(ranks) returns on rank 0, each rank on one thread.
  template <class F>
  double on_ranks(const moe::mpi::ThreadsOptions& of, const F& f) const {
    double result = 0;
    moe::mpi::run_ranks(
        kRanks,
        [&](const moe::mpi::Threads& ranks) {
          moe::SerialExecutor serial;
          const moe::UseExecutor use(serial);
          const double own = f(ranks);
          if (ranks.rank() == 0) result = own;
        },
        of);
    return result;
  }
  /// Of the slower rank.
  template <class C, class Mixture>
  double seconds(const C& ranks, const Mixture& mixture, Mixture& gradient, const moe::Routing<float>& routing) const {
    const moe::Matrix<float> in = moe::Matrix<float>::Constant(tokens, kDim, 0.1f);
    moe::Matrix<float> out(tokens, kDim), din(tokens, kDim);
    std::vector<float> dweight(static_cast<std::size_t>(routing.num_assignments()));
    typename Mixture::Tape tape;
    moe::Scratch scratch;
    const moe::Step step = moe::Step::train(0);
    moe::mpi::barrier(ranks);
    const double own = moe::mpi::median_seconds(repeats, [&] {
      mixture.forward(in, routing, {step, scratch}, out, tape);
      mixture.backward(in, routing, {step, scratch}, tape, out, gradient, std::span(dweight), din);
    });
    return std::ranges::max(moe::mpi::all_gather<double>(ranks, std::span(&own, 1)));
  }
};

}  // namespace systems
