// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <utility>

#include "moe/core/part_of_gradient.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/expert/checks.hpp"
#include "moe/expert/pool.hpp"
#include "moe/numeric/activation.hpp"

// Long, as statistics, what is done with them and the way back through them are read together.
namespace moe::inline MOE_ABI {

struct NormalisedOptions {
  double epsilon = 1e-5;  ///< added to variances; > 0
  double momentum = 0.9;  ///< share of the running statistics that an update keeps, in [0, 1)
};

/// y = act(g o (E(x) - m) / sqrt(v + epsilon) + b): an expert behind a batch normalisation and an activation, so that
/// gates weigh outputs of the same scale and none is dead. In training m and v are mean and variance (over n, not n -
/// 1) of the rows that the expert has in the batch, of which padding is none; at inference they are the running
/// statistics, state that no optimiser sees and that starts as 0 and 1:
///   moe::Normalised expert(moe::Mlp::random(64, 128, 1));       // Swish behind it
///   layer.forward(tokens, moe::Step::train(n), out, tape);      // statistics of the batch, kept in the tape
///   moe::update_statistics(layer.experts(), tape.experts, tape.chosen.plan());  // running <- .9 running + .1 batch
/// g and b start as 1 and 0. Backward goes through the statistics. In training outputs depend on the whole batch, and
/// an expert must have at least 2 rows or none: with gates that choose few, batches have to be large, or moe::Step{}
/// used, which trains behind the running statistics. At inference rows are independent, with the same bits in any
/// batch. Sums are made by one thread, in double and in the order of rows. Immutable in forward, share freely.
/// O(num_rows output_dim) beside E; no allocation when warm. Ioffe & Szegedy, "Batch Normalization" (arXiv:1502.03167);
/// Wang et al., "HoME" (arXiv:2408.05430).
template <class E, Activation Act = Silu>
class Normalised {
  static_assert(Expert<E>,
                "moe::Normalised: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
                "(see moe/expert/concept.hpp)");

 public:
  using Scalar = typename E::Scalar;
  static constexpr bool kPerToken = false;  // in training

  /// Of a batch, or those that stand for one.
  struct Statistics {
    Eigen::RowVectorXd mean, variance;
    Eigen::RowVectorXd inverse;  ///< 1 / sqrt(variance + epsilon)
  };
  struct Tape {
    detail::TapeOf<E> expert;
    RowBuffer<Scalar> normal;  ///< (E(x) - m) / sqrt(v + epsilon)
    Statistics statistics;
    Index num_rows = 0;    ///< that the statistics are of; 0 where they are the running ones
    RowBuffer<Scalar> dz;  ///< dL/dE(x)
    Eigen::RowVectorXd dg, db;
  };

  /// Throws std::invalid_argument for options out of range.
  explicit Normalised(E expert, const NormalisedOptions& options = {})
      : expert_(std::move(expert)),
        options_(options),
        scale_(RowVector<Scalar>::Ones(output_dim())),
        shift_(RowVector<Scalar>::Zero(output_dim())),
        mean_(RowVector<Scalar>::Zero(output_dim())),
        variance_(RowVector<Scalar>::Ones(output_dim())) {
    if (!(options.epsilon > 0)) fail("moe::Normalised: epsilon is ", options.epsilon, ", expected a value above 0");
    if (!(options.momentum >= 0 && options.momentum < 1))
      fail("moe::Normalised: momentum is ", options.momentum, ", expected 0 <= momentum < 1");
  }

  Index input_dim() const { return expert_.input_dim(); }
  Index output_dim() const { return expert_.output_dim(); }
  E& expert() { return expert_; }
  const E& expert() const { return expert_; }
  const NormalisedOptions& options() const { return options_; }
  RowVector<Scalar>& scale() { return scale_; }  ///< g, [output_dim]
  const RowVector<Scalar>& scale() const { return scale_; }
  RowVector<Scalar>& shift() { return shift_; }  ///< b, [output_dim]
  const RowVector<Scalar>& shift() const { return shift_; }
  /// Running statistics, [output_dim].
  RowVector<Scalar>& mean() { return mean_; }
  const RowVector<Scalar>& mean() const { return mean_; }
  RowVector<Scalar>& variance() { return variance_; }
  const RowVector<Scalar>& variance() const { return variance_; }

  /// out [num_rows, output_dim]. Throws std::invalid_argument on other shapes, and in training for a single row that is
  /// no padding.
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context) const {
    require_rows("moe::Normalised::forward", rows, out, context.step);
    Memory& memory = context.scratch.get<Memory>();
    expert_.forward(rows, out, Context{context.step, memory.of_expert});
    choose_statistics(out, context.step, memory.statistics);
    finish(memory.statistics, out, nullptr);
  }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, Tape& tape) const
    requires DifferentiableExpert<E>
  {
    require_rows("moe::Normalised::forward", rows, out, context.step);
    expert_.forward(rows, out, Context{context.step, context.scratch.get<Memory>().of_expert}, tape.expert);
    tape.num_rows = choose_statistics(out, context.step, tape.statistics);
    tape.normal.resize(out.rows(), out.cols());
    finish(tape.statistics, out, &tape.normal);
  }

  /// Throws std::invalid_argument unless tape and gradient are those of an expert of these sizes.
  void require_backward(Index num_rows, const Tape& tape, const Normalised& gradient) const
    requires DifferentiableExpert<E>
  {
    require_pass(num_rows, tape, gradient);
  }
  void require_backward(Index num_rows, const Tape& tape, NoGradient none) const
    requires SkipsGradient<E>
  {
    require_pass(num_rows, tape, none);
  }
  /// dout of padding is taken as zero.
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                Normalised& gradient, const Context& context) const
    requires DifferentiableExpert<E>
  {
    run_backward(rows, tape, dout, drows, gradient, context);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                NoGradient none, const Context& context) const
    requires SkipsGradient<E>
  {
    run_backward(rows, tape, dout, drows, none, context);
  }

  /// running <- momentum * running + (1 - momentum) * those of the batch of `tape`, which is one of training; unchanged
  /// where it had no rows.
  void update_statistics(const Tape& tape) {
    require_vectors("moe::Normalised::update_statistics");
    if (tape.num_rows == 0) return;
    if (tape.statistics.mean.size() != output_dim())
      fail("moe::Normalised::update_statistics: the tape is of ", tape.statistics.mean.size(), " outputs, expected ",
           output_dim());
    const auto mix = [&](Scalar& running, double batch) {
      running = static_cast<Scalar>(options_.momentum * static_cast<double>(running) + (1 - options_.momentum) * batch);
    };
    for (Index c = 0; c < output_dim(); ++c) {
      mix(mean_(c), tape.statistics.mean(c));
      mix(variance_(c), tape.statistics.variance(c));
    }
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("scale", self.scale_...);
    f("shift", self.shift_...);
    visit_part(f, "expert", self.expert_...);
  }
  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("mean", self.mean_...);
    f("variance", self.variance_...);
  }

 private:
  struct Memory {
    Statistics statistics;
    Scratch of_expert;  // apart: it may be another such expert
  };

  void require_vectors(const char* function) const {
    for (const RowVector<Scalar>* vector : {&scale_, &shift_, &mean_, &variance_})
      if (vector->size() != output_dim())
        fail(function, ": a scale, shift, mean or variance has ", vector->size(),
             " entries, expected output_dim = ", output_dim());
  }
  void require_rows(const char* function, const ConstMatrixRef<Scalar>& rows, const MatrixRef<Scalar>& out,
                    const Step& step) const {
    require_vectors(function);
    detail::require_shape(function, "rows", rows, rows.rows(), input_dim());
    detail::require_shape(function, "out", out, rows.rows(), output_dim());
    step.validate(function, rows.rows());
    if (step.training() && step.num_valid(rows.rows()) == 1)
      fail(function, ": the expert has 1 row in training, expected none, or at least 2 for statistics of the batch");
  }

  template <class Gradient>
  void require_pass(Index num_rows, const Tape& tape, const Gradient& gradient) const {
    constexpr const char* kFunction = "moe::Normalised::backward";
    require_vectors(kFunction);
    detail::require_shape(kFunction, "tape.normal", tape.normal, num_rows, output_dim());
    if constexpr (!detail::kIsNoGradient<Gradient>) {
      gradient.require_vectors(kFunction);
      if (gradient.output_dim() != output_dim())
        fail(kFunction, ": gradient has ", gradient.output_dim(), " outputs, expected ", output_dim());
    }
    detail::require_backward_of(kFunction, "gradient.expert", expert_, num_rows, tape.expert,
                                detail::part_of(gradient, &Normalised::expert_));
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& rows, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                    MatrixRef<Scalar> drows, Gradient& gradient, const Context& context) const {
    constexpr const char* kFunction = "moe::Normalised::backward";
    detail::require_backward_rows(kFunction, *this, rows, dout, drows);
    require_pass(rows.rows(), tape, gradient);
    backward_of_normal(dout, context.step, tape);
    if constexpr (!detail::kIsNoGradient<Gradient>)
      for (Index c = 0; c < dout.cols(); ++c) {
        gradient.scale_(c) += static_cast<Scalar>(tape.dg(c));
        gradient.shift_(c) += static_cast<Scalar>(tape.db(c));
      }
    expert_.backward(rows, tape.expert, tape.dz, drows, detail::part_of(gradient, &Normalised::expert_),
                     Context{context.step, context.scratch.get<Memory>().of_expert});
  }

  /// Those of the valid rows of z in training, else the running ones. Returns the number of rows that they are of.
  Index choose_statistics(const MatrixRef<Scalar>& z, const Step& step, Statistics& statistics) const {
    const Index count = step.training() ? step.num_valid(z.rows()) : 0;
    if (count > 0) {
      measure(z, step, count, statistics);
    } else {
      statistics.mean = mean_.template cast<double>();
      statistics.variance = variance_.template cast<double>();
    }
    statistics.inverse.resize(output_dim());
    for (Index c = 0; c < output_dim(); ++c)
      statistics.inverse(c) = 1 / std::sqrt(statistics.variance(c) + options_.epsilon);
    return count;
  }

  static void measure(const MatrixRef<Scalar>& z, const Step& step, Index count, Statistics& statistics) {
    const auto mean_of = [&](Eigen::RowVectorXd& to, const auto& value) {
      to.setZero(z.cols());
      for (Index r = 0; r < z.rows(); ++r)
        if (step.is_valid(r))
          for (Index c = 0; c < z.cols(); ++c) to(c) += value(static_cast<double>(z(r, c)), c);
      to /= static_cast<double>(count);
    };
    mean_of(statistics.mean, [](double value, Index) { return value; });
    mean_of(statistics.variance, [&](double value, Index c) {
      const double off = value - statistics.mean(c);
      return off * off;
    });
  }

  /// Turns rows E(x) into y, and keeps what is normalised in `normal`, if not nullptr.
  void finish(const Statistics& statistics, MatrixRef<Scalar> out, RowBuffer<Scalar>* normal) const {
    for (Index r = 0; r < out.rows(); ++r)
      for (Index c = 0; c < out.cols(); ++c) {
        const double off = static_cast<double>(out(r, c)) - statistics.mean(c);
        const auto z = static_cast<Scalar>(off * statistics.inverse(c));
        if (normal != nullptr) normal->row(r)[c] = z;
        out(r, c) = Act::value(simd::fma(scale_(c), z, shift_(c)));
      }
  }

  /// tape.dz, and tape.dg and tape.db, the gradients of g and b. With d = dL/d(normal) = dout act' g:
  ///   dz = (d - mean(d) - normal mean(d o normal)) / sqrt(v + epsilon),  and without the means behind running
  ///   statistics
  void backward_of_normal(const ConstMatrixRef<Scalar>& dout, const Step& step, Tape& tape) const {
    tape.dz.resize(dout.rows(), dout.cols());
    tape.dg.setZero(dout.cols());
    tape.db.setZero(dout.cols());
    for (Index r = 0; r < dout.rows(); ++r)
      for (Index c = 0; c < dout.cols(); ++c) {
        const Scalar z = tape.normal.row(r)[c];
        const Scalar slope = Act::derivative(simd::fma(scale_(c), z, shift_(c)));
        const Scalar d = step.is_valid(r) ? dout(r, c) * slope : Scalar{0};
        tape.dz.row(r)[c] = d;  // of scale * normal + shift, until the sums are known
        tape.db(c) += static_cast<double>(d);
        tape.dg(c) = simd::fma(static_cast<double>(d), static_cast<double>(z), tape.dg(c));
      }
    const double share = tape.num_rows == 0 ? 0 : 1 / static_cast<double>(tape.num_rows);
    for (Index r = 0; r < dout.rows(); ++r)
      for (Index c = 0; c < dout.cols(); ++c) {
        Scalar& dz = tape.dz.row(r)[c];
        const double centred = static_cast<double>(dz) - share * tape.db(c) -
                               static_cast<double>(tape.normal.row(r)[c]) * (share * tape.dg(c));
        const double factor = static_cast<double>(scale_(c)) * tape.statistics.inverse(c);
        dz = step.is_valid(r) ? static_cast<Scalar>(factor * centred) : Scalar{0};
      }
  }

  E expert_;
  NormalisedOptions options_;
  RowVector<Scalar> scale_, shift_;
  RowVector<Scalar> mean_, variance_;  // state
};

template <class E>
Normalised(E) -> Normalised<E>;
template <class E>
Normalised(E, const NormalisedOptions&) -> Normalised<E>;

/// Updates the running statistics of all experts that have had rows in a pass of training; `tape` and `plan` are those
/// of the pass: tape.mixture.experts and tape.mixture.plan of a MoeLayer, tape.experts and tape.chosen.plan() of a
/// MultiGateLayer. Between forward and the next one; not while others use the experts. Throws std::invalid_argument for
/// a tape or plan of another pool.
template <class E, class Act>
void update_statistics(ExpertPool<Normalised<E, Act>>& experts,
                       const typename ExpertPool<Normalised<E, Act>>::Tape& tape, const PlanView& plan) {
  if (plan.num_experts() != experts.size() || std::ssize(tape.experts) != experts.size())
    fail("moe::update_statistics: tape and plan are of ", tape.experts.size(), " and ", plan.num_experts(),
         " experts, expected ", experts.size());
  for (Index e = 0; e < experts.size(); ++e)
    if (plan.rows_of(e) > 0) experts[e].update_statistics(tape.experts[static_cast<std::size_t>(e)]);
}

}  // namespace moe::inline MOE_ABI
