// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <string>

#include "moe/train/elementwise.hpp"

namespace moe::inline MOE_ABI {

/// Where momentum takes the gradient: at the parameters (Polyak), or where the velocity will carry them (Nesterov).
enum class Momentum { HeavyBall, Nesterov };

/// Which parameters are decayed: all, or only those of two and more dimensions (weights, not biases or temperatures).
enum class Decayed { All, Matrices };

namespace detail {

template <class Leaf>
bool is_decayed(Decayed decayed, const Leaf& leaf) {
  return decayed == Decayed::All || parameter_shape(leaf).size() >= 2;
}

/// A factor that float cannot hold would turn the zeros of padding into NaN.
inline void require_factor(const char* function, const char* name, double value) {
  if (!(value >= 0 && value <= std::numeric_limits<float>::max()))
    fail(function, ": ", name, " is ", value, ", expected 0 or more and finite in float");
}

inline void require_share(const char* function, const char* name, double value) {
  if (!(value >= 0 && value < 1)) fail(function, ": ", name, " is ", value, ", expected a value in [0, 1)");
}

}  // namespace detail

/// Stochastic gradient descent with momentum and L2 weight decay:
///   d = gradient + weight_decay * x;   v = momentum * v + d;   x -= learning_rate * v
/// and x -= learning_rate * (d + momentum * v) with Nesterov's momentum. Immutable, share freely.
///   moe::Sgd sgd{.momentum = 0.9};  moe::Sgd::State state(layer);
///   sgd.step(layer, gradient, state, schedule(update));
/// Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
struct Sgd {
  double momentum = 0;  ///< in [0, 1)
  Momentum kind = Momentum::HeavyBall;
  double weight_decay = 0;  ///< 0 or more
  Decayed decayed = Decayed::All;
  NonFinite non_finite = NonFinite::Refuse;

  /// One velocity per parameter, zero at first. Visited like a layer, so it can be saved and restored like one.
  template <class Layer>
  struct State {
    explicit State(const Layer& layer) : velocity(zeros_like(layer)) {}

    Layer velocity;

    template <class F, class... Self>
    static void visit(F&& f, Self&... self) {
      visit_gradient(f, "velocity", self.velocity...);
    }
  };

  /// Throws std::invalid_argument unless every number is in its range.
  void validate() const {
    detail::require_share("moe::Sgd", "momentum", momentum);
    detail::require_factor("moe::Sgd", "weight_decay", weight_decay);
  }

  /// One update of every parameter that the layer visits; its state stays. Elementwise: the same bits for any
  /// number of threads. Returns whether the step was taken: always, but for NonFinite::Skip. Throws
  /// std::invalid_argument for bad numbers, an object of another shape or a gradient that is not finite, and changes
  /// nothing then. Allocates only names and shapes.
  template <class Layer>
  bool step(Layer& layer, const Layer& gradient, State<Layer>& state, double learning_rate) const {
    static_assert(HasParameters<Layer>, "moe::Sgd: what is trained declares visit (see moe/core/visit.hpp)");
    validate();
    detail::require_factor("moe::Sgd::step", "learning_rate", learning_rate);
    detail::require_same_parameters("moe::Sgd::step", "gradient", layer, gradient);
    detail::require_same_parameters("moe::Sgd::step", "state", layer, state.velocity);
    if (!detail::accepts_gradient("moe::Sgd::step", non_finite, gradient)) return false;
    moe::visit(
        [&](const std::string&, auto& leaf, const auto& leaf_gradient, auto& velocity) {
          detail::update_leaf(rule<ParameterScalar<decltype(leaf)>>(leaf, learning_rate), leaf, leaf_gradient,
                              velocity);
        },
        layer, gradient, state.velocity);
    return true;
  }

 private:
  template <class S, class Leaf>
  auto rule(const Leaf& leaf, double learning_rate) const {
    using V = simd::Batch<S>;
    return [decay = V(static_cast<S>(detail::is_decayed(decayed, leaf) ? weight_decay : 0.0)),
            mu = V(static_cast<S>(momentum)), rate = V(static_cast<S>(-learning_rate)),
            nesterov = kind == Momentum::Nesterov](V& x, const V& gradient, V& velocity) {
      const V descent = simd::fma(decay, x, gradient);
      velocity = simd::fma(mu, velocity, descent);
      x = simd::fma(rate, nesterov ? simd::fma(mu, velocity, descent) : velocity, x);
    };
  }
};

}  // namespace moe::inline MOE_ABI
