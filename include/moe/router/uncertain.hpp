// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/overlap.hpp"
#include "moe/core/parallel.hpp"
#include "moe/core/part_of_gradient.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/take.hpp"
#include "moe/core/tape.hpp"
#include "moe/router/calibration.hpp"
#include "moe/router/concept.hpp"

namespace moe::inline MOE_ABI {

/// Any router in several passes over its tokens, each with other features dropped (Monte-Carlo dropout): pass m has the
/// logits l_m of tokens x o d_m / (1 - rate), d_m of Bernoulli draws. What RouterCalibration makes of them is what the
/// gate sees; how far they disagree says how unsure the router is of a token, see uncertainty().
///   moe::UncertainRouter router(moe::LinearRouter::random(8, 64, 1), {.passes = 5, .rate = 0.1});
/// A rate of 0 is the router itself, bit for bit, and so is inference with DropoutPhase::Training. Draws are keyed by
/// the step and the ids of tokens, of which each row alone depends. Trainable if the router is, through mean and
/// variance. Its parameters and their names are the router's. Immutable in use, share freely. `passes` times the
/// operations of the router, and a draw for every two features of each pass; warm calls do not allocate if the router's
/// do not. Gal & Ghahramani, "Dropout as a Bayesian approximation" (arXiv:1506.02142); Zhang et al., "MoFME"
/// (arXiv:2312.16610).
template <Router R>
class UncertainRouter {
 public:
  using Scalar = typename R::Scalar;
  /// What a pass reads and gives.
  struct Pass {
    RowBuffer<Scalar> factor;  ///< 0 where a feature is dropped, else 1 / (1 - rate)
    RowBuffer<Scalar> tokens, logits, dlogits, dtokens;
    detail::TapeOf<R> router;
  };
  struct Tape {
    std::vector<Pass> passes;
    Index num_passes = 0;  ///< 1 where nothing was dropped
    Index num_tokens = -1;
    RowBuffer<double> work;  ///< a row per worker
  };

  /// Throws std::invalid_argument for numbers out of range.
  explicit UncertainRouter(R router, const RouterDropout& dropout = {})
      : router_(std::move(router)), dropout_(dropout) {
    dropout_.validate();
  }

  Index num_experts() const { return router_.num_experts(); }
  Index model_dim() const { return router_.model_dim(); }
  R& router() { return router_; }
  const R& router() const { return router_; }
  const RouterDropout& dropout() const { return dropout_; }

  /// `out` must not overlap `tokens`. Throws std::invalid_argument on wrong shapes.
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out) const {
    run(tokens, context, out, context.scratch.template get<Tape>(),
        [&](const ConstMatrixRef<Scalar>& rows, const Context& own, MatrixRef<Scalar> to, Pass&) {
          router_.logits(rows, own, to);
        });
  }
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape& tape) const
    requires DifferentiableRouter<R>
  {
    run(tokens, context, out, tape,
        [&](const ConstMatrixRef<Scalar>& rows, const Context& own, MatrixRef<Scalar> to, Pass& pass) {
          router_.logits(rows, own, to, pass.router);
        });
  }

  /// How unsure the router is of each token, from passes of its own, whatever the phase. With a rate of 0 all but the
  /// entropy is 0. Sizes are grown where needed. Throws std::invalid_argument on wrong shapes.
  void uncertainty(const MatrixView<Scalar>& tokens, const Context& context, RouterUncertainty& out) const {
    detail::require_shape("moe::UncertainRouter::uncertainty", "tokens", tokens, tokens.rows(), model_dim());
    Tape& tape = context.scratch.template get<Tape>();
    run_passes(tokens, context, tape, dropout_.rate == 0 ? 1 : dropout_.passes,
               [&](const ConstMatrixRef<Scalar>& rows, const Context& own, MatrixRef<Scalar> to, Pass&) {
                 router_.logits(rows, own, to);
               });
    out.resize(tokens.rows());
    for_each_token(tokens.rows(), tape, [&](Index t, detail::CalibratedToken& token) { token.measure(t, out); });
  }

  /// Throws std::invalid_argument unless the tape is that of a forward pass of so many tokens through a router of these
  /// sizes, and the gradient of them, too.
  void require_backward(Index num_tokens, const Tape& tape, const UncertainRouter& gradient) const
    requires DifferentiableRouter<R>
  {
    require_pass(num_tokens, tape, gradient.router_);
  }
  void require_backward(Index num_tokens, const Tape& tape, NoGradient none) const
    requires RouterSkipsGradient<R>
  {
    require_pass(num_tokens, tape, none);
  }
  /// Throws std::invalid_argument, before it writes anything, on wrong shapes and as require_backward(). `dtokens` must
  /// not overlap `tokens` or `dlogits`.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                UncertainRouter& gradient, MatrixRef<Scalar> dtokens) const
    requires DifferentiableRouter<R>
  {
    run_backward(tokens, context, tape, dlogits, gradient.router_, dtokens);
  }
  /// dtokens alone.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NoGradient none, MatrixRef<Scalar> dtokens) const
    requires RouterSkipsGradient<R>
  {
    run_backward(tokens, context, tape, dlogits, none, dtokens);
  }

  /// See TakesExperts and Concatenates, of which both throw as the router does; numbers of the dropout must be equal.
  UncertainRouter take(std::span<const Index> ids) const
    requires TakesExperts<R>
  {
    return UncertainRouter(router_.take(ids), dropout_);
  }
  UncertainRouter concatenate(const UncertainRouter& other) const
    requires Concatenates<R>
  {
    detail::require_equal_option("moe::UncertainRouter::concatenate", "dropout", dropout_, other.dropout_);
    return UncertainRouter(router_.concatenate(other.router_), dropout_);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.router_...);
  }

 private:
  static constexpr Index kTokensPerTask = 16;

  static Step step_of_pass(const Step& step, Index pass) {
    Step own = step;
    own.pass = static_cast<std::uint32_t>(RandomField(Purpose::Dropout, step.pass).bits(pass));
    return own;
  }

  /// Half of 64 random bits for each feature.
  void drop(const ConstMatrixRef<Scalar>& tokens, const Step& step, Pass& pass) const {
    const RandomField random = step.random(Purpose::Dropout);
    const auto below = static_cast<std::uint64_t>(std::ldexp(dropout_.rate, 32));
    const auto kept = static_cast<Scalar>(1 / (1 - dropout_.rate));
    pass.factor.resize(tokens.rows(), tokens.cols());
    pass.tokens.resize(tokens.rows(), tokens.cols());
    parallel_ranges(tokens.rows(), kTokensPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        Scalar *const factor = pass.factor.row(t), *const to = pass.tokens.row(t);
        for (Index c = 0; c < tokens.cols(); c += 2) {
          const std::uint64_t bits = random.bits(step.id(t), c / 2);
          factor[c] = (bits & 0xFFFFFFFFu) < below ? Scalar{0} : kept;
          if (c + 1 < tokens.cols()) factor[c + 1] = (bits >> 32) < below ? Scalar{0} : kept;
        }
        for (Index c = 0; c < tokens.cols(); ++c) to[c] = factor[c] * tokens(t, c);
      }
    });
  }

  template <class Call>
  void run_passes(const ConstMatrixRef<Scalar>& tokens, const Context& context, Tape& tape, Index passes,
                  const Call& call) const {
    tape.num_tokens = -1;
    tape.num_passes = passes;
    tape.passes.resize(std::max(tape.passes.size(), static_cast<std::size_t>(passes)));
    for (Index m = 0; m < passes; ++m) {
      Pass& pass = tape.passes[static_cast<std::size_t>(m)];
      pass.logits.resize(tokens.rows(), num_experts());
      if (passes == 1 && dropout_.rate == 0) {
        call(tokens, context, pass.logits.matrix(), pass);
        break;
      }
      const Step step = step_of_pass(context.step, m);
      drop(tokens, step, pass);
      call(pass.tokens.matrix(), Context{step, context.scratch}, pass.logits.matrix(), pass);
    }
  }

  template <class Call>
  void run(const ConstMatrixRef<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape& tape,
           const Call& call) const {
    constexpr const char* kFunction = "moe::UncertainRouter::logits";
    detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), model_dim());
    detail::require_shape(kFunction, "out", out, tokens.rows(), num_experts());
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    const bool is_plain = dropout_.rate == 0 || (!context.step.training() && dropout_.phase == DropoutPhase::Training);
    if (is_plain) {
      tape.num_passes = 0;
      tape.passes.resize(std::max<std::size_t>(tape.passes.size(), 1));
      call(tokens, context, out, tape.passes[0]);
    } else {
      run_passes(tokens, context, tape, dropout_.num_passes(), call);
      for_each_token(tokens.rows(), tape, [&](Index t, detail::CalibratedToken& token) {
        token.calibrate(dropout_);
        for (Index e = 0; e < num_experts(); ++e) out(t, e) = static_cast<Scalar>(token.out()[e]);
      });
    }
    tape.num_tokens = tokens.rows();
  }

  /// body(t, the logits of its passes as a CalibratedToken).
  template <class Body>
  void for_each_token(Index num_tokens, Tape& tape, const Body& body) const {
    tape.work.resize(num_workers(), detail::CalibratedToken::size(tape.num_passes, num_experts()));
    parallel_ranges(num_tokens, kTokensPerTask, [&](Index begin, Index end, Index worker) {
      detail::CalibratedToken token(tape.work.row(worker), tape.num_passes, num_experts());
      for (Index t = begin; t < end; ++t) {
        for (Index m = 0; m < tape.num_passes; ++m)
          std::copy_n(std::as_const(tape.passes[static_cast<std::size_t>(m)].logits).row(t), num_experts(),
                      token.logits(m));
        body(t, token);
      }
    });
  }

  template <class Gradient>
  void require_pass(Index num_tokens, const Tape& tape, const Gradient& gradient) const {
    constexpr const char* kFunction = "moe::UncertainRouter::backward";
    if (tape.num_tokens != num_tokens)
      fail(kFunction, ": the tape is of ", tape.num_tokens, " tokens, expected a forward pass of ", num_tokens);
    if (tape.num_passes != 0 && tape.num_passes != dropout_.num_passes())
      fail(kFunction, ": the tape is of ", tape.num_passes, " passes, expected ", dropout_.num_passes());
    for (Index m = 0; m < std::max<Index>(1, tape.num_passes); ++m) {
      const Pass& pass = tape.passes[static_cast<std::size_t>(m)];
      if (tape.num_passes > 0) {
        detail::require_shape(kFunction, "tape.tokens", pass.tokens, num_tokens, model_dim());
        detail::require_shape(kFunction, "tape.logits", pass.logits, num_tokens, num_experts());
      }
      detail::require_backward_of(kFunction, "gradient", router_, num_tokens, pass.router, gradient);
    }
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const Context& context, Tape& tape,
                    const ConstMatrixRef<Scalar>& dlogits, Gradient& gradient, MatrixRef<Scalar> dtokens) const {
    constexpr const char* kFunction = "moe::UncertainRouter::backward";
    require_pass(tokens.rows(), tape, gradient);
    detail::require_shape(kFunction, "dlogits", dlogits, tokens.rows(), num_experts());
    detail::require_shape(kFunction, "dtokens", dtokens, tokens.rows(), model_dim());
    detail::require_apart(kFunction, "dtokens", dtokens, "tokens", tokens);
    detail::require_apart(kFunction, "dtokens", dtokens, "dlogits", dlogits);
    if (tape.num_passes == 0)
      return router_.backward(tokens, context, tape.passes[0].router, dlogits, gradient, dtokens);
    for (Index m = 0; m < tape.num_passes; ++m)
      tape.passes[static_cast<std::size_t>(m)].dlogits.resize(tokens.rows(), num_experts());
    for_each_token(tokens.rows(), tape, [&](Index t, detail::CalibratedToken& token) {
      for (Index e = 0; e < num_experts(); ++e) token.dout()[e] = static_cast<double>(dlogits(t, e));
      token.calibrate_backward(dropout_);
      for (Index m = 0; m < tape.num_passes; ++m)
        for (Index e = 0; e < num_experts(); ++e)
          tape.passes[static_cast<std::size_t>(m)].dlogits.row(t)[e] = static_cast<Scalar>(token.dlogits(m)[e]);
    });
    for (Index m = 0; m < tape.num_passes; ++m) {
      Pass& pass = tape.passes[static_cast<std::size_t>(m)];
      const Step step = step_of_pass(context.step, m);
      pass.dtokens.resize(tokens.rows(), model_dim());
      pass.dtokens.matrix().setZero();
      router_.backward(pass.tokens.matrix(), Context{step, context.scratch}, pass.router, pass.dlogits.matrix(),
                       gradient, pass.dtokens.matrix());
      for (Index t = 0; t < tokens.rows(); ++t)
        for (Index c = 0; c < model_dim(); ++c) dtokens(t, c) += pass.factor.row(t)[c] * pass.dtokens.row(t)[c];
    }
  }

  R router_;
  RouterDropout dropout_;
};

}  // namespace moe::inline MOE_ABI
