// SPDX-License-Identifier: MIT
// One run of a block over the tokens of a file, compared with what the file says.
#pragma once

#include <map>
#include <moe/io/block/load_block.hpp>

#include "config.hpp"
#include "losses.hpp"
#include "routing.hpp"

namespace check {

/// Runs a block over one token count of its file.
class Run {
 public:
  Run(const Reference& reference, const Facts& facts, const moe::MoeBlock& block, const moe::BlockLocation& location)
      : reference_(reference), facts_(facts), block_(block), location_(location) {
    tokens_ = reference_.matrix("input", block.model_dim());
    for (Index t = 0; t < tokens_.rows(); ++t) sequence_.push_back(t / reference_.length());
    step_.group_id = sequence_;
    if (facts.text("mode", "eval") == "train") step_.phase = moe::Phase::Training;
  }

  void compare(Report& report) {
    Matrix<float> out(tokens_.rows(), tokens_.cols()), inference = out;
    moe::Workspace workspace;
    block_.forward(tokens_, step_, out, tape_);
    block_.forward(tokens_, step_, inference, workspace);
    report.add_count(reference_.prefix() + "inference = training", inference == out ? 0 : 1);
    const double scale = facts_.number("routed_scaling_factor", 1);
    block_.with_gate([&]<class G>(const G& gate) {
      compare_routing(reference_, Decision<G>{gate, tape_.logits(), step_, tape_.routing(), scale}, report);
    });
    report.add_values(reference_.prefix() + "output", span_of(out),
                      span_of(reference_.read<float>("output", out.cols())), kForward);
    if (reference_.has("output_f64"))  // layers compute in float, so the tolerance is that of float
      report.add_values(reference_.prefix() + "output_f64", span_of(out),
                        span_of(reference_.read<double>("output_f64", out.cols())), kForward);
    compare_losses(report);
    if (reference_.has("cotangent")) compare_gradients(report);
  }

 private:
  void compare_losses(Report& report) const {
    const auto compare = [&](const std::string& name, const auto& loss) {
      if (!reference_.has(name)) return;
      const std::vector<double> ours = {loss()}, theirs = {reference_.scalar(name)};
      report.add_values(reference_.prefix() + name, span_of(ours), span_of(theirs), kForward);
    };
    const Matrix<float>& logits = tape_.logits();
    compare("aux.load_balancing_loss", [&] {
      if (!block_.config().capacity) return hugging_face_balance(logits, facts_.integer("top_k"));
      Matrix<float> p;
      block_.probabilities(logits, step_, p);
      return switch_balance(p, tape_.routing(),
                            facts_.text("family") == "switch" ? reference_.length() : reference_.tokens());
    });
    compare("aux.router_z_loss", [&] {
      moe::RoutingGradient<float> ignored;
      return moe::z_loss<float>(logits, step_, 0, ignored);
    });
  }

  void compare_gradients(Report& report) {
    const std::string grad = reference_.prefix() + "grad.";
    moe::MoeBlock gradient = moe::zeros_like(block_);
    moe::visit_state([](const std::string&, auto& leaf) { std::ranges::fill(moe::parameter_span(leaf), 0); },
                     gradient);  // so that a gradient written to it would be seen
    Matrix<float> dtokens(tokens_.rows(), tokens_.cols());
    block_.backward(tokens_, tape_, reference_.matrix("cotangent", tokens_.cols()), gradient, dtokens);
    report.add_values(grad + "input", span_of(dtokens), span_of(reference_.read<float>("grad.input", tokens_.cols())),
                      kForward);
    std::map<std::string, std::vector<moe::BoundTensor>> layouts;  // quantised weights may have theirs in the plain one
    moe::BlockLocation plain = location_;
    plain.is_quantised = false;
    for (const moe::BlockLocation& location : {location_, plain})
      for (auto& tensor : moe::bind_weights(gradient, location)) layouts[tensor.name].push_back(tensor);
    for (const auto& [name, bound] : layouts) compare_gradient(grad + name, bound, report);
  }

  /// A weight without a gradient in the file must have none of ours: an expert that no token chose, a bias of the
  /// selection.
  void compare_gradient(const std::string& name, const std::vector<moe::BoundTensor>& layouts, Report& report) const {
    Tensors& file = reference_.file();
    if (!file.has(name)) {
      const std::vector<float> ours = values_of(layouts.front());
      const auto is_zero = [](float value) { return value == 0; };
      if (!std::all_of(ours.begin(), ours.end(), is_zero)) report.add(name + " (missing)", INFINITY, kWeightGradient);
      return;
    }
    const Shape shape = file.shape(name);
    for (const moe::BoundTensor& tensor : layouts)
      if (tensor.shape == shape)
        return report.add_values(name, span_of(values_of(tensor)), span_of(file.read<float>(name)), kWeightGradient);
    throw std::runtime_error("tensor '" + name + "' has shape [" + moe::detail::join(shape, ", ") + "], expected [" +
                             moe::detail::join(layouts.front().shape, ", ") + "]");
  }
  static std::vector<float> values_of(const moe::BoundTensor& tensor) {
    std::size_t size = 1;
    for (const Index extent : tensor.shape) size *= static_cast<std::size_t>(extent);
    std::vector<float> values(size);
    moe::read_bound(tensor, values);
    return values;
  }

  const Reference& reference_;
  const Facts& facts_;
  const moe::MoeBlock& block_;
  const moe::BlockLocation& location_;
  Matrix<float> tokens_;
  std::vector<std::int64_t> sequence_;
  moe::Step step_;
  moe::MoeBlock::Tape tape_;
};

}  // namespace check
