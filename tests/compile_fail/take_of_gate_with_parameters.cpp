// SPDX-License-Identifier: MIT
#include "moe/expert/glu.hpp"
#include "moe/layer/structure.hpp"
#include "moe/router/linear.hpp"

struct OwnGate {
  Eigen::RowVectorXd bias;
  static constexpr bool kPerToken = true;
  void route(const moe::Logits<float>& logits, const moe::Context&, moe::Routing<float>& routing) const {
    routing.resize(logits.rows(), 1);
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("bias", self.bias...);
  }
};

auto small(const moe::MoeLayer<moe::LinearRouter, OwnGate, moe::ExpertPool<moe::Glu>>& layer) {
  return moe::take_experts(layer, {0, 1});
}
