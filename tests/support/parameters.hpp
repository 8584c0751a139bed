// SPDX-License-Identifier: MIT
// Parameters and state of any object: to set, to list, to compare bit by bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moe/core/visit.hpp"
#include "support/matrices.hpp"

namespace test {

/// Sets every logical parameter, biases and state included, to scale times a standard normal draw.
template <class T>
void randomise(T& object, std::uint64_t seed, double scale = 0.5) {
  moe::visit_all(
      [&](const std::string&, auto& leaf) {
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        const moe::RandomField random(moe::Purpose::User, seed++);
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = scale * random.normal(static_cast<std::int64_t>(i));
        moe::write_parameter(leaf, std::span<const double>(values));
      },
      object);
}

/// Sets every logical parameter to draw(k), k counting from 0.
template <class Layer, class Draw>
void fill(Layer& layer, Draw&& draw) {
  moe::Index k = 0;
  moe::visit(
      [&](const std::string&, auto& leaf) {
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        for (double& value : values) value = draw(k++);
        moe::write_parameter(leaf, std::span<const double>(values));
      },
      layer);
}

/// All logical parameters one after the other.
template <class Layer>
std::vector<double> flatten(const Layer& layer) {
  std::vector<double> all;
  moe::visit(
      [&](const std::string&, const auto& leaf) {
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        moe::read_parameter(leaf, std::span<double>(values));
        all.insert(all.end(), values.begin(), values.end());
      },
      layer);
  return all;
}

/// Number of stored scalars whose bits are those of +0.
template <class Layer>
moe::Index count_zero_bits(const Layer& layer) {
  moe::Index count = 0;
  moe::visit(
      [&](const std::string&, const auto& leaf) {
        for (const auto value : moe::parameter_span(leaf)) count += value == 0 && !std::signbit(value) ? 1 : 0;
      },
      layer);
  return count;
}

/// Number of stored scalars, padding included.
template <class Layer>
moe::Index num_stored(const Layer& layer) {
  moe::Index count = 0;
  moe::visit(
      [&](const std::string&, const auto& leaf) { count += static_cast<moe::Index>(moe::parameter_span(leaf).size()); },
      layer);
  return count;
}

/// Stored scalars that are not zero, and logical ones: equal if the padding is zero and nothing else is.
template <class T>
Index num_nonzero(const T& object) {
  Index count = 0;
  moe::visit(
      [&](const std::string&, const auto& leaf) {
        for (const auto value : moe::parameter_span(leaf)) count += value != 0 ? 1 : 0;
      },
      object);
  return count;
}

/// Whether all parameters and state of two objects have the same bits, padding included.
template <class T>
bool same_parameters(const T& a, const T& b) {
  bool same = true;
  moe::visit_all(
      [&](const std::string&, const auto& leaf, const auto& other) {
        const auto left = moe::parameter_span(leaf), right = moe::parameter_span(other);
        for (std::size_t i = 0; i < left.size(); ++i) same = same && same_bits(left[i], right[i]);
      },
      a, b);
  return same;
}

}  // namespace test
