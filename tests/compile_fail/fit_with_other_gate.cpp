// SPDX-License-Identifier: MIT
#include "moe/gaussian.hpp"

struct Gate {
  static constexpr bool kPerToken = true;
  template <class S>
  void route(const moe::Logits<S>&, const moe::Context&, moe::Routing<S>&) const {}
};

double fitted(const moe::RegressionData& data) { return moe::fit(data, 2, Gate{}).log_likelihood; }
