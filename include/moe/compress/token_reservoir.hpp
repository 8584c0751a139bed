// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
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
      : seed_(static_cast<double>(seed >> 32), static_cast<double>(seed & 0xffffffffu)),
        priority_(Eigen::VectorXd::Constant(detail::checked_size("moe::TokenReservoir", "capacity", capacity), kFree)),
        tokens_(Matrix<float>::Zero(capacity, detail::checked_size("moe::TokenReservoir", "dim", dim))) {}

  Index capacity() const { return tokens_.rows(); }
  Index dim() const { return tokens_.cols(); }
  /// Tokens that it holds.
  Index size() const { return (priority_.array() < kFree).count(); }
  /// [size, dim], by priority. Throws std::invalid_argument where what was loaded is no sample.
  Matrix<float> tokens() const {
    require_sample("moe::TokenReservoir::tokens");
    return tokens_.topRows(size());
  }

  /// Offers rows of `tokens` for which reaches(t) holds; row t is token first_token + t of the data. Throws
  /// std::invalid_argument for tokens of another width, and where what was loaded is no sample.
  template <class S, class Reaches>
  void add(const ConstMatrixRef<S>& tokens, Index first_token, const Reaches& reaches) {
    detail::require_shape("moe::TokenReservoir::add", "tokens", tokens, tokens.rows(), dim());
    require_sample("moe::TokenReservoir::add");
    const std::uint64_t seed = this->seed();
    Matrix<float> rows = tokens.template cast<float>();
    std::vector<Candidate> candidates;
    for (Index t = 0; t < rows.rows(); ++t)
      if (reaches(t)) candidates.push_back({priority_of(rows.row(t), seed, first_token + t), rows.row(t).data()});
    keep_first(std::move(candidates));
  }
  /// Throws std::invalid_argument for one of other sizes or with another seed, and where what was loaded is no sample.
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
    if (capacity() == 0) return;  // holds nothing, whatever its seed
    require_sample("moe::TokenReservoir");
    other.require_sample("moe::TokenReservoir");
    if (other.seed() != seed()) fail("moe::TokenReservoir: += of one with seed ", other.seed(), ", expected ", seed());
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("seed", self.seed_...);
    f("priority", self.priority_...);
    f("tokens", self.tokens_...);
  }

 private:
  static constexpr double kFree = 2;  // priorities are below 1

  struct Candidate {
    double priority;
    const float* row;
  };

  std::uint64_t seed() const {
    return static_cast<std::uint64_t>(seed_[0]) << 32 | static_cast<std::uint64_t>(seed_[1]);
  }

  /// Throws std::invalid_argument, in the name of a method, for a seed that is none, and for priorities that do not
  /// ascend within [0, 1) and then are free.
  void require_sample(const char* function) const {
    for (const double half : seed_)
      if (!(half >= 0 && half < 0x1p32) || half != std::floor(half))
        fail(function, ": half of the seed is ", half, ", expected an integer of 32 bits");
    double last = 0;
    for (Index i = 0; i < capacity(); last = priority_[i++])
      if (const double p = priority_[i]; !(p >= last && (p < 1 || p == kFree)))
        fail(function, ": priority ", i, " is ", p, ", expected ascending ones in [0, 1), then ", kFree);
  }

  template <class Row>
  static double priority_of(const Row& row, std::uint64_t seed, Index number) {
    std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (Index i = 0; i < row.size(); ++i) hash = (hash ^ std::bit_cast<std::uint32_t>(row[i])) * 0x100000001b3u;
    return RandomField(Purpose::Draw, seed, hash).uniform(number);
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

  Eigen::Vector2d seed_ = Eigen::Vector2d::Zero();  // its upper 32 bits, its lower ones: a double holds 53
  Eigen::VectorXd priority_;
  Matrix<float> tokens_;
};

}  // namespace moe::inline MOE_ABI
