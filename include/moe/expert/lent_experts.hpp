// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/expert/pooled_experts.hpp"

namespace moe::inline MOE_ABI::detail {

/// Experts that are here for a while, as a pool in which the others have no rows; or their gradients.
template <class E>
class LentExperts : public PooledExperts<LentExperts<E>, E> {
 public:
  /// None is here.
  void resize(const E& prototype, Index size) {
    prototype_ = &prototype;
    expert_.assign(static_cast<std::size_t>(size), nullptr);
    gradient_.clear();
  }
  void lend(Index e, const E& expert) { expert_[static_cast<std::size_t>(e)] = &expert; }
  /// One that is written to: all that get rows must be lent so then.
  void lend_gradient(Index e, E& gradient) {
    lend(e, gradient);
    gradient_.resize(expert_.size());
    gradient_[static_cast<std::size_t>(e)] = &gradient;
  }
  /// Before the expert goes: sizes are asked of expert 0, rows or not.
  void take_back(Index e) { expert_[static_cast<std::size_t>(e)] = nullptr; }

  Index size() const { return std::ssize(expert_); }
  Index input_dim() const { return prototype_->input_dim(); }
  Index output_dim() const { return prototype_->output_dim(); }
  const E& operator[](Index e) const {
    const E* const expert = expert_[static_cast<std::size_t>(e)];
    return expert ? *expert : *prototype_;
  }
  E& operator[](Index e) { return *gradient_[static_cast<std::size_t>(e)]; }

 private:
  const E* prototype_ = nullptr;
  std::vector<const E*> expert_;
  std::vector<E*> gradient_;
};

}  // namespace moe::inline MOE_ABI::detail
