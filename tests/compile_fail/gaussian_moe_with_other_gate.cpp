// SPDX-License-Identifier: MIT
#include "moe/gaussian.hpp"

struct Gate {
  static constexpr bool kPerToken = true;
  template <class S>
  void route(const moe::Logits<S>&, const moe::Context&, moe::Routing<S>&) const {}
};

moe::GaussianMoe<Gate> model;
