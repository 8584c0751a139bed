// SPDX-License-Identifier: MIT
#include "moe/core/visit.hpp"

struct Part {
  double weight = 1;

  template <class F, class... Self>
  static void visit(F&& f, Self... self) {
    f("weight", self.weight...);
  }
};

void clear(Part& part) { moe::set_zero(part); }
