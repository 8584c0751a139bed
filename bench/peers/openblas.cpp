// SPDX-License-Identifier: MIT
#include "loop.hpp"

#ifdef MOE_BENCH_OPENBLAS
#include <cblas.h>
extern "C" void openblas_set_num_threads(int);

namespace bench {

namespace {

struct OpenBlasGemm {
  static constexpr const char* kName = "OpenBLAS";
  using Weight = PlainWeight<OpenBlasGemm>;
  static void set_threads(int) {}  // always one: its pool of threads waits for those of OpenMP, which spin

  static int to_int(Index size) { return static_cast<int>(size); }

  static void product(Index rows, Index columns, Index inner, const float* a, const float* b, float* c) {
    const int m = to_int(rows), n = to_int(columns), k = to_int(inner);
    // Its GEMM packs all of b, which one or two rows do not pay for: measured 2.6 and 1.6 times slower than its
    // matrix-vector product (2048 x 2048, from memory, Zen 5, 0.3.21), and no slower from four rows on.
    if (m <= 2)
      for (int row = 0; row < m; ++row)
        cblas_sgemv(CblasRowMajor, CblasTrans, k, n, 1, b, n, a + row * k, 1, 0, c + row * n, 1);
    else
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1, a, k, b, n, 0, c, n);
  }
  static void product_bt(Index rows, Index columns, Index inner, const float* a, const float* b, float* c) {
    const int m = to_int(rows), n = to_int(columns), k = to_int(inner);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, a, k, b, k, 0, c, n);
  }
  static void add_at_product(Index rows, Index columns, Index inner, const float* a, const float* b, float* c) {
    const int m = to_int(rows), n = to_int(columns), k = to_int(inner);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1, a, m, b, n, 1, c, n);
  }
};

}  // namespace

std::unique_ptr<Peer> make_openblas_peer(const Shape& shape, const PlainWeights& weights) {
  openblas_set_num_threads(1);
  return std::make_unique<LoopPeer<OpenBlasGemm>>(shape, weights);
}

}  // namespace bench

#else

std::unique_ptr<bench::Peer> bench::make_openblas_peer(const Shape&, const PlainWeights&) { return nullptr; }

#endif
