// SPDX-License-Identifier: MIT
#include "routing_measurement.hpp"

#include <array>
#include <limits>
#include <numeric>

#include "clock.hpp"
#include "kernel/routed_rows.hpp"
#include "peers/naive_routing.hpp"

namespace bench {

namespace {

constexpr int kRepetitions = 15;
constexpr double kBudget = 2e-3;  // seconds per repetition and contestant

/// Rows exactly, weights up to rounding: on both sides exponentials within 2 ulp (each at most an epsilon), their sum
/// within k / 2 epsilons beside those 2, and half an epsilon of the division; twice that for what is not first order.
void require_equal(const moe::Routing<float>& routing, const moe::DispatchPlan& plan, const NaiveRouting& naive) {
  for (std::size_t r = 0; r < naive.token.size(); ++r)
    if (plan.token_of_row()[r] != naive.token[r])
      moe::fail_environment("bench: the plan differs from the naive one in row ", r);
  const double epsilons = 2 * 2 * (2 + 2 + 0.5 * static_cast<double>(naive.k) + 0.5);
  for (std::size_t a = 0; a < naive.weight.size(); ++a) {
    const double expected = naive.weight[a], error = std::abs(routing.weights()[a] - expected);
    if (!(error <= epsilons * std::numeric_limits<float>::epsilon() * expected))
      moe::fail_environment("bench: weight ", a, " is ", routing.weights()[a], ", the naive one ", expected);
  }
}

PlanResult measure_plan(Index tokens, Index experts, Index k) {
  LogitBatches batches(Pattern::Uniform, tokens, experts);
  const moe::TopKGate gate{.k = k};
  moe::Routing<float> routing;
  moe::DispatchPlan plan;
  NaiveRouting naive;
  const auto ours = [&](const Matrix<float>& logits) {
    gate.route<float>(logits, moe::Step{}, routing);
    plan.build(routing, experts);
    keep(plan);
  };
  std::vector<double> ours_seconds, naive_seconds, ratio;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    ours_seconds.push_back(mean_seconds(kBudget, [&] { ours(batches.next()); }));
    naive_seconds.push_back(mean_seconds(kBudget, [&] { naive.build(batches.next(), k); }));
    ratio.push_back(naive_seconds.back() / ours_seconds.back());
  }
  ours(batches.front());
  naive.build(batches.front(), k);
  require_equal(routing, plan, naive);
  const double per_token = 1e9 / static_cast<double>(tokens);
  return {tokens, experts, k, per_token * median(ours_seconds), per_token * median(naive_seconds), median(ratio)};
}

MovementResult measure_movement_of(const Shape& shape, Index num_tokens) {
  RoutedRows rows(shape, Pattern::Uniform, num_tokens);
  rows.verify();
  MovementResult result{.shape = shape.name, .tokens = num_tokens};
  std::vector<double> dispatch, combine, copy, dispatch_percent, combine_percent, speedup;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    dispatch.push_back(rows.dispatch_bytes() /
                       mean_seconds(kBudget, [&] { moe::kernel::dispatch<float>(rows.tokens, rows.plan, rows.rows); }));
    copy.push_back(2 * memcpy_bandwidth(static_cast<Index>(rows.dispatch_bytes() / 2), /*threads=*/1, kBudget));
    const double seconds =
        mean_seconds(kBudget, [&] { moe::kernel::combine(rows.rows, rows.plan, rows.routing, rows.out); });
    combine.push_back(rows.combine_bytes() / seconds);
    speedup.push_back(mean_seconds(kBudget, [&] { rows.scatter_add(); }) / seconds);
    dispatch_percent.push_back(100 * dispatch.back() / copy.back());
    combine_percent.push_back(100 * combine.back() / copy.back());
  }
  result.dispatch_gbps = 1e-9 * median(dispatch);
  result.combine_gbps = 1e-9 * median(combine);
  result.memcpy_gbps = 1e-9 * median(copy);
  result.dispatch_percent = median(dispatch_percent);
  result.combine_percent = median(combine_percent);
  result.combine_speedup = median(speedup);
  return result;
}

constexpr std::size_t kParts = 5;
using PartSeconds = std::array<double, kParts>;  // router, gate, plan, experts, combine

/// The lines of MoeLayer::forward and RoutedExperts::forward, with a clock between them.
PartSeconds seconds_of_parts(const Layer& layer, const Matrix<float>& tokens, Matrix<float>& out, moe::Workspace& ws) {
  const moe::Step step;
  const moe::Context context(step, ws.scratch);
  auto& routed = ws.scratch.get<moe::detail::RoutedRows<float>>();
  const moe::Context of_experts(step, routed.experts);
  return {seconds_of([&] { layer.router().logits(tokens, context, ws.logits); }),
          seconds_of([&] { layer.gate().route<float>(ws.logits, context, ws.routing); }),
          seconds_of([&] { routed.plan.build(ws.routing, layer.num_experts()); }),
          seconds_of([&] { layer.experts().forward(tokens, routed.plan, of_experts, routed.rows); }),
          seconds_of([&] { moe::kernel::combine(routed.rows, routed.plan, ws.routing, out); })};
}

}  // namespace

std::vector<PlanResult> measure_plans() {
  set_threads(1);
  constexpr Index kCases[][3] = {{1, 64, 8},    {1, 256, 8},   {512, 8, 2},   {512, 64, 8},
                                 {512, 128, 8}, {512, 256, 8}, {8192, 8, 8},  {8192, 64, 1},
                                 {8192, 64, 2}, {8192, 64, 8}, {8192, 256, 8}};
  std::vector<PlanResult> results;
  for (const auto& [tokens, experts, k] : kCases) results.push_back(measure_plan(tokens, experts, k));
  return results;
}

std::vector<MovementResult> measure_movement(Index most_tokens) {
  set_threads(1);
  std::vector<MovementResult> results;
  for (const Shape& shape : {kShapes[0], kShapes[1], kShapes[2]})
    for (const Index tokens : {Index{512}, Index{4096}})
      if (tokens <= most_tokens) results.push_back(measure_movement_of(shape, tokens));
  return results;
}

ShareResult measure_share(const Shape& shape, const Layer& layer, Index tokens, int threads) {
  set_threads(threads);
  const Matrix<float> input = routed_tokens(shape, Pattern::Uniform, tokens);
  Matrix<float> out(tokens, shape.model_dim);
  moe::Workspace ws;
  layer.forward(input, out, ws);
  const LimitMeter meter(touched_bytes(shape, ws.plan()), threads);
  std::array<std::vector<double>, kParts> percent;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    static_cast<void>(meter.measure());  // flushes the caches, if the weights do not fit
    if (meter.is_warm()) static_cast<void>(seconds_of_parts(layer, input, out, ws));
    const PartSeconds part = seconds_of_parts(layer, input, out, ws);
    const double whole = std::accumulate(part.begin(), part.end(), 0.0);
    for (std::size_t p = 0; p < kParts; ++p) percent[p].push_back(100 * part[p] / whole);
  }
  return {.shape = shape.name,
          .tokens = tokens,
          .threads = threads,
          .router = median(percent[0]),
          .gate = median(percent[1]),
          .plan = median(percent[2]),
          .combine = median(percent[4])};
}

}  // namespace bench
