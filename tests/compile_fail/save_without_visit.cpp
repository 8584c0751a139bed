// SPDX-License-Identifier: MIT
#include "moe/io/file/parameters.hpp"

struct Fit {
  double slope = 1;
};

void save(Fit& fit) { moe::save_parameters("fit.safetensors", fit); }
