// SPDX-License-Identifier: MIT
// The naive loop: what one writes with Eigen alone.
#include "loop.hpp"

namespace bench {

namespace {

struct EigenGemm {
  static constexpr const char* kName = "Eigen";
  using Weight = PlainWeight<EigenGemm>;
  static void set_threads(int) {}  // Eigen's products use OpenMP's by themselves
  using In = Eigen::Map<const Matrix<float>>;
  using Out = Eigen::Map<Matrix<float>>;

  static void product(Index m, Index n, Index k, const float* a, const float* b, float* c) {
    // One row: Eigen runs its matrix-vector product when it knows by type.
    if (m == 1)
      Eigen::Map<Eigen::RowVectorXf>(c, n).noalias() = Eigen::Map<const Eigen::RowVectorXf>(a, k) * In(b, k, n);
    else
      Out(c, m, n).noalias() = In(a, m, k) * In(b, k, n);
  }
  static void product_bt(Index m, Index n, Index k, const float* a, const float* b, float* c) {
    Out(c, m, n).noalias() = In(a, m, k) * In(b, n, k).transpose();
  }
  static void add_at_product(Index m, Index n, Index k, const float* a, const float* b, float* c) {
    Out(c, m, n).noalias() += In(a, k, m).transpose() * In(b, k, n);
  }
};

}  // namespace

std::unique_ptr<Peer> make_eigen_peer(const Shape& shape, const PlainWeights& weights) {
  return std::make_unique<LoopPeer<EigenGemm>>(shape, weights);
}

}  // namespace bench
