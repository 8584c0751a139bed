// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/em.hpp"

namespace moe::inline MOE_ABI::detail {

/// Top-1 gates on one input cut the line into one interval per expert, and the likelihood is a step function of where:
/// no gradient knows about it. Given all cuts but one, the best place of that one is found exactly, by sums from the
/// left and two regressions for every place: O(n). Cuts are moved in turn until none gains; with two experts that is
/// the maximum itself.
template <class = WhenUsed>
class SegmentSearch {
 public:
  SegmentSearch(const Objective& objective, const Bounds& bounds)
      : at_(objective.layout()), bounds_(bounds), map_(objective.penalty().map) {
    const RowBlocks& rows = objective.rows();
    const Index n = rows.num_rows();
    std::vector<Index> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), Index{0});
    const auto x = [&](Index i) { return rows.features(i / kBlockRows)[i % kBlockRows]; };
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return x(a) < x(b); });
    sums_.resize(static_cast<std::size_t>(n) + 1);
    for (std::size_t s = 0; s < order.size(); ++s) {
      const Index block = order[s] / kBlockRows, i = order[s] % kBlockRows;
      const double at = x(order[s]), y = rows.output(block)[i],
                   count = rows.weights(block) ? rows.weights(block)[i] : 1;
      const double w = rows.scaled() ? count * rows.scale(block)[i] * rows.scale(block)[i] : count;
      x_.push_back(at);
      sums_[s + 1] = sums_[s];
      sums_[s + 1].add({w, w * at, w * y, w * (at * at), w * (at * y), w * (y * y), count});
    }
  }

  /// Puts the cuts half way between rows, where nothing tells one place from another, and refits the experts.
  void centre(GaussianParameters& m) const {
    const std::vector<Segment> segments = segments_of(m);
    for (std::size_t s = 0; s < segments.size(); ++s)
      if (rows_of(begin(segments, s), segments[s].end) < 3) return;
    write(segments, m);
  }

  /// Moves the cuts of a model to better places and refits its experts; false if there are none.
  bool improve(GaussianParameters& m) const {
    std::vector<Segment> segments = segments_of(m);
    const double before = total(segments);
    split_for_missing(segments, m.num_experts());
    bool moved = true;
    for (int round = 0; moved && round < 100; ++round) {
      moved = false;
      for (std::size_t s = 0; s + 1 < segments.size(); ++s) {
        const Cut best = best_cut(begin(segments, s), segments[s + 1].end);
        if (best.at < 0 || best.at == segments[s].end) continue;
        if (!(best.value > value(begin(segments, s), segments[s].end) + value(segments[s].end, segments[s + 1].end)))
          continue;
        segments[s].end = best.at;
        moved = true;
      }
    }
    if (!(total(segments) > before + 1e-9 * (1 + std::abs(before)))) return false;
    write(segments, m);
    return true;
  }

 private:
  struct Sums {
    double n = 0, x = 0, y = 0, xx = 0, xy = 0, yy = 0;  // by weights and precisions
    double rows = 0;                                     // by weights alone
    void add(const Sums& o) {
      n += o.n, x += o.x, y += o.y, xx += o.xx, xy += o.xy, yy += o.yy;
      rows += o.rows;
    }
  };
  static constexpr double kImpossible = -1e300;  // log-likelihood of too few rows for a line

  struct Segment {
    Index expert, end;  // rows from the end of the one before, in order of x
  };
  struct Cut {
    Index at = -1;
    double value = kImpossible;
  };
  struct Line {
    double slope = 0, intercept = 0, variance = 1, squares = 0;
  };

  static Index begin(const std::vector<Segment>& segments, std::size_t s) { return s == 0 ? 0 : segments[s - 1].end; }

  /// Rows that those from `from` to `to` stand for.
  double rows_of(Index from, Index to) const {
    return sums_[static_cast<std::size_t>(to)].rows - sums_[static_cast<std::size_t>(from)].rows;
  }

  /// Least squares of the rows from `from` to `to`.
  Line line(Index from, Index to) const {
    const Sums &a = sums_[static_cast<std::size_t>(from)], &b = sums_[static_cast<std::size_t>(to)];
    if (!at_.has_intercept()) return held_line(b, a, rows_of(from, to));
    const double n = b.n - a.n, x = (b.x - a.x) / n, y = (b.y - a.y) / n;
    const double xx = b.xx - a.xx - n * x * x, xy = b.xy - a.xy - n * x * y, yy = b.yy - a.yy - n * y * y;
    Line out;
    out.slope = xx > 1e-12 * n ? xy / xx : 0;
    out.intercept = y - out.slope * x;
    out.squares = std::max(0.0, yy - out.slope * xy);
    out.variance = bounds_.variance(out.squares, rows_of(from, to), map_);
    return out;
  }

  /// Of lines through a point.
  Line held_line(const Sums& b, const Sums& a, double rows) const {
    const double n = b.n - a.n, x = at_.through_x.size() > 0 ? at_.through_x(0) : 0, y = at_.through_y;
    const double sx = b.x - a.x, sy = b.y - a.y;
    const double xx = b.xx - a.xx + x * (n * x - 2 * sx), yy = b.yy - a.yy + y * (n * y - 2 * sy);
    const double xy = b.xy - a.xy + n * x * y - x * sy - y * sx;
    Line out;
    out.slope = xx > 1e-12 * n ? xy / xx : 0;
    out.intercept = y - out.slope * x;
    out.squares = std::max(0.0, yy - out.slope * xy);
    out.variance = bounds_.variance(out.squares, rows, map_);
    return out;
  }

  /// Log-likelihood of a segment; an expert needs three rows.
  double value(Index from, Index to) const {
    const double n = rows_of(from, to);
    if (n < 3) return kImpossible;
    const Line at = line(from, to);
    return -0.5 * n * std::log(2 * std::numbers::pi * at.variance) - 0.5 * at.squares / at.variance -
           (map_ > 0 ? map_ * (1 / at.variance + std::log(at.variance)) : 0);
  }

  double total(const std::vector<Segment>& segments) const {
    double sum = 0;
    for (std::size_t s = 0; s < segments.size(); ++s) sum += value(begin(segments, s), segments[s].end);
    return sum;
  }

  /// Where to cut the rows from `from` to `to` in two; never between equal x.
  Cut best_cut(Index from, Index to) const {
    Cut best;
    for (Index at = from + 1; at < to; ++at) {
      if (x_[static_cast<std::size_t>(at)] == x_[static_cast<std::size_t>(at - 1)]) continue;
      const double sum = value(from, at) + value(at, to);
      if (sum > best.value) best = {at, sum};
    }
    return best;
  }

  std::vector<Segment> segments_of(const GaussianParameters& m) const {
    std::vector<Segment> segments;
    for (std::size_t i = 0; i < x_.size(); ++i) {
      Index best = 0;
      for (Index j = 1; j < m.num_experts(); ++j)
        if (m.gate_slope(j, 0) * x_[i] + m.gate_bias(j) > m.gate_slope(best, 0) * x_[i] + m.gate_bias(best)) best = j;
      if (segments.empty() || segments.back().expert != best) segments.push_back({best, 0});
      segments.back().end = static_cast<Index>(i) + 1;
    }
    return segments;
  }

  /// Experts without an interval get one where a cut gains most.
  void split_for_missing(std::vector<Segment>& segments, Index num_experts) const {
    for (Index j = 0; j < num_experts; ++j) {
      if (std::any_of(segments.begin(), segments.end(), [&](const Segment& s) { return s.expert == j; })) continue;
      Cut best;
      std::size_t where = 0;
      for (std::size_t s = 0; s < segments.size(); ++s) {
        Cut cut = best_cut(begin(segments, s), segments[s].end);
        cut.value -= value(begin(segments, s), segments[s].end);
        if (cut.at > 0 && cut.value > best.value) best = cut, where = s;
      }
      if (best.at < 0) return;
      segments.insert(segments.begin() + static_cast<std::ptrdiff_t>(where), {j, best.at});
    }
  }

  /// Lines whose upper envelope has the cuts half way between rows; any scale of the gate is as good, so it keeps clear
  /// of its bounds, which would move the cuts. The envelope is nowhere below its first line, 0.
  void write(const std::vector<Segment>& segments, GaussianParameters& m) const {
    m.gate_slope.setZero();
    m.gate_bias.setConstant(-1);  // an expert without an interval stays below
    double bias = 0;
    for (std::size_t s = 0; s < segments.size(); ++s) {
      const Index j = segments[s].expert;
      const Line at = line(begin(segments, s), segments[s].end);
      m.slope(j, 0) = at.slope;
      m.intercept(j) = at.intercept;
      m.variance(j) = at.variance;
      m.gate_slope(j, 0) = static_cast<double>(s);
      m.gate_bias(j) = bias;
      if (s + 1 == segments.size()) continue;
      const auto cut = static_cast<std::size_t>(segments[s].end);
      bias -= 0.5 * (x_[cut - 1] + x_[cut]);  // slopes of neighbours differ by 1
    }
    const Index last = m.num_experts() - 1;
    m.gate_slope.array() -= double(m.gate_slope(last, 0));
    m.gate_bias.array() -= double(m.gate_bias(last));
    const double largest = std::max(m.gate_slope.cwiseAbs().maxCoeff(), m.gate_bias.cwiseAbs().maxCoeff());
    const double scale = std::min(1.0, 0.5 * bounds_.gate_box / std::max(largest, 1e-300));
    m.gate_slope *= scale;
    m.gate_bias *= scale;
  }

  ParameterLayout at_;
  Bounds bounds_;
  double map_;
  std::vector<double> x_;   // ascending
  std::vector<Sums> sums_;  // of the rows before
};

}  // namespace moe::inline MOE_ABI::detail
