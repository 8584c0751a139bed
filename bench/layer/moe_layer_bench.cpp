// SPDX-License-Identifier: MIT
// layer: whole layers of published models, beside the loop over experts with Eigen, and with fewer weights or active
// experts or narrower ones beside themselves; four gates over the same experts, beside these experts alone.
#include "layer/latent_layers.hpp"
#include "layer/layer_benchmarks.hpp"
#include "layer/smaller_layers.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/layer/multi_gate_layer.hpp"

namespace {

using bench::Index, bench::Matrix;

/// A layer of four tasks over eight experts, each of which has a row of every token.
class FourGates {
 public:
  explicit FourGates(Index num_tokens)
      : layer_(routers(), moe::SoftmaxGate{}, moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden, 9),
               moe::ExpertMask::all(kGates, kExperts)),
        tokens_(Matrix<float>::Random(num_tokens, kDim)),
        out_(num_tokens, layer_.output_dim()) {
    moe::Routing<float> all;
    all.resize(num_tokens, kExperts);
    for (Index t = 0; t < num_tokens; ++t) std::iota(all.experts(t).begin(), all.experts(t).end(), Index{0});
    plan_.build(all, kExperts);
    rows_.resize(plan_.num_rows(), moe::row_width(layer_.experts()));
  }

  void forward() { layer_.forward(tokens_, out_, workspace_); }
  void run_experts() { layer_.experts().forward(tokens_, plan_, {moe::Step{}, scratch_}, rows_); }
  bench::Work work() const {
    const double weights = 3 * kExperts * kDim * kHidden, tokens = static_cast<double>(tokens_.rows());
    return {.flop = 2 * weights * tokens, .bytes = sizeof(float) * (weights + tokens * kDim * (1 + kGates))};
  }

 private:
  static constexpr Index kGates = 4, kExperts = 8, kDim = 256, kHidden = 512;

  static std::vector<moe::LinearRouter> routers() {
    std::vector<moe::LinearRouter> routers;
    for (const unsigned seed : {1u, 2u, 3u, 4u}) routers.push_back(moe::LinearRouter::random(kExperts, kDim, seed));
    return routers;
  }

  moe::MultiGateLayer<moe::LinearRouter, moe::SoftmaxGate, moe::ExpertPool<moe::Glu>> layer_;
  Matrix<float> tokens_, out_;
  moe::DispatchPlan plan_;
  moe::RowBuffer<float> rows_;
  moe::Workspace workspace_;
  moe::Scratch scratch_;
};

}  // namespace

int main(int argc, char** argv) {
  for (const bench::Shape& shape : bench::kShapes)
    for (const bench::Pattern pattern : bench::kPatterns) bench::add_layer("layer", shape, pattern);
  bench::add("layer/four_gates/small", [](benchmark::State& state) {
    FourGates four(state.range(0));
    bench::measure(state, four.work(), [&] { four.forward(); });
  });
  bench::add("layer/four_gates/reference/small", [](benchmark::State& state) {
    FourGates four(state.range(0));
    bench::measure(state, four.work(), [&] { four.run_experts(); });
  });
  for (const bench::Shape& shape : bench::kShapes) bench::add_smaller("layer", shape);
  for (const bench::Shape& shape : bench::kShapes) bench::add_latent("layer", shape);
  return bench::run(argc, argv);
}
