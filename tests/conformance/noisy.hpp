// SPDX-License-Identifier: MIT
// Noisy top-K routers with noise from a file: FastMoE's, and davidmrau/mixture-of-experts.
#pragma once

#include <moe/expert/mlp.hpp>
#include <moe/routing/balance/importance.hpp>
#include <moe/routing/balance/load.hpp>

#include "routers.hpp"

namespace check {

/// What moe::NoisyRouter computes, with the draws of a file: noisy = x Wg + noise * (softplus(x Wn) + 0.01). Weights
/// are [dim, experts] in the file. Without noise (evaluation) the logits are clean.
struct NoisyRouter {
  NoisyRouter(Variant& v, const std::string& gate_weight, const std::string& noise_weight)
      : tokens(v.matrix("input")),
        gate(linear_router(v.matrix(gate_weight, tokens.cols()).transpose())),
        noise_gate(linear_router(v.matrix(noise_weight, tokens.cols(), gate.num_experts()).transpose())),
        has_noise(v.has("noise")),
        clean(logits_of(gate, tokens)),
        noisy(clean) {
    if (!has_noise) return;
    noise = v.matrix("noise", clean.rows(), clean.cols());
    spread = logits_of(noise_gate, tokens);
    const auto least = static_cast<float>(v.number("noise_epsilon", 1e-2));
    deviation = spread.unaryExpr([&](float x) { return moe::Softplus::value(x) + least; });
    noisy += noise.cwiseProduct(deviation);
  }

  /// Gradients by both weights, [dim, experts], from those by clean logits, noisy logits and deviations.
  std::pair<Matrix<float>, Matrix<float>> weight_gradients(const Matrix<float>& dclean, const Matrix<float>& dnoisy,
                                                           const Matrix<float>& ddeviation) const {
    Matrix<float> dspread = Matrix<float>::Zero(clean.rows(), clean.cols());
    if (has_noise)
      dspread = (dnoisy.cwiseProduct(noise) + ddeviation).cwiseProduct(spread.unaryExpr([](float x) {
        return moe::Softplus::derivative(x);
      }));
    return {weight_gradient(gate, dclean + dnoisy), weight_gradient(noise_gate, dspread)};
  }

  Matrix<float> tokens;
  moe::LinearRouter gate, noise_gate;
  bool has_noise;
  Matrix<float> clean, noisy, noise, spread, deviation;

 private:
  Matrix<float> weight_gradient(const moe::LinearRouter& router, const Matrix<float>& dlogits) const {
    moe::LinearRouter gradient = moe::zeros_like(router);
    moe::LinearRouter::Tape tape;
    Matrix<float> dtokens = Matrix<float>::Zero(tokens.rows(), tokens.cols());
    router.backward(tokens, moe::Step{}, tape, dlogits, gradient, dtokens);
    return gradient.weight().matrix().transpose();
  }
};

/// CV^2 of the number of tokens of each expert: the importance loss of weights of 1.
inline double squared_cv_of_counts(Routing routing, Index experts) {
  weigh(routing, [](Index, Index) { return 1.0F; });
  moe::RoutingGradient<float> ignored;
  return moe::importance_loss(routing, experts, moe::Step{}, 0, ignored, {moe::Variance::Sample, 1e-10});
}

/// An expert of that code base: a softmax over the outputs of an MLP.
struct SoftmaxMlp {
  using Scalar = float;
  moe::BasicMlp<moe::F32, moe::Relu> mlp;

  Index input_dim() const { return mlp.input_dim(); }
  Index output_dim() const { return mlp.output_dim(); }
  void forward(const moe::ConstMatrixRef<float>& rows, moe::MatrixRef<float> out, const moe::Context& context) const {
    mlp.forward(rows, out, context);
    for (Index r = 0; r < out.rows(); ++r) {
      float* row = out.data() + r * out.outerStride();
      moe::softmax(row, out.cols(), row);
    }
  }
};

inline moe::ExpertPool<SoftmaxMlp> softmax_experts(Variant& v, Index experts, Index dim) {
  std::vector<SoftmaxMlp> pool;
  for (Index e = 0; e < experts; ++e) {
    const std::string name = "w.experts." + std::to_string(e) + ".";
    const Matrix<float> up = v.matrix(name + "fc1.weight", kAny, dim);
    const Matrix<float> down = v.matrix(name + "fc2.weight", kAny, up.rows());
    SoftmaxMlp expert{{dim, up.rows()}};
    if (down.rows() != dim) moe::fail_environment("fc2 has ", down.rows(), " outputs, expected ", dim);
    expert.mlp.up().write(span_of(up));
    expert.mlp.down().write(span_of(down));
    const auto up_bias = v.numbers(name + "fc1.bias", up.rows()), down_bias = v.numbers(name + "fc2.bias", dim);
    expert.mlp.up_bias().write(std::span<const float>(up_bias));
    expert.mlp.down_bias().write(std::span<const float>(down_bias));
    pool.push_back(std::move(expert));
  }
  return moe::ExpertPool<SoftmaxMlp>(std::move(pool));
}

/// The load of davidmrau/mixture-of-experts, which mixes up what it compares: the thresholds are probabilities, the
/// k-th and (k+1)-th largest, where clean logits and noisy ones are logits. An expert counts as chosen if its noisy
/// LOGIT is above the (k+1)-th probability, and is then compared with that. The library has no such option.
struct MixedLoad {
  MixedLoad(const NoisyRouter& router, const Matrix<float>& p, Index k) {
    const Index tokens = p.rows(), experts = p.cols();
    rival.resize(tokens, experts);
    margin.resize(tokens, experts);
    load.assign(static_cast<std::size_t>(experts), 0);
    std::vector<Index> best(static_cast<std::size_t>(k) + 1);
    for (Index t = 0; t < tokens; ++t) {
      moe::top_k(p.row(t).data(), experts, best);
      const Index next = best[static_cast<std::size_t>(k)], last = best[static_cast<std::size_t>(k - 1)];
      for (Index e = 0; e < experts; ++e) {
        rival(t, e) = router.noisy(t, e) > p(t, next) ? next : last;
        margin(t, e) =
            static_cast<double>(router.clean(t, e) - p(t, rival(t, e))) / static_cast<double>(router.deviation(t, e));
        load[static_cast<std::size_t>(e)] += 0.5 * std::erfc(-margin(t, e) / std::numbers::sqrt2);
      }
    }
  }

  /// CV^2 of the load and its gradients by clean logits, probabilities and deviations, which are added to.
  double loss(const NoisyRouter& router, Matrix<float>& dclean, Matrix<float>& dp, Matrix<float>& ddeviation) const {
    auto slope = load;
    const double value = moe::detail::squared_cv(slope, {moe::Variance::Sample, 1e-10}, 1);
    for (Index t = 0; t < margin.rows(); ++t)
      for (Index e = 0; e < margin.cols(); ++e) {
        const double z = margin(t, e), density = std::exp(-z * z / 2) / std::sqrt(2 * std::numbers::pi);
        const double d = slope[static_cast<std::size_t>(e)] * density / static_cast<double>(router.deviation(t, e));
        dclean(t, e) += static_cast<float>(d);
        dp(t, rival(t, e)) -= static_cast<float>(d);
        ddeviation(t, e) -= static_cast<float>(d * z);
      }
    return value;
  }

  Matrix<Index> rival;
  Matrix<double> margin;
  std::vector<double> load;
};

inline void check_rau(Variant& v) {
  const NoisyRouter router(v, "w.w_gate", "w.w_noise");
  const Index k = v.integer("k", 4), tokens = router.clean.rows(), experts = router.clean.cols();
  moe::TopKGate gate{.k = k, .epsilon = 1e-6}, ignored;
  const Routing routing = routed(gate, router.noisy);
  const PerExpert ours(routing, std::vector<Index>(routing.experts().size(), 0), experts);
  v.near("gates", ours.combine);
  v.near("importance", column_sums(ours.combine));
  if (v.has("output"))
    v.near("output", combined(softmax_experts(v, experts, router.tokens.cols()), router.tokens, routing));

  moe::RoutingGradient<float> slopes;
  const double importance =
      moe::importance_loss(routing, experts, moe::Step{}, 1, slopes, {moe::Variance::Sample, 1e-10});
  const Matrix<float> p = softmax_of(router.noisy), zero = Matrix<float>::Zero(tokens, experts);
  Matrix<float> dclean = zero, dp = zero, ddeviation = zero, dnoisy;
  double load = 0;
  if (router.has_noise && k < experts) {
    const MixedLoad mixed(router, p, k);
    v.near("load", mixed.load);
    load = mixed.loss(router, dclean, dp, ddeviation);
  } else {
    const Integers counts = counts_of(routing, experts);
    v.near("load", std::vector<double>(counts.begin(), counts.end()));
    load = squared_cv_of_counts(routing, experts);
  }
  v.near("cv2_importance", importance);
  v.near("cv2_load", load);
  v.near("loss", importance + load);
  v.near("loss_scaled", v.number("loss_coef", 1e-2) * (importance + load));
  gate.backward(router.noisy, moe::Step{}, routing, std::span<const float>(slopes.weight), dp, dnoisy, ignored);
  const auto [dgate, dnoise] = router.weight_gradients(dclean, dnoisy, ddeviation);
  v.near("grad_w_gate", dgate, kWeightGradient);
  v.near("grad_w_noise", dnoise, kWeightGradient);
  v.same_fact("n_experts", experts);
  v.same_fact("d_model", router.tokens.cols());
}

}  // namespace check
