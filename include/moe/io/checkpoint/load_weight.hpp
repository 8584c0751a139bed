// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/io/checkpoint/load_panels.hpp"

namespace moe::inline MOE_ABI {

/// What is told about a long load: bytes of the files read so far, and in all.
struct LoadProgress {
  std::function<void(std::uint64_t done, std::uint64_t total)> report = {};  ///< one call at a time, from any thread
  std::uint64_t least_bytes = std::uint64_t{1} << 30;                        ///< smaller loads are not worth a report
  std::uint64_t every_bytes = std::uint64_t{64} << 20;                       ///< between reports, about; not 0
};

/// Fills panel matrices from the weights of a checkpoint: add() checks and notes, run() loads all of them in parallel,
/// in pieces that are a range of the file each, in the order of the file: so the system reads ahead (asking it to with
/// MADV_WILLNEED made reading half as fast: Linux 6.18, ext4, November 2026). Beside the matrices, memory is some ten
/// KB per worker.
///   moe::WeightLoader loader;
///   for (Index e = 0; e < num_experts; ++e)
///     loader.add(moe::gate_up_halves(moe::weight_slice(fused, moe::WeightLayout::OutIn, e)), experts[e].gate_up());
///   loader.run();
/// The matrices must stay where they are until run() returns. One per thread.
class WeightLoader {
 public:
  /// The slice into a matrix in plain order. Throws std::runtime_error naming the weight if the shapes differ,
  /// std::invalid_argument for a matrix in paired order, or a slice beyond the weight.
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
    const std::uint64_t every = std::max<std::uint64_t>(1, progress.every_bytes);
    std::mutex mutex;
    std::vector<detail::PanelScratch> scratch(static_cast<std::size_t>(num_workers()));
    parallel_for(std::ssize(pieces_), [&](Index task, Index worker) {
      const Piece& piece = pieces_[static_cast<std::size_t>(task)];
      detail::load_panels(jobs_[piece.job], piece.begin, piece.end, scratch[static_cast<std::size_t>(worker)]);
      if (!reports) return;
      const std::lock_guard lock(mutex);
      const std::uint64_t before = std::exchange(done, done + piece.bytes);
      if (done / every != before / every || done == total) progress.report(done, total);
    });
    jobs_.clear();
    pieces_.clear();
  }

 private:
  struct Piece {
    std::size_t job;
    Index begin, end;  ///< panels or inputs, see detail::extent_of
    std::uint64_t bytes;
  };

  static void require_shape(const WeightSlice& slice, Index outputs, Index inputs) {
    if (slice.outputs != outputs || slice.inputs != inputs)
      fail_environment(slice.source.label(), ": weight ", detail::in_quotes(slice.source.name()), " with shape [",
                       detail::join(slice.source.shape(), ", "), "] gives a matrix [", slice.outputs, ", ",
                       slice.inputs, "], expected [", outputs, ", ", inputs, "]");
    slice.require_inside();
  }

  void plan(detail::PanelJob job) {
    const Index extent = detail::extent_of(job), step = detail::extent_of_piece(job);
    const std::uint64_t bytes = job.lower.bytes() + (job.is_fused() ? job.upper.bytes() : 0);
    const auto until = [&](Index i) {
      return i == extent ? bytes : bytes / static_cast<std::uint64_t>(extent) * static_cast<std::uint64_t>(i);
    };
    for (Index begin = 0; begin < extent; begin += step) {
      const Index end = std::min(begin + step, extent);
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
