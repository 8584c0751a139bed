// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <string>

#include "moe/train/sgd.hpp"

namespace moe::inline MOE_ABI {

/// Adam with decoupled weight decay and bias correction. At the t-th step, with gradient g,
///   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
///   x = x - learning_rate * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay * x)
/// Immutable, share freely.
///   moe::AdamW adam{.weight_decay = 0.1};  moe::AdamW::State state(layer);
///   adam.step(layer, gradient, state, schedule(update));
/// Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019 (arXiv:1711.05101).
struct AdamW {
  double beta1 = 0.9;          ///< in [0, 1)
  double beta2 = 0.999;        ///< in [0, 1)
  double epsilon = 1e-8;       ///< above 0, also in float: it keeps 0 / 0 out of padding
  double weight_decay = 0.01;  ///< 0 or more
  Decayed decayed = Decayed::All;
  NonFinite non_finite = NonFinite::Refuse;

  /// Two moments per parameter and the count of steps. Visited like a layer, so it is saved and restored like one.
  template <class Layer>
  struct State {
    explicit State(const Layer& layer) : first(zeros_like(layer)), second(first) {}

    Layer first, second;
    double update = 0;  ///< steps done; a double, exact to 2^53, so that it is a leaf like the moments

    template <class F, class... Self>
    static void visit(F&& f, Self&... self) {
      visit_gradient(f, "first", self.first...);
      visit_gradient(f, "second", self.second...);
      f("update", self.update...);
    }
  };

  /// Throws std::invalid_argument unless every number is in its range.
  void validate() const {
    detail::require_share("moe::AdamW", "beta1", beta1);
    detail::require_share("moe::AdamW", "beta2", beta2);
    detail::require_factor("moe::AdamW", "weight_decay", weight_decay);
    detail::require_factor("moe::AdamW", "epsilon", epsilon);
    if (epsilon < std::numeric_limits<float>::min())
      fail("moe::AdamW: epsilon is ", epsilon, ", expected at least ", std::numeric_limits<float>::min());
  }

  /// One update of every parameter that the layer visits; its state stays. Elementwise: the same bits for any
  /// number of threads. Returns whether the step was taken: always, but for NonFinite::Skip. Throws
  /// std::invalid_argument for bad numbers, an object of another shape or a gradient that is not finite, and changes
  /// nothing then. Allocates only names and shapes.
  template <class Layer>
  bool step(Layer& layer, const Layer& gradient, State<Layer>& state, double learning_rate) const {
    static_assert(HasParameters<Layer>, "moe::AdamW: what is trained declares visit (see moe/core/visit.hpp)");
    validate();
    const double update = state.update + 1;
    const Rates rates{learning_rate, learning_rate / (1 - std::pow(beta1, update)),
                      1 / std::sqrt(1 - std::pow(beta2, update))};
    detail::require_factor("moe::AdamW::step", "learning_rate", learning_rate);
    detail::require_factor("moe::AdamW::step", "learning_rate / (1 - beta1^t)", rates.corrected);
    detail::require_factor("moe::AdamW::step", "learning_rate * weight_decay", learning_rate * weight_decay);
    detail::require_same_parameters("moe::AdamW::step", "gradient", layer, gradient);
    detail::require_same_parameters("moe::AdamW::step", "state.first", layer, state.first);
    detail::require_same_parameters("moe::AdamW::step", "state.second", layer, state.second);
    if (!detail::accepts_gradient("moe::AdamW::step", non_finite, gradient)) return false;
    moe::visit(
        [&](const std::string&, auto& leaf, const auto& leaf_gradient, auto& first, auto& second) {
          detail::update_leaf(rule<ParameterScalar<decltype(leaf)>>(leaf, rates), leaf, leaf_gradient, first, second);
        },
        layer, gradient, state.first, state.second);
    state.update = update;
    return true;
  }

 private:
  struct Rates {
    double plain;      ///< learning rate
    double corrected;  ///< learning rate / (1 - beta1^t)
    double root;       ///< 1 / sqrt(1 - beta2^t)
  };

  template <class S, class Leaf>
  auto rule(const Leaf& leaf, const Rates& rates) const {
    using V = simd::Batch<S>;
    const auto all = [](double value) { return V(static_cast<S>(value)); };
    return [b1 = all(beta1), c1 = all(1 - beta1), b2 = all(beta2), c2 = all(1 - beta2), eps = all(epsilon),
            root = all(rates.root), rate = all(rates.corrected),
            keep = all(detail::is_decayed(decayed, leaf) ? 1 - rates.plain * weight_decay : 1.0)](
               V& x, const V& gradient, V& first, V& second) {
      first = simd::fma(b1, first, c1 * gradient);
      second = simd::fma(b2, second, c2 * gradient * gradient);
      x = simd::fma(keep, x, -(rate * first / simd::fma(simd::sqrt(second), root, eps)));
    };
  }
};

}  // namespace moe::inline MOE_ABI
