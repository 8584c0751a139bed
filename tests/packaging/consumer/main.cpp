// SPDX-License-Identifier: MIT
#include <iostream>

#include "second.hpp"

int main() {
  moe::Routing<float> routing;
  routing.resize(/*num_tokens=*/5, /*k=*/2);
  for (moe::Index t = 0; t < routing.num_tokens(); ++t) {
    routing.experts(t)[0] = t % 3;
    routing.experts(t)[1] = 3;
    routing.weights(t)[0] = routing.weights(t)[1] = 0.5f;
  }
  moe::DispatchPlan plan;
  plan.build(routing, /*num_experts=*/4);
  if (plan.num_rows() != 10 || busiest_expert(plan) != 3) return 1;
  std::cout << "moe " << MOE_VERSION_MAJOR << '.' << MOE_VERSION_MINOR << '.' << MOE_VERSION_PATCH << " on "
            << moe::num_workers() << " workers\n";
}
