// SPDX-License-Identifier: MIT
// A weight of a file, in every way that it can be asked for, against the values that it should have.
#pragma once

#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "moe/io/checkpoint/weight_source.hpp"
#include "moe/kernel/quantised_matrix.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"

namespace test {

using moe::Dtype;
using moe::Index;

/// A checkpoint of some tensors, as long as it lives.
struct StoredTensors {
  TemporaryDirectory directory;
  moe::Checkpoint checkpoint;

  explicit StoredTensors(const std::vector<Tensor>& tensors) : checkpoint(write(tensors)) {}
  moe::WeightSource find(const std::string& name = "m.weight", const moe::StatedStorage& stated = {}) const {
    return moe::WeightSource::find(checkpoint, name, stated);
  }

 private:
  moe::Checkpoint write(const std::vector<Tensor>& tensors) const {
    write_tensors(directory / "x", tensors);
    return moe::Checkpoint::open(directory / "x");
  }
};

inline bool same_number(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

/// Whether a matrix of codes can take the scales: see PanelMatrix::set_scale.
enum class AsPanels { Check, Skip };

/// Values, parts of them, codes with their scales, and the matrix made of those, are all `values` bit for bit.
inline void require_values(const moe::WeightSource& source, const std::vector<float>& values,
                           const moe::WeightFormat& format, AsPanels panels = AsPanels::Check) {
  REQUIRE(source.size() == std::ssize(values));
  REQUIRE(source.kept_format() == format);
  format.validate();
  const auto at = [&](Index i) { return values[static_cast<std::size_t>(i)]; };
  for (const Index count : {Index{1}, Index{7}, Index{32}, source.size()})
    for (Index first = 0; first + count <= source.size(); first += 1 + first / 5) {
      std::vector<float> part(static_cast<std::size_t>(count));
      source.read_values(first, part);
      for (Index i = 0; i < count; ++i)
        if (!same_number(part[static_cast<std::size_t>(i)], at(first + i)))
          FAIL("value " << first + i << " of " << count << " from " << first << " is "
                        << part[static_cast<std::size_t>(i)] << ", expected " << at(first + i));
    }
  const Index inputs = source.shape().back(), outputs = source.size() / inputs;
  moe::PanelMatrix<moe::Quantised> matrix(outputs, inputs, moe::PanelOrder::Plain, format);
  matrix.set_matrix_scale(source.matrix_scale());
  for (Index i = 0; i < source.size(); ++i) {
    const moe::StoredWeight weight = source.stored(i);
    const float scale = weight.scale * source.matrix_scale();
    const float value = (moe::detail::value_of_code(format, weight.code) - weight.zero) * scale;
    if (!same_number(value, at(i))) FAIL("value " << i << " has a code for " << value << ", expected " << at(i));
    if (weight.zero != 0 && !format.has_zero_points) FAIL("value " << i << " has a zero point");
    if (panels == AsPanels::Skip) continue;
    const Index output = i / inputs, input = i % inputs;
    matrix.set_code(output, input, weight.code);
    if (format.scale == moe::ScaleType::Unscaled || input % format.group_of(inputs) != 0) continue;
    matrix.set_scale(output, input / format.group_of(inputs), weight.scale);
    if (format.has_zero_points) matrix.set_zero_point(output, input / format.group_of(inputs), weight.zero);
  }
  for (Index i = 0; panels == AsPanels::Check && i < source.size(); ++i)
    if (!same_number(matrix.get(i / inputs, i % inputs), at(i)))
      FAIL("weight " << i << " is " << matrix.get(i / inputs, i % inputs) << ", expected " << at(i));
  // Codes of a row, from anywhere in it.
  for (const Index count : {Index{1}, Index{7}, Index{33}, inputs})
    for (Index first = 0; first + count <= source.size(); first += 1 + first / 5) {
      std::vector<std::uint32_t> codes(static_cast<std::size_t>(std::min(count, inputs - first % inputs)));
      source.stored_codes(first, codes);
      for (Index i = 0; i < std::ssize(codes); ++i)
        if (codes[static_cast<std::size_t>(i)] != source.stored(first + i).code) FAIL("code " << first + i);
    }
  std::vector<std::uint32_t> too_many(static_cast<std::size_t>(inputs + 1));
  REQUIRE_THROWS_AS(source.stored_codes(0, too_many), std::invalid_argument);
  for (const Index place : {Index{-1}, source.size()}) REQUIRE_THROWS_AS(source.stored(place), std::invalid_argument);
}

/// `count` integers from 0 to below `end`, all of them first.
inline std::vector<int> every_integer(Index count, int end, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<int> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = i < static_cast<std::size_t>(end) ? static_cast<int>(i)
                                                  : static_cast<int>(engine() % static_cast<unsigned>(end));
  return values;
}

/// Scales that BF16 and F16 hold, of both signs.
inline std::vector<float> small_scales(Index count) {
  std::vector<float> scales(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < scales.size(); ++i)
    scales[i] =
        std::ldexp(static_cast<float>(128 + i * 37 % 128) * (i % 5 == 3 ? -1.0f : 1.0f), -10 - static_cast<int>(i % 3));
  return scales;
}

/// F16 of floats that it holds as normal numbers.
inline std::string f16_bytes(const std::vector<float>& values) {
  std::vector<std::uint16_t> halves;
  for (const float value : values) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    halves.push_back(static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | (((bits >> 23 & 0xFFu) - 112) << 10) |
                                                (bits >> 13 & 0x3FFu)));
  }
  return bytes_of(halves);
}

/// Scales as a file has them.
inline std::string scale_bytes(Dtype dtype, const std::vector<float>& scales) {
  if (dtype == Dtype::BF16) return bf16_bytes(scales);
  return dtype == Dtype::F16 ? f16_bytes(scales) : bytes_of(scales);
}
inline moe::ScaleType kept_type(Dtype dtype) {
  if (dtype == Dtype::BF16) return moe::ScaleType::Bf16;
  return dtype == Dtype::F16 ? moe::ScaleType::F16 : moe::ScaleType::F32;
}

/// What finding a weight says.
inline std::string complaint(const std::vector<Tensor>& tensors, const moe::StatedStorage& stated = {}) {
  const StoredTensors stored(tensors);
  try {
    (void)stored.find("m.weight", stated);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

}  // namespace test
