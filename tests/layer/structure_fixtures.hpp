// SPDX-License-Identifier: MIT
// Layers with every shipped gate, for the functions that make layers of others, and what a layer consists of.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "layer/fixtures.hpp"
#include "moe/gate/activation.hpp"
#include "moe/gate/dense_to_sparse.hpp"
#include "moe/gate/expert_choice.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/sparse_mixer.hpp"
#include "moe/gate/stochastic.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "moe/layer/structure.hpp"
#include "support/gates.hpp"

namespace test {

/// A top-k gate with all that it can have per expert.
inline moe::TopKGate biased_gate(Index experts, Index k = 2) {
  moe::TopKGate gate{.k = k, .score = moe::Score::Sigmoid, .epsilon = 1e-3, .scale = 2};
  gate.selection_bias = random_bias(experts, 31, 0.3);
  gate.weight_bias = random_bias(experts, 32, 0.5);
  return gate;
}

/// Calls f(name, gate) for gates whose weights are functions of the logits of a token's choices.
template <class F>
void for_each_gate_of_chosen_logits(Index experts, F&& f) {
  f("top-k", moe::TopKGate{.k = 2});
  f("top-1 of weight 1", moe::TopKGate{.k = 1, .constant_weights = moe::ConstantWeights::Accept});
  f("sigmoid top-k", moe::TopKGate{.k = 2, .score = moe::Score::Sigmoid, .normalise = moe::Normalise::Off});
  f("softplus top-k", moe::TopKGate{.k = 2, .score = moe::Score::SqrtSoftplus});
  f("biased top-k", biased_gate(experts));
  f("noisy top-k", moe::NoisyTopKGate{.top_k = biased_gate(experts)});
  f("top-k by chance", moe::WithChance<moe::TopKGate>{biased_gate(experts), 1.5, 1.2});
}

/// Calls f(name, gate) for gates whose weights are a softmax over all logits.
template <class F>
void for_each_gate_of_all_logits(Index experts, F&& f) {
  f("softmax", moe::SoftmaxGate{});
  f("switch", moe::TopKGate::switch_transformer());
  f("sparse mixer", moe::SparseMixerGate{});
  f("expert choice", moe::ExpertChoiceGate{.capacity = 7});
  f("dense to sparse", moe::DenseToSparseGate<moe::LearnableTemperature>{.threshold = 0.01});
  moe::ActivationGate<moe::Tanh> activation{.sparse = {.threshold = 0.05, .at_inference = moe::AtInference::Dense}};
  activation.bias = random_bias(experts, 33, 0.5);
  f("activation", activation);
}

/// Both, and those to which logits mean nothing or not all.
template <class F>
void for_each_shipped_gate(Index experts, F&& f) {
  for_each_gate_of_chosen_logits(experts, f);
  for_each_gate_of_all_logits(experts, f);
  f("stochastic", moe::StochasticGate{.k = 2});
  f("capacity", moe::WithCapacity<moe::TopKGate>{biased_gate(experts), {.factor = 1, .evaluation_factor = 1}});
  f("chance and capacity",
    moe::WithCapacity<moe::WithChance<moe::TopKGate>>{{moe::TopKGate{.k = 2}, 0.4, 0.4}, {.factor = 1}});
}

/// A leaf of a layer: where it belongs, its shape, its values row by row.
struct Leaf {
  std::vector<Index> shape;
  std::vector<double> values;
  bool operator==(const Leaf&) const = default;

  Index rows() const { return shape.empty() ? 0 : shape.front(); }
  std::vector<double> row(Index i) const {
    const Index width = static_cast<Index>(values.size()) / rows();
    return {values.begin() + i * width, values.begin() + (i + 1) * width};
  }
};

struct CollectLeaves {
  std::map<std::string, Leaf>& leaves;

  template <class L>
  void operator()(const std::string& name, const L& leaf) const {
    leaves[name] = {moe::parameter_shape(leaf), values_of(leaf)};
  }
};

/// All parameters and all state of a layer: what a file of it holds.
template <class T>
std::map<std::string, Leaf> leaves_of(const T& object) {
  std::map<std::string, Leaf> leaves;
  moe::visit_all(CollectLeaves{leaves}, object);
  return leaves;
}

/// The oracle of take_experts: leaf by leaf, expert i of `taken` is expert ids[i] of `whole`. What is not an expert's
/// and has as many rows as there are experts goes by rows, all else is equal.
inline bool is_taken(const std::map<std::string, Leaf>& whole, const std::map<std::string, Leaf>& taken,
                     Index num_experts, std::span<const Index> ids) {
  std::size_t found = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::string from = "experts." + std::to_string(ids[i]) + ".", to = "experts." + std::to_string(i) + ".";
    for (const auto& [name, leaf] : whole) {
      if (!name.starts_with(from)) continue;
      const auto it = taken.find(to + name.substr(from.size()));
      if (it == taken.end() || it->second != leaf) return false;
      ++found;
    }
  }
  for (const auto& [name, leaf] : whole) {
    if (name.starts_with("experts.")) continue;
    const auto it = taken.find(name);
    if (it == taken.end()) return false;
    ++found;
    if (leaf.rows() != num_experts) {
      if (it->second != leaf) return false;
      continue;
    }
    if (it->second.rows() != std::ssize(ids)) return false;
    for (Index i = 0; i < std::ssize(ids); ++i)
      if (it->second.row(i) != leaf.row(ids[static_cast<std::size_t>(i)])) return false;
  }
  return found == taken.size();
}

/// Whether two layers of one type are the same, bit for bit: what they hold, compute, and learn under `step`.
template <class Layer>
bool is_same_layer(const Layer& a, const Layer& b, const moe::Step& step) {
  using S = typename Layer::Scalar;
  const auto tokens = random_matrix<S>(19, a.input_dim(), 1), dout = random_matrix<S>(19, a.output_dim(), 2);
  if (leaves_of(a) != leaves_of(b) || !same_bits(forward(a, tokens), forward(b, tokens))) return false;
  const TrainingPass<Layer> of_a(a, tokens, dout, step), of_b(b, tokens, dout, step);
  return same_bits(of_a.out, of_b.out) && same_bits(of_a.dtokens, of_b.dtokens) &&
         leaves_of(of_a.gradient) == leaves_of(of_b.gradient);
}

}  // namespace test
