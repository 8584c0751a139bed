// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "moe/gate/wrap/with_skipping.hpp"
#include "moe/layer/compressed_tokens.hpp"
#include "moe/layer/routed_experts.hpp"

namespace moe::inline MOE_ABI {

/// Experts of which the first choices of a token run, the main ones, and the others, the auxiliary ones, cost nothing
/// but a vector: each expert has one, theta_e, by which an auxiliary choice scales what the main experts read.
///   share_i = weight_i / sum of the weights of the auxiliary choices of t
///   h[t]    = tokens[t] * (1 + sum_i share_i (theta_i - 1)), elementwise        theta [num_experts, input_dim]
///   out[t]  = sum over the main choices e of t of weight_e * expert_e(h[t])
/// A Mixture, which stands where the expert set stood: compress_auxiliary() makes it of a trained layer. The gate keeps
/// its k choices, best first as those of TopKGate, of which the first `main` are the main ones, and the router reads
/// the tokens as they are. With theta = 1, which they start with, it is the layer of the main choices, bit for bit.
/// Weights of main choices stay as they are (SkippedWeight::Lost), or make up for the others (Shared). Dropped choices
/// neither run nor scale; where all auxiliary weights are 0 they share alike. All of it learns: experts, theta, and
/// through the shares the router; Frozen experts leave theta and the router.
/// The time of `main` choices per token, and (k - main) input_dim operations: of k = 2, main = 1 takes .50 and .52 of
/// the time of both choices for 1 and 512 tokens, 1.02 of that of one (8 experts 1024 x 3584, Xeon, AVX-512, one
/// thread, 2026-12-01); for some dozen tokens, whose first choices alone name most experts, .83 to .72, where the ratio
/// of weights that are read is .9 and more (.github/COMPRESSION.md). Immutable in use, share freely. Same bits for any
/// number of threads and, where kPerToken, whatever else is in the batch; no allocation when warm. He et al.,
/// "Efficiently editing mixture-of-experts models with compressed experts" (arXiv:2503.00634).
template <class X>
class CompressedExperts {
  static_assert(ExpertSet<X>,
                "moe::CompressedExperts: an ExpertSet needs `Scalar`, `size()`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const PlanView& plan, const Context&, RowBuffer<Scalar>& rows) const`; wrap "
                "experts in moe::ExpertPool (see moe/expert/expert_set.hpp)");

 public:
  using Scalar = typename X::Scalar;
  static constexpr bool kPerToken = kIsPerToken<X>;
  static constexpr bool kCollective = kIsCollective<X>;

  /// What forward leaves for backward, and the working memory of backward.
  struct Tape {
    detail::CompressedTokens<Scalar> compressed;
    typename RoutedExperts<X>::Tape experts;
    RowBuffer<Scalar> dtokens, dfactor;
  };

  /// theta = 1. Throws std::invalid_argument unless 1 <= main <= num_experts.
  CompressedExperts(RoutedExperts<X> experts, Index main, SkippedWeight auxiliary = SkippedWeight::Lost)
      : experts_(std::move(experts)),
        theta_(Matrix<Scalar>::Ones(experts_.num_experts(), experts_.input_dim())),
        main_(main),
        auxiliary_(auxiliary) {
    if (main < 1 || main > num_experts())
      fail("moe::CompressedExperts: main is ", main, ", expected 1 <= main <= num_experts = ", num_experts());
  }
  CompressedExperts(X experts, Index main, SkippedWeight auxiliary = SkippedWeight::Lost)
      : CompressedExperts(RoutedExperts<X>(std::move(experts)), main, auxiliary) {}

  Index num_experts() const { return experts_.num_experts(); }
  Index input_dim() const { return experts_.input_dim(); }
  Index output_dim() const { return experts_.output_dim(); }
  X& experts() { return experts_.experts(); }
  const X& experts() const { return experts_.experts(); }
  WeightOn weight_on() const { return experts_.weight_on(); }
  /// Choices of a token that run.
  Index main() const { return main_; }
  SkippedWeight auxiliary() const { return auxiliary_; }
  /// [num_experts, input_dim]
  Matrix<Scalar>& theta() { return theta_; }
  const Matrix<Scalar>& theta() const { return theta_; }

  /// `out` may be `tokens` itself, but not overlap other rows of it. Throws std::invalid_argument on wrong shapes, and
  /// for a routing of other tokens or experts.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out) const {
    constexpr const char* kFunction = "moe::CompressedExperts::forward";
    require_shapes(kFunction, tokens, routing, out);
    detail::require_same_or_apart(kFunction, "out", out, "tokens", tokens);
    auto& compressed = context.scratch.get<detail::CompressedTokens<Scalar>>();
    compress(tokens, routing, compressed);
    experts_.forward(compressed.tokens, compressed.main, context, out);
  }

  /// The same with what backward needs kept in `tape`; `out` must not overlap `tokens`, which backward reads again.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out, Tape& tape) const
    requires DifferentiableExpertSet<X>
  {
    constexpr const char* kFunction = "moe::CompressedExperts::forward";
    require_shapes(kFunction, tokens, routing, out);
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    tape.experts.is_whole = false;
    compress(tokens, routing, tape.compressed);
    experts_.forward(tape.compressed.tokens, tape.compressed.main, context, out, tape.experts);
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass through experts of these sizes with a routing of
  /// as many choices per token, and `gradient` is another mixture of them.
  void require_backward(const Routing<Scalar>& routing, const Tape& tape, const CompressedExperts& gradient) const
    requires DifferentiableExpertSet<X>
  {
    constexpr const char* kFunction = "moe::CompressedExperts::backward";
    experts_.require_backward(routing, tape.experts, gradient.experts_);
    detail::require_routing(kFunction, routing, routing.num_tokens(), num_experts());
    detail::require_shape(kFunction, "theta", theta_, num_experts(), input_dim());
    detail::require_shape(kFunction, "gradient.theta", gradient.theta_, num_experts(), input_dim());
    if (tape.compressed.factor.cols() != input_dim())
      fail(kFunction, ": the tape is of experts of ", tape.compressed.factor.cols(), " inputs, expected ", input_dim());
  }

  /// From dout [num_tokens, output_dim] to dweight [num_assignments] and dtokens [num_tokens, input_dim], both
  /// overwritten, and `gradient`, accumulated into; `routing` as in forward. With dh the gradient of what experts read,
  ///   dtokens = factor * dh      dtheta_e = sum of share (dh * tokens)
  ///   dweight_i of auxiliary ones = (<theta_i, dh * tokens> - sum_j share_j <theta_j, dh * tokens>) / their sum
  /// Throws std::invalid_argument, before it writes anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context, Tape& tape,
                const MatrixView<Scalar>& dout, CompressedExperts& gradient, std::span<Scalar> dweight,
                MatrixRef<Scalar> dtokens) const
    requires DifferentiableExpertSet<X>
  {
    constexpr const char* kFunction = "moe::CompressedExperts::backward";
    detail::require_shape(kFunction, "dtokens", dtokens, routing.num_tokens(), input_dim());
    detail::require_apart(kFunction, "dtokens", dtokens, "tokens", tokens);
    detail::require_apart(kFunction, "dtokens", dtokens, "dout", dout);
    backward(tokens, routing, context, tape, dout, gradient, dweight);
    parallel_ranges(tokens.rows(), kernel::kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t)
        detail::multiply_two(input_dim(), std::as_const(tape.compressed.factor).row(t),
                             std::as_const(tape.dtokens).row(t), dtokens.data() + t * dtokens.outerStride());
    });
  }
  /// The same without dtokens.
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context, Tape& tape,
                const MatrixView<Scalar>& dout, CompressedExperts& gradient, std::span<Scalar> dweight) const
    requires DifferentiableExpertSet<X>
  {
    constexpr const char* kFunction = "moe::CompressedExperts::backward";
    require_backward(routing, tape, gradient);
    detail::require_shape(kFunction, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(kFunction, "dout", dout, tokens.rows(), output_dim());
    tape.dtokens.resize(tokens.rows(), input_dim());
    experts_.backward(tape.compressed.tokens, tape.compressed.main, context, tape.experts, dout, gradient.experts_,
                      dweight, MatrixRef<Scalar>(tape.dtokens.matrix()));
    tape.dfactor.resize(tokens.rows(), input_dim());
    parallel_ranges(tokens.rows(), kernel::kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) weights_backward(tokens, routing, t, tape, dweight);
    });
    // By columns, so that each is summed by one thread in the order of tokens.
    parallel_ranges(input_dim(), kColumnsPerTask, [&](Index begin, Index end, Index) {
      for (Index t = 0; t < tokens.rows(); ++t)
        for (Index a = auxiliary_of(routing, t); a < routing.end(t); ++a) {
          const auto at = static_cast<std::size_t>(a);
          const Scalar share = tape.compressed.share[at];
          if (share == 0) continue;
          Scalar* const dtheta = gradient.theta_of(routing.experts()[at]) + begin;
          detail::transform_two<Scalar>(
              end - begin, tape.dfactor.row(t) + begin, dtheta, dtheta,
              [&](const auto& x, const auto& sum) { return simd::fma(simd::Batch<Scalar>(share), x, sum); });
        }
    });
  }

  /// The same over the given experts, each with its theta. Throws std::invalid_argument as TakesExperts says, and where
  /// fewer than `main` are left.
  CompressedExperts take(std::span<const Index> ids) const
    requires TakesExperts<X>
  {
    CompressedExperts result(experts_.take(ids), main_, auxiliary_);
    for (Index e = 0; e < result.num_experts(); ++e)
      result.theta_.row(e) = theta_.row(ids[static_cast<std::size_t>(e)]);
    return result;
  }
  /// The same over the experts of both. Throws std::invalid_argument unless `main`, what becomes of weights and their
  /// side are equal.
  CompressedExperts concatenate(const CompressedExperts& other) const
    requires Concatenates<X>
  {
    constexpr const char* kFunction = "moe::CompressedExperts::concatenate";
    detail::require_equal_option(kFunction, "main", main_, other.main_);
    detail::require_equal_option(kFunction, "auxiliary", auxiliary_, other.auxiliary_);
    CompressedExperts result(experts_.concatenate(other.experts_), main_, auxiliary_);
    result.theta_ << theta_, other.theta_;
    return result;
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.experts_...);
    f("theta", self.theta_...);
  }

 private:
  static constexpr Index kColumnsPerTask = 64;  // whole cache lines

  Scalar* theta_of(Index expert) { return theta_.data() + expert * theta_.cols(); }
  const Scalar* theta_of(Index expert) const { return theta_.data() + expert * theta_.cols(); }

  /// The first auxiliary choice of token t.
  Index auxiliary_of(const Routing<Scalar>& routing, Index t) const {
    return std::min(routing.end(t), routing.begin(t) + main_);
  }

  void require_shapes(const char* function, const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing,
                      const MatrixRef<Scalar>& out) const {
    if (num_experts() == 0) fail(function, ": there are no experts: they have been moved from");
    detail::require_shape(function, "theta", theta_, num_experts(), input_dim());
    detail::require_shape(function, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(function, "out", out, tokens.rows(), output_dim());
    detail::require_experts(function, routing, num_experts());
  }

  /// What the main experts read, and the choices of them.
  void compress(const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing,
                detail::CompressedTokens<Scalar>& compressed) const {
    compressed.main = routing;
    compressed.share.resize(static_cast<std::size_t>(routing.num_assignments()));
    compressed.factor.resize(tokens.rows(), input_dim());
    compressed.tokens.resize(tokens.rows(), input_dim());
    parallel_ranges(tokens.rows(), kernel::kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        detail::share_among_auxiliary<Scalar>(routing, t, main_, compressed.share);
        Scalar* const factor = compressed.factor.row(t);
        std::fill_n(factor, input_dim(), Scalar{1});
        const Scalar former_sum = detail::sum_of_weights(routing, t);
        for (Index a = auxiliary_of(routing, t); a < routing.end(t); ++a) {
          const auto at = static_cast<std::size_t>(a);
          if (routing.dropped()[at]) continue;
          compressed.main.drop(a, kDroppedBySkipping);
          // 1 and what theta differs from it, so that theta = 1 is exactly that.
          const simd::Batch<Scalar> share(compressed.share[at]), one(Scalar{1});
          detail::transform_two<Scalar>(
              input_dim(), theta_of(routing.experts()[at]), factor, factor,
              [&](const auto& theta, const auto& sum) { return simd::fma(share, theta - one, sum); });
        }
        if (auxiliary_ == SkippedWeight::Shared) detail::share_out(compressed.main, t, former_sum);
        detail::multiply_two<Scalar>(input_dim(), factor, tokens.data() + t * tokens.outerStride(),
                                     compressed.tokens.row(t));
      }
    });
  }

  /// dL/dfactor of token t, and from it dL/dweight of its choices.
  void weights_backward(const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing, Index t, Tape& tape,
                        std::span<Scalar> dweight) const {
    Scalar* const dfactor = tape.dfactor.row(t);
    detail::multiply_two<Scalar>(input_dim(), tape.dtokens.row(t), tokens.data() + t * tokens.outerStride(), dfactor);
    if (auxiliary_ == SkippedWeight::Shared) shared_backward(routing, tape.compressed.main, t, dweight);
    const std::vector<Scalar>& share = tape.compressed.share;
    Scalar sum = 0;
    for (Index a = auxiliary_of(routing, t); a < routing.end(t); ++a)
      if (!routing.dropped()[static_cast<std::size_t>(a)]) sum += routing.weights()[static_cast<std::size_t>(a)];
    if (!(sum > 0)) return;  // they share alike, or there are none
    const auto slope = [&](std::size_t at) {
      const Scalar* const theta = theta_of(routing.experts()[at]);
      double product = 0;
      for (Index c = 0; c < input_dim(); ++c)
        product = simd::fma(static_cast<double>(theta[c]) - 1, static_cast<double>(dfactor[c]), product);
      return product;
    };
    double mean = 0;
    for (Index a = auxiliary_of(routing, t); a < routing.end(t); ++a)
      if (const auto at = static_cast<std::size_t>(a); share[at] != 0)
        mean += static_cast<double>(share[at]) * slope(at);
    for (Index a = auxiliary_of(routing, t); a < routing.end(t); ++a)
      if (const auto at = static_cast<std::size_t>(a); !routing.dropped()[at])
        dweight[at] += static_cast<Scalar>((slope(at) - mean) / static_cast<double>(sum));
  }

  /// dL/dw of all choices of token t from dL/dw' of its main ones, w' = w B / K: see WithSkipping.
  static void shared_backward(const Routing<Scalar>& routing, const Routing<Scalar>& main, Index t,
                              std::span<Scalar> dweight) {
    Scalar former_sum = 0, sum = 0, product = 0;
    const auto for_kept = [&](const auto& f) {
      for (Index a = routing.begin(t); a < routing.end(t); ++a)
        if (const auto at = static_cast<std::size_t>(a); !routing.dropped()[at]) f(at, main.dropped()[at] == 0);
    };
    for_kept([&](std::size_t at, bool runs) {
      const Scalar weight = routing.weights()[at];
      former_sum += weight;
      sum += runs ? weight : Scalar{0};
      product += runs ? dweight[at] * weight : Scalar{0};
    });
    if (!(sum > 0)) return;
    const Scalar mean = product / sum, scale = former_sum / sum;
    for_kept(
        [&](std::size_t at, bool runs) { dweight[at] = (runs ? (dweight[at] - mean) * scale : Scalar{0}) + mean; });
  }

  RoutedExperts<X> experts_;
  Matrix<Scalar> theta_;
  Index main_;
  SkippedWeight auxiliary_;
};

}  // namespace moe::inline MOE_ABI
