// SPDX-License-Identifier: MIT
// A gate chosen at run time: one layer type serves all gates, which keeps these programs quick to compile.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moe/gate/activation.hpp"
#include "moe/gate/dense_to_sparse.hpp"
#include "moe/gate/dselect_k.hpp"
#include "moe/gate/hash.hpp"
#include "moe/gate/hash_tables.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/null_expert.hpp"
#include "moe/gate/prototype.hpp"
#include "moe/gate/rank.hpp"
#include "moe/gate/relu.hpp"
#include "moe/gate/self_gate.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/gate/threshold.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/top_p.hpp"
#include "moe/gate/wrap/straight_through.hpp"
#include "moe/gate/wrap/top_any.hpp"
#include "moe/gate/wrap/with_levels.hpp"
#include "moe/gate/wrap/with_skipping.hpp"

namespace test {

template <class S>
class AnyGate {
 public:
  static constexpr bool kPerToken = true;

  template <class G>
  AnyGate(std::string name_, G gate) : name(std::move(name_)), model_(std::make_unique<Model<G>>(std::move(gate))) {}
  AnyGate(const AnyGate& other) : name(other.name), model_(other.model_->clone()) {}
  AnyGate(AnyGate&&) = default;

  std::string name;

  void validate(moe::Index num_experts) const { model_->validate(num_experts); }
  moe::Index num_logits(moe::Index num_experts) const { return model_->num_logits(num_experts); }
  void route(const moe::Logits<S>& logits, const moe::Context& context, moe::Routing<S>& routing) const {
    model_->route(logits, context, routing);
  }
  // Declared only: training asks for them, but these programs call neither.
  void replay(const moe::Logits<S>& logits, const moe::Context& context, moe::Routing<S>& routing) const;
  void probabilities(const moe::Logits<S>& logits, const moe::Context& context, moe::Matrix<S>& p) const;
  void backward(const moe::Logits<S>& logits, const moe::Context& context, const moe::Routing<S>& routing,
                std::span<const S> dweight, const moe::MatrixView<S>& dprobability, moe::Matrix<S>& dlogits,
                AnyGate& gradient) const {
    model_->backward(logits, context, routing, dweight, dprobability, dlogits, *gradient.model_);
  }
  std::vector<double> parameters() const { return model_->parameters(); }
  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // they come out by parameters()

 private:
  struct Base {
    virtual ~Base() = default;
    virtual std::unique_ptr<Base> clone() const = 0;
    virtual void validate(moe::Index) const = 0;
    virtual moe::Index num_logits(moe::Index) const = 0;
    virtual void route(const moe::Logits<S>&, const moe::Context&, moe::Routing<S>&) const = 0;
    virtual void backward(const moe::Logits<S>&, const moe::Context&, const moe::Routing<S>&, std::span<const S>,
                          const moe::MatrixView<S>&, moe::Matrix<S>&, Base&) const = 0;
    virtual std::vector<double> parameters() const = 0;
  };

  template <class G>
  struct Model final : Base {
    G gate;

    explicit Model(G gate_) : gate(std::move(gate_)) {}
    std::unique_ptr<Base> clone() const override { return std::make_unique<Model>(gate); }
    void validate(moe::Index num_experts) const override { gate.validate(num_experts); }
    moe::Index num_logits(moe::Index num_experts) const override { return moe::detail::num_logits(gate, num_experts); }
    void route(const moe::Logits<S>& logits, const moe::Context& context, moe::Routing<S>& routing) const override {
      gate.route(logits, context, routing);
    }
    void backward(const moe::Logits<S>& logits, const moe::Context& context, const moe::Routing<S>& routing,
                  std::span<const S> dweight, const moe::MatrixView<S>& dprobability, moe::Matrix<S>& dlogits,
                  Base& gradient) const override {
      gate.backward(logits, context, routing, dweight, dprobability, dlogits, static_cast<Model&>(gradient).gate);
    }
    std::vector<double> parameters() const override {
      std::vector<double> all;
      moe::visit(
          [&](const std::string&, const auto& leaf) {
            for (const auto value : moe::parameter_span(leaf)) all.push_back(static_cast<double>(value));
          },
          gate);
      return all;
    }
  };

  std::unique_ptr<Base> model_;
};

/// The gates that decide each token by itself, for `num_experts` experts, but for those that need other logits or keys.
template <class S>
std::vector<AnyGate<S>> per_token_gates(moe::Index num_experts) {
  const auto bias = [&](double scale) -> Eigen::RowVectorXd {
    return Eigen::RowVectorXd::LinSpaced(num_experts, -scale, scale);
  };
  std::vector<AnyGate<S>> gates;
  gates.emplace_back("top_k", moe::TopKGate{.k = 2});
  gates.emplace_back(
      "top_k sigmoid",
      moe::TopKGate{.k = 3, .score = moe::Score::Sigmoid, .selection_bias = bias(0.3), .weight_bias = bias(0.4)});
  gates.emplace_back("softmax", moe::SoftmaxGate{});
  gates.emplace_back("dense_to_sparse",
                     moe::DenseToSparseGate<moe::LearnableTemperature>{
                         .temperature = moe::LearnableTemperature::starting_at(0.7), .threshold = 0.1, .gumbel = 1});
  gates.emplace_back("activation", moe::ActivationGate<>{.bias = bias(0.5)});
  gates.emplace_back("stochastic", moe::StochasticGate{.k = 2, .training = moe::DrawPer::Token});
  gates.emplace_back("noisy_top_k", moe::NoisyTopKGate{});
  gates.emplace_back("top_k root softplus", moe::TopKGate{.k = 3, .score = moe::Score::SqrtSoftplus});
  gates.emplace_back("top_p", moe::TopPGate{.p = 0.6});
  gates.emplace_back("threshold", moe::ThresholdGate{});
  gates.emplace_back("relu", moe::ReluGate{});
  gates.emplace_back("prototype", moe::PrototypeGate{.groups = 1, .k = 2});
  gates.emplace_back("rank", moe::RankGate{.ranks = {2, 0}});
  gates.emplace_back("with_skipping", moe::WithSkipping<moe::TopKGate>{.gate = {.k = 3}, .min_ratio = 0.5});
  gates.emplace_back("straight_through", moe::StraightThrough<moe::TopKGate>{{.k = 2, .weight_bias = bias(0.4)}});
  return gates;
}

/// Keys of tokens that keyed_and_other_gates() know.
inline constexpr moe::Index kNumKeys = 20;

/// Those that need keys below kNumKeys, or other numbers of logits than experts, which are a multiple of 3.
template <class S>
std::vector<AnyGate<S>> keyed_and_other_gates(moe::Index num_experts) {
  std::vector<AnyGate<S>> gates;
  gates.emplace_back("hash", moe::HashGate{.table = moe::random_hash_table(kNumKeys, num_experts, 2, 7),
                                           .weight = moe::ChoiceWeight::Score});
  gates.emplace_back("null_expert", moe::NullExpertGate{.k = 3, .nulls = 2});
  gates.emplace_back("self_gate", moe::SelfGate{.own = 2});
  gates.emplace_back("top_any", moe::TopAnyGate<moe::TopKGate>{.gate = {.k = 3}, .k = 3});
  gates.emplace_back("with_levels", moe::WithLevels<moe::TopKGate>{.gate = {.k = 2}, .levels = 3});
  gates.emplace_back("dselect_k", moe::DSelectKGate{.num_experts = num_experts, .k = 2, .width = 2});
  return gates;
}

}  // namespace test
