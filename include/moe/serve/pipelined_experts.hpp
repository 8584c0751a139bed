// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "moe/serve/cached_experts.hpp"
#include "moe/serve/load_schedule.hpp"
#include "moe/serve/nested_expert_file.hpp"

// Long, as a call, the thread that reads for it and the room that calls share belong to one lock.
namespace moe::inline MOE_ABI {

/// What PipelinedExperts have done.
struct PipelineStatistics {
  std::int64_t calls = 0, loads = 0;  ///< with rows; levels of experts
  std::uint64_t loaded_bytes = 0;     ///< of the file
  std::uint64_t peak_bytes = 0;       ///< most that experts of all calls were admitted for; never above the budget
  double load_seconds = 0;            ///< in which the loading threads read
  double compute_seconds = 0;         ///< in which callers put planes together and ran rows
  double stall_seconds = 0;           ///< in which callers waited for planes
};

namespace detail {

/// What calls of a set have begun, and the lock of all of them.
struct SharedRoom {
  std::mutex mutex;
  std::condition_variable changed;
  std::size_t used = 0, peak = 0;
};

/// One call: a thread that reads levels in the order of a schedule, as far as experts fit, and who takes them.
template <class E>
class LevelPipeline {
 public:
  struct Loaded {
    LoadJob job;
    typename NestedExpertFile<E>::Level level;
  };

  LevelPipeline(const NestedExpertFile<E>& file, std::size_t budget, SharedRoom& room, std::span<const LoadJob> jobs,
                std::span<const Index> order)
      : file_(file),
        budget_(budget),
        room_(room),
        top_(static_cast<std::size_t>(file.size()), -1),
        admitted_(top_.size()) {
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
      const std::lock_guard lock(room_.mutex);
      stops_ = true;
    }
    room_.changed.notify_all();
    thread_.join();
    loaded_.clear();
    for (Index e = 0; e < std::ssize(top_); ++e)
      if (admitted_[static_cast<std::size_t>(e)]) finish(e);  // where something threw
  }

  /// The next level that has come; waits for it. Throws what reading it has thrown.
  Loaded take() {
    std::unique_lock lock(room_.mutex);
    room_.changed.wait(lock, [&] { return !loaded_.empty() || error_; });
    if (loaded_.empty()) std::rethrow_exception(error_);
    Loaded result = std::move(loaded_.front());
    loaded_.pop_front();
    return result;
  }
  bool is_last(const LoadJob& job) const { return job.level == top_[static_cast<std::size_t>(job.expert)]; }
  /// The expert is gone, and its room free.
  void finish(Index expert) {
    {
      const std::lock_guard lock(room_.mutex);
      room_.used -= room_of(expert);
      admitted_[static_cast<std::size_t>(expert)] = false;
    }
    room_.changed.notify_all();
  }

  double load_seconds() const {
    const std::lock_guard lock(room_.mutex);
    return seconds_;
  }

 private:
  std::size_t room_of(Index expert) const { return file_.bytes(expert, top_[static_cast<std::size_t>(expert)]); }

  /// The first job of the schedule whose expert is there or fits with all of its levels, so that each expert that has
  /// been begun can be finished, whatever the order and whatever other calls have begun. Nothing while none does.
  std::optional<LoadJob> next() {
    for (auto job = pending_.begin(); job != pending_.end(); ++job) {
      const auto e = static_cast<std::size_t>(job->expert);
      const std::size_t room = room_of(job->expert);
      if (!admitted_[e]) {
        if (room > budget_ - room_.used) continue;
        admitted_[e] = true;
        room_.used += room;
        room_.peak = std::max(room_.peak, room_.used);
      }
      const LoadJob result = *job;
      pending_.erase(job);
      return result;
    }
    return std::nullopt;
  }

  void run() {
    std::unique_lock lock(room_.mutex);
    try {
      while (!pending_.empty()) {
        std::optional<LoadJob> job;
        room_.changed.wait(lock, [&] { return stops_ || (job = next()); });
        if (stops_) return;
        lock.unlock();
        const auto since = std::chrono::steady_clock::now();
        auto level = file_.read(job->expert, job->level);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - since;
        lock.lock();
        seconds_ += took.count();
        job->load = took.count();
        loaded_.push_back({*job, std::move(level)});
        room_.changed.notify_all();
      }
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      error_ = std::current_exception();
      room_.changed.notify_all();
    }
  }

  const NestedExpertFile<E>& file_;
  const std::size_t budget_;
  SharedRoom& room_;
  std::vector<Index> top_;  ///< highest level that an expert needs, -1 for none
  // Below the lock of the room:
  std::vector<bool> admitted_;
  std::deque<LoadJob> pending_;
  std::deque<Loaded> loaded_;
  std::exception_ptr error_;
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
/// `budget` holds the experts that calls have begun, of all threads and copies of the set together, each with the
/// highest level that its call needs; of those that do not fit, the schedule is taken up when another has been
/// finished. Beside it there are, for each call, one copy of an expert whose planes are put together, and planes of
/// those begun that have been read and not been taken, at most their bytes once more. The bits of nested_experts(), for
/// every schedule, budget and number of threads. Inference only. Immutable in use, but for what is counted: share
/// freely. Calls take room in no order: one that needs much may wait as long as others keep taking little, and one that
/// an expert makes to the set that runs it may wait for ever. Starts a thread per call, for which rows of many tokens
/// pay. "D2MoE: dual routing and dynamic scheduling for efficient on-device MoE-based LLM serving" (arXiv:2504.15299).
template <class E>
class PipelinedExperts {
 public:
  using Scalar = typename E::Scalar;
  static constexpr bool kPerToken = kIsPerToken<E>;

  /// `costs` are those of the jobs that the schedule sees, for one that looks at seconds. Throws std::invalid_argument
  /// for a budget that is smaller than an expert with all levels, and for costs of other levels.
  PipelinedExperts(std::shared_ptr<const NestedExpertFile<E>> file, std::size_t budget,
                   LoadSchedule schedule = hottest_expert_bit_first, LevelCosts costs = {})
      : file_(std::move(file)),
        budget_(budget),
        schedule_(std::move(schedule)),
        costs_(std::move(costs)),
        row_width_(detail::lent_row_width(file_->prototype())),
        counted_(std::make_shared<Counted>()) {
    costs_.require("moe::PipelinedExperts", levels());
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
    const std::vector<LoadJob> jobs = load_jobs(plan, levels(), costs_);
    if (jobs.empty()) return;
    const std::vector<Index> order = schedule_(jobs);
    require_schedule(kFunction, jobs, order);
    struct Nothing {};
    auto& memory = context.scratch.template get<detail::LentMemory<E, Nothing>>();
    memory.pool.resize(file_->prototype(), size());
    detail::LevelPipeline<E> pipeline(*file_, budget_, counted_->room, jobs, order);
    std::vector<std::optional<E>> experts(static_cast<std::size_t>(file_->size()));  // gone before their room is free
    PipelineStatistics done{.calls = 1};
    std::vector<LoadJob> took;
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
      took.push_back(job);
      took.back().compute = std::chrono::duration<double>(Clock::now() - begin).count();
      ++done.loads;
      done.loaded_bytes += file_->file_bytes(job.expert, job.level);
      done.stall_seconds += std::chrono::duration<double>(begin - since).count();
      done.compute_seconds += took.back().compute;
    }
    done.load_seconds = pipeline.load_seconds();
    count(done, std::move(took));
  }

  /// Of this set and its copies; calls that threw apart, but for peak_bytes.
  PipelineStatistics statistics() const {
    PipelineStatistics result;
    {
      const std::lock_guard lock(counted_->mutex);
      result = counted_->sum;
    }
    const std::lock_guard lock(counted_->room.mutex);
    result.peak_bytes = counted_->room.peak;
    return result;
  }
  /// Of the call, of this set and its copies, that ended last: its jobs in the order in which they were loaded, with
  /// the seconds that each took while others went on. Their makespan() in that order is the time of the call, but for
  /// waiting for room, the start of a thread and waking up. Empty before the first call.
  std::vector<LoadJob> last_jobs() const {
    const std::lock_guard lock(counted_->mutex);
    return counted_->last;
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Counted {
    std::mutex mutex;
    PipelineStatistics sum;
    std::vector<LoadJob> last;
    detail::SharedRoom room;
  };

  void count(const PipelineStatistics& done, std::vector<LoadJob> jobs) const {
    const std::lock_guard lock(counted_->mutex);
    counted_->last = std::move(jobs);
    PipelineStatistics& sum = counted_->sum;
    sum.calls += done.calls;
    sum.loads += done.loads;
    sum.loaded_bytes += done.loaded_bytes;
    sum.load_seconds += done.load_seconds;
    sum.compute_seconds += done.compute_seconds;
    sum.stall_seconds += done.stall_seconds;
  }

  std::shared_ptr<const NestedExpertFile<E>> file_;
  std::size_t budget_;
  LoadSchedule schedule_;
  LevelCosts costs_;
  Index row_width_;
  std::shared_ptr<Counted> counted_;
};

}  // namespace moe::inline MOE_ABI
