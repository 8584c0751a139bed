// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/io/load_panels.hpp"

namespace moe::inline MOE_ABI {

/// What is told about a long load: bytes of the files read so far, and in all.
struct LoadProgress {
  std::function<void(std::uint64_t done, std::uint64_t total)> report = {};  ///< one call at a time, from any thread
  std::uint64_t least_bytes = std::uint64_t{1} << 30;                        ///< smaller loads are not worth a report
};

/// Fills panel matrices from the weights of a checkpoint: add() checks and notes, run() loads all of them in parallel,
/// in pieces of a few panels, straight from the mapped file. Beside the matrices, memory is some hundred KB per worker.
///   moe::WeightLoader loader;
///   for (Index e = 0; e < num_experts; ++e)
///     loader.add(moe::gate_up_halves(moe::weight_slice(fused, moe::WeightLayout::OutIn, e)), experts[e].gate_up());
///   loader.run();
/// The matrices must stay where they are until run() returns. One per thread.
class WeightLoader {
 public:
  /// The slice into a matrix in plain order. Throws std::runtime_error naming the weight if the shapes differ,
  /// std::invalid_argument for a matrix in paired order.
  void add(const WeightSlice& slice, PanelMatrix<F32>& to) {
    if (to.order() != PanelOrder::Plain)
      fail("moe::WeightLoader::add: a matrix in paired order, expected gate and up slices for it");
    require_shape(slice, to.outputs(), to.inputs());
    plan({slice, slice, &to});
  }

  /// Gate and up slices into one matrix of twice the outputs, in either order. Throws as above.
  void add(const GateUpSlices& slices, PanelMatrix<F32>& to) {
    if (to.outputs() % 2 != 0)
      fail("moe::WeightLoader::add: a matrix of ", to.outputs(), " outputs for gate and up, expected an even number");
    require_shape(slices.gate, to.outputs() / 2, to.inputs());
    require_shape(slices.up, to.outputs() / 2, to.inputs());
    plan({slices.gate, slices.up, &to});
  }

  /// Loads everything that was added, and forgets it. Which thread fills what changes no bit.
  void run(const LoadProgress& progress = {}) {
    std::uint64_t total = 0, done = 0;
    for (const Piece& piece : pieces_) total += piece.bytes;
    const bool reports = progress.report && total >= progress.least_bytes;
    std::mutex mutex;
    std::vector<detail::PanelScratch> scratch(static_cast<std::size_t>(num_workers()));
    parallel_for(std::ssize(pieces_), [&](Index task, Index worker) {
      const Piece& piece = pieces_[static_cast<std::size_t>(task)];
      announce(piece);
      detail::load_panels(jobs_[piece.job], piece.begin, piece.end, scratch[static_cast<std::size_t>(worker)]);
      if (!reports) return;
      const std::lock_guard lock(mutex);
      const std::uint64_t before = std::exchange(done, done + piece.bytes);
      if (done / kReportBytes != before / kReportBytes || done == total) progress.report(done, total);
    });
    jobs_.clear();
    pieces_.clear();
  }

 private:
  static constexpr std::uint64_t kReportBytes = std::uint64_t{64} << 20;
  struct Piece {
    std::size_t job;
    Index begin, end;  ///< panels
    std::uint64_t bytes;
  };

  /// Matrices are announced to storage when the one before begins.
  void announce(const Piece& piece) const {
    if (piece.begin != 0) return;
    for (std::size_t job = piece.job == 0 ? 0 : piece.job + 1; job < std::min(piece.job + 2, jobs_.size()); ++job) {
      jobs_[job].lower.announce();
      if (jobs_[job].is_fused()) jobs_[job].upper.announce();
    }
  }

  static void require_shape(const WeightSlice& slice, Index outputs, Index inputs) {
    if (slice.outputs != outputs || slice.inputs != inputs)
      fail_environment(slice.source.label(), ": weight ", detail::in_quotes(slice.source.name()), " with shape [",
                       detail::join(slice.source.shape(), ", "), "] gives a matrix [", slice.outputs, ", ",
                       slice.inputs, "], expected [", outputs, ", ", inputs, "]");
  }

  void plan(detail::PanelJob job) {
    const Index panels = job.to->panels(), step = detail::panels_at_once(job);
    const std::uint64_t bytes = job.lower.bytes() + (job.is_fused() ? job.upper.bytes() : 0);
    for (Index begin = 0; begin < panels; begin += step) {
      const Index end = std::min(begin + step, panels);
      const auto until = [&](Index p) {
        return bytes / static_cast<std::uint64_t>(panels) * static_cast<std::uint64_t>(p);
      };
      pieces_.push_back({jobs_.size(), begin, end, until(end) - until(begin)});
    }
    jobs_.push_back(std::move(job));
  }

  std::vector<detail::PanelJob> jobs_;
  std::vector<Piece> pieces_;
};

/// One matrix at once, in parallel. Throws as WeightLoader::add() does.
inline void load_weight(const WeightSlice& slice, PanelMatrix<F32>& to) {
  WeightLoader loader;
  loader.add(slice, to);
  loader.run();
}

/// The matrix of gates and ups of a GLU at once, in parallel. Throws as WeightLoader::add() does.
inline void load_weight(const GateUpSlices& slices, PanelMatrix<F32>& to) {
  WeightLoader loader;
  loader.add(slices, to);
  loader.run();
}

}  // namespace moe::inline MOE_ABI
