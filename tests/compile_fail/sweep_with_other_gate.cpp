// SPDX-License-Identifier: MIT
#include "moe/gaussian.hpp"

struct Gate {
  static constexpr bool kPerToken = true;
  template <class S>
  void route(const moe::Logits<S>&, const moe::Context&, moe::Routing<S>&) const {}
};

auto swept(const moe::RegressionData& data) { return moe::sweep_experts(data, {}, Gate{}).rows.size(); }
