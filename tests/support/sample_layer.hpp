// SPDX-License-Identifier: MIT
// A layer of every kind of parameter: panels that do not fill their registers, a paired pair, vectors, double scalars.
#pragma once

#include <string>
#include <vector>

#include "moe/core/visit.hpp"
#include "moe/kernel/panel_matrix.hpp"

namespace test {

/// One double.
struct Number {
  double x = 0;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("x", self.x...);
  }
};

template <class Codec>
struct Part {
  using S = typename Codec::Storage;
  moe::PanelMatrix<Codec> weight, bias;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
    f("bias", self.bias...);
  }
};

template <class Codec>
struct SampleLayer {
  using S = typename Codec::Storage;
  static constexpr moe::Index kWide = moe::PanelMatrix<Codec>::kWidth + 3;

  Part<Codec> plain{moe::PanelMatrix<Codec>(kWide, 5), moe::PanelMatrix<Codec>::bias(kWide)};
  Part<Codec> paired{moe::PanelMatrix<Codec>(10, 3, moe::PanelOrder::Paired),
                     moe::PanelMatrix<Codec>::bias(10, moe::PanelOrder::Paired)};
  moe::Matrix<S> table = moe::Matrix<S>::Zero(3, 7);
  moe::RowVector<S> scale = moe::RowVector<S>::Zero(7);
  double temperature = 0;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "plain", self.plain...);
    moe::visit_part(f, "paired", self.paired...);
    f("table", self.table...);
    f("scale", self.scale...);
    f("temperature", self.temperature...);
  }
};

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

}  // namespace test
