// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/io/block/load_quantised_block.hpp"
#include "moe/io/checkpoint/weight_writer.hpp"

namespace moe::inline MOE_ABI {

/// What becomes of shared experts when a block is written in few bits.
enum class SharedExperts { Quantise, Leave };

/// How far rounded weights are from the others: sums over all of them.
struct WeightError {
  double squared_error = 0, squared_weights = 0;

  /// Relative, root of the mean square: 0 where there are no weights.
  double relative() const { return squared_weights > 0 ? std::sqrt(squared_error / squared_weights) : 0; }
  WeightError& operator+=(const WeightError& other) {
    squared_error += other.squared_error;
    squared_weights += other.squared_weights;
    return *this;
  }
};

namespace detail {

/// Where a block is written that lies at `from`. Experts that are stacked in one tensor are taken apart where their
/// family is published so, too, as other programs read them in few bits; GPT-OSS stays stacked. Throws
/// std::invalid_argument for layouts in which nobody would read the family.
inline BlockLocation written_location(const MoeConfig& config, const BlockLocation& from, Index layer,
                                      const WeightWriter& writer) {
  using enum ExpertLayout;
  const bool is_blocks = writer.stacks() == Stacks::Needed;
  const bool in_turns = from.format.layout == FusedInterleaved || from.format.layout == FusedInterleavedOutIn;
  if (in_turns && is_blocks) return {from.format, from.prefix, /*is_quantised=*/true};
  if (from.format.layout == PerExpert && !is_blocks) return from;
  if (!in_turns && !is_blocks)
    for (const FamilyFormat& format : find_family(config.family)->formats) {
      const bool has_gates = !format.gate.empty(), is_default = from.prefix == numbered_name(from.format.prefix, layer);
      if (format.layout == PerExpert && has_gates == is_gated(config.expert) && is_default &&
          format.prefix.starts_with("model.language_model.") == from.prefix.starts_with("model.language_model."))
        return {format, numbered_name(format.prefix, layer)};
    }
  if (from.format.layout == FusedOutIn && !is_blocks && writer.stacks() == Stacks::Taken) return from;
  fail("moe::quantise_checkpoint: family '", config.family, "' in ", writer.name(), ", expected ",
       in_turns    ? "MXFP4 in blocks, as it is published"
       : is_blocks ? "a layout for experts one by one"
                   : "a family whose experts lie one by one, or FP8 in blocks where they are stacks [out, in]");
}

/// What a bound tensor fills: tensors of two locations that fill the same are the same.
inline std::pair<const void*, Index> target_of(const BoundTensor& tensor) {
  if (tensor.numbers) return {tensor.numbers, 0};
  const WeightSlice& first = tensor.slices.front();
  return {first.to ? static_cast<const void*>(first.to) : first.to_codes, first.first_output};
}

}  // namespace detail

/// A block of a checkpoint, planned to be written in few bits before any weight of it is read: names, types and shapes
/// of what goes and comes. Then write() takes the block in few bits, made by whoever knows how.
///   const moe::PackedIntsWriter writer;
///   const moe::BlockWriter block(checkpoint, config, {.layer = 3}, writer);
///   moe::TensorGroup group = block.group();
///   group.write = [&](moe::TensorSink& to) { block.write(moe::quantise(floats, writer.format()), to); };
/// Keeps references to its arguments. Immutable once made, share freely.
class BlockWriter {
 public:
  /// Throws as load_moe_block() for a block that is missing, misshaped or stored otherwise than the configuration says,
  /// and std::invalid_argument for a layout that the family or a shape does not have.
  BlockWriter(const Checkpoint& checkpoint, const MoeConfig& config, const LoadOptions& options,
              const WeightWriter& writer, SharedExperts shared = SharedExperts::Quantise)
      : writer_(writer),
        shared_(shared),
        from_(find_block(checkpoint, config, options)),
        to_(detail::written_location(config, from_, options.layer, writer)) {
    detail::require_sizes(checkpoint, config, from_);
    QuantisedMoeBlock block(config);
    const auto before = bind_weights(block, from_), after = bind_weights(block, to_);
    sources_ = detail::sources_of(checkpoint, config, before);
    detail::require_stated(config, from_, before, sources_);
    std::map<std::pair<const void*, Index>, std::size_t> place;
    for (std::size_t t = 0; t < before.size(); ++t) {
      planned_.emplace_back(before[t].name, before[t].shape);
      place.emplace(detail::target_of(before[t]), t);
      if (!is_written(before[t], from_)) continue;
      for (const std::string& name : sources_[t].stored_names()) replace(checkpoint, name);
    }
    for (const BoundTensor& tensor : after) {
      if (is_written(tensor, to_)) {
        for (const WeightWriter::Part& part : writer.parts(tensor.name, tensor.shape)) add(part.name, part.info);
      } else if (const std::size_t t = place.at(detail::target_of(tensor)); before[t].name != tensor.name) {
        rename(checkpoint, sources_[t], tensor.name);
      }
    }
  }

  BlockWriter(const Checkpoint&, const MoeConfig&, const LoadOptions&, const WeightWriter&&,
              SharedExperts = SharedExperts::Quantise) = delete;
  BlockWriter(const Checkpoint&, const MoeConfig&&, const LoadOptions&, const WeightWriter&,
              SharedExperts = SharedExperts::Quantise) = delete;
  BlockWriter(const Checkpoint&&, const MoeConfig&, const LoadOptions&, const WeightWriter&,
              SharedExperts = SharedExperts::Quantise) = delete;

  /// What goes and comes, still without a function that writes it.
  const TensorGroup& group() const { return group_; }
  std::uint64_t bytes_before() const { return bytes_before_; }
  std::uint64_t bytes_after() const { return bytes_after_; }

  /// Writes a block of the same configuration, whose matrices are in the formats of the writer (shared experts that are
  /// left may be in any): their codes and scales bit for bit. Experts are written in parallel; memory: what is packed
  /// of one matrix, and its weights in floats, per worker. Returns how far the codes are from the source. Throws
  /// std::invalid_argument, before it writes anything, for a block of other sizes or formats, and for floats that have
  /// changed.
  template <class = detail::WhenUsed>
  WeightError write(QuantisedMoeBlock block, TensorSink& to) const {
    const auto before = bind_weights(block, from_), after = bind_weights(block, to_);
    require_planned(before);
    require_kept(before);
    for (const auto& [name, view] : renamed_) to.write(name, view.bytes);
    std::vector<Task> tasks;
    std::map<const void*, std::size_t> place;
    for (const BoundTensor& tensor : after)
      if (is_written(tensor, to_)) add_tasks(tensor, place, tasks);
    for (std::vector<WeightSlice>& slices : detail::slices_of(before, sources_))
      if (const auto found = place.find(slices.front().to_codes); found != place.end())
        tasks[found->second].source = std::move(slices);
    for (const Task& task : tasks) require_format(task);
    std::vector<WeightError> errors(tasks.size());
    std::vector<detail::PanelScratch> scratch(static_cast<std::size_t>(num_workers()));
    parallel_in_order(std::ssize(tasks), [&](Index t, Index worker) {
      const Task& task = tasks[static_cast<std::size_t>(t)];
      write_matrix(task, to);
      errors[static_cast<std::size_t>(t)] = error_of(task, scratch[static_cast<std::size_t>(worker)]);
    });
    WeightError sum;
    for (const WeightError& error : errors) sum += error;
    return sum;
  }

 private:
  /// Rows of a matrix that are a whole matrix of a tensor.
  struct Piece {
    std::string name;
    std::vector<Index> shape;         ///< of the tensor
    Index matrix = 0;                 ///< of the tensor
    std::vector<Index> outputs = {};  ///< of the matrix in memory, in the order of the tensor
  };
  struct Task {
    const PanelMatrix<Quantised>* codes = nullptr;
    std::vector<Piece> pieces = {};
    std::vector<WeightSlice> source = {};
  };

  bool is_written(const BoundTensor& tensor, const BlockLocation& location) const {
    if (!detail::is_quantisable(tensor, location)) return false;
    if (shared_ == SharedExperts::Quantise) return true;
    const FamilyFormat& format = location.format;
    for (const std::string_view name : {format.shared_gate, format.shared_up, format.shared_down})
      if (!name.empty() && tensor.name == location.prefix + std::string(name)) return false;
    return true;
  }

  void require_planned(const std::vector<BoundTensor>& tensors) const {
    if (tensors.size() != planned_.size())
      fail("moe::BlockWriter::write: the block fills ", tensors.size(), " tensors, expected ", planned_.size(),
           " as in the checkpoint");
    for (std::size_t t = 0; t < tensors.size(); ++t)
      if (tensors[t].name != planned_[t].first || tensors[t].shape != planned_[t].second)
        fail("moe::BlockWriter::write: the block has ", detail::in_quotes(tensors[t].name), " [",
             detail::join(tensors[t].shape, ", "), "], expected ", detail::in_quotes(planned_[t].first), " [",
             detail::join(planned_[t].second, ", "), "] as in the checkpoint");
  }

  /// Throws where a float of the block is another than in the source: it would not be written.
  void require_kept(const std::vector<BoundTensor>& tensors) const {
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const BoundTensor& tensor = tensors[t];
      if (!tensor.numbers && !tensor.slices.front().to) continue;
      std::vector<float> ours(static_cast<std::size_t>(sources_[t].size())), theirs(ours.size());
      read_bound(tensor, ours);
      sources_[t].read_values(0, theirs);
      const bool are_bits = std::memcmp(ours.data(), theirs.data(), sizeof(float) * ours.size()) == 0;
      if (!are_bits && ours != theirs)
        fail("moe::BlockWriter::write: ", detail::in_quotes(tensor.name),
             " has other numbers than the source, expected only experts' matrices in few bits to change");
    }
  }

  void require_format(const Task& task) const {
    for (const Piece& piece : task.pieces)
      if (const WeightFormat expected = writer_.format_of(piece.name); task.codes->format() != expected)
        fail("moe::BlockWriter::write: ", detail::in_quotes(piece.name), ": codes are ", task.codes->format().name(),
             ", expected ", expected.name(), " of ", writer_.name());
  }

  void replace(const Checkpoint& checkpoint, const std::string& name) {
    if (group_.replaced.insert(name).second) bytes_before_ += checkpoint.at(name).bytes.size();
  }
  void add(const std::string& name, const TensorInfo& info) {
    if (group_.tensors.emplace(name, info).second) bytes_after_ += detail::announced_bytes(name, info);
  }
  void rename(const Checkpoint& checkpoint, const WeightSource& source, const std::string& name) {
    if (source.has_scales())
      fail("moe::quantise_checkpoint: weight ", detail::in_quotes(source.name()), " is stored as ", source.format(),
           " and gets the name ", detail::in_quotes(name), ", expected a plain one");
    const TensorView view = checkpoint.at(source.name());
    replace(checkpoint, source.name());
    add(name, detail::info_of(view));
    renamed_.emplace_back(name, view);
  }

  void add_tasks(const BoundTensor& tensor, std::map<const void*, std::size_t>& place, std::vector<Task>& tasks) const {
    const Index rows = *(tensor.shape.end() - 2), inputs = tensor.shape.back();
    for (const WeightSlice& slice : tensor.slices) {
      const auto [entry, is_new] = place.emplace(slice.to_codes, tasks.size());
      if (is_new) tasks.push_back({.codes = slice.to_codes});
      std::vector<Piece>& pieces = tasks[entry->second].pieces;
      const Index matrix = slice.first / (rows * inputs);
      if (pieces.empty() || pieces.back().name != tensor.name || pieces.back().matrix != matrix)
        pieces.push_back({tensor.name, tensor.shape, matrix, std::vector<Index>(static_cast<std::size_t>(rows), -1)});
      for (Index o = 0; o < slice.outputs; ++o)
        pieces.back().outputs[static_cast<std::size_t>((slice.first + o * slice.output_stride) / inputs % rows)] =
            slice.first_output + o;
    }
  }

  void write_matrix(const Task& task, TensorSink& to) const {
    const CodeRows rows = CodeRows::of(*task.codes);
    for (const Piece& piece : task.pieces) {
      const auto parts = writer_.parts(piece.name, piece.shape);
      const auto bytes = writer_.encode(rows.select(piece.outputs));
      for (std::size_t p = 0; p < parts.size(); ++p)
        to.write(parts[p].name, static_cast<std::uint64_t>(piece.matrix) * bytes[p].size(), bytes[p]);
    }
  }
  template <class = detail::WhenUsed>
  static WeightError error_of(const Task& task, detail::PanelScratch& scratch) {
    PanelMatrix<F32> weights(task.codes->outputs(), task.codes->inputs(), task.codes->order());
    std::vector<WeightSlice> parts;
    for (const WeightSlice& slice : task.source) parts.push_back(slice.into(weights, slice.first_output));
    const auto sorted = detail::slices_of_matrix("moe::BlockWriter::write", std::move(parts), &WeightSlice::to);
    detail::load_panels(sorted, 0, detail::extent_of(sorted), scratch);
    const PanelMatrix<F32> decoded = task.codes->decoded();
    WeightError error;
    for (Index o = 0; o < weights.outputs(); ++o)
      for (Index i = 0; i < weights.inputs(); ++i) {
        const double weight = static_cast<double>(weights(o, i));
        const double distance = static_cast<double>(decoded(o, i)) - weight;
        error.squared_error += distance * distance;
        error.squared_weights += weight * weight;
      }
    return error;
  }

  const WeightWriter& writer_;
  SharedExperts shared_;
  BlockLocation from_, to_;
  std::vector<WeightSource> sources_;
  std::vector<std::pair<std::string, std::vector<Index>>> planned_;  ///< of the sources, names and shapes
  std::vector<std::pair<std::string, TensorView>> renamed_;
  TensorGroup group_;
  std::uint64_t bytes_before_ = 0, bytes_after_ = 0;
};

}  // namespace moe::inline MOE_ABI
