// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/core/visit.hpp"

namespace moe::inline MOE_ABI {

/// A random sample of tokens of given size, out of any number that pass by: those with the smallest priorities, which
/// are draws keyed by the seed, the number of a token in the data and what it holds. So the sample does not depend on
/// threads, on the order of batches or on how they are cut, and two samples add up to that of all their tokens.
/// capacity * dim floats. A plain value, saved and loaded as state.
class TokenReservoir {
 public:
  TokenReservoir() = default;
  /// Empty. Throws std::invalid_argument for negative sizes.
  TokenReservoir(Index capacity, Index dim, std::uint64_t seed = 0)
      : seed_(seed),
        priority_(Eigen::VectorXd::Constant(detail::checked_size("moe::TokenReservoir", "capacity", capacity), kFree)),
        tokens_(Matrix<float>::Zero(capacity, detail::checked_size("moe::TokenReservoir", "dim", dim))) {}

  Index capacity() const { return tokens_.rows(); }
  Index dim() const { return tokens_.cols(); }
  /// Tokens that it holds.
  Index size() const { return (priority_.array() < kFree).count(); }
  /// [size, dim], by priority.
  Matrix<float> tokens() const { return tokens_.topRows(size()); }

  /// Offers rows of `tokens` for which reaches(t) holds; row t is token first_token + t of the data. Throws
  /// std::invalid_argument for tokens of another width.
  template <class S, class Reaches>
  void add(const ConstMatrixRef<S>& tokens, Index first_token, const Reaches& reaches) {
    detail::require_shape("moe::TokenReservoir::add", "tokens", tokens, tokens.rows(), dim());
    Matrix<float> rows = tokens.template cast<float>();
    std::vector<Candidate> candidates;
    for (Index t = 0; t < rows.rows(); ++t)
      if (reaches(t)) candidates.push_back({priority_of(rows.row(t), first_token + t), rows.row(t).data()});
    keep_first(std::move(candidates));
  }
  /// Throws std::invalid_argument for one of other sizes.
  TokenReservoir& operator+=(const TokenReservoir& other) {
    require_same(other);
    const Matrix<float> rows = other.tokens_;
    std::vector<Candidate> candidates;
    for (Index i = 0; i < other.size(); ++i) candidates.push_back({other.priority_[i], rows.row(i).data()});
    keep_first(std::move(candidates));
    return *this;
  }
  void require_same(const TokenReservoir& other) const {
    if (other.capacity() != capacity() || other.dim() != dim())
      fail("moe::TokenReservoir: += of ", other.capacity(), " tokens of ", other.dim(), ", expected ", capacity(),
           " of ", dim());
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("priority", self.priority_...);
    f("tokens", self.tokens_...);
  }

 private:
  static constexpr double kFree = 2;  // priorities are below 1

  struct Candidate {
    double priority;
    const float* row;
  };

  template <class Row>
  double priority_of(const Row& row, Index number) const {
    std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (Index i = 0; i < row.size(); ++i) hash = (hash ^ std::bit_cast<std::uint32_t>(row[i])) * 0x100000001b3u;
    return RandomField(Purpose::Draw, seed_, hash).uniform(number);
  }

  void keep_first(std::vector<Candidate> candidates) {
    for (Index i = 0; i < size(); ++i) candidates.push_back({priority_[i], tokens_.row(i).data()});
    std::ranges::stable_sort(candidates, {}, &Candidate::priority);
    candidates.resize(std::min(candidates.size(), static_cast<std::size_t>(capacity())));
    Matrix<float> kept = Matrix<float>::Zero(capacity(), dim());
    Eigen::VectorXd priority = Eigen::VectorXd::Constant(capacity(), kFree);
    for (Index i = 0; i < std::ssize(candidates); ++i) {
      const Candidate& candidate = candidates[static_cast<std::size_t>(i)];
      priority[i] = candidate.priority;
      std::copy_n(candidate.row, dim(), kept.row(i).data());
    }
    tokens_ = std::move(kept);
    priority_ = std::move(priority);
  }

  std::uint64_t seed_ = 0;
  Eigen::VectorXd priority_;
  Matrix<float> tokens_;
};

}  // namespace moe::inline MOE_ABI
