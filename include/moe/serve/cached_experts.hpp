// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/expert/checks.hpp"
#include "moe/expert/lent_experts.hpp"
#include "moe/serve/expert_cache.hpp"
#include "moe/serve/expert_file.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Working memory of a set whose experts come and go.
template <class E, class CacheMemory>
struct LentMemory {
  LentExperts<E> pool;
  CacheMemory cache;
  std::vector<Index> ids;
  Scratch experts;  ///< apart: among them may be another such set
};

template <class E>
Index lent_row_width(const E& prototype) {
  LentExperts<E> pool;
  pool.resize(prototype, 1);
  return pool.row_width();
}

}  // namespace detail

/// The experts of a file as an ExpertSet that keeps none of them: each is decoded when a call has rows for it, and
/// dropped after that. Needs the memory of the prototype, an expert and a copy of a matrix; for large batches, and as
/// the baseline of CachedExperts. The bits of the pool that the file was made of. Inference only. Immutable in use,
/// share freely.
template <class E>
class MappedExperts {
 public:
  using Scalar = typename E::Scalar;
  static constexpr bool kPerToken = kIsPerToken<E>;

  explicit MappedExperts(std::shared_ptr<const ExpertFile<E>> file)
      : file_(std::move(file)), row_width_(detail::lent_row_width(file_->prototype())) {}
  explicit MappedExperts(ExpertFile<E> file) : MappedExperts(std::make_shared<const ExpertFile<E>>(std::move(file))) {}

  Index size() const { return file_->size(); }
  Index input_dim() const { return file_->prototype().input_dim(); }
  Index output_dim() const { return file_->prototype().output_dim(); }
  Index row_width() const { return row_width_; }

  /// See ExpertSet. Throws std::invalid_argument if sizes disagree, std::runtime_error if an expert cannot be read;
  /// rows of experts before it have been written then.
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context,
               RowBuffer<Scalar>& rows) const {
    constexpr const char* kFunction = "moe::MappedExperts::forward";
    detail::require_plan_of(kFunction, *this, plan);
    detail::require_plan_rows(kFunction, *this, tokens, plan, "rows", rows);
    struct Nothing {};
    auto& memory = context.scratch.get<detail::LentMemory<E, Nothing>>();
    memory.pool.resize(file_->prototype(), size());
    for (Index e = 0; e < size(); ++e) {
      if (plan.rows_of(e) == 0) continue;
      const E expert = file_->load(e);
      memory.pool.lend(e, expert);
      memory.pool.forward(tokens, plan.only(e, 1), Context{context.step, memory.experts}, rows);
      memory.pool.take_back(e);
    }
  }

 private:
  std::shared_ptr<const ExpertFile<E>> file_;
  Index row_width_;
};

/// More experts than memory: an ExpertSet whose experts are loaded when a call has rows for them, and kept within a
/// budget of bytes, as a policy says.
///   moe::save_parameters("experts.safetensors", layer.experts());
///   const auto experts = moe::CachedExperts<moe::Glu, moe::Lfu>::from_file(
///       {"experts.safetensors", moe::Glu(64, 256)}, /*budget=*/1 << 20);
///   const auto served = moe::with_experts(layer, experts);  // the bits of the layer itself
/// A call runs in waves: the experts that are there, then, as many at a time as fit, those that have to be loaded; with
/// a budget of one expert one by one. The bits of a pool of all experts, for any budget, policy, number of threads and
/// whatever else uses the cache. Copies share it, and so may the layers of a model, each with a range of its experts.
/// Inference only. Immutable but for the cache, which is internally synchronised: share freely.
template <class E, CachePolicy P = Lru>
class CachedExperts {
 public:
  using Scalar = typename E::Scalar;
  using Cache = ExpertCache<E, P>;
  static constexpr bool kPerToken = kIsPerToken<E>;

  /// Experts [first, first + count) of a cache that others may use, too; all of them from `first` on without a count.
  /// `prototype` is an expert of the sizes that all of them have; it stays here. Throws std::invalid_argument for a
  /// range that the cache does not have.
  CachedExperts(E prototype, std::shared_ptr<Cache> cache, Index first = 0, Index count = -1)
      : prototype_(std::make_shared<const E>(std::move(prototype))),
        cache_(std::move(cache)),
        first_(first),
        size_(count < 0 ? cache_->size() - first : count),
        row_width_(detail::lent_row_width(*prototype_)) {
    if (first < 0 || size_ < 1 || first > cache_->size() - size_)
      fail("moe::CachedExperts: experts [", first, ", ", first, " + ", size_, "), expected at least one, in [0, ",
           cache_->size(), ")");
  }
  /// All experts of a file. Throws as ExpertFile and ExpertCache do.
  static CachedExperts from_file(ExpertFile<E> file, std::size_t budget, P policy = P(),
                                 std::size_t prefetch_bytes = 0) {
    const auto shared = std::make_shared<const ExpertFile<E>>(std::move(file));
    return CachedExperts(shared->prototype(), std::make_shared<Cache>(
                                                  shared->bytes(), [shared](Index e) { return shared->load(e); },
                                                  budget, std::move(policy), prefetch_bytes));
  }

  Index size() const { return size_; }
  Index input_dim() const { return prototype_->input_dim(); }
  Index output_dim() const { return prototype_->output_dim(); }
  Index row_width() const { return row_width_; }
  /// Shared by copies: const is the set, not what it keeps.
  Cache& cache() const { return *cache_; }

  /// Lets the background thread of the cache load these experts for a call to come; see ExpertCache::prefetch().
  void prefetch(std::span<const Index> experts) const {
    std::vector<Index> ids;
    for (const Index e : experts)
      if (e >= 0 && e < size_) ids.push_back(first_ + e);
    cache_->prefetch(ids);
  }

  /// See ExpertSet. Throws std::invalid_argument if sizes disagree, std::runtime_error if an expert cannot be loaded;
  /// rows of other experts may have been written then, and the cache is as usable as before. Does not allocate when
  /// warm and all experts that have rows are there.
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context,
               RowBuffer<Scalar>& rows) const {
    constexpr const char* kFunction = "moe::CachedExperts::forward";
    detail::require_plan_of(kFunction, *this, plan);
    detail::require_plan_rows(kFunction, *this, tokens, plan, "rows", rows);
    auto& memory = context.scratch.get<detail::LentMemory<E, typename Cache::Memory>>();
    memory.ids.clear();
    for (Index e = 0; e < size_; ++e)
      if (plan.rows_of(e) > 0) memory.ids.push_back(first_ + e);
    memory.pool.resize(*prototype_, size_);
    cache_->serve(memory.ids, memory.cache, [&](std::span<const Index> wave) {
      for (const Index id : wave) memory.pool.lend(id - first_, (*cache_)[id]);
      for_each_run(memory.ids, wave, [&](Index first, Index last) {
        const PlanView part = plan.only(first - first_, last - first + 1);
        memory.pool.forward(tokens, part, Context{context.step, memory.experts}, rows);
      });
      for (const Index id : wave) memory.pool.take_back(id - first_);
    });
  }

 private:
  /// Calls f(first, last) for the runs of a wave in between which no other of `ids` lies: their rows are in one piece.
  template <class F>
  static void for_each_run(const std::vector<Index>& ids, std::span<const Index> wave, const F& f) {
    auto id = ids.begin();
    for (std::size_t i = 0; i < wave.size();) {
      id = std::find(id, ids.end(), wave[i]);
      std::size_t count = 0;
      while (i + count < wave.size() && id != ids.end() && *id == wave[i + count]) ++count, ++id;
      f(wave[i], wave[i + count - 1]);
      i += count;
    }
  }

  std::shared_ptr<const E> prototype_;
  std::shared_ptr<Cache> cache_;
  Index first_, size_, row_width_;
};

}  // namespace moe::inline MOE_ABI
