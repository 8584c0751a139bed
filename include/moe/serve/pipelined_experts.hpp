// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "moe/serve/cached_experts.hpp"
#include "moe/serve/load_schedule.hpp"
#include "moe/serve/nested_experts.hpp"

namespace moe::inline MOE_ABI {

/// What PipelinedExperts have done.
struct PipelineStatistics {
  std::int64_t calls = 0, loads = 0;  ///< with rows; levels of experts
  std::uint64_t loaded_bytes = 0;     ///< of the file
  std::uint64_t peak_bytes = 0;       ///< most that experts of a call were admitted for; never above the budget
  double load_seconds = 0;            ///< in which the loading threads read
  double compute_seconds = 0;         ///< in which callers put planes together and ran rows
  double stall_seconds = 0;           ///< in which callers waited for planes
};

namespace detail {

/// One call: a thread that reads levels in the order of a schedule, as far as experts fit, and who takes them.
template <class E>
class LevelPipeline {
 public:
  struct Loaded {
    LoadJob job;
    typename NestedExpertFile<E>::Level level;
  };

  LevelPipeline(const NestedExpertFile<E>& file, std::size_t budget, std::span<const LoadJob> jobs,
                std::span<const Index> order)
      : file_(file), budget_(budget), top_(static_cast<std::size_t>(file.size()), -1), admitted_(top_.size()) {
    for (const Index i : order) pending_.push_back(jobs[static_cast<std::size_t>(i)]);
    for (const LoadJob& job : jobs) {
      Index& top = top_[static_cast<std::size_t>(job.expert)];
      top = std::max(top, job.level);
    }
    thread_ = std::thread([this] { run(); });
  }
  LevelPipeline(const LevelPipeline&) = delete;
  LevelPipeline& operator=(const LevelPipeline&) = delete;
  ~LevelPipeline() {
    {
      const std::lock_guard lock(mutex_);
      stops_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  /// The next level that has come; waits for it. Throws what reading it has thrown.
  Loaded take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !loaded_.empty() || error_; });
    if (loaded_.empty()) std::rethrow_exception(error_);
    Loaded result = std::move(loaded_.front());
    loaded_.pop_front();
    return result;
  }
  bool is_last(const LoadJob& job) const { return job.level == top_[static_cast<std::size_t>(job.expert)]; }
  /// The expert is gone, and its room free.
  void finish(Index expert) {
    {
      const std::lock_guard lock(mutex_);
      used_ -= room_of(expert);
    }
    changed_.notify_all();
  }

  std::size_t peak_bytes() const {
    const std::lock_guard lock(mutex_);
    return peak_;
  }
  double load_seconds() const {
    const std::lock_guard lock(mutex_);
    return seconds_;
  }

 private:
  std::size_t room_of(Index expert) const { return file_.bytes(expert, top_[static_cast<std::size_t>(expert)]); }

  /// The first job of the schedule whose expert is there or fits with all of its levels, so that each expert that has
  /// been begun can be finished, whatever the order. Nothing while none does.
  std::optional<LoadJob> next() {
    for (auto job = pending_.begin(); job != pending_.end(); ++job) {
      const auto e = static_cast<std::size_t>(job->expert);
      const std::size_t room = room_of(job->expert);
      if (!admitted_[e]) {
        if (room > budget_ - used_) continue;
        admitted_[e] = true;
        used_ += room;
        peak_ = std::max(peak_, used_);
      }
      const LoadJob result = *job;
      pending_.erase(job);
      return result;
    }
    return std::nullopt;
  }

  void run() {
    std::unique_lock lock(mutex_);
    try {
      while (!pending_.empty()) {
        std::optional<LoadJob> job;
        changed_.wait(lock, [&] { return stops_ || (job = next()); });
        if (stops_) return;
        lock.unlock();
        const auto since = std::chrono::steady_clock::now();
        auto level = file_.read(job->expert, job->level);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - since;
        lock.lock();
        seconds_ += took.count();
        loaded_.push_back({*job, std::move(level)});
        changed_.notify_all();
      }
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      error_ = std::current_exception();
      changed_.notify_all();
    }
  }

  const NestedExpertFile<E>& file_;
  const std::size_t budget_;
  std::vector<Index> top_;    ///< highest level that an expert needs, -1 for none
  mutable std::mutex mutex_;  ///< of all that follows
  std::condition_variable changed_;
  std::vector<bool> admitted_;
  std::deque<LoadJob> pending_;
  std::deque<Loaded> loaded_;
  std::exception_ptr error_;
  std::size_t used_ = 0, peak_ = 0;
  double seconds_ = 0;
  bool stops_ = false;
  std::thread thread_;
};

}  // namespace detail

/// Virtual experts e * levels + l of a file of nested planes as an ExpertSet that keeps none of them: while the caller
/// computes, a thread of the call reads the next planes, in the order of a schedule. Rows of a level run as soon as its
/// planes have come, those of a level that no row needs are not read.
///   const moe::PipelinedExperts<E> experts(file, /*budget=*/1 << 20);
///   const auto served = moe::with_experts(layer, experts);
/// `budget` holds the experts that a call has begun, each with the highest level that it needs; of those that do not
/// fit, the schedule is taken up when another has been finished. Calls of several threads have a budget each. Beside it
/// there are one copy of an expert whose planes are put together, and planes of those begun that have been read and not
/// been taken, at most their bytes once more. The bits of nested_experts(), for every schedule, budget and number of
/// threads. Inference only. Immutable in use, but for what is counted: share freely. Starts a thread per call, for
/// which rows of many tokens pay. "D2MoE: dual routing and dynamic scheduling for efficient on-device MoE-based LLM
/// serving" (arXiv:2504.15299).
template <class E>
class PipelinedExperts {
 public:
  using Scalar = typename E::Scalar;
  static constexpr bool kPerToken = kIsPerToken<E>;

  /// Throws std::invalid_argument for a budget that is smaller than an expert with all levels.
  PipelinedExperts(std::shared_ptr<const NestedExpertFile<E>> file, std::size_t budget,
                   LoadSchedule schedule = hottest_expert_bit_first)
      : file_(std::move(file)),
        budget_(budget),
        schedule_(std::move(schedule)),
        row_width_(detail::lent_row_width(file_->prototype())),
        counted_(std::make_shared<Counted>()) {
    for (Index e = 0; e < file_->size(); ++e)
      if (const std::size_t bytes = file_->bytes(e, file_->levels() - 1); bytes > budget)
        fail("moe::PipelinedExperts: a budget of ", budget, " bytes, expected at least the ", bytes, " of expert ", e);
  }

  /// Virtual ones.
  Index size() const { return file_->size() * file_->levels(); }
  Index levels() const { return file_->levels(); }
  Index input_dim() const { return file_->prototype().input_dim(); }
  Index output_dim() const { return file_->prototype().output_dim(); }
  Index row_width() const { return row_width_; }

  /// See ExpertSet. Throws std::invalid_argument if sizes disagree and for a schedule that is none, std::runtime_error
  /// if planes cannot be read; rows of other experts may have been written then, and the next call is as good as any.
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context,
               RowBuffer<Scalar>& rows) const {
    constexpr const char* kFunction = "moe::PipelinedExperts::forward";
    detail::require_plan_of(kFunction, *this, plan);
    detail::require_plan_rows(kFunction, *this, tokens, plan, "rows", rows);
    const std::vector<LoadJob> jobs = load_jobs(plan, levels());
    if (jobs.empty()) return;
    const std::vector<Index> order = schedule_(jobs);
    require_schedule(kFunction, jobs, order);
    struct Nothing {};
    auto& memory = context.scratch.template get<detail::LentMemory<E, Nothing>>();
    memory.pool.resize(file_->prototype(), size());
    std::vector<std::optional<E>> experts(static_cast<std::size_t>(file_->size()));
    detail::LevelPipeline<E> pipeline(*file_, budget_, jobs, order);
    PipelineStatistics done{.calls = 1};
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const auto since = Clock::now();
      const auto loaded = pipeline.take();
      const auto begin = Clock::now();
      const LoadJob& job = loaded.job;
      std::optional<E>& expert = experts[static_cast<std::size_t>(job.expert)];
      if (!expert) expert.emplace(file_->prototype());
      file_->add(*expert, job.expert, job.level, loaded.level);
      if (const Index virtual_expert = job.expert * levels() + job.level; plan.rows_of(virtual_expert) > 0) {
        memory.pool.lend(virtual_expert, *expert);
        memory.pool.forward(tokens, plan.only(virtual_expert, 1), Context{context.step, memory.experts}, rows);
        memory.pool.take_back(virtual_expert);
      }
      if (pipeline.is_last(job)) {
        expert.reset();
        pipeline.finish(job.expert);
      }
      ++done.loads;
      done.loaded_bytes += file_->file_bytes(job.expert, job.level);
      done.stall_seconds += std::chrono::duration<double>(begin - since).count();
      done.compute_seconds += std::chrono::duration<double>(Clock::now() - begin).count();
    }
    done.peak_bytes = pipeline.peak_bytes();
    done.load_seconds = pipeline.load_seconds();
    count(done);
  }

  /// Of this set and its copies, calls that threw apart.
  PipelineStatistics statistics() const {
    const std::lock_guard lock(counted_->mutex);
    return counted_->sum;
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Counted {
    std::mutex mutex;
    PipelineStatistics sum;
  };

  void count(const PipelineStatistics& done) const {
    const std::lock_guard lock(counted_->mutex);
    PipelineStatistics& sum = counted_->sum;
    sum.calls += done.calls;
    sum.loads += done.loads;
    sum.loaded_bytes += done.loaded_bytes;
    sum.peak_bytes = std::max(sum.peak_bytes, done.peak_bytes);
    sum.load_seconds += done.load_seconds;
    sum.compute_seconds += done.compute_seconds;
    sum.stall_seconds += done.stall_seconds;
  }

  std::shared_ptr<const NestedExpertFile<E>> file_;
  std::size_t budget_;
  LoadSchedule schedule_;
  Index row_width_;
  std::shared_ptr<Counted> counted_;
};

}  // namespace moe::inline MOE_ABI
