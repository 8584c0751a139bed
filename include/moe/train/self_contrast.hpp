// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/core/overlap.hpp"
#include "moe/core/parallel.hpp"
#include "moe/numeric/softmax.hpp"
#include "moe/numeric/top_k.hpp"

namespace moe::inline MOE_ABI {

/// Numbers of self_contrast(). No beta is right everywhere: contrast may also lose accuracy, so choose it on validation
/// data, from 0.1 to 0.9 say.
struct ContrastOptions {
  double beta = 0.5;              ///< how far to go away from the weak logits; >= 0
  double alpha = 0.1;             ///< least probability of a class, as a share of the largest; in (0, 1]
  double strong_temperature = 1;  ///< > 0
  double weak_temperature = 1;    ///< > 0

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate() const {
    constexpr const char* kName = "moe::self_contrast";
    if (!(beta >= 0 && std::isfinite(beta))) fail(kName, ": beta is ", beta, ", expected a number of at least 0");
    if (!(alpha > 0 && alpha <= 1)) fail(kName, ": alpha is ", alpha, ", expected 0 < alpha <= 1");
    const auto require = [&](const char* name, double temperature) {
      if (!(temperature > 0 && std::isfinite(temperature)))
        fail(kName, ": ", name, " is ", temperature, ", expected a number above 0");
    };
    require("strong_temperature", strong_temperature);
    require("weak_temperature", weak_temperature);
  }
};

namespace detail {

/// What a row is multiplied with, and which of its classes are kept.
template <class S>
struct Contrast {
  S strong, weak;  ///< factors of the logits
  double margin;   ///< of the strong logits, below the largest; <= 0

  explicit Contrast(const ContrastOptions& options)
      : strong(factor((1 + options.beta) / options.strong_temperature)),
        weak(factor(options.beta / options.weak_temperature)),
        margin(options.strong_temperature * std::log(options.alpha)) {}

  /// Least logit that is kept: never -infinity, also where all of a row are.
  S least(const S* row, Index n) const {
    const double kept = static_cast<double>(largest(row, n)) + margin;
    return static_cast<S>(std::max(kept, static_cast<double>(std::numeric_limits<S>::lowest())));
  }

  void apply(const S* of_strong, const S* of_weak, Index n, S* out) const {
    using V = simd::Batch<S>;
    const V threshold(least(of_strong, n)), masked(-std::numeric_limits<S>::infinity()), up(strong), down(-weak);
    const auto combine = [&](const V& a, const V& b) {
      return simd::select(a < threshold, masked, simd::fma(up, a, down * b));
    };
    simd::for_each<S>(
        n, [&](Index i) { simd::store(out + i, combine(simd::load(of_strong + i), simd::load(of_weak + i))); },
        [&](Index i, Index count) {
          const V a = simd::load_partial(of_strong + i, count, S{0}), b = simd::load_partial(of_weak + i, count, S{0});
          simd::store_partial(out + i, combine(a, b), count);
        });
  }

 private:
  static S factor(double value) {
    const auto result = static_cast<S>(value);
    if (!std::isfinite(result))
      fail("moe::self_contrast: logits are multiplied by ", value, ", expected a factor that their scalar holds");
    return result;
  }
};

template <class S>
void require_contrast_row(const char* name, const S* row, Index n, Index t) {
  if (const Index j = first_not_below_infinity(row, n); j < n)
    fail("moe::self_contrast: ", name, " logit of row ", t, ", class ", j, " is ", row[j],
         ", expected a finite number, or -infinity as a mask");
}

/// Throws std::invalid_argument, naming the first logit that would make a NaN or an infinity.
template <class S>
void require_contrast(const ConstMatrixRef<S>& strong, const ConstMatrixRef<S>& weak, const Contrast<S>& contrast) {
  const Index n = strong.cols();
  for (Index t = 0; t < strong.rows(); ++t) {
    const S *of_strong = strong.row(t).data(), *of_weak = weak.row(t).data();
    require_contrast_row("strong", of_strong, n, t);
    require_contrast_row("weak", of_weak, n, t);
    if (count_finite(of_weak, n) == n) continue;
    const S least = contrast.least(of_strong, n);
    for (Index j = 0; j < n; ++j)
      if (of_strong[j] >= least && !std::isfinite(of_weak[j]))
        fail("moe::self_contrast: weak logit of row ", t, ", class ", j, " is ", of_weak[j],
             ", expected a finite number where the strong one is kept");
  }
}

}  // namespace detail

/// Contrast of two passes over the same tokens: away from the logits of a weak routing (one expert, a worse rank), on
/// from those of a strong one, without training. Per row, over the classes that the strong pass finds likely enough:
///   kept   = {j : softmax(strong / strong_temperature)_j >= alpha * its largest}
///   out_j  = (1 + beta) * strong_j / strong_temperature - beta * weak_j / weak_temperature, -infinity where not kept
/// Layers with the same router and Frozen experts and another gate give the weak logits, without a copy of a weight:
///   const moe::Frozen experts(pool);
///   const moe::MoeLayer strong(router, moe::TopKGate{.k = 2}, experts), weak(router, weak_gate, experts);
/// A second pass through one of k experts adds 1 / k of the first one's work in the experts.
///   strong, weak  [num_rows, num_classes], finite; -infinity in `strong` masks a class and stays so, one in `weak` is
///                 for classes that are not kept
///   out           [num_rows, num_classes], overwritten (resized); neither strong nor weak
/// The best strong class is always kept, so a row has one unless all of it is masked. Throws std::invalid_argument,
/// before anything is written, for a NaN or +infinity, numbers out of range, shapes that differ, and memory given
/// twice. O(num_rows * num_classes), in parallel by rows, no allocation when out has its size.
/// Shi et al., "Unchosen experts can contribute too: Unleashing MoE models' power by self-contrast" (arXiv:2405.14507).
template <class S>
void self_contrast(const Logits<S>& strong, const Logits<S>& weak, const ContrastOptions& options, Matrix<S>& out) {
  constexpr const char* kName = "moe::self_contrast";
  constexpr Index kClassesPerTask = 1 << 14;
  const Index num_rows = strong.rows(), num_classes = strong.cols();
  options.validate();
  const detail::Contrast<S> contrast(options);
  detail::require_shape(kName, "weak", weak, num_rows, num_classes);
  detail::require_apart(kName, "out", out, "strong", strong);
  detail::require_apart(kName, "out", out, "weak", weak);
  detail::require_contrast<S>(strong, weak, contrast);
  out.resize(num_rows, num_classes);
  const Index rows_per_task = std::max<Index>(1, kClassesPerTask / std::max<Index>(1, num_classes));
  parallel_ranges(num_rows, rows_per_task, [&](Index begin, Index end, Index) {
    for (Index t = begin; t < end; ++t)
      contrast.apply(strong.row(t).data(), weak.row(t).data(), num_classes, out.row(t).data());
  });
}

}  // namespace moe::inline MOE_ABI
