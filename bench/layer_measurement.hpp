// SPDX-License-Identifier: MIT
// One cell of the table: a layer of some shape on some tokens, ours and the peers'.
#pragma once

#include <optional>
#include <span>

#include "coded_layer.hpp"
#include "measure.hpp"
#include "peers/peer.hpp"

namespace bench {

enum class Pass { Forward, Backward };
/// FewBits: those whose weights are in few bits, too; forward only.
enum class Peers { All, FewBits, None };

/// What is measured on a layer.
struct Cell {
  Index tokens = 1;
  int threads = 1;
  Pattern pattern = Pattern::Uniform;
  Pass pass = Pass::Forward;
};

/// Who took part.
struct Entry {
  std::string weights = "f32";
  bool is_ours = true;
  double bits = 32;  ///< of a weight
  Index bytes = 0;   ///< of the layer
  double error = 0;  ///< |output - that of our floats| / |that of our floats|
};

/// A cell with its numbers; the first timing is ours.
struct CellResult {
  Shape shape;
  Cell cell;
  Measurement measurement;
  std::vector<Entry> entries;      ///< of the timings; ours come first
  std::vector<std::string> wrong;  ///< peers that were left out as their results differ from ours
  const Timing& ours() const { return measurement.timings.front(); }
  const Timing* floats() const;  ///< ours with float weights; nullptr where they did not take part
  const Timing* timing_of(const std::string& name) const;  ///< nullptr if it did not take part
  const Timing* naive() const;                             ///< the Eigen loop; nullptr without peers
  const Timing* best_peer() const;  ///< the fastest, Eigen's loop included; nullptr without peers
};

/// Operations and bytes of one pass over routed tokens: every weight of a touched expert once (backward: and its
/// gradient read and written), the router, and the rows in and out. Weights are floats, or take so many bytes an
/// expert.
Work work_of(const Shape& shape, const moe::DispatchPlan& plan, Pass pass);
Work work_of(const Shape& shape, const moe::DispatchPlan& plan, Pass pass, double expert_bytes);
/// Backward through experts that have no gradient.
Work work_through(const Shape& shape, const moe::DispatchPlan& plan, double expert_bytes);

/// Bytes of the experts that have rows.
Index touched_bytes(const Shape& shape, const moe::DispatchPlan& plan);

inline const std::vector<Weights> kFloatWeights = {Weights{}};

/// A layer and its peers, for any number of cells.
class LayerBench {
 public:
  /// Ours take part once with each of `weights`, in this order; the first is who all others are compared with. Weights
  /// in few bits are not trained: backward computes the gradients of the tokens and the router alone, which is half the
  /// work of floats.
  /// Throws std::runtime_error if memory is too small for the weights: times two with peers or weights in few bits,
  /// times four to train, and once more where oneDNN copies them.
  LayerBench(const Shape& shape, Peers peers, Pass most, const std::vector<Weights>& weights = kFloatWeights);

  /// Bytes that a LayerBench takes.
  static Index bytes_needed(const Shape& shape, Peers peers, Pass most,
                            const std::vector<Weights>& weights = kFloatWeights);

  /// Throws std::runtime_error if weights in few bits do not give the bits of the same weights as floats.
  CellResult measure(const Cell& cell, const Effort& effort);

  const Layer& layer() const { return layer_; }

 private:
  struct Inputs;
  /// One of ours.
  struct Way {
    Weights weights;
    std::optional<CodedLayer> coded;
  };
  Contestant our_contestant(Inputs& inputs, Pass pass);
  Contestant coded_contestant(Way& way, Inputs& inputs, Pass pass);
  Contestant peer_contestant(Peer& peer, Inputs& inputs, Pass pass);
  bool agrees(const Inputs& peers, const Inputs& ours, Pass pass, double tolerance) const;
  void require_bits(const Way& way, const Inputs& inputs, Pass pass);
  Entry entry_of(const Way& way) const;

  Shape shape_;
  PlainWeights plain_;
  Layer layer_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::vector<Way> ways_;
  std::optional<Layer> decoded_;
  std::optional<Layer> gradient_;
  std::optional<PlainWeights> peer_gradient_;
  moe::Workspace workspace_;
  Layer::Tape tape_;
};

}  // namespace bench
