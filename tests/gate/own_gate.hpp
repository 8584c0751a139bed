// SPDX-License-Identifier: MIT
// A gate of one's own with all that a gate may have.
#pragma once

#include "moe/gate/concept.hpp"
#include "moe/numeric/softmax.hpp"
#include "moe/numeric/top_k.hpp"

namespace test {

using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::Step;

/// p = softmax(scale * logits); weights p of the experts with p > threshold, best first. Ragged, one learnable number.
/// normalises: weights are divided by their sum over choices that are not dropped, so it matters that a limit hands the
/// gate its own routing back. drops_itself: the last choice of tokens with an odd id, a drop that is not the limit's.
struct OwnGate {
  double threshold = 0.15;
  double scale = 1;
  bool normalises = false, drops_itself = false;
  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("scale", self.scale...);
  }

  template <class S>
  void probabilities(const moe::Logits<S>& logits, const moe::Context&, Matrix<S>& p) const {
    p = logits * static_cast<S>(scale);
    for (Index t = 0; t < p.rows(); ++t) moe::softmax(p.row(t).data(), p.cols(), p.row(t).data());
  }

  template <class S>
  void route(const moe::Logits<S>& logits, const moe::Context& context, Routing<S>& routing) const {
    Matrix<S> p;
    probabilities(logits, context, p);
    const auto count = [&](Index t) { return (p.row(t).array() > static_cast<S>(threshold)).count(); };
    routing.resize_ragged(p.rows(), [&](Index t) { return context.step.is_valid(t) ? count(t) : 0; });
    for (Index t = 0; t < p.rows(); ++t) {
      if (routing.experts(t).empty()) continue;
      moe::top_k(p.row(t).data(), p.cols(), routing.experts(t));
      if (drops_itself && context.step.id(t) % 2 == 1) routing.drop(routing.end(t) - 1, moe::kDroppedByGate);
    }
    replay(logits, context, routing);
  }

  template <class S>
  void replay(const moe::Logits<S>& logits, const moe::Context& context, Routing<S>& routing) const {
    Matrix<S> p;
    probabilities(logits, context, p);
    for (Index t = 0; t < p.rows(); ++t)
      for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
        routing.weights(t)[s] = routing.dropped(t)[s] ? S{0} : p(t, routing.experts(t)[s]) / divisor(p, routing, t);
  }

  template <class S>
  void backward(const moe::Logits<S>& logits, const moe::Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const moe::MatrixView<S>& dprobability,
                Matrix<S>& dlogits, OwnGate& gradient) const {
    Matrix<S> p, dp = Matrix<S>::Zero(logits.rows(), logits.cols());
    probabilities(logits, context, p);
    if (dprobability.size() != 0) dp = dprobability;
    for (Index t = 0; t < p.rows(); ++t) {
      const auto first = static_cast<std::size_t>(routing.begin(t)), last = static_cast<std::size_t>(routing.end(t));
      S mean = 0;
      for (std::size_t a = first; a < last; ++a)
        if (normalises && !routing.dropped()[a]) mean += dweight[a] * routing.weights()[a];
      for (std::size_t a = first; a < last; ++a)
        if (!routing.dropped()[a]) dp(t, routing.experts()[a]) += (dweight[a] - mean) / divisor(p, routing, t);
    }
    dlogits.resize(p.rows(), p.cols());
    for (Index t = 0; t < p.rows(); ++t)
      moe::softmax_backward(p.row(t).data(), dp.row(t).data(), p.cols(), dlogits.row(t).data());
    for (Index t = 0; t < p.rows(); ++t)
      for (Index e = 0; e < p.cols(); ++e) {
        gradient.scale += static_cast<double>(dlogits(t, e) * logits(t, e));
        dlogits(t, e) *= static_cast<S>(scale);
      }
  }

 private:
  template <class S>
  S divisor(const Matrix<S>& p, const Routing<S>& routing, Index t) const {
    if (!normalises) return 1;
    S sum = 0;
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      if (!routing.dropped(t)[s]) sum += p(t, routing.experts(t)[s]);
    return sum;
  }
};

}  // namespace test
