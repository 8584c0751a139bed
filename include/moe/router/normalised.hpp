// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "moe/core/aligned.hpp"
#include "moe/core/overlap.hpp"
#include "moe/core/part_of_gradient.hpp"
#include "moe/core/take.hpp"
#include "moe/core/tape.hpp"
#include "moe/router/concept.hpp"
#include "moe/routing/balance/token_sum.hpp"

namespace moe::inline MOE_ABI {

/// Numbers of a NormalisedRouter.
struct LogitNormalisation {
  double scale = 1;        ///< standard deviation of the logits of a token; > 0: how sharp the softmax is
  double epsilon = 1e-12;  ///< added to the variance; > 0: equal logits become zeros

  friend bool operator==(const LogitNormalisation&, const LogitNormalisation&) = default;

  /// Throws std::invalid_argument unless both are finite and > 0.
  void validate() const {
    if (!(scale > 0 && std::isfinite(scale)))
      fail("moe::NormalisedRouter: scale is ", scale, ", expected a finite number > 0");
    if (!(epsilon > 0 && std::isfinite(epsilon)))
      fail("moe::NormalisedRouter: epsilon is ", epsilon, ", expected a finite number > 0");
  }
};

/// Any router whose logits z are brought to mean 0 and a given standard deviation, token by token:
///   logits_e = scale * (z_e - mean z) / sqrt(variance z + epsilon)
/// over the experts that are not masked by -infinity, which stay so; the variance is that of a population. So how sharp
/// the gate is depends on `scale` and not on how large the router's weights have grown, and routing does not fall back
/// to uniform. Rows with a NaN or +infinity stay as they are, for the gate to name the expert; those of padding stay,
/// too, and have no gradient.
///   moe::NormalisedRouter router(moe::LinearRouter::random(8, 64, 1), {.scale = 1.5});
///   dL/dz_e = scale / s (g_e - mean g - u_e mean(g u)),   g = dL/dlogits, s = sqrt(variance + epsilon), u = (z - mean)
///   / s
/// Trainable if the router is. Its parameters and their names are the router's. Immutable in use, share freely. O(1)
/// per logit beside the router; warm calls do not allocate if the router's do not. Wei et al., "Skywork-MoE"
/// (arXiv:2406.06563), gating logit normalisation.
template <Router R>
class NormalisedRouter {
 public:
  using Scalar = typename R::Scalar;
  struct Tape {
    RowBuffer<Scalar> z;   ///< z, [num_tokens, num_experts]
    RowBuffer<Scalar> dz;  ///< working memory of backward: dL/dz
    detail::TapeOf<R> router;
  };

  /// Throws std::invalid_argument for numbers out of range.
  explicit NormalisedRouter(R router, const LogitNormalisation& normalisation = {})
      : router_(std::move(router)), normalisation_(normalisation) {
    normalisation.validate();
  }

  Index num_experts() const { return router_.num_experts(); }
  Index model_dim() const { return router_.model_dim(); }
  R& router() { return router_; }
  const R& router() const { return router_; }
  const LogitNormalisation& normalisation() const { return normalisation_; }

  /// out [num_tokens, num_experts], overwritten. Throws std::invalid_argument where the router does.
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out) const {
    context.step.validate("moe::NormalisedRouter::logits", tokens.rows());
    router_.logits(tokens, context, out);
    normalise(context.step, out);
  }
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape& tape) const
    requires DifferentiableRouter<R>
  {
    context.step.validate("moe::NormalisedRouter::logits", tokens.rows());
    router_.logits(tokens, context, out, tape.router);
    tape.z.resize(out.rows(), out.cols());
    tape.z.matrix() = out;
    normalise(context.step, out);
  }

  /// Throws std::invalid_argument unless the tape is that of a forward pass of so many tokens through a router of these
  /// sizes, and the gradient of them, too.
  template <class Gradient>
    requires DifferentiableRouter<R>
  void require_backward(Index num_tokens, const Tape& tape, const Gradient& gradient) const {
    detail::require_shape("moe::NormalisedRouter::backward", "tape.z", tape.z.matrix(), num_tokens, num_experts());
    if constexpr (requires { router_.require_backward(num_tokens, tape.router, of_router(gradient)); })
      router_.require_backward(num_tokens, tape.router, of_router(gradient));
  }

  /// `dtokens` is added to, and must not overlap `tokens` or `dlogits`. Throws std::invalid_argument, before it writes
  /// anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NormalisedRouter& gradient, MatrixRef<Scalar> dtokens) const
    requires DifferentiableRouter<R>
  {
    prepare_backward(tokens.rows(), context.step, tape, dlogits, gradient);
    router_.backward(tokens, context, tape.router, tape.dz.matrix(), gradient.router_, dtokens);
  }
  /// dtokens alone.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NoGradient none, MatrixRef<Scalar> dtokens) const
    requires RouterSkipsGradient<R>
  {
    prepare_backward(tokens.rows(), context.step, tape, dlogits, none);
    router_.backward(tokens, context, tape.router, tape.dz.matrix(), none, dtokens);
  }
  /// The gradient alone.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NormalisedRouter& gradient) const
    requires requires(const R& router, R& of_router) {
      router.backward(tokens, context, tape.router, dlogits, of_router);
    }
  {
    prepare_backward(tokens.rows(), context.step, tape, dlogits, gradient);
    router_.backward(tokens, context, tape.router, tape.dz.matrix(), gradient.router_);
  }

  /// The router's, normalised over the experts that are left, as if the others were masked.
  NormalisedRouter take(std::span<const Index> ids) const
    requires TakesExperts<R>
  {
    return NormalisedRouter(router_.take(ids), normalisation_);
  }
  /// The router's, normalised over the experts of both. Throws std::invalid_argument unless the numbers are the same.
  NormalisedRouter concatenate(const NormalisedRouter& other) const
    requires Concatenates<R>
  {
    detail::require_equal_option("moe::NormalisedRouter::concatenate", "normalisation", normalisation_,
                                 other.normalisation_);
    return NormalisedRouter(router_.concatenate(other.router_), normalisation_);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.router_...);
  }

 private:
  static constexpr Scalar kMasked = -std::numeric_limits<Scalar>::infinity();

  /// Mean and 1 / sqrt(variance + epsilon) of the logits of a token that are not masked, and how many they are.
  struct Statistics {
    double mean = 0, inverse = 0;
    Index count = 0;
    bool is_usable = true;  ///< no NaN, no +infinity
  };
  Statistics statistics(const Scalar* z) const {
    Statistics result;
    double first = 0;  // from which the mean is taken, as that of equal logits is then exact
    for (Index e = 0; e < num_experts(); ++e) {
      if (z[e] == kMasked) continue;
      if (result.count == 0) first = static_cast<double>(z[e]);
      result.is_usable = result.is_usable && std::isfinite(z[e]);
      result.mean += static_cast<double>(z[e]) - first;
      ++result.count;
    }
    const double count = static_cast<double>(std::max<Index>(result.count, 1));
    result.mean = first + result.mean / count;
    double squares = 0;
    for (Index e = 0; e < num_experts(); ++e) {
      if (z[e] == kMasked) continue;
      const double centred = static_cast<double>(z[e]) - result.mean;
      squares += centred * centred;
    }
    result.inverse = 1 / std::sqrt(squares / count + normalisation_.epsilon);
    return result;
  }

  void normalise(const Step& step, MatrixRef<Scalar> out) const {
    detail::for_each_valid(out.rows(), step, [&](Index t) {
      Scalar* z = out.row(t).data();
      const Statistics of = statistics(z);
      if (!of.is_usable) return;
      for (Index e = 0; e < num_experts(); ++e)
        if (z[e] != kMasked)
          z[e] = static_cast<Scalar>(normalisation_.scale * ((static_cast<double>(z[e]) - of.mean) * of.inverse));
    });
  }

  template <class Gradient>
  static decltype(auto) of_router(Gradient& gradient) {
    return detail::part_of(gradient, [](auto& normalised) -> auto& { return normalised.router_; });
  }

  /// Fills tape.dz.
  template <class Gradient>
  void prepare_backward(Index num_tokens, const Step& step, Tape& tape, const ConstMatrixRef<Scalar>& dlogits,
                        const Gradient& gradient) const {
    constexpr const char* kFunction = "moe::NormalisedRouter::backward";
    require_backward(num_tokens, tape, gradient);
    step.validate(kFunction, num_tokens);
    detail::require_shape(kFunction, "dlogits", dlogits, num_tokens, num_experts());
    tape.dz.resize(num_tokens, num_experts());
    tape.dz.matrix().setZero();
    detail::for_each_valid(num_tokens, step, [&](Index t) {
      through_normalise(tape.z.row(t), dlogits.data() + t * dlogits.outerStride(), tape.dz.row(t));
    });
  }

  /// dz from dlogits of one token; 0 where masked.
  void through_normalise(const Scalar* z, const Scalar* dlogits, Scalar* dz) const {
    const Statistics of = statistics(z);
    const auto unit = [&](Index e) { return (static_cast<double>(z[e]) - of.mean) * of.inverse; };
    double mean = 0, along = 0;
    for (Index e = 0; e < num_experts(); ++e) {
      if (z[e] == kMasked) continue;
      mean += static_cast<double>(dlogits[e]) / static_cast<double>(of.count);
      along += static_cast<double>(dlogits[e]) * unit(e) / static_cast<double>(of.count);
    }
    for (Index e = 0; e < num_experts(); ++e)
      if (z[e] != kMasked)
        dz[e] = static_cast<Scalar>(normalisation_.scale * of.inverse *
                                    (static_cast<double>(dlogits[e]) - mean - unit(e) * along));
  }

  R router_;
  LogitNormalisation normalisation_;
};

}  // namespace moe::inline MOE_ABI
