// SPDX-License-Identifier: MIT
#include "moe/core/visit.hpp"

struct Part {
  double centre = 1;

  template <class F>
  void state(F&& f) {
    f("centre", centre);
  }
};

moe::Index count(const Part& part) { return moe::num_parameters(part); }
