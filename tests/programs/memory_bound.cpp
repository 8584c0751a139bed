// SPDX-License-Identifier: MIT
// The memory that a forward pass takes is what the workspace states: logits, routing and plan, rows of experts, and one
// block of hidden activations per worker, whatever the number of tokens; and that of a training step over several
// layers what their tapes state, and one scratch of all. Exits with 1 after messages about what takes more.
#include <cstdio>
#include <vector>

#include "moe/core/same_parameters.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "programs/heap.hpp"
#include "support/thread_executor.hpp"

namespace {

using moe::Index;
using moe::Matrix;

constexpr Index kExperts = 6, kTopK = 2, kModelDim = 64;

int num_failed = 0;

/// Bytes of rows of floats, padded as RowBuffer does.
long padded(Index rows, Index cols) {
  constexpr Index kLine = 16;
  return rows * ((moe::RowBuffer<float>::padded(cols) / kLine) | 1) * kLine * 4;
}

/// A buffer of so many bytes as the heap counts it: one that is aligned to a huge page is rounded up to whole ones, and
/// one more is reserved to find the alignment in. Nobody touches these addresses.
long buffer(long bytes) {
  constexpr long kPage = long{2} << 20;
  return bytes < kPage ? bytes : (bytes + kPage - 1) / kPage * kPage + kPage;
}

/// What the documentation of BasicWorkspace promises.
long promised(Index tokens, Index hidden_dim, Index workers) {
  const Index assignments = tokens * kTopK, width = (hidden_dim + 31) / 32 * 32;  // whole panels
  const long hidden = workers * std::max(long{2} << 20, padded(moe::kernel::kLeastRows, width));
  const long routing = 8 * tokens + 13 * assignments, plan = 24 * assignments + 8 * kExperts * (workers + 1);
  const long shares = 24 * (kExperts + 300 * workers), token_id = 8 * tokens;
  const long small = 8192 + 1024 * workers;  // slots of the scratch, threads
  return buffer(padded(tokens, kExperts)) + routing + plan + buffer(padded(assignments, kModelDim)) + buffer(hidden) +
         shares + token_id + small;
}

/// The peak of a first forward pass.
template <class Layer>
long peak(const Layer& layer, const Matrix<float>& tokens, Matrix<float>& out, Index max_tokens) {
  const long before = test::bytes_held.load();
  test::most_bytes_held = before;
  typename Layer::Workspace ws;
  ws.max_tokens = max_tokens;
  layer.forward(tokens, out, ws);
  return test::most_bytes_held.load() - before;
}

template <class Expert>
void check(const char* name, Index hidden_dim) {
  const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kModelDim, 1), moe::TopKGate{.k = kTopK},
                            moe::ExpertPool<Expert>::random(kExperts, kModelDim, hidden_dim, 2));
  for (const Index workers : {1, 2, 3})
    for (const Index tokens : {1, 100, 1000, 20000})
      for (const Index max_tokens : {0, 700}) {
        test::ThreadExecutor executor(workers);
        const moe::UseExecutor use(executor);
        const Matrix<float> x = Matrix<float>::Random(tokens, kModelDim);
        Matrix<float> out(tokens, kModelDim);
        const long bound = promised(max_tokens == 0 ? tokens : std::min(tokens, max_tokens), hidden_dim, workers);
        const long bytes = peak(layer, x, out, max_tokens);
        const bool fits = bytes <= bound;
        num_failed += fits ? 0 : 1;
        std::printf("%s, %td workers, %td tokens, at most %td at once: %ld bytes, promised %ld%s\n", name, workers,
                    tokens, max_tokens, bytes, bound, fits ? "" : ": MORE");
      }
}

/// What the documentation of MoeLayer::Tape promises: `pre` and the output of each choice in the tape of every layer,
/// as much again as hidden rows, their gradients and those of what experts read and write, once.
long promised_of_training(Index layers, Index tokens, Index hidden_dim, Index pre, Index workers) {
  const Index assignments = tokens * kTopK, width = (hidden_dim + 31) / 32 * 32;
  const auto buffer = [](long bytes) { return ::buffer(bytes) + (bytes < (2 << 20) ? 0 : 2 << 20); };  // at either end
  const long rows = buffer(padded(assignments, kModelDim)), pre_rows = buffer(padded(assignments, pre));
  const long routing = 8 * tokens + 13 * assignments, plan = 24 * assignments + 8 * kExperts * (workers + 1);
  const long small = 3 * buffer(padded(tokens, kExperts)) + routing + plan + 4 * assignments + 8192;
  const long packed = workers * (4 << 20);  // of gradients of weights, a panel or a block of rows per worker
  return layers * (pre_rows + rows + small) + buffer(padded(assignments, width)) + pre_rows + 2 * rows + packed +
         24 * (kExperts + 300 * workers) * 2;
}

/// A step through `layers` layers, forward and backward, the tapes of which live together.
template <class Expert>
void check_training(const char* name, Index hidden_dim, Index pre) {
  const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kModelDim, 1), moe::TopKGate{.k = kTopK},
                            moe::ExpertPool<Expert>::random(kExperts, kModelDim, hidden_dim, 2));
  constexpr Index kLayers = 4;
  for (const Index workers : {1, 3})
    for (const Index tokens : {1000, 20000}) {
      test::ThreadExecutor executor(workers);
      const moe::UseExecutor use(executor);
      const Matrix<float> x = Matrix<float>::Random(tokens, kModelDim);
      Matrix<float> out(tokens, kModelDim), dtokens(tokens, kModelDim);
      auto gradient = moe::zeros_like(layer);
      const long before = test::bytes_held.load();
      test::most_bytes_held = before;
      {
        moe::Scratch memory;
        std::vector<typename decltype(layer)::Tape> tapes(kLayers);
        for (auto& tape : tapes) tape.scratch.borrow(memory);
        for (auto& tape : tapes) layer.forward(x, moe::Step{}, out, tape);
        for (auto& tape : tapes) layer.backward(x, tape, x, gradient, dtokens);
      }
      const long bytes = test::most_bytes_held.load() - before;
      const long bound = promised_of_training(kLayers, tokens, hidden_dim, pre, workers);
      const bool fits = bytes <= bound;
      num_failed += fits ? 0 : 1;
      std::printf("%s, %td layers in training, %td workers, %td tokens: %ld bytes, promised %ld%s\n", name, kLayers,
                  workers, tokens, bytes, bound, fits ? "" : ": MORE");
    }
}

}  // namespace

int main() {
  check<moe::Glu>("glu", 1200);
  check<moe::Mlp>("mlp", 1200);
  check<moe::Mlp>("mlp of two cache lines", 32);
  check_training<moe::Glu>("glu", 640, 2 * 640);
  check_training<moe::Mlp>("mlp", 640, 640);
  std::printf("%d failed\n", num_failed);
  return num_failed == 0 ? 0 : 1;
}
