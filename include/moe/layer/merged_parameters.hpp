// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/simd.hpp"

// Weighted sums of the parameters of experts that are alike, over their leaves in the order of visit().
namespace moe::inline MOE_ABI::detail {

/// Where the scalars of every leaf of every expert lie. Reused call after call it allocates only to grow.
class ParameterTable {
 public:
  template <class Pool>
  void build(const Pool& pool) {
    data_.clear();
    Collect collect{data_};
    for (Index e = 0; e < pool.size(); ++e) visit(collect, pool[e]);
    num_experts_ = pool.size();
  }
  Index num_experts() const { return num_experts_; }
  template <class S>
  const S* leaf(Index e, std::size_t leaf) const {
    const std::size_t leaves = data_.size() / static_cast<std::size_t>(num_experts_);
    return static_cast<const S*>(data_[static_cast<std::size_t>(e) * leaves + leaf]);
  }

 private:
  struct Collect {
    std::vector<const void*>& data;
    void prefix(std::string_view) {}
    template <class Leaf>
    void operator()(std::string_view, const Leaf& leaf) {
      data.push_back(parameter_span(leaf).data());
    }
  };

  std::vector<const void*> data_;
  Index num_experts_ = 0;
};

/// to[i] = factor * from[i], or plus what is there.
template <class S>
void scale_into(S factor, const S* from, Index n, S* to) {
  const simd::Batch<S> f(factor);
  simd::for_each<S>(
      n, [&](Index i) { simd::store(to + i, f * simd::load(from + i)); },
      [&](Index i, Index rest) { simd::store_partial(to + i, f * simd::load_partial(from + i, rest, S{0}), rest); });
}
template <class S>
void add_scaled(S factor, const S* from, Index n, S* to) {
  const simd::Batch<S> f(factor);
  simd::for_each<S>(
      n, [&](Index i) { simd::store(to + i, simd::fma(f, simd::load(from + i), simd::load(to + i))); },
      [&](Index i, Index rest) {
        const auto sum = simd::fma(f, simd::load_partial(from + i, rest, S{0}), simd::load_partial(to + i, rest, S{0}));
        simd::store_partial(to + i, sum, rest);
      });
}

/// Visitor that sets leaves to the weighted sums of those of the experts, ascending. Experts without weight are not
/// read, and one that has all of it is copied.
struct MergeInto {
  const ParameterTable& table;
  const double* share;
  std::size_t next = 0;

  static constexpr Index kScalarsPerTask = 1 << 14;

  void prefix(std::string_view) {}
  template <class Leaf>
  void operator()(std::string_view, Leaf& leaf) {
    const auto to = parameter_span(leaf);
    using S = std::remove_cvref_t<decltype(to[0])>;
    const std::size_t index = next++;
    parallel_ranges(std::ssize(to), kScalarsPerTask, [&, index](Index begin, Index end, Index) {
      bool is_first = true;
      for (Index e = 0; e < table.num_experts(); ++e) {
        const S factor = static_cast<S>(share[e]);
        if (factor == 0) continue;
        (is_first ? scale_into<S> : add_scaled<S>)(factor, table.leaf<S>(e, index) + begin, end - begin,
                                                   to.data() + begin);
        is_first = false;
      }
      if (is_first) std::fill(to.begin() + begin, to.begin() + end, S{0});
    });
  }
};

/// merged = sum_e share[e] * expert e.
template <class E>
void merge(const ParameterTable& table, const double* share, E& merged) {
  MergeInto visitor{table, share};
  visit(visitor, merged);
}

/// Visitor over the gradient of the merged parameters, an expert and its gradient.
struct MergeBackward {
  double share;
  double dshare = 0;

  void prefix(std::string_view) {}
  template <class Leaf>
  void operator()(std::string_view, const Leaf& dmerged, const Leaf& leaf, Leaf& gradient) {
    const auto d = parameter_span(dmerged), w = parameter_span(leaf);
    const auto to = parameter_span(gradient);
    using S = std::remove_cvref_t<decltype(to[0])>;
    constexpr std::size_t kSums = 16;  // side by side, as one would wait for itself
    std::array<double, kSums> sum = {};
    const std::size_t body = d.size() - d.size() % kSums;
    for (std::size_t i = 0; i < body; i += kSums)
      for (std::size_t j = 0; j < kSums; ++j) sum[j] += static_cast<double>(d[i + j]) * static_cast<double>(w[i + j]);
    for (std::size_t i = body; i < d.size(); ++i)
      sum[i - body] += static_cast<double>(d[i]) * static_cast<double>(w[i]);
    for (const double part : sum) dshare += part;
    if (share != 0) add_scaled<S>(static_cast<S>(share), d.data(), std::ssize(d), to.data());
  }
};

/// dshare[e] = <dmerged, expert e>, overwritten, and gradient of expert e += share[e] * dmerged: an expert per task.
template <class Pool, class E>
void merge_backward(const Pool& pool, const E& dmerged, const double* share, Pool& gradient,
                    std::vector<double>& dshare) {
  dshare.resize(static_cast<std::size_t>(pool.size()));
  parallel_for(pool.size(), [&](Index e, Index) {
    MergeBackward visitor{share[e]};
    visit(visitor, dmerged, pool[e], gradient[e]);
    dshare[static_cast<std::size_t>(e)] = visitor.dshare;
  });
}

/// `zeros` = zeros_like(object), in the memory that it has where the shapes are those.
template <class E>
void make_zeros_like(const E& object, std::optional<E>& zeros) {
  if (zeros && Fingerprint::of(*zeros) == Fingerprint::of(object)) {
    SameLayout layouts;
    visit(layouts, *zeros, object);
    if (layouts.same) return set_zero(*zeros);
  }
  zeros = zeros_like(object);
}

}  // namespace moe::inline MOE_ABI::detail
