// SPDX-License-Identifier: MIT
// A checkpoint with one weight in it.
#pragma once

#include <string>
#include <vector>

#include "moe/io/checkpoint/load_weight.hpp"
#include "support/checkpoints.hpp"

namespace test {

using moe::Index;

/// A checkpoint with one tensor "w" of numbered() values, and those values.
struct Stored {
  TemporaryDirectory directory;
  std::vector<float> values;
  moe::Checkpoint checkpoint;

  Stored(std::vector<Index> shape, moe::Dtype dtype = moe::Dtype::BF16)
      : values(numbered(product(shape))), checkpoint(write(shape, dtype)) {}

  moe::WeightSource source() const { return moe::WeightSource::find(checkpoint, "w"); }
  float at(Index i) const { return values[static_cast<std::size_t>(i)]; }

 private:
  static Index product(const std::vector<Index>& shape) {
    Index size = 1;
    for (const Index extent : shape) size *= extent;
    return size;
  }
  moe::Checkpoint write(const std::vector<Index>& shape, moe::Dtype dtype) const {
    const std::string bytes = dtype == moe::Dtype::BF16 ? bf16_bytes(values) : bytes_of(values);
    write_tensors(directory / "x.safetensors", {{"w", dtype, shape, bytes}});
    return moe::Checkpoint::open(directory / "x.safetensors");
  }
};

}  // namespace test
