// SPDX-License-Identifier: MIT
// An expert of your own is a struct with `forward`: here one that normalises each row and scales every column by a
// number of its own. With `Tape`, `backward` and `visit` it is also trained, checkpointed and clipped like the others.
#include <cmath>
#include <iostream>
#include <moe/moe.hpp>

struct RmsScale {
  using Scalar = float;
  using Rows = moe::ConstMatrixRef<float>;
  struct Tape {};

  Eigen::RowVectorXf scale;  // [dim]

  moe::Index input_dim() const { return scale.size(); }
  moe::Index output_dim() const { return scale.size(); }
  static float inverse_rms(const auto& row) {
    return 1.0f / std::sqrt(row.squaredNorm() / static_cast<float>(row.size()));
  }

  void forward(const Rows& rows, moe::MatrixRef<float> out, const moe::Context&) const {
    for (moe::Index r = 0; r < rows.rows(); ++r)
      out.row(r) = inverse_rms(rows.row(r)) * rows.row(r).cwiseProduct(scale);
  }
  void forward(const Rows& rows, moe::MatrixRef<float> out, const moe::Context& context, Tape&) const {
    forward(rows, out, context);
  }
  void backward(const Rows& rows, Tape&, const Rows& dout, moe::MatrixRef<float> drows, RmsScale& gradient,
                const moe::Context&) const {
    for (moe::Index r = 0; r < rows.rows(); ++r) {
      const float inverse = inverse_rms(rows.row(r));
      const Eigen::RowVectorXf unit = inverse * rows.row(r), dunit = dout.row(r).cwiseProduct(scale);
      gradient.scale += dout.row(r).cwiseProduct(unit);
      drows.row(r) = inverse * (dunit - unit * (dunit.dot(unit) / static_cast<float>(scale.size())));
    }
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("scale", self.scale...);
  }
};

int main() {
  constexpr moe::Index num_tokens = 6, dim = 8;
  // Any mixture of expert types in one pool: ours, a GLU, and one that passes its rows through.
  using Any = moe::OneOf<RmsScale, moe::Glu, moe::ScaledIdentity>;
  const moe::MoeLayer layer(moe::LinearRouter::random(3, dim, 1), moe::TopKGate{.k = 1},
                            moe::ExpertPool<Any>({RmsScale{Eigen::RowVectorXf::Constant(dim, 2.0f)},
                                                  moe::Glu::random(dim, 16, 2), moe::ScaledIdentity{dim}}));
  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(num_tokens, dim);
  moe::Matrix<float> output(num_tokens, dim);
  moe::Workspace workspace;
  layer.forward(tokens, output, workspace);
  for (moe::Index t = 0; t < num_tokens; ++t)
    std::cout << "token " << t << " -> expert " << workspace.routing.experts(t)[0]
              << ", |out| = " << output.row(t).norm() << '\n';
  std::cout << moe::num_parameters(layer) << " parameters\n";
}
