// SPDX-License-Identifier: MIT
// routing/plan: a routing sorted by expert, beside std::stable_sort; both on one thread.
#include <numeric>

#include "google.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/routing/plan.hpp"

namespace {

using bench::Index, bench::Pattern, bench::Shape;

/// Routings of different batches, in turn.
std::vector<moe::Routing<float>> routings_of(const Shape& shape, Pattern pattern, Index tokens) {
  std::vector<moe::Routing<float>> routings(tokens < 64 ? 64 : 4);
  bench::LogitBatches batches(pattern, tokens, shape.num_experts);
  for (auto& routing : routings) moe::TopKGate{.k = shape.k}.route<float>(batches.next(), moe::Step{}, routing);
  return routings;
}

/// Per assignment at least an id in, and its token, assignment and row out, in 32 bits each.
bench::Work work_of(const Shape& shape, Index tokens) {
  return {.flop = 0, .bytes = 16.0 * static_cast<double>(tokens * shape.k)};
}

void plan(benchmark::State& state, const Shape& shape, Pattern pattern) {
  const auto routings = routings_of(shape, pattern, state.range(0));
  moe::DispatchPlan plan;
  std::size_t next = 0;
  bench::measure(state, work_of(shape, state.range(0)),
                 [&] { plan.build(routings[next++ % routings.size()], shape.num_experts); });
}

void reference(benchmark::State& state, const Shape& shape, Pattern pattern) {
  const auto routings = routings_of(shape, pattern, state.range(0));
  std::vector<Index> assignment_of_row, row_of_assignment, token_of_row;
  std::size_t next = 0;
  bench::measure(state, work_of(shape, state.range(0)), [&] {
    const auto expert = routings[next++ % routings.size()].experts();
    for (auto* list : {&assignment_of_row, &row_of_assignment, &token_of_row}) list->resize(expert.size());
    std::iota(assignment_of_row.begin(), assignment_of_row.end(), Index{0});
    std::stable_sort(assignment_of_row.begin(), assignment_of_row.end(), [&](Index a, Index b) {
      return expert[static_cast<std::size_t>(a)] < expert[static_cast<std::size_t>(b)];
    });
    for (std::size_t row = 0; row < expert.size(); ++row) {
      token_of_row[row] = assignment_of_row[row] / shape.k;
      row_of_assignment[static_cast<std::size_t>(assignment_of_row[row])] = static_cast<Index>(row);
    }
  });
}

/// All tokens to all experts: with a multiple of 128 tokens the rows of the experts share a few sets of the caches.
void dense(benchmark::State& state) {
  constexpr Index kExperts = 64;
  const Index tokens = state.range(0);
  moe::Routing<float> routing;
  moe::SoftmaxGate{}.route<float>(moe::Matrix<float>::Random(tokens, kExperts), moe::Step{}, routing);
  moe::DispatchPlan plan;
  bench::measure(state, {.flop = 0, .bytes = 16.0 * static_cast<double>(tokens * kExperts)},
                 [&] { plan.build(routing, kExperts); });
}

}  // namespace

int main(int argc, char** argv) {
  const bench::OneThread one_thread;
  bench::add_for_all("routing/plan", plan);
  bench::add_for_all("routing/plan/reference", reference);
  bench::add("routing/plan/dense/experts:64", dense);
  return bench::run(argc, argv);
}
