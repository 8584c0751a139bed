// SPDX-License-Identifier: MIT
// An expert of one layer.
#pragma once

#include <cstdint>
#include <tuple>

#include <moe/expert/linear.hpp>
#include <moe/expert/stage/staged_expert.hpp>

namespace systems {

/// relu(x W^T + b).
class ReluLinear : public moe::StagedExpert<ReluLinear, moe::F32> {
 public:
  using Tape = moe::StagedExpert<ReluLinear, moe::F32>::Tape<ReluLinear>;
  ReluLinear(moe::Index outputs, moe::Index inputs, std::uint64_t seed)
      : linear_(moe::Linear::random(outputs, inputs, seed)) {}
  moe::Index input_dim() const { return linear_.input_dim(); }
  moe::Index output_dim() const { return linear_.output_dim(); }
  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{moe::make_stage<moe::Elementwise<moe::Relu>>(self.linear_.weight(), self.linear_.bias())};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.linear_...);
  }

 private:
  moe::Linear linear_;
};

}  // namespace systems
