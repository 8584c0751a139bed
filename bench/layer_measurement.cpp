// SPDX-License-Identifier: MIT
#include "layer_measurement.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <deque>
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

namespace {

Index touched_experts(const moe::DispatchPlan& plan) {
  Index touched = 0;
  for (Index e = 0; e < plan.num_experts(); ++e) touched += plan.rows_of(e) > 0;
  return touched;
}

}  // namespace

Index touched_bytes(const Shape& shape, const moe::DispatchPlan& plan) {
  return touched_experts(plan) * shape.expert_bytes();
}

Work work_of(const Shape& shape, const moe::DispatchPlan& plan, Pass pass) {
  return work_of(shape, plan, pass, static_cast<double>(shape.expert_bytes()));
}

Work work_of(const Shape& shape, const moe::DispatchPlan& plan, Pass pass, double expert_bytes) {
  const auto rows = static_cast<double>(plan.num_rows()), count = static_cast<double>(plan.num_tokens());
  const auto dim = static_cast<double>(shape.model_dim);
  const double flop =
      6 * dim * static_cast<double>(shape.hidden_dim) * rows + 2 * dim * static_cast<double>(shape.num_experts) * count;
  const double weights =
      static_cast<double>(touched_experts(plan)) * expert_bytes + static_cast<double>(shape.router_bytes());
  const double activations = count * dim * sizeof(float);
  if (pass == Pass::Forward) return {flop, weights + 2 * activations};
  return {2 * flop, 3 * weights + 3 * activations};
}

Work work_through(const Shape& shape, const moe::DispatchPlan& plan, double expert_bytes) {
  const Work forward = work_of(shape, plan, Pass::Forward, expert_bytes);
  const auto count = static_cast<double>(plan.num_tokens()), dim = static_cast<double>(shape.model_dim);
  const double of_router = 2 * dim * static_cast<double>(shape.num_experts) * count;
  return {forward.flop + of_router,
          forward.bytes + 2 * static_cast<double>(shape.router_bytes()) + count * dim * sizeof(float)};
}

const Timing* CellResult::timing_of(const std::string& name) const {
  for (const Timing& timing : measurement.timings)
    if (timing.name == name) return &timing;
  return nullptr;
}

const Timing* CellResult::naive() const { return timing_of("Eigen"); }

const Timing* CellResult::best_peer() const {
  const Timing* best = nullptr;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Timing& timing = measurement.timings[i];
    if (!entries[i].is_ours && (best == nullptr || timing.seconds < best->seconds)) best = &timing;
  }
  return best;
}

const Timing* CellResult::floats() const {
  for (std::size_t i = 0; i < entries.size(); ++i)
    if (entries[i].is_ours && entries[i].weights == name_of(Weights{})) return &measurement.timings[i];
  return nullptr;
}

/// Tokens in sets, and where results go.
struct LayerBench::Inputs {
  std::vector<Matrix<float>> tokens;
  std::vector<moe::DispatchPlan> plans;
  Index copies = 1;        // of the weights: backward has gradients, too
  Index touched = 0;       // experts of all sets together
  Index most_touched = 0;  // by one set
  Matrix<float> dout, out, dtokens;

  Inputs(const Shape& shape, const Layer& layer, const Cell& cell, moe::Workspace& workspace)
      : copies(cell.pass == Pass::Backward ? 2 : 1),
        dout(Matrix<float>::Random(cell.tokens, shape.model_dim)),
        out(cell.tokens, shape.model_dim),
        dtokens(cell.tokens, shape.model_dim) {
    std::set<Index> experts;
    for (Index set = 0; set < sets_for(cell.tokens); ++set) {
      tokens.push_back(routed_tokens(shape, cell.pattern, cell.tokens, set * cell.tokens));
      layer.forward(tokens.back(), out, workspace);
      plans.push_back(workspace.plan());
      for (const Index e : std::as_const(workspace.routing).experts()) experts.insert(e);
      most_touched = std::max(most_touched, touched_experts(workspace.plan()));
    }
    touched = static_cast<Index>(experts.size());
  }

  std::vector<Work> work(const Shape& shape, Pass pass, double expert_bytes) const {
    std::vector<Work> result;
    for (const moe::DispatchPlan& plan : plans) result.push_back(work_of(shape, plan, pass, expert_bytes));
    return result;
  }

  std::vector<Work> work_through(const Shape& shape, double expert_bytes) const {
    std::vector<Work> result;
    for (const moe::DispatchPlan& plan : plans) result.push_back(bench::work_through(shape, plan, expert_bytes));
    return result;
  }

  LimitMeter meter(int threads, double expert_bytes) const {
    const auto bytes = [&](Index experts) {
      return static_cast<Index>(static_cast<double>(copies * experts) * expert_bytes);
    };
    return LimitMeter(bytes(touched), threads, bytes(most_touched));
  }

  /// So that who writes nothing does not pass with the results of who ran before.
  void forget_results() {
    out.setConstant(std::numeric_limits<float>::quiet_NaN());
    dtokens.setConstant(std::numeric_limits<float>::quiet_NaN());
  }
};

Index LayerBench::bytes_needed(const Shape& shape, Peers peers, Pass most, const std::vector<Weights>& weights) {
  const Index plain = peers == Peers::All ? 1 : 0, blocked = plain == 1 && onednn_copies_weights() ? 1 : 0;
  const Index floats = shape.weight_bytes() * ((1 + plain) * (most == Pass::Backward ? 2 : 1) + blocked);
  double coded = 0;  // and the weights that they decode to
  for (const Weights& way : weights)
    if (way) coded += static_cast<double>(shape.num_experts) * expert_bytes(shape, way);
  if (coded > 0) coded += static_cast<double>(shape.weight_bytes());
  if (peers == Peers::FewBits) coded += few_bit_peers_bytes(shape);
  return floats + static_cast<Index>(coded);
}

LayerBench::LayerBench(const Shape& shape, Peers peers, Pass most, const std::vector<Weights>& weights)
    : shape_(if_it_fits(shape, bytes_needed(shape, peers, most, weights))),
      plain_(peers == Peers::None ? PlainWeights({"", 0, 0, 0, 0}) : random_weights(shape)),
      layer_(peers == Peers::None ? random_layer(shape) : layer_from(shape, plain_)) {
  if (peers == Peers::All) peers_ = make_peers(shape, plain_);
  if (peers == Peers::FewBits) {
    peers_ = make_few_bit_peers(shape, plain_);
    plain_.forget_experts();
  }
  if (most == Pass::Backward) {
    gradient_.emplace(zero_layer(shape));
    if (peers == Peers::All) peer_gradient_.emplace(shape);
  }
  for (const Weights& way : weights) {
    ways_.push_back({.weights = way, .coded = {}});
    if (!way) continue;
    ways_.back().coded.emplace(layer_, *way);
    if (decoded_) continue;
    decoded_.emplace(zero_layer(shape));
    decoded_->router() = layer_.router();
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

Contestant LayerBench::coded_contestant(Way& way, Inputs& inputs, Pass pass) {
  CodedLayer& layer = *way.coded;
  if (pass == Pass::Forward)
    return {"moe", {}, [&](Index set) {
              layer.forward(inputs.tokens[static_cast<std::size_t>(set)], inputs.out, workspace_);
            }};
  return {
      "moe", [&](Index set) { layer.forward_with_tape(inputs.tokens[static_cast<std::size_t>(set)], inputs.out); },
      [&](Index set) { layer.backward(inputs.tokens[static_cast<std::size_t>(set)], inputs.dout, inputs.dtokens); }};
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

bool LayerBench::agrees(const Inputs& peers, const Inputs& ours, Pass pass, double tolerance) const {
  const auto equal = [&](const auto& a, const auto& b) { return relative_error(a, b) < tolerance; };  // false for NaN
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

/// `inputs` hold the output of `way` for the first set, and backward its gradients.
void LayerBench::require_bits(const Way& way, const Inputs& inputs, Pass pass) {
  way.coded->decode_into(*decoded_, inputs.plans.front());
  Matrix<float> out(inputs.out.rows(), inputs.out.cols()), dtokens(out.rows(), out.cols());
  if (pass == Pass::Forward) {
    decoded_->forward(inputs.tokens.front(), out, workspace_);
  } else {
    decoded_->forward(inputs.tokens.front(), moe::Step{}, out, tape_);
    decoded_->backward(inputs.tokens.front(), tape_, inputs.dout, *gradient_, dtokens);
  }
  if (way.weights->dot != moe::Dot::Exact) {
    constexpr double kTolerance = 0.05;  // rows of 8 bits, through two products: 0.01 on random numbers
    const double error = relative_error(inputs.out, out);
    if (!(error < kTolerance))
      moe::fail_environment("bench: ", shape_.name, " with weights in ", name_of(way.weights), " and ", out.rows(),
                            " tokens is off by ", error, " of what these weights give as floats, expected less than ",
                            kTolerance);
    return;
  }
  const auto bytes = static_cast<std::size_t>(out.size()) * sizeof(float);
  if (std::memcmp(out.data(), inputs.out.data(), bytes) != 0 ||
      (pass == Pass::Backward && std::memcmp(dtokens.data(), inputs.dtokens.data(), bytes) != 0))
    moe::fail_environment("bench: ", shape_.name, " with weights in ", name_of(way.weights), " and ", out.rows(),
                          " tokens has other results than with these weights as floats");
}

Entry LayerBench::entry_of(const Way& way) const {
  return {.weights = name_of(way.weights),
          .bits = bits_per_weight(shape_, way.weights),
          .bytes = way.coded ? way.coded->bytes() + shape_.router_bytes() : shape_.weight_bytes()};
}

CellResult LayerBench::measure(const Cell& cell, const Effort& effort) {
  set_threads(cell.threads);
  Inputs inputs(shape_, layer_, cell, workspace_);
  CellResult result{.shape = shape_, .cell = cell, .measurement = {}, .entries = {}, .wrong = {}};
  std::vector<Contestant> contestants;
  const auto run_once = [&](const Contestant& contestant) {
    inputs.forget_results();
    if (contestant.prepare) contestant.prepare(0);
    contestant.run(0);
  };
  if (gradient_) moe::set_zero(*gradient_);
  const Contestant floats = our_contestant(inputs, cell.pass);
  run_once(floats);
  const Inputs ours = inputs;
  const auto enter = [&](const Contestant& contestant, const Entry& entry, double bytes_of_expert) {
    contestants.push_back(contestant);
    contestants.back().work = inputs.work(shape_, cell.pass, bytes_of_expert);
    result.entries.push_back(entry);
    result.entries.back().error = relative_error(inputs.out, ours.out);
  };
  // Float weights in memory: all weights are read from there. In the cache: smaller ones live nearer by.
  const LimitMeter meter = inputs.meter(cell.threads, expert_bytes(shape_, {}));
  std::deque<LimitMeter> meters;
  for (Way& way : ways_) {
    const double bytes = expert_bytes(shape_, way.weights);
    const Contestant contestant = way.coded ? coded_contestant(way, inputs, cell.pass) : floats;
    if (way.coded) {
      run_once(contestant);
      require_bits(way, inputs, cell.pass);
    } else {
      inputs.out = ours.out;
    }
    enter(contestant, entry_of(way), bytes);
    if (way.coded && cell.pass == Pass::Backward) contestants.back().work = inputs.work_through(shape_, bytes);
    if (way.coded && meter.is_warm())
      contestants.back().meter = &meters.emplace_back(inputs.meter(cell.threads, bytes));
    if (ways_.size() > 1) contestants.back().name += ' ' + name_of(way.weights);
  }
  for (const auto& peer : peers_) {
    if (peer_gradient_) peer_gradient_->set_zero();
    const Contestant contestant = peer_contestant(*peer, inputs, cell.pass);
    run_once(contestant);
    const double bytes = peer->bits_per_weight() / 32 * expert_bytes(shape_, {});
    if (agrees(inputs, ours, cell.pass, peer->tolerance()))
      enter(contestant,
            {.weights = peer->weights(),
             .is_ours = false,
             .bits = peer->bits_per_weight(),
             .bytes = static_cast<Index>(static_cast<double>(shape_.num_experts) * bytes) + shape_.router_bytes()},
            bytes);
    else
      result.wrong.push_back(peer->name());
  }
  result.measurement = interleave(contestants, contestants.front().work, meter, effort);
  return result;
}

}  // namespace bench
