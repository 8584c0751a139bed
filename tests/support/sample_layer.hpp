// SPDX-License-Identifier: MIT
// A layer of every kind of parameter: panels that do not fill their registers, a paired pair, vectors, double scalars.
#pragma once

#include <string>
#include <vector>

#include "moe/core/visit.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "support/parameters.hpp"

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

}  // namespace test
