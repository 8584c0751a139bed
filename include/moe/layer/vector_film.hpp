// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include "moe/core/overlap.hpp"
#include "moe/core/parallel.hpp"
#include "moe/core/take.hpp"
#include "moe/layer/compressed_tokens.hpp"
#include "moe/layer/mixture.hpp"

namespace moe::inline MOE_ABI {

/// Experts that scale and shift the features of their tokens, by numbers of their own: a Mixture of
///   expert_e(z) = gamma_e o z + beta_e        out[t] = (sum_i w_i gamma_i) o z[t] + sum_i w_i beta_i
/// in this fused form: one product per feature however many choices, beside their two sums. 2 dim parameters per
/// expert. A token without kept choices gets zeros. Immutable in use, share freely. Same bits for any number of threads
/// and whatever else is in the batch. No allocation when warm. Perez et al., "FiLM: visual reasoning with a general
/// conditioning layer" (arXiv:1709.07871).
template <class S>
class VectorFilm {
 public:
  using Scalar = S;
  static constexpr bool kPerToken = true;

  /// What forward leaves for backward, and the working memory of both.
  struct Tape {
    RowBuffer<S> scale, shift;  ///< of every token
    RowBuffer<S> dscale;
    Index num_assignments = -1;
  };

  /// gamma = 1, beta = 0. Throws std::invalid_argument for sizes below 1.
  VectorFilm(Index num_experts, Index dim)
      : gamma_(Matrix<S>::Ones(detail::checked_size("moe::VectorFilm", "num_experts", num_experts, 1),
                               detail::checked_size("moe::VectorFilm", "dim", dim, 1))),
        beta_(Matrix<S>::Zero(num_experts, dim)) {}
  /// gamma from N(1, deviation^2), beta from N(0, deviation^2).
  static VectorFilm random(Index num_experts, Index dim, std::uint64_t seed, double deviation = 0.1) {
    VectorFilm film(num_experts, dim);
    const RandomField scale(Purpose::Initialise, seed, 0), shift(Purpose::Initialise, seed, 1);
    for (Index e = 0; e < num_experts; ++e)
      for (Index c = 0; c < dim; ++c) {
        film.gamma_(e, c) = static_cast<S>(1 + deviation * scale.normal(e, c));
        film.beta_(e, c) = static_cast<S>(deviation * shift.normal(e, c));
      }
    return film;
  }

  Index num_experts() const { return gamma_.rows(); }
  Index input_dim() const { return gamma_.cols(); }
  Index output_dim() const { return gamma_.cols(); }
  /// [num_experts, dim]; keep the sizes.
  Matrix<S>& gamma() { return gamma_; }
  const Matrix<S>& gamma() const { return gamma_; }
  Matrix<S>& beta() { return beta_; }
  const Matrix<S>& beta() const { return beta_; }

  /// `out` may be `tokens` itself, but not overlap other rows of it. Throws std::invalid_argument on wrong shapes, and
  /// for a routing of other tokens or experts.
  void forward(const MatrixView<S>& tokens, const Routing<S>& routing, const Context& context, MatrixRef<S> out) const {
    detail::require_same_or_apart(kForward, "out", out, "tokens", tokens);
    run(tokens, routing, out, context.scratch.template get<Tape>());
  }
  /// The same with what backward needs kept in `tape`; `out` must not overlap `tokens`.
  void forward(const MatrixView<S>& tokens, const Routing<S>& routing, const Context&, MatrixRef<S> out,
               Tape& tape) const {
    detail::require_apart(kForward, "out", out, "tokens", tokens);
    run(tokens, routing, out, tape);
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass of as many tokens and choices through experts of
  /// these sizes, and `gradient` is another object of them.
  void require_backward(const Routing<S>& routing, const Tape& tape, const VectorFilm& gradient) const {
    if (tape.num_assignments != routing.num_assignments() || tape.scale.rows() != routing.num_tokens() ||
        tape.scale.cols() != input_dim())
      fail(kBackward, ": the tape is of ", tape.scale.rows(), " tokens of ", tape.scale.cols(), " features and ",
           tape.num_assignments, " assignments, expected ", routing.num_tokens(), " of ", input_dim(), " and ",
           routing.num_assignments());
    detail::require_experts(kBackward, routing, num_experts());
    detail::require_shape(kBackward, "beta", beta_, num_experts(), input_dim());
    if (&gradient == this) fail(kBackward, ": gradient is the object itself, expected one of its own (zeros_like)");
    detail::require_shape(kBackward, "gradient.gamma", gradient.gamma_, num_experts(), input_dim());
    detail::require_shape(kBackward, "gradient.beta", gradient.beta_, num_experts(), input_dim());
  }

  /// From dout [num_tokens, dim] to dweight [num_assignments] and dtokens [num_tokens, dim], both overwritten, and
  /// `gradient`, accumulated into; `routing` as in forward:
  ///   dtokens = scale o dout      dweight_i = <gamma_i, z o dout> + <beta_i, dout>
  ///   dgamma_e = sum of w_i (z o dout)      dbeta_e = sum of w_i dout      over the kept choices i of e
  /// Throws std::invalid_argument, before it writes anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<S>& tokens, const Routing<S>& routing, const Context& context, Tape& tape,
                const MatrixView<S>& dout, VectorFilm& gradient, std::span<S> dweight, MatrixRef<S> dtokens) const {
    detail::require_shape(kBackward, "dtokens", dtokens, routing.num_tokens(), input_dim());
    detail::require_apart(kBackward, "dtokens", dtokens, "tokens", tokens);
    detail::require_apart(kBackward, "dtokens", dtokens, "dout", dout);
    backward(tokens, routing, context, tape, dout, gradient, dweight);
    parallel_ranges(tokens.rows(), kTokensPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        S* const dtoken = dtokens.data() + t * dtokens.outerStride();
        if (std::ranges::all_of(routing.dropped(t), [](auto dropped) { return dropped != 0; }))
          std::fill_n(dtoken, input_dim(), S{0});  // whatever dout is
        else
          detail::multiply_two<S>(input_dim(), std::as_const(tape.scale).row(t), row(dout, t), dtoken);
      }
    });
  }
  /// The same without dtokens.
  void backward(const MatrixView<S>& tokens, const Routing<S>& routing, const Context&, Tape& tape,
                const MatrixView<S>& dout, VectorFilm& gradient, std::span<S> dweight) const {
    require_backward(routing, tape, gradient);
    detail::require_shape(kBackward, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(kBackward, "dout", dout, tokens.rows(), output_dim());
    if (std::ssize(dweight) != routing.num_assignments())
      fail(kBackward, ": dweight has ", dweight.size(),
           " entries, expected num_assignments = ", routing.num_assignments());
    tape.dscale.resize(tokens.rows(), input_dim());
    parallel_ranges(tokens.rows(), kTokensPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        S* const dscale = tape.dscale.row(t);  // of padding nobody reads it
        detail::multiply_two<S>(input_dim(), row(tokens, t), row(dout, t), dscale);
        for (Index a = routing.begin(t); a < routing.end(t); ++a) {
          const auto at = static_cast<std::size_t>(a);
          dweight[at] = routing.dropped()[at] ? S{0} : weight_gradient(routing.experts()[at], dscale, row(dout, t));
        }
      }
    });
    // By features, so that each is summed by one thread in the order of tokens.
    parallel_ranges(input_dim(), kFeaturesPerTask, [&](Index begin, Index end, Index) {
      for (Index t = 0; t < tokens.rows(); ++t)
        for (Index a = routing.begin(t); a < routing.end(t); ++a) {
          const auto at = static_cast<std::size_t>(a);
          if (routing.dropped()[at]) continue;
          const Index e = routing.experts()[at];
          const S weight = routing.weights()[at];
          add(weight, tape.dscale.row(t) + begin, end - begin, gradient.gamma_.row(e).data() + begin);
          add(weight, row(dout, t) + begin, end - begin, gradient.beta_.row(e).data() + begin);
        }
    });
  }

  /// The given experts. Throws std::invalid_argument as TakesExperts says.
  VectorFilm take(std::span<const Index> ids) const {
    detail::require_ids("moe::VectorFilm::take", ids, num_experts());
    VectorFilm result(std::ssize(ids), input_dim());
    for (Index i = 0; i < result.num_experts(); ++i) {
      result.gamma_.row(i) = gamma_.row(ids[static_cast<std::size_t>(i)]);
      result.beta_.row(i) = beta_.row(ids[static_cast<std::size_t>(i)]);
    }
    return result;
  }
  /// The experts of both. Throws std::invalid_argument unless both have as many features.
  VectorFilm concatenate(const VectorFilm& other) const {
    detail::require_equal_option("moe::VectorFilm::concatenate", "dim", input_dim(), other.input_dim());
    VectorFilm result(num_experts() + other.num_experts(), input_dim());
    result.gamma_ << gamma_, other.gamma_;
    result.beta_ << beta_, other.beta_;
    return result;
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("gamma", self.gamma_...);
    f("beta", self.beta_...);
  }

 private:
  static constexpr const char *kForward = "moe::VectorFilm::forward", *kBackward = "moe::VectorFilm::backward";
  static constexpr Index kTokensPerTask = 64, kFeaturesPerTask = 64;  // whole cache lines

  static const S* row(const ConstMatrixRef<S>& matrix, Index t) { return matrix.data() + t * matrix.outerStride(); }

  /// to += factor * from.
  static void add(S factor, const S* from, Index n, S* to) {
    detail::transform_two<S>(n, from, to, to,
                             [&](const auto& x, const auto& sum) { return simd::fma(simd::Batch<S>(factor), x, sum); });
  }

  void run(const ConstMatrixRef<S>& tokens, const Routing<S>& routing, MatrixRef<S> out, Tape& tape) const {
    detail::require_shape(kForward, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(kForward, "out", out, tokens.rows(), output_dim());
    detail::require_experts(kForward, routing, num_experts());
    detail::require_shape(kForward, "beta", beta_, num_experts(), input_dim());  // may have been replaced
    tape.num_assignments = -1;
    tape.scale.resize(tokens.rows(), input_dim());
    tape.shift.resize(tokens.rows(), input_dim());
    parallel_ranges(tokens.rows(), kTokensPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        S *const scale = tape.scale.row(t), *const shift = tape.shift.row(t);
        std::fill_n(scale, input_dim(), S{0});
        std::fill_n(shift, input_dim(), S{0});
        bool chooses = false;
        for (Index a = routing.begin(t); a < routing.end(t); ++a) {
          const auto at = static_cast<std::size_t>(a);
          if (routing.dropped()[at]) continue;
          chooses = true;
          const Index e = routing.experts()[at];
          add(routing.weights()[at], gamma_.row(e).data(), input_dim(), scale);
          add(routing.weights()[at], beta_.row(e).data(), input_dim(), shift);
        }
        S* const to = out.data() + t * out.outerStride();
        if (!chooses)  // padding is not read
          std::fill_n(to, input_dim(), S{0});
        else
          modulate(row(tokens, t), scale, shift, to);
      }
    });
    tape.num_assignments = routing.num_assignments();
  }

  void modulate(const S* z, const S* scale, const S* shift, S* to) const {
    simd::for_each<S>(
        input_dim(),
        [&](Index i) {
          simd::store(to + i, simd::fma(simd::load(scale + i), simd::load(z + i), simd::load(shift + i)));
        },
        [&](Index i, Index count) {
          const auto part = [&](const S* from) { return simd::load_partial(from + i, count, S{0}); };
          simd::store_partial(to + i, simd::fma(part(scale), part(z), part(shift)), count);
        });
  }

  S weight_gradient(Index e, const S* dscale, const S* dout) const {
    double sum = 0;
    for (Index c = 0; c < input_dim(); ++c) {
      sum = simd::fma(static_cast<double>(gamma_(e, c)), static_cast<double>(dscale[c]), sum);
      sum = simd::fma(static_cast<double>(beta_(e, c)), static_cast<double>(dout[c]), sum);
    }
    return static_cast<S>(sum);
  }

  Matrix<S> gamma_, beta_;
};

}  // namespace moe::inline MOE_ABI
