// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
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

namespace detail {

/// Adds up the bytes that have been read, and reports them.
class ProgressMeter {
 public:
  ProgressMeter(const LoadProgress& progress, std::uint64_t total)
      : progress_(progress), total_(total), reports_(progress.report && total >= progress.least_bytes) {}

  void add(std::uint64_t bytes) {
    if (!reports_) return;
    const std::uint64_t every = std::max<std::uint64_t>(1, progress_.every_bytes);
    const std::lock_guard lock(mutex_);
    const std::uint64_t before = std::exchange(done_, done_ + bytes);
    if (done_ / every != before / every || done_ == total_) progress_.report(done_, total_);
  }

 private:
  const LoadProgress& progress_;
  std::uint64_t total_, done_ = 0;
  bool reports_;
  std::mutex mutex_;
};

/// The slices of one matrix, WeightSlice::to or to_codes, by output. Throws as WeightLoader::add() says.
template <class Matrix>
std::vector<WeightSlice> slices_of_matrix(const char* function, std::vector<WeightSlice> slices,
                                          Matrix* WeightSlice::*matrix) {
  std::stable_sort(slices.begin(), slices.end(),
                   [](const WeightSlice& a, const WeightSlice& b) { return a.first_output < b.first_output; });
  if (slices.empty() || !(slices.front().*matrix) || slices.front().first_output != 0)
    fail(function, ": no slice for the first output of a matrix, expected slices of all its outputs");
  const Matrix* const to = slices.front().*matrix;
  for (std::size_t s = 0; s < slices.size(); ++s) {
    const WeightSlice& slice = slices[s];
    if (slice.*matrix != to) fail(function, ": slices of several matrices, expected those of one");
    if (!slice.source) fail(function, ": slice ", s, " has no source, expected a weight that was found");
    const Index end = s + 1 < slices.size() ? slices[s + 1].first_output : to->outputs();
    const Index outputs = end - slice.first_output;
    if (slice.outputs != outputs || slice.inputs != to->inputs())
      fail_environment(slice.source.label(), ": weight ", in_quotes(slice.source.name()), " with shape [",
                       join(slice.source.shape(), ", "), "] gives a matrix [", slice.outputs, ", ", slice.inputs,
                       "], expected [", outputs, ", ", to->inputs(), "]");
    slice.require_inside();
  }
  return slices;
}

/// Bytes of the file that they read.
inline std::uint64_t bytes_of(MatrixSlices slices) {
  std::uint64_t bytes = 0;
  for (const WeightSlice& slice : slices) bytes += slice.bytes();
  return bytes;
}

}  // namespace detail

/// Fills panel matrices from the weights of a checkpoint: add() checks and notes, run() loads all of them in parallel,
/// in pieces that are a range of the file each, in the order of the file: so the system reads ahead (asking it to with
/// MADV_WILLNEED made reading half as fast: Linux 6.18, ext4, November 2026). Beside the matrices, memory is some ten
/// KB per worker.
///   moe::WeightLoader loader;
///   for (Index e = 0; e < num_experts; ++e)
///     loader.add(moe::weight_slice(fused, moe::WeightLayout::OutIn, e), experts[e].gate_up());
///   loader.run();
/// The matrices must stay where they are until run() returns. One per thread.
class WeightLoader {
 public:
  /// A whole matrix from one slice; one in paired order takes gates, then ups. Throws std::runtime_error naming the
  /// weight if the shapes differ, std::invalid_argument for a slice beyond the weight.
  void add(const WeightSlice& slice, PanelMatrix<F32>& to) { add({slice.into(to)}); }

  /// Gates and ups into one matrix of twice the outputs, in either order. Throws as above.
  void add_gate_up(const WeightSlice& gate, const WeightSlice& up, PanelMatrix<F32>& to) {
    if (to.outputs() % 2 != 0)
      fail("moe::WeightLoader::add_gate_up: a matrix of ", to.outputs(),
           " outputs for gate and up, expected an even number");
    add({gate.into(to), up.into(to, to.outputs() / 2)});
  }

  /// All slices of one matrix, in any order, each with its place in it. Throws as above, and std::invalid_argument for
  /// slices without a source, of several matrices or of none, or which do not begin with its first output.
  void add(std::vector<WeightSlice> slices) {
    plan(detail::slices_of_matrix("moe::WeightLoader::add", std::move(slices), &WeightSlice::to));
  }

  /// Loads everything that was added, and forgets it. Which thread fills what changes no bit.
  void run(const LoadProgress& progress = {}) {
    std::uint64_t total = 0;
    for (const Piece& piece : pieces_) total += piece.bytes;
    detail::ProgressMeter meter(progress, total);
    std::vector<detail::PanelScratch> scratch(static_cast<std::size_t>(num_workers()));
    parallel_in_order(std::ssize(pieces_), [&](Index task, Index worker) {
      const Piece& piece = pieces_[static_cast<std::size_t>(task)];
      detail::load_panels(matrices_[piece.matrix], piece.begin, piece.end, scratch[static_cast<std::size_t>(worker)]);
      meter.add(piece.bytes);
    });
    matrices_.clear();
    pieces_.clear();
  }

 private:
  struct Piece {
    std::size_t matrix;
    Index begin, end;  ///< panels or inputs, see detail::extent_of
    std::uint64_t bytes;
  };

  void plan(std::vector<WeightSlice> slices) {
    const Index extent = detail::extent_of(slices), step = detail::extent_of_piece(slices);
    const std::uint64_t bytes = detail::bytes_of(slices);
    const auto until = [&](Index i) {
      return i == extent ? bytes : bytes / static_cast<std::uint64_t>(extent) * static_cast<std::uint64_t>(i);
    };
    for (Index begin = 0; begin < extent; begin += step) {
      const Index end = std::min(begin + step, extent);
      pieces_.push_back({matrices_.size(), begin, end, until(end) - until(begin)});
    }
    matrices_.push_back(std::move(slices));
  }

  std::vector<std::vector<WeightSlice>> matrices_;
  std::vector<Piece> pieces_;
};

/// One matrix at once, in parallel. Throws as WeightLoader::add() does.
inline void load_weight(const WeightSlice& slice, PanelMatrix<F32>& to) {
  WeightLoader loader;
  loader.add(slice, to);
  loader.run();
}

}  // namespace moe::inline MOE_ABI
