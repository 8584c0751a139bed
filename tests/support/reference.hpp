// SPDX-License-Identifier: MIT
// A mixture of experts in double with plain loops: obviously correct, no SIMD, no sorting. The oracle of the fast
// paths.
#pragma once

#include <cmath>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/routing/routing.hpp"

namespace reference {

using moe::Index;
using Mat = moe::Matrix<double>;

/// a [n, in] times w [out, in] transposed, plus b [out] (or empty).
inline Mat linear(const Mat& a, const Mat& w, const Mat& b = {}) {
  Mat result(a.rows(), w.rows());
  for (Index i = 0; i < a.rows(); ++i)
    for (Index o = 0; o < w.rows(); ++o) {
      double sum = b.size() ? b.data()[o] : 0;
      for (Index k = 0; k < a.cols(); ++k) sum += a(i, k) * w(o, k);
      result(i, o) = sum;
    }
  return result;
}

template <class F>
Mat map(Mat a, F f) {
  for (Index i = 0; i < a.size(); ++i) a.data()[i] = f(a.data()[i]);
  return a;
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }
inline double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

/// silu(gate) * up from gate_up [n, 2 f], gates first.
inline Mat swiglu(const Mat& gate_up) {
  const Index f = gate_up.cols() / 2;
  Mat result(gate_up.rows(), f);
  for (Index i = 0; i < result.rows(); ++i)
    for (Index j = 0; j < f; ++j) result(i, j) = silu(gate_up(i, j)) * gate_up(i, f + j);
  return result;
}

/// out[t] = sum over kept slots of weight * expert(e, token).
template <class S, class Expert>
Mat combine(const Mat& tokens, const moe::Routing<S>& routing, Index output_dim, const Expert& expert) {
  Mat out = Mat::Zero(tokens.rows(), output_dim);
  for (Index t = 0; t < tokens.rows(); ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s) {
      if (routing.dropped(t)[s]) continue;
      const Mat y = expert(routing.experts(t)[s], Mat(tokens.row(t)));
      for (Index c = 0; c < output_dim; ++c) out(t, c) += double(routing.weights(t)[s]) * y(0, c);
    }
  return out;
}

}  // namespace reference
