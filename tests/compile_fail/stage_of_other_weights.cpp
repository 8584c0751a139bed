// SPDX-License-Identifier: MIT
#include "moe/expert/stage/stages.hpp"

struct Weights {
  using Scalar = float;
};

Weights weights;
moe::PanelMatrix<moe::F32> bias;
const auto stage = moe::make_stage<moe::Elementwise<moe::Identity>>(weights, bias);
