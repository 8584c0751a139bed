// SPDX-License-Identifier: MIT
#include "layer_measurement.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <set>

#include "moe/core/visit.hpp"

namespace bench {

namespace {

/// |a - b| / |b|.
template <class A, class B>
double relative_error(const A& a, const B& b) {
  const double norm = b.template cast<double>().norm();
  return (a.template cast<double>() - b.template cast<double>()).norm() / (norm > 0 ? norm : 1);
}

/// The same of a weight's gradient against our panels; `plain` is row-major [inputs, outputs].
double relative_error(const moe::AlignedBuffer<float>& plain, const moe::PanelMatrix<moe::F32>& panels) {
  double difference = 0, norm = 0;
  for (Index i = 0; i < panels.inputs(); ++i)
    for (Index o = 0; o < panels.outputs(); ++o) {
      const double ours = panels(o, i), theirs = plain.data()[i * panels.outputs() + o];
      difference += (theirs - ours) * (theirs - ours);
      norm += ours * ours;
    }
  return std::sqrt(difference / (norm > 0 ? norm : 1));
}

/// `shape`, or throws before anything is allocated.
const Shape& if_it_fits(const Shape& shape, Index needed) {
  if (const Index available = available_memory(); needed > available)
    moe::fail_environment("bench: ", shape.name, " needs ", needed >> 20, " MiB, of which ", available >> 20,
                          " are available");
  return shape;
}

/// Few tokens use few experts: with more sets of them, all experts are read in turn.
Index sets_for(Index tokens) { return tokens <= 4 ? 16 : tokens <= 32 ? 4 : 1; }

}  // namespace

Index touched_bytes(const Shape& shape, const moe::DispatchPlan& plan) {
  Index touched = 0;
  for (Index e = 0; e < plan.num_experts(); ++e) touched += plan.rows_of(e) > 0;
  return touched * shape.expert_bytes();
}

Work work_of(const Shape& shape, const moe::DispatchPlan& plan, Pass pass) {
  const auto rows = static_cast<double>(plan.num_rows()), count = static_cast<double>(plan.num_tokens());
  const auto dim = static_cast<double>(shape.model_dim);
  const double flop =
      6 * dim * static_cast<double>(shape.hidden_dim) * rows + 2 * dim * static_cast<double>(shape.num_experts) * count;
  const auto weights = static_cast<double>(touched_bytes(shape, plan) + shape.router_bytes());
  const double activations = count * dim * sizeof(float);
  if (pass == Pass::Forward) return {flop, weights + 2 * activations};
  return {2 * flop, 3 * weights + 3 * activations};
}

const Timing* CellResult::naive() const {
  for (const Timing& timing : measurement.timings)
    if (timing.name == "Eigen") return &timing;
  return nullptr;
}

const Timing* CellResult::best_peer() const {
  const Timing* best = nullptr;
  for (const Timing& timing : measurement.timings)
    if (&timing != &ours() && (best == nullptr || timing.seconds < best->seconds)) best = &timing;
  return best;
}

/// Tokens in sets, and where results go.
struct LayerBench::Inputs {
  std::vector<Matrix<float>> tokens;
  std::vector<Work> work;
  Index working_set = 0;  // bytes of all sets together: touched weights; backward: and their gradients
  Index call_bytes = 0;   // the same of the largest set
  Matrix<float> dout, out, dtokens;

  Inputs(const Shape& shape, const Layer& layer, const Cell& cell, moe::Workspace& workspace)
      : dout(Matrix<float>::Random(cell.tokens, shape.model_dim)),
        out(cell.tokens, shape.model_dim),
        dtokens(cell.tokens, shape.model_dim) {
    const Index copies = cell.pass == Pass::Backward ? 2 : 1;
    std::set<Index> touched;
    for (Index set = 0; set < sets_for(cell.tokens); ++set) {
      tokens.push_back(routed_tokens(shape, cell.pattern, cell.tokens, set * cell.tokens));
      layer.forward(tokens.back(), out, workspace);
      work.push_back(work_of(shape, workspace.plan(), cell.pass));
      for (const Index e : std::as_const(workspace.routing).experts()) touched.insert(e);
      call_bytes = std::max(call_bytes, copies * touched_bytes(shape, workspace.plan()));
    }
    working_set = copies * static_cast<Index>(touched.size()) * shape.expert_bytes();
  }

  /// So that who writes nothing does not pass with the results of who ran before.
  void forget_results() {
    out.setConstant(std::numeric_limits<float>::quiet_NaN());
    dtokens.setConstant(std::numeric_limits<float>::quiet_NaN());
  }
};

Index LayerBench::bytes_needed(const Shape& shape, Peers peers, Pass most) {
  const Index plain = peers == Peers::All ? 1 : 0, blocked = plain == 1 && onednn_copies_weights() ? 1 : 0;
  return shape.weight_bytes() * ((1 + plain) * (most == Pass::Backward ? 2 : 1) + blocked);
}

LayerBench::LayerBench(const Shape& shape, Peers peers, Pass most)
    : shape_(if_it_fits(shape, bytes_needed(shape, peers, most))),
      weights_(peers == Peers::All ? random_weights(shape) : PlainWeights({"", 0, 0, 0, 0})),
      layer_(peers == Peers::All ? layer_from(shape, weights_) : random_layer(shape)) {
  if (peers == Peers::All) peers_ = make_peers(shape, weights_);
  if (most == Pass::Backward) {
    gradient_.emplace(zero_layer(shape));
    if (peers == Peers::All) peer_gradient_.emplace(shape);
  }
}

Contestant LayerBench::our_contestant(Inputs& inputs, Pass pass) {
  if (pass == Pass::Forward)
    return {"moe", {}, [&](Index set) {
              layer_.forward(inputs.tokens[static_cast<std::size_t>(set)], inputs.out, workspace_);
            }};
  return {
      "moe",
      [&](Index set) { layer_.forward(inputs.tokens[static_cast<std::size_t>(set)], moe::Step{}, inputs.out, tape_); },
      [&](Index set) {
        layer_.backward(inputs.tokens[static_cast<std::size_t>(set)], tape_, inputs.dout, *gradient_, inputs.dtokens);
      }};
}

Contestant LayerBench::peer_contestant(Peer& peer, Inputs& inputs, Pass pass) {
  if (pass == Pass::Forward)
    return {
        peer.name(), {}, [&](Index set) { peer.forward(inputs.tokens[static_cast<std::size_t>(set)], inputs.out); }};
  return {peer.name(),
          [&](Index set) { peer.forward_with_tape(inputs.tokens[static_cast<std::size_t>(set)], inputs.out); },
          [&](Index set) {
            peer.backward(inputs.tokens[static_cast<std::size_t>(set)], inputs.dout, *peer_gradient_, inputs.dtokens);
          }};
}

bool LayerBench::agrees(const Inputs& peers, const Inputs& ours, Pass pass) const {
  constexpr double kTolerance = 1e-4;  // float sums of some thousand terms in another order, with a wide margin
  const auto equal = [](const auto& a, const auto& b) { return relative_error(a, b) < kTolerance; };  // false for NaN
  if (!equal(peers.out, ours.out)) return false;
  if (pass == Pass::Forward) return true;
  if (!equal(peers.dtokens, ours.dtokens)) return false;
  if (!equal(peer_gradient_->router, gradient_->router().weight().matrix().transpose())) return false;
  std::atomic<bool> all_equal = true;
  moe::parallel_for(shape_.num_experts, [&](Index e, Index) {
    const auto expert = static_cast<std::size_t>(e);
    const moe::Glu& glu = gradient_->experts()[e];
    if (tape_.mixture.plan.rows_of(e) > 0 &&
        !(equal(peer_gradient_->gate_up[expert], glu.gate_up()) && equal(peer_gradient_->down[expert], glu.down())))
      all_equal = false;
  });
  return all_equal;
}

CellResult LayerBench::measure(const Cell& cell, const Effort& effort) {
  set_threads(cell.threads);
  Inputs inputs(shape_, layer_, cell, workspace_);
  CellResult result{.shape = shape_, .cell = cell, .measurement = {}, .wrong = {}};
  std::vector<Contestant> contestants{our_contestant(inputs, cell.pass)};
  const auto run_once = [&](const Contestant& contestant) {
    inputs.forget_results();
    if (contestant.prepare) contestant.prepare(0);
    contestant.run(0);
  };
  if (gradient_) moe::set_zero(*gradient_);
  run_once(contestants.front());
  const Inputs ours = inputs;
  for (const auto& peer : peers_) {
    if (peer_gradient_) peer_gradient_->set_zero();
    const Contestant contestant = peer_contestant(*peer, inputs, cell.pass);
    run_once(contestant);
    if (agrees(inputs, ours, cell.pass))
      contestants.push_back(contestant);
    else
      result.wrong.push_back(peer->name());
  }
  const LimitMeter meter(inputs.working_set, cell.threads, inputs.call_bytes);
  result.measurement = interleave(contestants, inputs.work, meter, effort);
  return result;
}

}  // namespace bench
