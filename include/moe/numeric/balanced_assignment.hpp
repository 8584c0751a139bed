// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "moe/core/aligned.hpp"

// Above 300 lines: two solvers of one problem, with the workspace that both share, are read against each other.
namespace moe::inline MOE_ABI {

/// How balanced_assignment() finds its answer: Exact by shortest paths, Auction by bids, which is near to the best one
/// and faster for many rows, or Automatic: exact up to 2048 rows.
enum class AssignmentSolver { Automatic, Exact, Auction };

struct BalancedAssignmentOptions {
  AssignmentSolver solver = AssignmentSolver::Automatic;
  double epsilon = 1e-3;  ///< of the auction, in units of the scores: what a row may lack of the best sum; > 0

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(const char* function) const {
    if (!(epsilon > 0 && std::isfinite(epsilon)))
      fail(function, ": epsilon is ", epsilon, ", expected a finite value above 0");
  }
  friend bool operator==(const BalancedAssignmentOptions&, const BalancedAssignmentOptions&) = default;
};

namespace detail {

/// Places of balanced columns: each has `floor`, and `extra` of them one more.
struct BalancedSizes {
  BalancedSizes(Index num_rows, Index num_columns)
      : rows(num_rows), columns(num_columns), floor(num_rows / num_columns), extra(num_rows % num_columns) {}

  Index rows, columns, floor, extra;
};

/// Rows are assigned one by one, each by the shortest path of reduced costs: a row pushes another one out of its
/// column, until one finds a free place. Nodes are the columns, the pool of extra places, and the end of paths.
class ExactAssignment {
 public:
  void reserve(const BalancedSizes& sizes) {
    const auto nodes = static_cast<std::size_t>(sizes.columns) + 2;
    price_.reserve(nodes);
    distance_.reserve(nodes);
    before_.reserve(nodes);
    via_.reserve(nodes);
    done_.reserve(nodes);
    count_.reserve(nodes);
    has_extra_.reserve(nodes);
    place_.reserve(static_cast<std::size_t>(sizes.rows));
    member_.reserve(static_cast<std::size_t>(sizes.columns * (sizes.floor + 1)));
  }

  void run(const RowBuffer<double>& value, const BalancedSizes& sizes, std::span<Index> column_of) {
    value_ = &value;
    room_ = sizes.floor + 1;
    pool_ = sizes.columns;
    end_ = sizes.columns + 1;
    extras_left_ = sizes.extra;
    const auto nodes = static_cast<std::size_t>(sizes.columns) + 2;
    price_.assign(nodes, 0.0);
    distance_.resize(nodes);
    before_.resize(nodes);
    via_.resize(nodes);
    done_.resize(nodes);
    count_.assign(nodes, 0);
    has_extra_.assign(nodes, 0);
    place_.resize(static_cast<std::size_t>(sizes.rows));
    member_.resize(static_cast<std::size_t>(sizes.columns * room_));
    for (Index row = 0; row < sizes.rows; ++row) insert(row);
    for (Index c = 0; c < sizes.columns; ++c)
      for (Index i = 0; i < at(count_, c); ++i) column_of[static_cast<std::size_t>(member(c, i))] = c;
  }

 private:
  template <class T>
  static T& at(std::vector<T>& values, Index i) {
    return values[static_cast<std::size_t>(i)];
  }
  Index& member(Index column, Index i) { return at(member_, column * room_ + i); }

  void insert(Index row) {
    std::ranges::fill(distance_, std::numeric_limits<double>::infinity());
    std::ranges::fill(done_, std::uint8_t{0});
    for (Index c = 0; c < pool_; ++c) relax(c, -value_->row(row)[c] - at(price_, c), -1, row);
    for (Index node = nearest(); node != end_; node = nearest()) {
      at(done_, node) = 1;
      if (node == pool_)
        leave_pool();
      else
        leave_column(node);
    }
    for (Index node = 0; node < end_; ++node)
      if (at(done_, node)) at(price_, node) += at(distance_, node) - at(distance_, end_);
    follow_path();
  }

  void relax(Index node, double distance, Index from, Index row) {
    if (at(done_, node) || !(distance < at(distance_, node))) return;
    at(distance_, node) = distance;
    at(before_, node) = from;
    at(via_, node) = row;
  }
  /// The end, which is never done, wins ties: with equal scores a path is then found at once.
  Index nearest() const {
    auto best = static_cast<std::size_t>(end_);
    for (std::size_t node = 0; node < done_.size(); ++node)
      if (!done_[node] && distance_[node] < distance_[best]) best = node;
    return static_cast<Index>(best);
  }

  void leave_column(Index column) {
    const double reached = at(distance_, column) + at(price_, column);
    if (at(count_, column) - at(has_extra_, column) < room_ - 1) relax(end_, reached - at(price_, end_), column, -1);
    if (!at(has_extra_, column)) relax(pool_, reached - at(price_, pool_), column, -1);
    for (Index i = 0; i < at(count_, column); ++i) {
      const Index row = member(column, i);
      const double* value = value_->row(row);
      const double without = reached + value[column];
      for (Index c = 0; c < pool_; ++c) relax(c, without - value[c] - at(price_, c), column, row);
    }
  }
  void leave_pool() {
    const double reached = at(distance_, pool_) + at(price_, pool_);
    if (extras_left_ > 0) relax(end_, reached - at(price_, end_), pool_, -1);
    for (Index c = 0; c < pool_; ++c)
      if (at(has_extra_, c)) relax(c, reached - at(price_, c), pool_, -1);
  }

  /// From the end back to the new row.
  void follow_path() {
    for (Index node = end_, from; node >= 0; node = from) {
      from = at(before_, node);
      if (node == end_)
        extras_left_ -= from == pool_ ? 1 : 0;
      else if (node == pool_)
        at(has_extra_, from) = 1;
      else if (from == pool_)
        at(has_extra_, node) = 0;
      else
        move(at(via_, node), from, node);
    }
  }
  void move(Index row, Index from, Index to) {
    if (from >= 0) {
      const Index last = member(from, --at(count_, from));
      member(from, at(place_, row)) = last;
      at(place_, last) = at(place_, row);
    }
    at(place_, row) = at(count_, to)++;
    member(to, at(place_, row)) = row;
  }

  const RowBuffer<double>* value_ = nullptr;
  Index room_ = 1, pool_ = 0, end_ = 1, extras_left_ = 0;
  std::vector<double> price_, distance_;     // of nodes
  std::vector<Index> before_, via_, count_;  // node before it, row that moves to it, rows in it
  std::vector<std::uint8_t> done_, has_extra_;
  std::vector<Index> member_, place_;  // rows of a column, and where a row stands in its own
};

/// Rows bid for the cheapest place of the column that is worth most to them, by as much as it is worth more than the
/// next column, and epsilon; who is outbid bids again. The places of a column, and its extra one, are alike, and so
/// have one price, the lowest. Where only some columns get a row more, others who do not care fill the extra places
/// that are left over.
class AuctionAssignment {
 public:
  void reserve(const BalancedSizes& sizes) {
    price_.reserve(static_cast<std::size_t>(2 * sizes.columns));
    place_.reserve(static_cast<std::size_t>(num_bidders(sizes)));
    waiting_.reserve(static_cast<std::size_t>(num_bidders(sizes)));
  }

  /// Within `epsilon` per row of the largest sum. False after rows^2 bids, with which the exact method is done as well.
  bool run(const RowBuffer<double>& value, const BalancedSizes& sizes, double spread, double epsilon,
           std::span<Index> column_of) {
    value_ = &value;
    sizes_ = &sizes;
    const Index bidders = num_bidders(sizes);
    const double last = epsilon * static_cast<double>(sizes.rows) / static_cast<double>(bidders);
    price_.assign(static_cast<std::size_t>(2 * sizes.columns), 0.0);
    if (sizes.floor == 0) std::fill_n(price_.begin(), sizes.columns, std::numeric_limits<double>::infinity());
    if (sizes.extra == 0) std::fill_n(price_.begin() + sizes.columns, sizes.columns, kNone);
    place_.assign(static_cast<std::size_t>(bidders), Place{});
    Index bids_left = sizes.rows * std::max<Index>(sizes.rows, 64);
    for (double step = std::max(spread / kFaster, last);; step = std::max(step / kFaster, last)) {
      waiting_.clear();
      for (Index bidder = bidders - 1; bidder >= 0; --bidder) waiting_.push_back(bidder);
      for (Place& place : place_) place.holder = -1;
      for (; !waiting_.empty(); --bids_left) {
        if (bids_left == 0) return false;
        const Index bidder = waiting_.back();
        waiting_.pop_back();
        bid(bidder, step);
      }
      if (step == last) break;
    }
    for (std::size_t i = 0; i < place_.size(); ++i) {
      const Index holder = place_[i].holder, place = static_cast<Index>(i), regular = sizes.columns * sizes.floor;
      if (holder < sizes.rows)
        column_of[static_cast<std::size_t>(holder)] = place < regular ? place / sizes.floor : place - regular;
    }
    return true;
  }

 private:
  static constexpr double kFaster = 5;  ///< by which epsilon falls from one auction to the next
  static constexpr double kNone = std::numeric_limits<double>::infinity();

  struct Place {
    double price = 0;
    Index holder = -1;
  };

  static Index num_bidders(const BalancedSizes& sizes) {
    return sizes.columns * (sizes.floor + (sizes.extra > 0 ? 1 : 0));
  }

  void bid(Index bidder, double step) {
    double best = -kNone, next = -kNone;
    Index chosen = 0;
    const auto look = [&](Index kind, double worth) {
      const double net = worth - price_[static_cast<std::size_t>(kind)];
      if (net > best)
        next = best, best = net, chosen = kind;
      else if (net > next)
        next = net;
    };
    const Index columns = sizes_->columns;
    if (bidder < sizes_->rows) {
      const double* value = value_->row(bidder);
      for (Index c = 0; c < columns; ++c) look(c, value[c]);
      for (Index c = 0; c < columns && sizes_->extra > 0; ++c) look(columns + c, value[c]);
    } else {
      for (Index c = 0; c < columns; ++c) look(columns + c, 0);
    }
    const double before = price_[static_cast<std::size_t>(chosen)];
    take_cheapest(chosen, bidder, std::max(before + (best - next) + step, std::nextafter(before, kNone)));
  }

  /// The places of a column are a heap with the cheapest on top.
  void take_cheapest(Index kind, Index bidder, double price) {
    const Index columns = sizes_->columns, floor = sizes_->floor;
    Place* const top = place_.data() + (kind < columns ? kind * floor : columns * floor + kind - columns);
    const Index size = kind < columns ? floor : 1;
    if (top->holder >= 0) waiting_.push_back(top->holder);
    Index i = 0;
    for (Index child = 1; child < size; child = 2 * i + 1) {
      if (child + 1 < size && top[child + 1].price < top[child].price) ++child;
      if (!(top[child].price < price)) break;
      top[i] = top[child];
      i = child;
    }
    top[i] = {price, bidder};
    price_[static_cast<std::size_t>(kind)] = top->price;
  }

  const RowBuffer<double>* value_ = nullptr;
  const BalancedSizes* sizes_ = nullptr;
  std::vector<double> price_;  // of the places of a column, then of its extra place
  std::vector<Place> place_;
  std::vector<Index> waiting_;
};

}  // namespace detail

/// Working memory of balanced_assignment(), which grows and never shrinks. One per thread.
class AssignmentWorkspace {
 public:
  /// Room for any assignment of at most so many rows to so many columns.
  void reserve(Index rows, Index columns) {
    if (rows == 0 || columns == 0) return;
    value_.resize(rows, columns);
    exact_.reserve({rows, columns});
    auction_.reserve({rows, columns});
  }

 private:
  template <class S>
  friend void balanced_assignment(const MatrixView<S>& scores, const BalancedAssignmentOptions& options,
                                  AssignmentWorkspace& workspace, std::span<Index> column_of);

  /// Scores as numbers, of which that of a mask is so low that no sum gains by one more. Returns their spread.
  template <class S>
  double copy(const ConstMatrixRef<S>& scores, double epsilon);

  RowBuffer<double> value_;
  detail::ExactAssignment exact_;
  detail::AuctionAssignment auction_;
};

template <class S>
double AssignmentWorkspace::copy(const ConstMatrixRef<S>& scores, double epsilon) {
  constexpr const char* kName = "moe::balanced_assignment";
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double least = kInfinity, most = -kInfinity;
  bool masked = false;
  value_.resize(scores.rows(), scores.cols());
  for (Index r = 0; r < scores.rows(); ++r)
    for (Index c = 0; c < scores.cols(); ++c) {
      const auto value = static_cast<double>(scores(r, c));
      if (!(value < kInfinity))
        fail(kName, ": score of row ", r, " for column ", c, " is ", value,
             ", expected a finite number, or -infinity as a mask");
      value_.row(r)[c] = value;
      masked = masked || value == -kInfinity;
      if (value > -kInfinity) least = std::min(least, value), most = std::max(most, value);
    }
  if (least > most) least = most = 0;
  const double spread = most - least;
  if (!masked && std::isfinite(spread)) return spread;
  // More than all rows together may gain, and lose to the auction.
  const double mask = least - static_cast<double>(scores.rows() + 1) * (spread + 2 * epsilon);
  if (!std::isfinite(mask * static_cast<double>(scores.rows())))
    fail(kName, ": scores are from ", least, " to ", most, ", which leaves no finite number for their sums");
  for (Index r = 0; r < scores.rows(); ++r)
    for (Index c = 0; c < scores.cols(); ++c)
      if (value_.row(r)[c] == -kInfinity) value_.row(r)[c] = mask;
  return most - mask;
}

/// Shares rows out among columns so that the sum of scores(r, column_of[r]) is as large as can be, where of R rows
/// every one of C columns gets floor(R / C) or ceil(R / C).
///   scores     [rows, columns], finite, or -infinity for what should not be: there are as few of those in the result
///              as can be
///   column_of  [rows], overwritten
/// Exact, but for rounding, or by an auction whose sum is at most rows * epsilon below the best one (or rows * spread /
/// 2^40, where the scores are spread so wide; a mask widens it to rows times that). The same result for the same
/// scores; of several that are as good it is one of them. Throws std::invalid_argument for a NaN or +infinity, scores
/// so far apart that their sums overflow, options out of range, and rows without a column.
/// Exact: O(rows^2 columns + rows columns^2) at most. Auction: bids of O(columns + log rows), in practice some hundred
/// per row, at most rows^2, after which the exact method takes over. No allocation when the workspace is warm. One
/// thread.
/// Bertsekas & Castanon, "The auction algorithm for the transportation problem", 1989; Ahuja, Magnanti & Orlin,
/// "Network flows", 1993, section 9.7.
template <class S>
void balanced_assignment(const MatrixView<S>& scores, const BalancedAssignmentOptions& options,
                         AssignmentWorkspace& workspace, std::span<Index> column_of) {
  constexpr const char* kName = "moe::balanced_assignment";
  constexpr Index kMostExact = 2048;
  options.validate(kName);
  if (std::ssize(column_of) != scores.rows())
    fail(kName, ": column_of has ", column_of.size(), " entries, expected one per row = ", scores.rows());
  if (scores.rows() == 0) return;
  if (scores.cols() == 0) fail(kName, ": there are ", scores.rows(), " rows and no columns, expected at least 1");
  const double spread = workspace.copy<S>(scores, options.epsilon);
  const detail::BalancedSizes sizes(scores.rows(), scores.cols());
  const bool exact = options.solver == AssignmentSolver::Exact ||
                     (options.solver == AssignmentSolver::Automatic && sizes.rows <= kMostExact);
  const double epsilon = std::max(options.epsilon, std::ldexp(spread, -40));
  if (!exact && sizes.columns > 1 && workspace.auction_.run(workspace.value_, sizes, spread, epsilon, column_of))
    return;
  workspace.exact_.run(workspace.value_, sizes, column_of);
}

/// The same with memory of its own.
template <class S>
std::vector<Index> balanced_assignment(const Matrix<S>& scores, const BalancedAssignmentOptions& options = {}) {
  AssignmentWorkspace workspace;
  std::vector<Index> column_of(static_cast<std::size_t>(scores.rows()));
  balanced_assignment<S>(scores, options, workspace, column_of);
  return column_of;
}

}  // namespace moe::inline MOE_ABI
