// SPDX-License-Identifier: MIT
#include "moe/train/sgd.hpp"

struct Model {
  double weight = 1;
};

void train(Model& model, const Model& gradient, moe::Sgd::State<Model>& state) {
  moe::Sgd{}.step(model, gradient, state, 0.1);
}
