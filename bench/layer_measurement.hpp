// SPDX-License-Identifier: MIT
// One cell of the table: a layer of some shape on some tokens, ours and the peers'.
#pragma once

#include <optional>

#include "measure.hpp"
#include "peers/peer.hpp"

namespace bench {

enum class Pass { Forward, Backward };
enum class Peers { All, None };

/// What is measured on a layer.
struct Cell {
  Index tokens = 1;
  int threads = 1;
  Pattern pattern = Pattern::Uniform;
  Pass pass = Pass::Forward;
};

/// A cell with its numbers; the first timing is ours.
struct CellResult {
  Shape shape;
  Cell cell;
  Measurement measurement;
  std::vector<std::string> wrong;  ///< peers that were left out as their results differ from ours
  const Timing& ours() const { return measurement.timings.front(); }
  const Timing* naive() const;      ///< the Eigen loop; nullptr without peers
  const Timing* best_peer() const;  ///< the fastest, Eigen's loop included; nullptr without peers
};

/// Operations and bytes of one pass over routed tokens: every weight of a touched expert once (backward: and its
/// gradient read and written), the router, and the rows in and out.
Work work_of(const Shape& shape, const moe::DispatchPlan& plan, Pass pass);

/// Bytes of the experts that have rows.
Index touched_bytes(const Shape& shape, const moe::DispatchPlan& plan);

/// A layer and its peers, for any number of cells.
class LayerBench {
 public:
  /// Throws std::runtime_error if memory is too small for the weights: times two with peers, times four to train, and
  /// once more where oneDNN copies them.
  LayerBench(const Shape& shape, Peers peers, Pass most);

  /// Bytes that a LayerBench takes.
  static Index bytes_needed(const Shape& shape, Peers peers, Pass most);

  CellResult measure(const Cell& cell, const Effort& effort);

  const Layer& layer() const { return layer_; }

 private:
  struct Inputs;
  Contestant our_contestant(Inputs& inputs, Pass pass);
  Contestant peer_contestant(Peer& peer, Inputs& inputs, Pass pass);
  bool agrees(const Inputs& peers, const Inputs& ours, Pass pass) const;

  Shape shape_;
  PlainWeights weights_;
  Layer layer_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::optional<Layer> gradient_;
  std::optional<PlainWeights> peer_gradient_;
  moe::Workspace workspace_;
  Layer::Tape tape_;
};

}  // namespace bench
