// SPDX-License-Identifier: MIT
// gate/...: from logits to experts and weights. To measure a gate or routing kernel of your own, add a line to main().
#include "gate/routing_kernel.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/top_k.hpp"
#include "peers/naive_routing.hpp"

namespace {

using moe::Index;

/// What one writes without a library, copied into a Routing.
struct Reference {
  bench::NaiveRouting naive = {};

  void operator()(const moe::Matrix<float>& logits, Index k, moe::Routing<float>& routing) {
    routing.resize(logits.rows(), k);
    naive.choose_all(logits, k);
    std::copy(naive.expert.begin(), naive.expert.end(), routing.experts().begin());
    std::copy(naive.weight.begin(), naive.weight.end(), routing.weights().begin());
  }
};

}  // namespace

int main(int argc, char** argv) {
  // A gate: anything that moe::MoeLayer takes.
  bench::add_gate("top_k", [](Index k) { return moe::TopKGate{.k = k}; });
  bench::add_gate("top_k_sigmoid", [](Index k) { return moe::TopKGate{.k = k, .score = moe::Score::Sigmoid}; });
  bench::add_gate("top_k_groups", [](Index k) {
    return moe::TopKGate{.k = k, .groups = {.count = 4, .kept = 2, .best = 2}};
  });
  bench::add_gate("softmax", [](Index) { return moe::SoftmaxGate{}; }, bench::kDenseSizes);
  // A kernel: anything callable as (logits, k, routing).
  bench::add_routing_kernel("reference", Reference{});
  return bench::run(argc, argv);
}
