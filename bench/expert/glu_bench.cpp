// SPDX-License-Identifier: MIT
// expert/glu: one SwiGLU expert of published models on a block of rows, as a layer with a single expert.
#include "layer/layer_benchmarks.hpp"

int main(int argc, char** argv) {
  for (bench::Shape shape : bench::kShapes) {
    shape.num_experts = shape.k = 1;
    bench::add_layer("expert/glu", shape, bench::Pattern::Uniform);
  }
  return bench::run(argc, argv);
}
