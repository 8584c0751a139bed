// SPDX-License-Identifier: MIT
// One run of a block over the tokens of a file, compared with what the file says.
#pragma once

#include <map>
#include <moe/io/load_block.hpp>

#include "check_block_config.hpp"
#include "check_block_losses.hpp"
#include "check_block_report.hpp"

namespace check {

using moe::Index;
using moe::Matrix;

inline constexpr double kForward = 5e-6, kWeightGradient = 1e-5;  // as the makers of the vectors recommend

/// The tensors of one token count, "t33." in front of their names.
class Reference {
 public:
  Reference(const moe::Checkpoint& file, Index tokens) : file_(file), prefix_("t" + std::to_string(tokens) + ".") {}

  const std::string& prefix() const { return prefix_; }
  bool has(const std::string& name) const { return file_.contains(prefix_ + name); }
  std::vector<Index> shape(const std::string& name) const { return file_.at(prefix_ + name).shape; }
  std::vector<float> values(const std::string& name) const { return moe::read_all<float>(file_.at(prefix_ + name)); }
  std::vector<std::int64_t> integers(const std::string& name) const {
    return moe::read_all<std::int64_t>(file_.at(prefix_ + name));
  }
  /// [.., columns] as a matrix.
  Matrix<float> matrix(const std::string& name, Index columns) const {
    const std::vector<float> all = values(name);
    if (static_cast<Index>(all.size()) % columns != 0)
      throw std::runtime_error("tensor '" + prefix_ + name + "' does not have rows of " + std::to_string(columns));
    return Eigen::Map<const Matrix<float>>(all.data(), static_cast<Index>(all.size()) / columns, columns);
  }

 private:
  const moe::Checkpoint& file_;
  std::string prefix_;
};

template <class S>
std::span<const S> span_of(const Matrix<S>& matrix) {
  return {matrix.data(), static_cast<std::size_t>(matrix.size())};
}
template <class S>
std::span<const S> span_of(const std::vector<S>& values) {
  return values;
}

/// The weight of every (token, expert), 0 where not chosen, divided by `scale`.
inline Matrix<double> dense(const moe::Routing<float>& routing, Index experts, double scale) {
  Matrix<double> weights = Matrix<double>::Zero(routing.num_tokens(), experts);
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      weights(t, routing.experts(t)[s]) += static_cast<double>(routing.weights(t)[s]) / scale;
  return weights;
}

/// Chosen experts as sets, and the weight of each.
inline void compare_choices(const Reference& reference, const moe::Routing<float>& routing, const Matrix<double>& ours,
                            double scale, Report& report) {
  if (!reference.has("topk_indices")) return;
  const auto chosen = reference.integers("topk_indices");
  const auto tokens = static_cast<std::size_t>(routing.num_tokens()), k = tokens == 0 ? 0 : chosen.size() / tokens;
  long mismatches = 0;
  std::vector<double> weights;
  for (std::size_t t = 0; t < tokens; ++t) {
    const auto experts = routing.experts(static_cast<Index>(t));
    std::vector<std::int64_t> mine(experts.begin(), experts.end()), theirs(&chosen[t * k], &chosen[t * k] + k);
    for (const std::int64_t e : theirs)
      weights.push_back(e >= 0 && e < ours.cols() ? ours(static_cast<Index>(t), e) : 0);
    std::sort(mine.begin(), mine.end());
    std::sort(theirs.begin(), theirs.end());
    mismatches += mine != theirs;
  }
  report.add_count(reference.prefix() + "topk_indices", mismatches);
  if (reference.has("topk_weights"))
    report.add_values(reference.prefix() + "topk_weights", span_of(weights), span_of(reference.values("topk_weights")),
                      kForward, scale);
}

/// Which choices reach an expert: of slot `slot`, or of all (-1).
inline void compare_mask(const Reference& reference, const std::string& name, const moe::Routing<float>& routing,
                         Index experts, Index slot, Report& report) {
  if (!reference.has(name)) return;
  const auto expected = reference.integers(name);
  std::vector<std::int64_t> kept(static_cast<std::size_t>(routing.num_tokens() * experts), 0);
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      if ((slot < 0 || slot == static_cast<Index>(s)) && !routing.dropped(t)[s])
        kept[static_cast<std::size_t>(t * experts + routing.experts(t)[s])] = 1;
  long mismatches = kept.size() == expected.size() ? 0 : 1;
  for (std::size_t i = 0; i < std::min(kept.size(), expected.size()); ++i) mismatches += kept[i] != expected[i];
  report.add_count(reference.prefix() + name, mismatches);
}

/// Everything about who goes where. `scale`: what weights are scaled by where the reference scales outputs instead.
template <class Gate>
void compare_routing(const Reference& reference, const Gate& gate, const Matrix<float>& logits, const moe::Step& step,
                     const moe::Routing<float>& routing, double scale, Report& report) {
  const std::string& t = reference.prefix();
  const Index experts = logits.cols();
  if (reference.has("router_logits"))
    report.add_values(t + "router_logits", span_of(logits), span_of(reference.values("router_logits")), kForward);
  if (reference.has("router_probs")) {
    Matrix<float> p;
    gate.probabilities(logits, step, p);
    report.add_values(t + "router_probs", span_of(p), span_of(reference.values("router_probs")), kForward);
  }
  double evaluation = 1;
  moe::Routing<float> before = routing;
  if constexpr (requires { gate.capacity; }) {
    if (step.phase == moe::Phase::Inference) evaluation = gate.capacity.evaluation_scale;
    if (gate.capacity.weights == moe::KeptWeights::AsTheyAre) gate.gate.route(logits, step, before);
  }
  compare_choices(reference, routing, dense(before, experts, evaluation), scale, report);
  const Matrix<double> ours = dense(routing, experts, evaluation);
  for (const char* name : {"dense_weights", "combine_weights"})
    if (reference.has(name))
      report.add_values(t + name, span_of(ours), span_of(reference.values(name)), kForward, scale);
  compare_mask(reference, "dispatch_mask", routing, experts, -1, report);
  compare_mask(reference, "dispatch_mask_1", routing, experts, 0, report);
  compare_mask(reference, "dispatch_mask_2", routing, experts, 1, report);
}

/// Runs a block over one token count of its file.
class Run {
 public:
  Run(const moe::Checkpoint& file, const Facts& facts, const moe::MoeBlock& block, const moe::BlockLocation& location,
      Index tokens)
      : file_(file), facts_(facts), block_(block), location_(location), reference_(file, tokens) {
    tokens_ = reference_.matrix("input", block.model_dim());
    const auto shape = reference_.shape("input");
    length_ = shape.size() >= 3 ? shape[shape.size() - 2] : tokens_.rows();
    for (Index t = 0; t < tokens_.rows(); ++t) sequence_.push_back(length_ == 0 ? 0 : t / length_);
    step_.group_id = sequence_;
    if (facts.text("mode", "eval") == "train") step_.phase = moe::Phase::Training;
  }

  void compare(Report& report) {
    Matrix<float> out(tokens_.rows(), tokens_.cols()), inference = out;
    moe::Workspace workspace;
    block_.forward(tokens_, step_, out, tape_);
    block_.forward(tokens_, step_, inference, workspace);
    report.add_count(reference_.prefix() + "inference = training", inference == out ? 0 : 1);
    block_.with_gate([&](const auto& gate) {
      compare_routing(reference_, gate, tape_.logits(), step_, tape_.routing(),
                      facts_.number("routed_scaling_factor", 1), report);
    });
    report.add_values(reference_.prefix() + "output", span_of(out), span_of(reference_.values("output")), kForward);
    compare_losses(report);
    if (reference_.has("cotangent")) compare_gradients(report);
  }

 private:
  void compare_losses(Report& report) const {
    const auto compare = [&](const std::string& name, const auto& loss) {
      if (!reference_.has(name)) return;
      const std::vector<double> ours = {loss()};
      report.add_values(reference_.prefix() + name, span_of(ours), span_of(reference_.values(name)), kForward);
    };
    const Matrix<float>& logits = tape_.logits();
    compare("aux.load_balancing_loss", [&] {
      if (facts_.text("family") != "switch") return hugging_face_balance(logits, facts_.integer("top_k"));
      Matrix<float> p;
      block_.probabilities(logits, step_, p);
      return switch_balance(p, tape_.routing(), length_);
    });
    compare("aux.router_z_loss", [&] {
      moe::RoutingGradient<float> ignored;
      return moe::z_loss<float>(logits, step_, 0, ignored);
    });
  }

  void compare_gradients(Report& report) {
    const std::string grad = reference_.prefix() + "grad.";
    moe::MoeBlock gradient = moe::zeros_like(block_);
    Matrix<float> dtokens(tokens_.rows(), tokens_.cols());
    block_.backward(tokens_, tape_, reference_.matrix("cotangent", tokens_.cols()), {}, gradient, dtokens);
    report.add_values(grad + "input", span_of(dtokens), span_of(reference_.values("grad.input")), kForward);
    std::map<std::string, moe::BoundTensor> bound;  // quantised weights have their gradients in the plain layout, too
    for (const bool rows_are_outputs : {location_.is_quantised, false})
      for (auto& tensor : moe::bind_weights(gradient, location_.format, location_.prefix, rows_are_outputs))
        bound[tensor.name + " " + moe::detail::join(tensor.shape, ",")] = tensor;
    for (const std::string& name : file_.names()) {
      if (!name.starts_with(grad) || name == grad + "input") continue;
      const auto reference = moe::read_all<float>(file_.at(name));
      const auto found = bound.find(name.substr(grad.size()) + " " + moe::detail::join(file_.at(name).shape, ","));
      if (found == bound.end()) {
        report.add(name + " (no such weight)", INFINITY, kWeightGradient);
        continue;
      }
      std::vector<float> ours(reference.size());
      moe::read_bound(found->second, ours);
      report.add_values(name, span_of(ours), span_of(reference), kWeightGradient);
    }
  }

  const moe::Checkpoint& file_;
  const Facts& facts_;
  const moe::MoeBlock& block_;
  const moe::BlockLocation& location_;
  Reference reference_;
  Matrix<float> tokens_;
  Index length_ = 0;
  std::vector<std::int64_t> sequence_;
  moe::Step step_;
  moe::MoeBlock::Tape tape_;
};

}  // namespace check
