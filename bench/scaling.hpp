// SPDX-License-Identifier: MIT
// What is measured over a grid of sizes: the way from logits to the plan, and a whole layer of small experts.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cliffs.hpp"
#include "clock.hpp"
#include "machine.hpp"
#include "problem.hpp"

namespace bench {

/// The sizes of a grid. Places with K > E, or beyond a part's own limits, are left out.
struct Grid {
  std::vector<Index> experts, tokens, k;
};

/// Noise in U(-2, 2), written; the same for all.
inline std::span<const float> noise() {
  static const std::vector<float> values = [] {
    std::vector<float> drawn(std::size_t{1} << 24);
    std::uint64_t state = 88172645463325252u;  // Marsaglia, "Xorshift RNGs", 2003
    for (float& value : drawn) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      value = static_cast<float>(static_cast<double>(state >> 40) * 0x1p-22 - 2);
    }
    return drawn;
  }();
  return values;
}

/// Batches of rows of one table of noise, in turn: a branch predictor learns one small batch by heart.
class Batches {
 public:
  Batches(Index tokens, Index columns, Index most_rows)
      : table_(noise().data(), std::max(tokens, std::min(most_rows, kValues / columns)), columns), tokens_(tokens) {}

  moe::ConstMatrixRef<float> next() {
    if (next_ + tokens_ > table_.rows()) next_ = 0;
    next_ += tokens_;
    return table_.middleRows(next_ - tokens_, tokens_);
  }

 private:
  static constexpr Index kValues = Index{1} << 22;  // of a table, unless one batch has more

  Eigen::Map<const Matrix<float>> table_;
  Index tokens_, next_ = 0;
};

/// From logits to the rows of each expert: top-K gate and plan.
class RoutingPart {
 public:
  static constexpr const char* kName = "routing";
  static bool fits(const Place& at) {
    return at.experts * at.tokens <= (Index{1} << 24) && at.tokens * at.k <= (Index{1} << 21);
  }

  RoutingPart(Index experts, Index tokens) : experts_(experts), batches_(tokens, experts, 8192) {}

  void operator()(Index k) {
    moe::TopKGate{.k = k}.route(moe::Logits<float>(batches_.next()), {step_, scratch_}, routing_);
    plan_.build(routing_, experts_);
    keep(plan_);
  }

 private:
  Index experts_;
  Batches batches_;
  moe::Step step_;
  moe::Scratch scratch_;
  moe::Routing<float> routing_;
  moe::DispatchPlan plan_;
};

/// Forward through experts so small (48 KB) that everything around them shows.
class LayerPart {
 public:
  static constexpr const char* kName = "layer";
  static constexpr Index kDim = 64;
  static bool fits(const Place& at) { return at.tokens * at.k <= (Index{1} << 18); }

  LayerPart(Index experts, Index tokens)
      : layer_(random_layer({"", kDim, kDim, experts, 1})), batches_(tokens, kDim, 4096), out_(tokens, kDim) {}

  void operator()(Index k) {
    layer_.gate().k = k;
    layer_.forward(batches_.next(), out_, workspace_);
    keep(out_);
  }

 private:
  Layer layer_;
  Batches batches_;
  Matrix<float> out_;
  moe::Workspace workspace_;
};

/// The least of a few runs, which neighbours on the machine disturb least.
template <class Part>
double nanoseconds_per_token(Part& part, const Place& at) {
  constexpr int kRuns = 5;
  constexpr double kSeconds = 1e-3;  // of a run
  set_threads(at.threads);
  part(at.k);
  double best = mean_seconds(kSeconds, [&] { part(at.k); });
  for (int run = 1; run < kRuns; ++run) best = std::min(best, mean_seconds(kSeconds, [&] { part(at.k); }));
  return 1e9 * best / static_cast<double>(at.tokens);
}

template <class Part>
std::vector<Cost> costs_of(const Grid& grid) {
  std::vector<Cost> costs;
  std::vector<int> threads = {1};
  if (all_threads() > 1) threads.push_back(all_threads());
  for (const Index experts : grid.experts)
    for (const Index tokens : grid.tokens) {
      std::unique_ptr<Part> part;
      for (const Index k : grid.k)
        for (const int count : threads) {
          const Place at{experts, tokens, k, count};
          if (k > experts || !Part::fits(at)) continue;
          if (!part) part = std::make_unique<Part>(experts, tokens);
          costs.push_back({at, nanoseconds_per_token(*part, at)});
        }
    }
  return costs;
}

/// The jump of a step, measured in turns: the median of the ratios.
template <class Part>
double jump_in_turns(Neighbours step) {
  constexpr int kTurns = 9;
  constexpr double kSeconds = 2e-3;
  Part from(step.from.place.experts, step.from.place.tokens), to(step.to.place.experts, step.to.place.tokens);
  const auto cost = [](Part& part, const Place& at) {
    set_threads(at.threads);
    part(at.k);
    return mean_seconds(kSeconds, [&] { part(at.k); }) / static_cast<double>(at.tokens);
  };
  std::vector<double> ratios;
  for (int turn = 0; turn < kTurns; ++turn) {
    const double before = cost(from, step.from.place);
    ratios.push_back(cost(to, step.to.place) / before);
  }
  step.from.nanoseconds = 1;
  step.to.nanoseconds = median(ratios);
  return jump(step);
}

}  // namespace bench
