// SPDX-License-Identifier: MIT
#include "moe/train/trainer.hpp"

struct Layer {
  using Scalar = float;
  struct Tape {};
  moe::Index input_dim() const { return 1; }
  moe::Index output_dim() const { return 1; }
  void forward(const moe::ConstMatrixRef<float>&, const moe::Step&, moe::MatrixRef<float>, Tape&) const {}
  void backward(const moe::ConstMatrixRef<float>&, Tape&, const moe::ConstMatrixRef<float>&, Layer&,
                moe::MatrixRef<float>) const {}
  template <class F, class... Self>
  static void visit(F&&, Self&...) {}
};

void train(moe::Trainer<Layer>& trainer, const moe::Matrix<float>& tokens) {
  trainer.accumulate(
      tokens, moe::Step{}, [](const moe::Matrix<float>&, moe::Matrix<float>&) { return 0.0; },
      [](const moe::RoutedPass<float>&) { return 0.0; });
}
