// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/symmetric.hpp"
#include "moe/gaussian/model/parameters.hpp"
#include "moe/gaussian/model/row_counts.hpp"
#include "moe/gaussian/pass/row_blocks.hpp"
#include "moe/gaussian/pass/standardise.hpp"
#include "moe/numeric/k_means.hpp"

// Long, as all kinds of starts draw from the same rows.
namespace moe::inline MOE_ABI::detail {

/// Some rows of standardised data, one after the other: x [count, d + 1], with ones, y, weights and, if there are any,
/// precisions [count]. Row s is row_of(s) of the data.
struct RowSample {
  Matrix<double> x;
  Eigen::VectorXd y, weight, precision;

  template <class RowOf>
  RowSample(const RowBlocks& rows, Index count, RowOf&& row_of)
      : x(count, rows.input_dim() + 1),
        y(count),
        weight(Eigen::VectorXd::Ones(count)),
        precision(rows.scaled() ? count : 0) {
    for (Index s = 0; s < count; ++s) {
      const Index row = row_of(s), block = row / kBlockRows, i = row % kBlockRows;
      for (Index c = 0; c < x.cols(); ++c) x(s, c) = rows.features(block)[c * kBlockRows + i];
      y(s) = rows.output(block)[i];
      if (const double* weights = rows.weights(block)) weight(s) = weights[i];
      if (rows.scaled()) precision(s) = std::pow(rows.scale(block)[i], 2);
    }
  }
};

/// Random starting values of experts on standardised data, of six kinds in turn. Starts are drawn from fewer than
/// 4000 rows, evenly spaced by their weights, so that they cost nothing beside the fit; a row of weight w is drawn as w
/// rows are. Immutable; the start of a number is always the
/// same.
template <class = WhenUsed>
class Starts {
 public:
  static constexpr int kKinds = 6;
  static constexpr const char* kNames[kKinds] = {"narrow line", "nearest lines", "k-means",
                                                 "projection",  "partition",     "random lines"};

  /// The function between beta_1 . x and the scores; null for Identity.
  template <class Inner>
  static constexpr double (*function())(double) {
    if constexpr (std::is_same_v<Inner, Identity>) return nullptr;
    return [](double u) { return Inner::value(u); };
  }

  Starts(const RowBlocks& rows, const ParameterLayout& at, const GateForm& form, double (*inner)(double),
         std::uint64_t seed)
      : form_(form),
        inner_(inner),
        linear_(inner == nullptr),
        free_temperature_(at.free_temperature),
        seed_(seed),
        d_(rows.input_dim()),
        at_(at),
        sample_(every(rows)),
        center_(sample_.x.leftCols(d_).colwise().mean()) {
    if (!rows.weights(0)) return;
    ends_.resize(static_cast<std::size_t>(num_rows()));
    std::partial_sum(sample_.weight.begin(), sample_.weight.end(), ends_.begin());
    center_ = sample_.weight.transpose() * sample_.x.leftCols(d_) / ends_.back();
  }

  std::uint64_t seed() const { return seed_; }
  const RowSample& sample() const { return sample_; }
  const char* kind(Index start) const { return kNames[start % kKinds]; }

  /// Are rows split by a column of x? By those of the gate; where it reads none, by those of the experts.
  bool splits_by(Index column) const {
    return reads(at_.gate_dim() == 0 ? at_.expert_inputs : at_.gate_inputs, column);
  }
  /// Rows that an expert goes through.
  Index rows_of_plane() const { return at_.num_coefficients(); }

  /// Start number `start`: experts in random order, the gate flat but for the shares of the experts.
  GaussianParameters operator()(Index start, GaussianParameters m) const {
    const RandomField random(Purpose::Initialise, seed_, start);
    const Index k = m.num_experts();
    const int kind = static_cast<int>(start % kKinds);
    if (kind == 0)
      narrow_line(random, m);
    else if (kind == 5)
      random_lines(random, m);
    else
      from_labels(labels(kind, random, k), random, m);
    shuffle(random, m);
    if (!form_.score.is_product())
      scatter_scored(random, m);
    else if (!linear_)
      scatter_slopes(random, m);
    return m;
  }

  /// Weighted least squares with a trace of ridge, which must not see how far the inputs are from 0.
  void regress(const RowSample& sample, const Eigen::VectorXd& count, Index expert, GaussianParameters& m) const {
    const double rows = count.sum();
    const Eigen::VectorXd y = sample.y.array() - (at_.has_intercept() ? 0 : at_.through_y);
    const Eigen::VectorXd weight = sample.precision.size() > 0 ? count.cwiseProduct(sample.precision).eval() : count;
    Matrix<double> centred = sample.x;
    if (at_.has_intercept())
      centred.leftCols(d_).rowwise() -= center_;
    else if (at_.through_x.size() > 0)
      centred.leftCols(d_).rowwise() -= at_.through_x;
    if (at_.expert_inputs || !at_.has_intercept()) {
      std::vector<Index> columns;
      for (Index c = 0; c < at_.expert_dim(); ++c) columns.push_back(at_.expert_input(c));
      if (at_.has_intercept()) columns.push_back(d_);  // ones
      centred = centred(Eigen::all, columns).eval();
    }
    Eigen::MatrixXd gram = centred.transpose() * weight.asDiagonal() * centred;
    gram.diagonal().array() += 1e-6 * std::max(rows, 1.0);
    const Eigen::VectorXd ab = solve_semidefinite(gram, centred.transpose() * weight.cwiseProduct(y));
    const Eigen::VectorXd e = y - centred * ab;
    for (Index c = 0; c < at_.expert_dim(); ++c) m.slope(expert, at_.expert_input(c)) = ab(c);
    m.intercept(expert) = at_.has_intercept() ? ab(at_.expert_dim()) - center_.dot(m.slope.row(expert))
                                              : at_.held_intercept(m.slope.row(expert));
    m.variance(expert) = std::max(weight.dot(e.cwiseProduct(e)) / std::max(rows, 1e-9), 1e-3);
  }

  /// A gate bias that makes a weight of 1 one of e.
  double bias_unit(const GaussianParameters& m) const { return form_.score.bias_unit(m.temperature); }

  /// The gate of the last expert back to where it is held.
  void pin(GaussianParameters& m) const {
    const Index last = m.num_experts() - 1;
    if (linear_) m.gate_slope.rowwise() -= Eigen::RowVectorXd(m.gate_slope.row(last));
    if (m.last_slope == LastSlope::Zero) m.gate_slope.row(last).setZero();
    if (linear_ || form_.bias == BiasPlace::Outside || m.last_slope == LastSlope::Zero)
      m.gate_bias.array() -= double(m.gate_bias(last));
  }

  /// Of the rows of sample(), as if all experts were active, times the weights of the rows [rows, k].
  Eigen::MatrixXd responsibilities(const GaussianParameters& m) const {
    const bool inside = form_.bias == BiasPlace::Inside || linear_;
    const Matrix<double> x = sample_.x.leftCols(d_);
    Eigen::MatrixXd t = x * m.gate_slope.transpose(), e = x * m.slope.transpose();
    if (inside) t.rowwise() += m.gate_bias;
    if (!form_.score.linear())
      for (Index i = 0; i < t.rows(); ++i)
        for (Index j = 0; j < t.cols(); ++j)
          t(i, j) = linked_score(form_.score, score_of_row(form_.score, at_.gate_inputs, m.gate_slope.row(j), x.row(i)),
                                 m.gate_bias(j), m.temperature);
    else if (!linear_)
      t = t.unaryExpr([&](double u) { return inner_(u); }).eval();
    if (!inside && form_.score.linear()) t.rowwise() += m.gate_bias;
    if (form_.score.linear()) t /= m.temperature;
    e = (-(e.rowwise() + m.intercept)).colwise() + sample_.y;
    if (sample_.precision.size() > 0) e.array().colwise() *= sample_.precision.array().sqrt();
    for (Index j = 0; j < t.cols(); ++j)
      t.col(j).array() -= 0.5 * (e.col(j).array().square() / m.variance(j) + std::log(m.variance(j)));
    for (Index i = 0; i < t.rows(); ++i) {
      t.row(i) = (t.row(i).array() - t.row(i).maxCoeff()).exp().matrix().eval();
      t.row(i) *= sample_.weight(i) / double(t.row(i).sum());
    }
    return t;
  }

  /// The rows whose log density is lowest: where an expert that has lost all rows starts anew.
  void reseed(const Eigen::VectorXd& log_density, const RowBlocks& rows, Index expert, GaussianParameters& m) const {
    std::vector<Index> order(static_cast<std::size_t>(log_density.size()));
    std::iota(order.begin(), order.end(), Index{0});
    auto count = static_cast<std::ptrdiff_t>(
        std::clamp<Index>(rows.num_rows() / 10, std::min(d_ + 2, rows.num_rows()), rows.num_rows()));
    std::partial_sort(order.begin(), rows.weights(0) ? order.end() : order.begin() + count, order.end(),
                      [&](Index a, Index b) { return std::pair(log_density(a), a) < std::pair(log_density(b), b); });
    if (rows.weights(0)) count = rows_of_weight(rows, order, count);
    const RowSample worst(rows, count, [&](Index s) { return order[static_cast<std::size_t>(s)]; });
    regress(worst, worst.weight, expert, m);
    m.gate_slope.row(expert) = m.gate_slope.colwise().mean().eval();
    m.gate_bias(expert) = m.gate_bias.mean();
    pin(m);
  }

 private:
  /// How many of the first rows of an order, at least `least`, have a tenth of the weight.
  static std::ptrdiff_t rows_of_weight(const RowBlocks& rows, const std::vector<Index>& order, std::ptrdiff_t most) {
    const auto least = std::min<std::ptrdiff_t>(rows.input_dim() + 2, most);
    double left = 0.1 * rows.total_weight();
    std::ptrdiff_t count = 0;
    for (; count < std::ssize(order) && (count < least || left > 0); ++count) {
      const Index row = order[static_cast<std::size_t>(count)];
      left -= rows.weights(row / kBlockRows)[row % kBlockRows];
    }
    return count;
  }

  static RowSample every(const RowBlocks& rows) {
    const Index stride = std::max<Index>(1, rows.num_rows() / 2000), count = (rows.num_rows() + stride - 1) / stride;
    if (stride == 1 || !rows.weights(0)) return {rows, count, [&](Index s) { return s * stride; }};
    const RowCounts drawn = proportional_rows(rows.num_rows(), rows.total_weight(), count,
                                              [&](Index i) { return rows.weights(i / kBlockRows)[i % kBlockRows]; });
    RowSample sample(rows, std::ssize(drawn.rows), [&](Index s) { return drawn.rows[static_cast<std::size_t>(s)]; });
    sample.weight = Eigen::Map<const Eigen::VectorXd>(drawn.counts.data(), std::ssize(drawn.counts));
    return sample;
  }

  Index num_rows() const { return sample_.y.size(); }
  /// The row of the sample with that share of the weights before it, from 0 to 1.
  Index row_at(double share) const {
    const auto after = std::upper_bound(ends_.begin(), ends_.end() - 1, share * ends_.back());
    return after - ends_.begin();
  }
  Index pick(const RandomField& random, std::int64_t draw) const {
    if (!ends_.empty()) return row_at(random.uniform(draw, 1));
    return static_cast<Index>(random.below(static_cast<std::uint64_t>(num_rows()), draw, 1));
  }

  /// A line through d + 1 random rows.
  void line(const RandomField& random, std::int64_t draw, Index expert, GaussianParameters& m) const {
    Eigen::VectorXd weight = Eigen::VectorXd::Zero(num_rows());
    for (Index i = 0; i < rows_of_plane(); ++i) weight(pick(random, draw + i)) += 1;
    regress(sample_, weight, expert, m);
  }

  void set_shares(const Eigen::VectorXd& rows, GaussianParameters& m) const {
    const Index last = m.num_experts() - 1;
    for (Index j = 0; j <= last; ++j) m.gate_bias(j) = std::log(std::max(rows(j), 0.5) / std::max(rows(last), 0.5));
  }

  /// One expert is a narrow line through a few rows, the others are wide around the whole: some optima have an expert
  /// so exact that nothing that starts wide ever finds it.
  void narrow_line(const RandomField& random, GaussianParameters& m) const {
    const Index k = m.num_experts();
    for (Index j = 1; j < k; ++j) {
      line(random, 100 * (j + 1), j, m);
      if (j == 1 || random.uniform(j, 7) < 0.5) regress(sample_, sample_.weight, j, m);
      m.variance(j) = 0.3;
    }
    line(random, 1, 0, m);
    m.variance(0) = std::pow(10.0, -4 + 2 * random.uniform(0, 6));
    m.gate_bias.setZero();
  }

  void random_lines(const RandomField& random, GaussianParameters& m) const {
    for (Index j = 0; j < m.num_experts(); ++j) {
      line(random, 100 * (j + 1), j, m);
      m.variance(j) = std::pow(10.0, -2 + 2 * random.uniform(j, 6));
    }
    m.gate_bias.setZero();
  }

  void from_labels(const std::vector<Index>& label, const RandomField& random, GaussianParameters& m) const {
    Eigen::VectorXd shares(m.num_experts());
    for (Index j = 0; j < m.num_experts(); ++j) {
      Eigen::VectorXd weight(num_rows());
      for (Index i = 0; i < num_rows(); ++i)
        weight(i) = label[static_cast<std::size_t>(i)] == j ? sample_.weight(i) : 0;
      shares(j) = weight.sum();
      if (shares(j) > static_cast<double>(rows_of_plane()))
        regress(sample_, weight, j, m);
      else
        line(random, 1000 * (j + 1), j, m);
    }
    set_shares(shares, m);
  }

  std::vector<Index> labels(int kind, const RandomField& random, Index k) const {
    if (kind == 1) return nearest_lines(random, k);
    if (kind == 2) return clusters(random, k);
    std::vector<Index> label(static_cast<std::size_t>(num_rows()));
    if (kind == 4) {
      for (Index i = 0; i < num_rows(); ++i)
        label[static_cast<std::size_t>(i)] = static_cast<Index>(random.below(static_cast<std::uint64_t>(k), i, 2));
      return label;
    }
    return projection(random, k);
  }

  /// Of (x, y).
  std::vector<Index> clusters(const RandomField& random, Index k) const {
    Matrix<double> points(num_rows(), d_ + 1);
    points << sample_.x.leftCols(d_), sample_.y;
    for (Index c = 0; c < d_; ++c)
      if (!reads(at_.gate_inputs, c) && !reads(at_.expert_inputs, c)) points.col(c).setZero();
    KMeansOptions options{.rounds = 10};
    if (!ends_.empty()) options.weights = {sample_.weight.data(), ends_.size()};
    return k_means(points, std::min(k, num_rows()), random, options).labels;
  }

  /// Quantiles of a random projection of x; cuts are drawn, so that classes differ in size.
  std::vector<Index> projection(const RandomField& random, Index k) const {
    Eigen::VectorXd direction(d_ + 1);
    for (Index c = 0; c < d_; ++c) direction(c) = splits_by(c) ? random.normal(c, 3) : 0;
    direction(d_) = 0;
    const Eigen::VectorXd at = sample_.x * direction;
    std::vector<double> sorted(at.data(), at.data() + at.size()), cuts;
    std::sort(sorted.begin(), sorted.end());
    for (Index j = 1; !ends_.empty() && j < k; ++j) cuts.push_back(quantile(at, random.uniform(j, 4)));
    for (Index j = 1; ends_.empty() && j < k; ++j) {
      const auto rank = static_cast<std::size_t>(random.uniform(j, 4) * static_cast<double>(sorted.size()));
      cuts.push_back(sorted[std::min(rank, sorted.size() - 1)]);
    }
    std::vector<Index> label;
    for (const double value : at)
      label.push_back(std::count_if(cuts.begin(), cuts.end(), [&](double cut) { return value > cut; }));
    return label;
  }

  /// The value below which that share of the weights is.
  double quantile(const Eigen::VectorXd& values, double share) const {
    std::vector<std::pair<double, double>> rows;
    for (Index i = 0; i < values.size(); ++i) rows.emplace_back(values(i), sample_.weight(i));
    std::sort(rows.begin(), rows.end());
    double left = share * ends_.back();
    for (const auto& [value, weight] : rows)
      if ((left -= weight) < 0) return value;
    return rows.back().first;
  }

  std::vector<Index> nearest_lines(const RandomField& random, Index k) const {
    GaussianParameters lines;
    lines.slope.setZero(k, d_);
    lines.intercept = lines.variance = Eigen::RowVectorXd::Zero(k);
    for (Index j = 0; j < k; ++j) line(random, 100 * (j + 1), j, lines);
    std::vector<Index> label;
    for (Index i = 0; i < num_rows(); ++i) {
      const Eigen::VectorXd e = lines.slope * sample_.x.row(i).head(d_).transpose() + lines.intercept.transpose();
      Index best = 0;
      (e.array() - sample_.y(i)).abs().minCoeff(&best);
      label.push_back(best);
    }
    return label;
  }

  /// Random order, as the last expert is special: its gate is pinned.
  void shuffle(const RandomField& random, GaussianParameters& m) const {
    for (Index j = m.num_experts() - 1; j > 0; --j) {
      const auto other = static_cast<Index>(random.below(static_cast<std::uint64_t>(j + 1), j, 8));
      m.slope.row(j).swap(m.slope.row(other));
      std::swap(m.intercept(j), m.intercept(other));
      std::swap(m.variance(j), m.variance(other));
      std::swap(m.gate_bias(j), m.gate_bias(other));
    }
    pin(m);
  }

  /// Behind an activation a slope of 0 is a saddle: slopes of several sizes and both signs. Where x is far from 0 and
  /// has to stay there, beta_1 . x must not: the activation would be flat on all rows. Slopes along the mean of x are
  /// shortened to what keeps it in place, a free temperature makes up for the smaller range, and the bias for the mean.
  void scatter_slopes(const RandomField& random, GaussianParameters& m) const {
    constexpr double kSizes[] = {1, 0.5, 2, 4};
    Eigen::RowVectorXd center = center_;  // of what the gate reads
    for (Index c = 0; c < d_; ++c)
      if (!splits_by(c)) center(c) = 0;
    const double size = kSizes[random.below(4, 0, 10)], square = center.squaredNorm();
    const double shorter = square > 0 ? (1 - 1 / std::sqrt(1 + square)) / square : 0;
    const Index free = m.last_slope == LastSlope::Free ? m.num_experts() : m.num_experts() - 1;
    double before = 0, after = 0;
    for (Index j = 0; j < free; ++j) {
      for (Index c = 0; c < d_; ++c) m.gate_slope(j, c) = splits_by(c) ? size * random.normal(j * d_ + c, 9) : 0;
      before += m.gate_slope.row(j).squaredNorm();
      m.gate_slope.row(j) -= (shorter * m.gate_slope.row(j).dot(center)) * center;
      after += m.gate_slope.row(j).squaredNorm();
    }
    const bool divides_score = !form_.score.linear();  // slopes above are those over the temperature
    if (free_temperature_ && before > 0 && !divides_score) m.temperature *= std::sqrt(after / before);
    m.gate_bias *= bias_unit(m);
    if (form_.bias == BiasPlace::Inside) return;
    for (Index j = 0; j < m.num_experts(); ++j) m.gate_bias(j) -= inner_(m.gate_slope.row(j).dot(center)) - inner_(0);
    if (divides_score) m.gate_slope *= m.temperature;
    m.gate_bias.array() -= double(m.gate_bias(m.num_experts() - 1));
  }

  /// Centres at rows; directions of all kinds.
  void scatter_scored(const RandomField& random, GaussianParameters& m) const {
    const bool centres = form_.score.kind == GateScoreKind::Distance;
    for (Index j = 0; j < m.num_experts(); ++j) {
      const Index row = pick(random, 500 + j);
      for (Index c = 0; c < d_; ++c)
        m.gate_slope(j, c) = !splits_by(c) ? 0.0 : centres ? double(sample_.x(row, c)) : random.normal(j * d_ + c, 9);
    }
    m.gate_bias *= bias_unit(m);
  }

  GateForm form_;
  double (*inner_)(double);
  bool linear_, free_temperature_;
  std::uint64_t seed_;
  Index d_;
  ParameterLayout at_;
  RowSample sample_;
  std::vector<double> ends_;   // sums of the weights up to each row of the sample; empty: no weights
  Eigen::RowVectorXd center_;  // of x
};

}  // namespace moe::inline MOE_ABI::detail
