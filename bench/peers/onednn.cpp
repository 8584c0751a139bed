// SPDX-License-Identifier: MIT
#include "loop.hpp"

#ifdef MOE_BENCH_ONEDNN
#include <dnnl.hpp>

namespace bench {

namespace {

/// The plain GEMM entry: its matmul primitive resolves to the same kernel for plain weights. Inside a parallel loop of
/// OpenMP it uses one thread.
struct OneDnnGemm {
  static constexpr const char* kName = "oneDNN";
  static void set_threads(int) {}  // those of OpenMP, by itself

  static void product(Index m, Index n, Index k, const float* a, const float* b, float* c) {
    dnnl::sgemm('N', 'N', m, n, k, 1, a, k, b, n, 0, c, n);
  }
  static void product_bt(Index m, Index n, Index k, const float* a, const float* b, float* c) {
    dnnl::sgemm('N', 'T', m, n, k, 1, a, k, b, k, 0, c, n);
  }
  static void add_at_product(Index m, Index n, Index k, const float* a, const float* b, float* c) {
    dnnl::sgemm('T', 'N', m, n, k, 1, a, m, b, n, 1, c, n);
  }
};

}  // namespace

std::unique_ptr<Peer> make_onednn_peer(const Shape& shape, const PlainWeights& weights) {
  return std::make_unique<LoopPeer<OneDnnGemm>>(shape, weights);
}

}  // namespace bench

#else

std::unique_ptr<bench::Peer> bench::make_onednn_peer(const Shape&, const PlainWeights&) { return nullptr; }

#endif
