// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/part_of_gradient.hpp"
#include "moe/numeric/activation.hpp"
#include "moe/router/linear.hpp"

namespace moe::inline MOE_ABI {

/// Linear router with learned noise in training: logits = x W^T + n * s, n ~ N(0, 1) drawn per (token, expert),
/// s = softplus(x V^T) + minimum_std. At inference it is the plain linear router.
/// Shazeer et al., "Outrageously large neural networks", eq. 4 (arXiv:1701.06538). Immutable in use, share freely.
template <class Codec>
class BasicNoisyRouter {
 public:
  using Scalar = typename Codec::Scalar;
  /// Matrices, as losses take them: a batch of another size takes memory anew.
  struct Tape {
    Matrix<Scalar> clean;      ///< x W^T, what load_cv2 takes as clean logits
    Matrix<Scalar> noise_std;  ///< s; empty at inference
    Matrix<Scalar> dclean;     ///< gradients of a load loss, added in backward; leave empty for none
    Matrix<Scalar> dnoise_std;
    Matrix<Scalar> spread;  ///< x V^T
    Matrix<Scalar> dspread;
    typename BasicLinearRouter<Codec>::Tape linear;
  };

  /// Zero weights, as the paper starts: balanced and noisy.
  BasicNoisyRouter(Index num_experts, Index model_dim, double minimum_std = 1e-2)
      : clean_(detail::checked_size("moe::NoisyRouter", "num_experts", num_experts, 1),
               detail::checked_size("moe::NoisyRouter", "model_dim", model_dim, 1)),
        noise_(num_experts, model_dim),
        minimum_std_(minimum_std) {
    if (!(minimum_std > 0)) fail("moe::NoisyRouter: minimum_std = ", minimum_std, ", expected > 0");
  }
  static BasicNoisyRouter random(Index num_experts, Index model_dim, std::uint64_t seed, double minimum_std = 1e-2) {
    BasicNoisyRouter router(num_experts, model_dim, minimum_std);
    router.clean_ = BasicLinearRouter<Codec>::random(num_experts, model_dim, seed);
    return router;
  }

  Index num_experts() const { return clean_.num_experts(); }
  Index model_dim() const { return clean_.model_dim(); }
  BasicLinearRouter<Codec>& clean() { return clean_; }
  const BasicLinearRouter<Codec>& clean() const { return clean_; }
  BasicLinearRouter<Codec>& noise() { return noise_; }
  const BasicLinearRouter<Codec>& noise() const { return noise_; }

  /// `out` must not overlap `tokens`.
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out) const {
    if (!context.step.training()) return clean_.logits(tokens, context, out);
    logits(tokens, context, out, context.scratch.get<Tape>());
  }

  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape& tape) const {
    detail::require_shape("moe::NoisyRouter::logits", "out", out, tokens.rows(), num_experts());
    detail::require_apart("moe::NoisyRouter::logits", "out", out, "tokens", tokens);
    tape.clean.resize(tokens.rows(), num_experts());
    clean_.logits(tokens, context, tape.clean);
    out = tape.clean;
    tape.dclean.resize(0, 0);
    tape.dnoise_std.resize(0, 0);
    if (!context.step.training()) return tape.noise_std.resize(0, 0);
    tape.spread.resize(tokens.rows(), num_experts());
    noise_.logits(tokens, context, tape.spread);
    tape.noise_std.resize(tokens.rows(), num_experts());
    for_each_draw(tokens.rows(), context.step, [&](Index t, Index e, Scalar draw) {
      tape.noise_std(t, e) = Softplus::value(tape.spread(t, e)) + static_cast<Scalar>(minimum_std_);
      out(t, e) = simd::fma(draw, tape.noise_std(t, e), tape.clean(t, e));
    });
  }

  /// Throws std::invalid_argument unless the tape is that of a forward pass of so many tokens through a router of these
  /// sizes, and the gradient of them, too.
  void require_backward(Index num_tokens, const Tape& tape, const BasicNoisyRouter& gradient) const {
    require_backward(num_tokens, tape, NoGradient{});
    clean_.require_backward(num_tokens, tape.linear, gradient.clean_);
    noise_.require_backward(num_tokens, tape.linear, gradient.noise_);
  }
  void require_backward(Index num_tokens, const Tape& tape, NoGradient) const {
    const auto require = [&](const char* name, const Matrix<Scalar>& matrix) {
      detail::require_shape("moe::NoisyRouter::backward", name, matrix, num_tokens, num_experts());
    };
    require("tape.clean", tape.clean);
    if (tape.noise_std.size() != 0) {
      require("tape.noise_std", tape.noise_std);
      require("tape.spread", tape.spread);
    }
    if (tape.dclean.size() != 0) require("tape.dclean", tape.dclean);
    if (tape.dnoise_std.size() != 0) require("tape.dnoise_std", tape.dnoise_std);
  }

  /// `dtokens` must not overlap `tokens` or `dlogits`. Throws std::invalid_argument, before it writes anything, on
  /// wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                BasicNoisyRouter& gradient, MatrixRef<Scalar> dtokens) const {
    run_backward(tokens, context, tape, dlogits, gradient, dtokens);
  }
  /// dtokens alone.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NoGradient none, MatrixRef<Scalar> dtokens) const {
    run_backward(tokens, context, tape, dlogits, none, dtokens);
  }

  /// Both maps cut alike. The noise of logit i is drawn for the number i, not for ids[i]. Throws std::invalid_argument
  /// as TakesExperts says.
  BasicNoisyRouter take(std::span<const Index> ids) const { return {clean_.take(ids), noise_.take(ids), minimum_std_}; }
  /// Both maps, each as BasicLinearRouter::concatenate(). Throws std::invalid_argument as that, and unless minimum_std
  /// is the same.
  BasicNoisyRouter concatenate(const BasicNoisyRouter& other) const {
    detail::require_equal_option("moe::NoisyRouter::concatenate", "minimum_std", minimum_std_, other.minimum_std_);
    return {clean_.concatenate(other.clean_), noise_.concatenate(other.noise_), minimum_std_};
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "clean", self.clean_...);
    visit_part(f, "noise", self.noise_...);
  }

 private:
  BasicNoisyRouter(BasicLinearRouter<Codec> clean, BasicLinearRouter<Codec> noise, double minimum_std)
      : clean_(std::move(clean)), noise_(std::move(noise)), minimum_std_(minimum_std) {}

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const Context& context, Tape& tape,
                    const ConstMatrixRef<Scalar>& dlogits, Gradient& gradient, MatrixRef<Scalar> dtokens) const {
    constexpr const char* kFunction = "moe::NoisyRouter::backward";
    require_backward(tokens.rows(), tape, gradient);
    detail::require_shape(kFunction, "dlogits", dlogits, tokens.rows(), num_experts());
    detail::require_apart(kFunction, "dtokens", dtokens, "tokens", tokens);
    detail::require_apart(kFunction, "dtokens", dtokens, "dlogits", dlogits);
    Matrix<Scalar>& dspread = tape.dspread;
    dspread = dlogits;
    if (tape.dclean.size() != 0) dspread += tape.dclean;
    clean_.backward(tokens, context, tape.linear, dspread, detail::part_of(gradient, &BasicNoisyRouter::clean_),
                    dtokens);
    if (tape.noise_std.size() == 0) return;
    const bool load_loss = tape.dnoise_std.size() != 0;
    for_each_draw(tokens.rows(), context.step, [&](Index t, Index e, Scalar draw) {
      const Scalar dstd = simd::fma(draw, dlogits(t, e), load_loss ? tape.dnoise_std(t, e) : Scalar{0});
      dspread(t, e) = dstd * Softplus::derivative(tape.spread(t, e));
    });
    noise_.backward(tokens, context, tape.linear, dspread, detail::part_of(gradient, &BasicNoisyRouter::noise_),
                    dtokens);
  }

  template <class Body>
  void for_each_draw(Index num_tokens, const Step& step, const Body& body) const {
    const RandomField random = step.random(Purpose::Noise);
    parallel_ranges(num_tokens, 16, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t)
        for (Index e = 0; e < num_experts(); ++e) body(t, e, static_cast<Scalar>(random.normal(step.id(t), e)));
    });
  }

  BasicLinearRouter<Codec> clean_, noise_;
  double minimum_std_;
};

using NoisyRouter = BasicNoisyRouter<F32>;

static_assert(RouterSkipsGradient<NoisyRouter> && TakesExperts<NoisyRouter> && Concatenates<NoisyRouter>);

}  // namespace moe::inline MOE_ABI
