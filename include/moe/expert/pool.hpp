// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/core/take.hpp"
#include "moe/expert/pooled_experts.hpp"
#include "moe/expert/widths.hpp"

namespace moe::inline MOE_ABI {

/// Experts of one type and equal outer dimensions as an ExpertSet; see PooledExperts for forward and backward.
/// Immutable in forward, share freely.
template <class E>
class ExpertPool : public PooledExperts<ExpertPool<E>, E> {
 public:
  using Scalar = typename E::Scalar;
  using Tape = typename PooledExperts<ExpertPool, E>::Tape;
  static constexpr bool kPerToken = kIsPerToken<E>;

  /// Throws std::invalid_argument if there is no expert or their dimensions differ.
  explicit ExpertPool(std::vector<E> experts) : experts_(std::move(experts)) {
    if (experts_.empty()) fail("moe::ExpertPool: 0 experts, expected at least 1");
    for (const E& expert : experts_)
      if (expert.input_dim() != input_dim() || expert.output_dim() != output_dim())
        fail("moe::ExpertPool: expert ", &expert - experts_.data(), " maps ", expert.input_dim(), " to ",
             expert.output_dim(), ", expected ", input_dim(), " to ", output_dim(), " as expert 0");
  }

  /// num_experts times E::random(dim, other_dim, a seed of the expert's own, options...): for Mlp and Glu the
  /// dimensions are model_dim and hidden_dim, for Linear output_dim and input_dim.
  template <class... Options>
  static ExpertPool random(Index num_experts, Index dim, Index other_dim, std::uint64_t seed, Options... options) {
    return seeded(num_experts, seed, [&](std::uint64_t own) { return E::random(dim, other_dim, own, options...); });
  }
  /// num_experts times E::random(widths, a seed of the expert's own, options...), as Mlp and Glu have it:
  ///   moe::ExpertPool<moe::Glu>::random(8, {.input = 64, .hidden = 256, .output = 10}, /*seed=*/1)
  template <class... Options>
  static ExpertPool random(Index num_experts, const Widths& widths, std::uint64_t seed, Options... options) {
    return seeded(num_experts, seed, [&](std::uint64_t own) { return E::random(widths, own, options...); });
  }

  Index size() const { return static_cast<Index>(experts_.size()); }
  /// Of expert 0; 0 in a pool that has been moved from.
  Index input_dim() const { return experts_.empty() ? 0 : experts_.front().input_dim(); }
  Index output_dim() const { return experts_.empty() ? 0 : experts_.front().output_dim(); }
  E& operator[](Index e) { return experts_[static_cast<std::size_t>(e)]; }
  const E& operator[](Index e) const { return experts_[static_cast<std::size_t>(e)]; }

  /// Copies of the given experts, in that order. Throws std::invalid_argument as TakesExperts says.
  ExpertPool take(std::span<const Index> ids) const {
    detail::require_ids("moe::ExpertPool::take", ids, size());
    std::vector<E> taken;
    taken.reserve(ids.size());
    for (const Index e : ids) taken.push_back((*this)[e]);
    return ExpertPool(std::move(taken));
  }
  /// Copies of the experts of this pool, then of those of `other`. Throws std::invalid_argument if their dimensions
  /// differ.
  ExpertPool concatenate(const ExpertPool& other) const {
    std::vector<E> all;
    all.reserve(experts_.size() + other.experts_.size());
    all.insert(all.end(), experts_.begin(), experts_.end());
    all.insert(all.end(), other.experts_.begin(), other.experts_.end());
    return ExpertPool(std::move(all));
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    if (((rest.size() != first.size()) || ...)) fail("moe::ExpertPool::visit: the pools have different sizes");
    for (Index e = 0; e < first.size(); ++e) visit_part(f, std::to_string(e), first[e], rest[e]...);
  }

 private:
  template <class Make>
  static ExpertPool seeded(Index num_experts, std::uint64_t seed, const Make& make) {
    std::vector<E> experts;
    const RandomField seeds(Purpose::Initialise, seed);
    for (Index e = 0; e < num_experts; ++e) experts.push_back(make(seeds.bits(e)));
    return ExpertPool(std::move(experts));
  }

  std::vector<E> experts_;
};

}  // namespace moe::inline MOE_ABI
