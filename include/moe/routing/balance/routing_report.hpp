// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <limits>
#include <locale>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "moe/core/simd.hpp"
#include "moe/routing/balance/token_sum.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

/// What a router did over many batches: who was chosen, how often, with which weight, and with whom.
///   moe::RoutingReport report(num_experts);
///   for (const auto& batch : batches) {
///     layer.forward(batch.tokens, batch.step, output, workspace);
///     layer.gate().probabilities(workspace.logits.matrix(), batch.step, probability);
///     report.add<float>(workspace.routing, probability, batch.step);
///   }
///   report.write_table(std::cout);
/// Only valid tokens count. Batches may be reported apart, on threads or ranks, and put together by merge(). Counts are
/// exact, sums in double; the same bits for any number of threads. Holds num_experts^2 counts. A plain value; one per
/// thread.
class RoutingReport {
 public:
  /// Throws std::invalid_argument unless num_experts is at least 1 and the counts of pairs fit an Index.
  explicit RoutingReport(Index num_experts)
      : load_(size_of(num_experts)), dropped_(load_), together_(load_.size() * load_.size()), sums_(2 * load_.size()) {}

  /// Adds a batch.
  ///   probability  [num_tokens, num_experts], >= 0, what the gate's probabilities() gives; of any sum, as each token's
  ///                are divided by theirs
  /// Throws std::invalid_argument, before anything is added, on shapes that differ, an expert out of range, and for
  /// weights and probabilities of valid tokens that are not numbers. O(num_tokens * (num_experts + k^2)); allocates
  /// partial sums.
  template <class S>
  void add(const Routing<S>& routing, const MatrixView<S>& probability, const Step& step = {}) {
    require_batch<S>(routing, probability, step);
    count_choices(routing, step);
    const auto num_experts = static_cast<std::size_t>(this->num_experts());
    const auto sums =
        detail::sum_over_tokens(routing.num_tokens(), std::ssize(sums_) + 1, step, [&](Index t, double* sum) {
          for (Index a = routing.begin(t); a < routing.end(t); ++a)
            sum[routing.experts()[static_cast<std::size_t>(a)]] +=
                static_cast<double>(routing.weights()[static_cast<std::size_t>(a)]);
          const S* p = probability.row(t).data();
          sum[2 * num_experts] += add_normalised(p, sum + num_experts);
        });
    for (std::size_t i = 0; i < sums_.size(); ++i) sums_[i] += sums[i];
    entropy_ += sums.back();
    num_tokens_ += step.num_valid(routing.num_tokens());
  }

  /// Adds all batches of another report. Throws std::invalid_argument if it is of another number of experts.
  void merge(const RoutingReport& other) {
    if (other.num_experts() != num_experts())
      fail("moe::RoutingReport::merge: the other has ", other.num_experts(),
           " experts, expected num_experts = ", num_experts());
    const auto add_all = [](auto& to, const auto& from) {
      for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
    };
    add_all(load_, other.load_);
    add_all(dropped_, other.dropped_);
    add_all(together_, other.together_);
    add_all(sums_, other.sums_);
    entropy_ += other.entropy_;
    num_tokens_ += other.num_tokens_;
  }

  Index num_experts() const { return std::ssize(load_); }
  /// Valid tokens of all batches.
  Index num_tokens() const { return num_tokens_; }
  /// Choices of expert e that reached it, and those that were dropped.
  Index load(Index e) const { return load_[static_cast<std::size_t>(e)]; }
  Index dropped(Index e) const { return dropped_[static_cast<std::size_t>(e)]; }
  /// Sum of the weights of e.
  double importance(Index e) const { return sums_[static_cast<std::size_t>(e)]; }
  /// Mean over tokens of the probability of e; 0 without tokens.
  double mean_probability(Index e) const { return per_token(sums_[load_.size() + static_cast<std::size_t>(e)]); }
  /// Co-activation: pairs of choices, a and b, of one token that both reached their experts; load(a) where b is a.
  Index together(Index a, Index b) const { return a == b ? load(a) : together_[pair(a, b)]; }

  /// Of all choices, 0 without any.
  double drop_rate() const {
    const double drops = total(dropped_), choices = total(load_) + drops;
    return choices == 0 ? 0 : drops / choices;
  }
  /// Load of the busiest expert over the mean; 1 without load.
  double load_imbalance() const {
    const double sum = total(load_), busiest = static_cast<double>(*std::ranges::max_element(load_));
    return sum == 0 ? 1 : busiest * static_cast<double>(num_experts()) / sum;
  }
  /// Entropy of a token's probabilities in nats, mean over tokens: log(num_experts) when undecided. 0 without tokens.
  double mean_entropy() const { return per_token(entropy_); }

  /// A line per expert, for people: load, its share, drops, share of the importance, mean probability; then the totals.
  void write_table(std::ostream& to) const;
  /// A line per expert, for programs: expert, load, dropped, importance, mean_probability, together_0, together_1, ...
  void write_csv(std::ostream& to) const;
  /// A script that makes gnuplot draw the file `picture`, an SVG: shares of load, importance and probability, and how
  /// often the tokens of an expert reach each of the others, too.
  void write_gnuplot(std::ostream& to, const std::string& picture) const;

 private:
  static std::size_t size_of(Index num_experts) {
    constexpr const char* kName = "moe::RoutingReport";
    detail::checked_size(kName, "num_experts", num_experts, 1);
    detail::checked_product(kName, num_experts, num_experts);
    return static_cast<std::size_t>(num_experts);
  }
  std::size_t pair(Index a, Index b) const { return static_cast<std::size_t>(a * num_experts() + b); }
  double per_token(double sum) const { return num_tokens_ == 0 ? 0 : sum / static_cast<double>(num_tokens_); }
  static double total(const std::vector<Index>& counts) {
    Index sum = 0;
    for (const Index count : counts) sum += count;
    return static_cast<double>(sum);
  }
  /// x / y, 0 where there is nothing to share.
  static double share(double x, double y) { return y == 0 ? 0 : x / y; }

  /// shares += p / sum of p. Returns the entropy of that.
  template <class S>
  double add_normalised(const S* p, double* shares) const {
    double sum = 0, entropy = 0;
    for (Index e = 0; e < num_experts(); ++e) sum += static_cast<double>(p[e]);
    if (sum == 0) return 0;
    for (Index e = 0; e < num_experts(); ++e) {
      const double q = static_cast<double>(p[e]) / sum;
      shares[e] += q;
      if (q > 0) entropy = simd::fma(-q, std::log(q), entropy);
    }
    return entropy;
  }

  template <class S>
  void count_choices(const Routing<S>& routing, const Step& step) {
    for (Index t = 0; t < routing.num_tokens(); ++t) {
      if (!step.is_valid(t)) continue;
      const auto experts = routing.experts(t);
      const auto dropped = routing.dropped(t);
      for (std::size_t i = 0; i < experts.size(); ++i) {
        ++(dropped[i] ? dropped_ : load_)[static_cast<std::size_t>(experts[i])];
        for (std::size_t j = 0; j < i && !dropped[i]; ++j) {
          if (dropped[j] || experts[j] == experts[i]) continue;
          ++together_[pair(experts[i], experts[j])];
          ++together_[pair(experts[j], experts[i])];
        }
      }
    }
  }

  template <class S>
  void require_batch(const Routing<S>& routing, const ConstMatrixRef<S>& probability, const Step& step) const {
    constexpr const char* kName = "moe::RoutingReport::add";
    detail::require_experts(kName, routing, num_experts());
    detail::require_shape(kName, "probability", probability, routing.num_tokens(), num_experts());
    step.validate(kName, routing.num_tokens());
    for (Index t = 0; t < routing.num_tokens(); ++t) {
      if (!step.is_valid(t)) continue;
      for (Index e = 0; e < num_experts(); ++e)
        if (!(probability(t, e) >= 0 && std::isfinite(probability(t, e))))
          fail(kName, ": probability of token ", t, " for expert ", e, " is ", probability(t, e),
               ", expected a number of at least 0");
      for (const S weight : routing.weights(t))
        if (!std::isfinite(weight)) fail(kName, ": a weight of token ", t, " is ", weight, ", expected a number");
    }
  }

  std::vector<Index> load_, dropped_;
  std::vector<Index> together_;  // [num_experts, num_experts], symmetric, 0 on the diagonal
  std::vector<double> sums_;     // [2, num_experts]: of weights, and of probabilities
  double entropy_ = 0;
  Index num_tokens_ = 0;
};

namespace detail {

/// Text with points in its numbers, whatever the stream it goes to is set to.
inline std::ostringstream plain_text(int precision) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text.precision(precision);
  return text;
}

}  // namespace detail

inline void RoutingReport::write_table(std::ostream& to) const {
  std::ostringstream text = detail::plain_text(4);
  double importance_of_all = 0;
  for (Index e = 0; e < num_experts(); ++e) importance_of_all += importance(e);
  text << std::fixed << "expert        load   share     dropped  importance  probability\n";
  for (Index e = 0; e < num_experts(); ++e)
    text << std::setw(6) << e << std::setw(12) << load(e) << std::setw(8)
         << share(static_cast<double>(load(e)), total(load_)) << std::setw(12) << dropped(e) << std::setw(12)
         << share(importance(e), importance_of_all) << std::setw(13) << mean_probability(e) << '\n';
  text << num_tokens() << " tokens, load max / mean " << load_imbalance() << ", dropped " << drop_rate()
       << ", entropy of the router " << mean_entropy() << " of at most " << std::log(num_experts()) << '\n';
  to << text.str();
}

inline void RoutingReport::write_csv(std::ostream& to) const {
  std::ostringstream text = detail::plain_text(std::numeric_limits<double>::max_digits10);
  text << "expert,load,dropped,importance,mean_probability";
  for (Index e = 0; e < num_experts(); ++e) text << ",together_" << e;
  for (Index e = 0; e < num_experts(); ++e) {
    text << '\n' << e << ',' << load(e) << ',' << dropped(e) << ',' << importance(e) << ',' << mean_probability(e);
    for (Index other = 0; other < num_experts(); ++other) text << ',' << together(e, other);
  }
  to << text.str() << '\n';
}

inline void RoutingReport::write_gnuplot(std::ostream& to, const std::string& picture) const {
  std::ostringstream text = detail::plain_text(6);
  double importance_of_all = 0, most = 0;
  for (Index e = 0; e < num_experts(); ++e) importance_of_all += importance(e);
  text << "set terminal svg size 1180,480 font 'sans-serif,13' background '#ffffff'\nset output '";
  for (const char c : picture) text << (c == '\'' ? "''" : std::string(1, c));
  text << "'\n$experts << END\n";
  for (Index e = 0; e < num_experts(); ++e)
    text << e << ' ' << share(static_cast<double>(load(e)), total(load_)) << ' '
         << share(importance(e), importance_of_all) << ' ' << mean_probability(e) << '\n';
  text << "END\n$together << END\n";
  for (Index a = 0; a < num_experts(); ++a)
    for (Index b = 0; b < num_experts(); ++b) {
      const double rate = a == b ? 0 : share(static_cast<double>(together(a, b)), static_cast<double>(load(a)));
      most = std::max(most, rate);
      text << b << ' ' << a << ' ' << rate << '\n';
    }
  const double last = static_cast<double>(num_experts()) - 0.5;
  text << "END\nset multiplot layout 1,2\nset border 3\nset tics nomirror\nset grid ytics lc '#dddddd'\n"
          "set ylabel 'share'\nset xlabel 'expert'\nset xrange [-0.5:"
       << last
       << "]\nset yrange [0:*]\nset style fill solid\nset boxwidth 0.28\nset key outside top center horizontal\nplot "
       << 1 / static_cast<double>(num_experts())
       << " with lines dt 2 lc '#999999' title 'even', $experts using ($1-0.28):2 with boxes lc '#4477aa' title "
          "'load', '' using 1:3 with boxes lc '#ee6677' title 'importance', '' using ($1+0.28):4 with boxes lc "
          "'#ccbb44' title 'probability'\n"
          "set title 'Share of the tokens of one expert that another has, too'\nset ylabel 'of expert'\n"
          "unset grid\nunset key\nset border 0\nset tics scale 0\nset yrange ["
       << last << ":-0.5]\nset cbrange [0:" << (most > 0 ? most : 1)
       << "]\nset palette defined (0 '#f7fbff', 0.5 '#6baed6', 1 '#08306b')\n"
          "plot $together using 1:2:3 with image pixels\nunset multiplot\n";
  to << text.str();
}

}  // namespace moe::inline MOE_ABI
