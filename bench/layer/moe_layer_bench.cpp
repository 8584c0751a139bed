// SPDX-License-Identifier: MIT
// layer: whole layers of published models, beside the loop over experts with Eigen.
#include "layer/layer_benchmarks.hpp"

int main(int argc, char** argv) {
  for (const bench::Shape& shape : bench::kShapes)
    for (const bench::Pattern pattern : bench::kPatterns) bench::add_layer("layer", shape, pattern);
  return bench::run(argc, argv);
}
