// SPDX-License-Identifier: MIT
#include "moe/core/visit.hpp"

struct Part {
  double centre = 1;

  template <class F, class... Self>
  static void state(F&& f, Self... self) {
    f("centre", self.centre...);
  }
};

void clear(Part& part) { moe::set_zero(part); }
