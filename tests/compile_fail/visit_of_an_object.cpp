// SPDX-License-Identifier: MIT
#include "moe/core/visit.hpp"

struct Part {
  double weight = 1;

  template <class F>
  void visit(F&& f) {
    f("weight", weight);
  }
};

moe::Index count(const Part& part) { return moe::num_parameters(part); }
