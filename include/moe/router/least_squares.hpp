// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/numeric/assignment.hpp"
#include "moe/numeric/k_means.hpp"
#include "moe/numeric/minimum_norm.hpp"
#include "moe/router/linear.hpp"

namespace moe::inline MOE_ABI {

/// Which expert gets which cluster: the permutation of least total loss, or cluster by cluster the best expert that no
/// cluster before has taken, as the authors' code does it.
enum class ClusterAssignment { Least, Greedy };

/// Numbers of LeastSquaresRouter::refit().
struct RefitOptions {
  Index starts = 5;    ///< runs of k-means, >= 1: of those that end, no cluster empty, the least sum of squares counts
  Index rounds = 100;  ///< of each run at most; >= 1
  ClusterAssignment assignment = ClusterAssignment::Least;
};

/// What became of a refit: EmptyCluster where the contexts are fewer different points than experts, as before they have
/// learned anything, NotConverged where every start of k-means was cut off; the router is as it was after both.
enum class RefitStatus { Updated, EmptyCluster, NotConverged };

/// Result of LeastSquaresRouter::refit().
struct Refit {
  RefitStatus status = RefitStatus::Updated;
  std::vector<Index> experts = {};  ///< [num_contexts], that of the cluster of each; empty unless Updated
  double agreement = 0;             ///< share of the contexts that the router sends to the expert of their cluster
};

namespace detail {

/// [clusters, experts], the median over the contexts of a cluster of the loss of an expert: one outlier says nothing.
/// Of an even number the mean of the middle two.
template <class S>
Eigen::MatrixXd median_losses(const ConstMatrixRef<S>& losses, std::span<const Index> clusters) {
  Eigen::MatrixXd medians(losses.cols(), losses.cols());
  std::vector<double> values;
  for (Index j = 0; j < medians.rows(); ++j)
    for (Index e = 0; e < medians.cols(); ++e) {
      values.clear();
      for (std::size_t i = 0; i < clusters.size(); ++i)
        if (clusters[i] == j) values.push_back(static_cast<double>(losses(static_cast<Index>(i), e)));
      std::ranges::sort(values);
      const std::size_t half = values.size() / 2;
      medians(j, e) = values.size() % 2 == 1 ? values[half] : values[half - 1] / 2 + values[half] / 2;
    }
  return medians;
}

/// Expert of each cluster.
inline std::vector<Index> assign_clusters(const Eigen::MatrixXd& cost, ClusterAssignment assignment) {
  if (assignment == ClusterAssignment::Least) return least_assignment(cost);
  std::vector<Index> experts;
  for (Index j = 0; j < cost.rows(); ++j) {
    Index best = -1;
    for (Index e = 0; e < cost.cols(); ++e)
      if (std::ranges::find(experts, e) == experts.end() && (best < 0 || cost(j, e) < cost(j, best))) best = e;
    experts.push_back(best);
  }
  return experts;
}

/// [dim + 1, classes]: the weights and, in the last row, offsets whose rows x W + b are nearest to one-hot labels in
/// squares; of all that are, those with the least weights.
template <class S>
Matrix<S> one_hot_regression(const Matrix<S>& points, std::span<const Index> labels, Index classes) {
  Matrix<S> targets = Matrix<S>::Zero(points.rows(), classes);
  for (Index i = 0; i < points.rows(); ++i) targets(i, labels[static_cast<std::size_t>(i)]) = 1;
  // About the means, so that offsets are free and large contexts of small differences do not cancel.
  const RowVector<S> middle = points.colwise().mean(), share = targets.colwise().mean();
  Matrix<S> solution(points.cols() + 1, classes);
  solution.topRows(points.cols()) = minimum_norm_solution<S>(points.rowwise() - middle, targets.rowwise() - share);
  solution.bottomRows(1) = share - middle * solution.topRows(points.cols());
  return solution;
}

}  // namespace detail

/// A linear router, logits = x W^T + b, whose weights are not learned by gradients: refit() solves for them. A gate
/// that learns by gradients sends everything to one expert when families of environments share parameters; here a refit
/// gives every expert a cluster of contexts.
///   moe::ColumnsRouter router(moe::LeastSquaresRouter(3, context_dim), state_dim + context_dim, state_dim);
///   moe::TopKGate gate{.k = 1, .constant_weights = moe::ConstantWeights::Accept};
///   moe::MoeLayer layer(router, gate, experts);
///   layer.router().router().refit(contexts, losses, moe::RandomField(moe::Purpose::User, seed, update));
/// That gate asks one expert and takes its output with weight 1, as the paper does. The contexts may learn: weights and
/// offsets are state, saved and not seen by optimisers, and backward adds dlogits W to dtokens (zero behind that gate).
/// Linear in the context: a cluster in the middle of others on a line is owned by no region (see Refit::agreement), so
/// contexts want at least num_experts - 1 columns; and a context far from all clusters goes to the expert whose region
/// reaches out there, however far. Immutable in forward, share freely; refit by one thread while nobody reads.
/// Nzoyem et al., "MixER: better mixture of experts routing for hierarchical meta-learning" (arXiv:2502.05335), whose
/// code takes L1 distances in k-means, starts where the last one ended, and adds noise of 1e-4 to contexts in place of
/// the least weights.
template <class Codec>
class BasicLeastSquaresRouter {
 public:
  using Scalar = typename Codec::Scalar;
  using Tape = typename BasicLinearRouter<Codec>::Tape;

  /// Zero weights: all contexts go to expert 0 until a refit. Throws std::invalid_argument for sizes below 1.
  BasicLeastSquaresRouter(Index num_experts, Index context_dim) : linear_(num_experts, context_dim, Bias::Zero) {}

  Index num_experts() const { return linear_.num_experts(); }
  Index model_dim() const { return linear_.model_dim(); }
  /// Its weights.
  const BasicLinearRouter<Codec>& linear() const { return linear_; }

  /// Splits the contexts into as many clusters as there are experts (k-means), gives each cluster the expert that suits
  /// it, by the median loss of its contexts and so that every expert gets one, and makes the logits nearest in squares
  /// to 1 for the expert of a context's cluster and 0 for the others.
  ///   contexts  [n, model_dim], n >= num_experts, finite
  ///   losses    [n, num_experts], finite: of every expert on the data of every context
  ///   random    what the draws of k-means are pure functions of; another one for each refit
  /// Throws std::invalid_argument, and changes nothing, for other shapes, numbers that are not finite, contexts so
  /// large that their squares or weights are none, and options out of range. Runs on the calling thread:
  /// O(starts rounds n num_experts model_dim), and a decomposition of [n, model_dim], singular or not.
  Refit refit(const MatrixView<Scalar>& contexts, const MatrixView<double>& losses, const RandomField& random,
              const RefitOptions& options = {}) {
    require_refit(contexts, losses, options);
    const Matrix<double> points = contexts.template cast<double>();
    const KMeans<double> clusters = best_clusters(points, random, options);
    if (has_empty(clusters.labels)) return {.status = RefitStatus::EmptyCluster};
    if (!clusters.converged) return {.status = RefitStatus::NotConverged};
    const std::vector<Index> owner =
        detail::assign_clusters(detail::median_losses<double>(losses, clusters.labels), options.assignment);
    Refit result;
    for (const Index cluster : clusters.labels) result.experts.push_back(owner[static_cast<std::size_t>(cluster)]);
    BasicLinearRouter<Codec> fitted = with_weights(detail::one_hot_regression(points, result.experts, num_experts()));
    result.agreement = agreement(fitted, contexts, result.experts);
    linear_ = std::move(fitted);
    return result;
  }

  /// As LinearRouter.
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out) const {
    linear_.logits(tokens, context, out);
  }
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape& tape) const {
    linear_.logits(tokens, context, out, tape);
  }

  /// Throws std::invalid_argument unless the gradient is of these sizes.
  void require_backward(Index num_tokens, const Tape& tape, const BasicLeastSquaresRouter& gradient) const {
    linear_.require_backward(num_tokens, tape, gradient.linear_);
  }
  /// dtokens += dlogits W; nothing else learns. Throws std::invalid_argument on wrong shapes.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NoGradient none, MatrixRef<Scalar> dtokens) const {
    linear_.backward(tokens, context, tape, dlogits, none, dtokens);
  }
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                BasicLeastSquaresRouter& gradient, MatrixRef<Scalar> dtokens) const {
    require_backward(tokens.rows(), tape, gradient);
    backward(tokens, context, tape, dlogits, NoGradient{}, dtokens);
  }
  /// The same without dtokens: nothing to do.
  void backward(const MatrixView<Scalar>& tokens, const Context&, Tape& tape, const MatrixView<Scalar>&,
                BasicLeastSquaresRouter& gradient) const {
    require_backward(tokens.rows(), tape, gradient);
  }

  /// The router whose logit i is logit ids[i] of this one. Throws std::invalid_argument as TakesExperts says.
  BasicLeastSquaresRouter take(std::span<const Index> ids) const { return BasicLeastSquaresRouter(linear_.take(ids)); }

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn
  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    moe::visit(f, self.linear_...);
  }

 private:
  explicit BasicLeastSquaresRouter(BasicLinearRouter<Codec> linear) : linear_(std::move(linear)) {}

  void require_refit(const ConstMatrixRef<Scalar>& contexts, const ConstMatrixRef<double>& losses,
                     const RefitOptions& options) const {
    constexpr const char* kFunction = "moe::LeastSquaresRouter::refit";
    detail::require_shape(kFunction, "contexts", contexts, contexts.rows(), model_dim());
    detail::require_shape(kFunction, "losses", losses, contexts.rows(), num_experts());
    if (contexts.rows() < num_experts())
      fail(kFunction, ": there are ", contexts.rows(), " contexts, expected at least num_experts = ", num_experts());
    if (options.starts < 1) fail(kFunction, ": starts is ", options.starts, ", expected at least 1");
    if (options.rounds < 1) fail(kFunction, ": rounds is ", options.rounds, ", expected at least 1");
    for (Index i = 0; i < contexts.rows(); ++i) {
      if (!contexts.row(i).allFinite()) fail(kFunction, ": context ", i, " is not finite, expected numbers");
      if (!losses.row(i).allFinite()) fail(kFunction, ": a loss on context ", i, " is not finite, expected numbers");
    }
  }

  /// The start with the least sum of squares, among those that converged without an empty cluster if there are any.
  KMeans<double> best_clusters(const Matrix<double>& points, const RandomField& random,
                               const RefitOptions& options) const {
    KMeans<double> best;
    bool best_is_sound = false;
    for (Index start = 0; start < options.starts; ++start) {
      const RandomField own(Purpose::Draw, random.bits(start));
      KMeans<double> found = k_means(points, num_experts(), own, {.rounds = options.rounds});
      const bool is_sound = found.converged && !has_empty(found.labels);
      if (start > 0 && (is_sound == best_is_sound ? !(found.sum_of_squares < best.sum_of_squares) : best_is_sound))
        continue;
      best = std::move(found);
      best_is_sound = is_sound;
    }
    if (!std::isfinite(best.sum_of_squares))
      fail("moe::LeastSquaresRouter::refit: squared distances of contexts are ", best.sum_of_squares,
           ", expected finite ones");
    return best;
  }

  bool has_empty(std::span<const Index> labels) const {
    std::vector<Index> count(static_cast<std::size_t>(num_experts()));
    for (const Index label : labels) ++count[static_cast<std::size_t>(label)];
    return std::ranges::find(count, Index{0}) != count.end();
  }

  /// `solution` as one_hot_regression() gives it.
  BasicLinearRouter<Codec> with_weights(const Matrix<double>& solution) const {
    BasicLinearRouter<Codec> linear(num_experts(), model_dim(), Bias::Zero);
    if (const Matrix<Scalar> rounded = solution.template cast<Scalar>(); !rounded.allFinite())
      fail("moe::LeastSquaresRouter::refit: a weight is not finite, expected contexts of less extreme size");
    for (Index e = 0; e < num_experts(); ++e) {
      for (Index c = 0; c < model_dim(); ++c) linear.weight().set(e, c, static_cast<Scalar>(solution(c, e)));
      linear.bias().set(e, 0, static_cast<Scalar>(solution(model_dim(), e)));
    }
    return linear;
  }

  static double agreement(const BasicLinearRouter<Codec>& linear, const ConstMatrixRef<Scalar>& contexts,
                          std::span<const Index> experts) {
    Scratch scratch;
    const Step step;
    Matrix<Scalar> logits(contexts.rows(), linear.num_experts());
    linear.logits(contexts, Context(step, scratch), logits);
    double agreeing = 0;
    for (Index i = 0; i < logits.rows(); ++i) {
      const Scalar* const row = logits.row(i).data();
      agreeing += std::max_element(row, row + logits.cols()) - row == experts[static_cast<std::size_t>(i)] ? 1 : 0;
    }
    return agreeing / static_cast<double>(logits.rows());
  }

  BasicLinearRouter<Codec> linear_;
};

using LeastSquaresRouter = BasicLeastSquaresRouter<F32>;

static_assert(DifferentiableRouter<LeastSquaresRouter> && TakesExperts<LeastSquaresRouter>);

}  // namespace moe::inline MOE_ABI
