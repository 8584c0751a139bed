// SPDX-License-Identifier: MIT
// layer: whole layers of published models, beside the loop over experts with Eigen, and with fewer weights or active
// experts beside themselves.
#include "layer/layer_benchmarks.hpp"
#include "layer/smaller_layers.hpp"

int main(int argc, char** argv) {
  for (const bench::Shape& shape : bench::kShapes)
    for (const bench::Pattern pattern : bench::kPatterns) bench::add_layer("layer", shape, pattern);
  for (const bench::Shape& shape : bench::kShapes) bench::add_smaller("layer", shape);
  return bench::run(argc, argv);
}
