// SPDX-License-Identifier: MIT
#include "moe/io/file/parameters.hpp"

struct Fit {
  double slope = 1;
};

void load(Fit& fit) { moe::load_parameters("fit.safetensors", fit); }
