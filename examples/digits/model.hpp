// SPDX-License-Identifier: MIT
// The classifier of digits.cpp: one mixture-of-experts layer with a residual, and a linear head.
#pragma once

#include <algorithm>
#include <type_traits>

#include <moe/moe.hpp>

#include "data.hpp"

namespace digits {

using moe::Index;

/// scores = head(x + mixture(x)): an image is one token, and the residual is a branch.
template <class Gate, class Expert>
struct Classifier {
  using Layer = moe::MoeLayer<moe::LinearRouter, Gate, moe::ExpertPool<Expert>>;
  using Mixture = moe::WithBranches<Layer, moe::ScaledIdentity>;
  static constexpr bool kDrawsExperts = std::is_same_v<Gate, moe::StochasticGate>;

  Mixture mixture;
  moe::Linear head;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "mixture", self.mixture...);
    moe::visit_part(f, "head", self.head...);
  }

  void scores(const moe::Matrix<float>& images, moe::Matrix<float>& out, moe::Workspace& workspace) const {
    moe::Matrix<float> hidden(images.rows(), kPixels);
    mixture.forward(images, hidden, workspace);
    const moe::Step step;
    const moe::Context context(step, workspace.scratch);
    out.resize(images.rows(), kClasses);
    head.forward(hidden, out, context);
  }
};

/// Share of the rows whose largest score is that of their label.
inline double accuracy(const moe::Matrix<float>& scores, const std::vector<Index>& labels) {
  Index correct = 0;
  for (Index i = 0; i < scores.rows(); ++i) {
    const float* row = scores.row(i).data();
    correct += std::max_element(row, row + scores.cols()) - row == labels[static_cast<std::size_t>(i)] ? 1 : 0;
  }
  return static_cast<double>(correct) / static_cast<double>(scores.rows());
}

/// Sends every token to one expert: a gate of our own, to evaluate the experts one by one.
struct FixedGate {
  Index expert = 0;
  static constexpr bool kPerToken = true;
  void route(const moe::Logits<float>& logits, const moe::Context&, moe::Routing<float>& routing) const {
    routing.resize(logits.rows(), 1);
    std::ranges::fill(routing.experts(), expert);
    std::ranges::fill(routing.weights(), 1.0f);
  }
};

/// Accuracy of the class probabilities averaged over all experts.
template <class Gate, class Expert>
double ensemble_accuracy(const Classifier<Gate, Expert>& model, const Images& images) {
  const auto& layer = model.mixture.layer();
  moe::Matrix<float> sum = moe::Matrix<float>::Zero(images.pixels.rows(), kClasses), scores;
  moe::Workspace workspace;
  for (Index e = 0; e < layer.num_experts(); ++e) {
    const Classifier<FixedGate, Expert> one{
        {moe::MoeLayer(layer.router(), FixedGate{e}, layer.experts()), moe::ScaledIdentity{kPixels}}, model.head};
    one.scores(images.pixels, scores, workspace);
    for (Index i = 0; i < scores.rows(); ++i) moe::softmax(scores.row(i).data(), kClasses, scores.row(i).data());
    sum += scores;
  }
  return accuracy(sum, images.labels);
}

}  // namespace digits
