// SPDX-License-Identifier: MIT
// Switch and NLLB, whose tokens compete for experts: blocks against plain loops over their published rules.
#include <numeric>

#include "io/family_blocks.hpp"
#include "support/catch.hpp"
#include "support/family_oracle.hpp"

using moe::Index;
using oracle::Size;
using oracle::Vector;

namespace {

/// The weights of a block under the names of its family, for the oracle.
oracle::Weights weights_of(moe::MoeBlock& block) {
  oracle::Weights weights;
  const moe::FamilyFormat& format = moe::find_family(block.config().family)->formats.front();
  for (const moe::BoundTensor& tensor : moe::bind_weights(block, {format})) {
    oracle::Tensor& entry = weights[tensor.name];
    entry.shape.assign(tensor.shape.begin(), tensor.shape.end());
    std::vector<float> values(
        static_cast<Size>(std::accumulate(tensor.shape.begin(), tensor.shape.end(), Index{1}, std::multiplies<>())));
    moe::read_bound(tensor, values);
    entry.values.assign(values.begin(), values.end());
  }
  return weights;
}

Vector relu_mlp(const oracle::Weights& w, const std::string& expert, const char* up, const char* down,
                const Vector& x) {
  const oracle::Tensor& first = w.at(expert + up + ".weight");
  const auto add_bias = [&](const char* part, Vector& values) {
    const auto bias = w.find(expert + part + ".bias");
    for (Size i = 0; bias != w.end() && i < values.size(); ++i) values[i] += bias->second.values[i];
  };
  Vector h = oracle::product(first, 0, first.shape[0], x);
  add_bias(up, h);
  for (double& value : h) value = std::max(value, 0.0);
  Vector y = oracle::product(w.at(expert + down + ".weight"), 0, x.size(), h);
  add_bias(down, y);
  return y;
}

struct Nllb {
  Size capacity = 0;
  bool batch_prioritised = false, norm_before = false;
  double scale = 1;  ///< of expert outputs
};

/// First and second choice of every token, positions counted over the batch, weights divided by their sum.
std::vector<Vector> nllb_outputs(const oracle::Weights& w, const std::vector<Vector>& tokens, const Nllb& rule) {
  const Size count = tokens.size(), experts = w.at("router.classifier.weight").shape[0];
  std::vector<Vector> p, outputs;
  std::vector<std::vector<Size>> chosen;
  for (const Vector& x : tokens) {
    p.push_back(oracle::softmax(oracle::product(w.at("router.classifier.weight"), 0, experts, x)));
    chosen.push_back(oracle::top(p.back(), 2));
  }
  std::vector<Size> order(count), served(experts, 0);
  std::iota(order.begin(), order.end(), Size{0});
  if (rule.batch_prioritised)
    std::stable_sort(order.begin(), order.end(),
                     [&](Size a, Size b) { return p[a][chosen[a][0]] > p[b][chosen[b][0]]; });
  std::vector<Vector> kept(count, Vector(2));
  for (const Size slot : {Size{0}, Size{1}})
    for (const Size t : order) kept[t][slot] = served[chosen[t][slot]]++ < rule.capacity ? 1 : 0;
  for (Size t = 0; t < count; ++t) {
    Vector y(tokens[t].size(), 0);
    const double first = p[t][chosen[t][0]], second = p[t][chosen[t][1]];
    const double sum = rule.norm_before ? first + second : kept[t][0] * first + kept[t][1] * second;
    for (const Size slot : {Size{0}, Size{1}}) {
      const double weight = kept[t][slot] * (slot == 0 ? first : second) / std::max(sum, 1.1920929e-7);
      const std::string expert = "experts.expert_" + std::to_string(chosen[t][slot]) + ".";
      const Vector part = relu_mlp(w, expert, "fc1", "fc2", tokens[t]);
      for (Size c = 0; c < y.size(); ++c) y[c] += rule.scale * weight * part[c];
    }
    outputs.push_back(y);
  }
  return outputs;
}

/// The best expert of every token, at most `capacity` tokens of each sequence of `length`.
std::vector<Vector> switch_outputs(const oracle::Weights& w, const std::vector<Vector>& tokens, Size length,
                                   Size capacity) {
  const Size experts = w.at("router.classifier.weight").shape[0];
  std::vector<Vector> outputs;
  std::vector<Size> served;
  for (Size t = 0; t < tokens.size(); ++t) {
    if (t % length == 0) served.assign(experts, 0);
    const Vector p = oracle::softmax(oracle::product(w.at("router.classifier.weight"), 0, experts, tokens[t]));
    const Size e = oracle::top(p, 1)[0];
    Vector y(tokens[t].size(), 0);
    if (served[e]++ < capacity) {
      y = relu_mlp(w, "experts.expert_" + std::to_string(e) + ".", "wi", "wo", tokens[t]);
      for (double& value : y) value *= p[e];
    }
    outputs.push_back(y);
  }
  return outputs;
}

std::vector<Vector> vectors_of(const moe::Matrix<float>& tokens) {
  std::vector<Vector> result;
  for (Index t = 0; t < tokens.rows(); ++t) {
    Vector row;
    for (Index c = 0; c < tokens.cols(); ++c) row.push_back(static_cast<double>(tokens(t, c)));
    result.push_back(row);
  }
  return result;
}

/// Largest difference relative to the largest expected value.
double output_error(const moe::MoeBlock& block, const moe::Matrix<float>& tokens, const moe::Step& step,
                    const std::vector<Vector>& expected) {
  moe::Matrix<float> out(tokens.rows(), tokens.cols());
  moe::Workspace workspace;
  block.forward(tokens, step, out, workspace);
  double error = 0, largest = 0;
  for (Index t = 0; t < out.rows(); ++t)
    for (Index c = 0; c < out.cols(); ++c) {
      const double value = expected[static_cast<Size>(t)][static_cast<Size>(c)];
      error = std::max(error, std::abs(static_cast<double>(out(t, c)) - value));
      largest = std::max(largest, std::abs(value));
    }
  return error / largest;
}

constexpr double kTolerance = 5e-6;  // sums of some twenty float products, some of which cancel

}  // namespace

TEST_CASE("MoeBlock: NLLB is its published rule, in all its variants", "[io]") {
  const std::string text = test::config_text("nllb-moe");
  const auto tokens = test::random_matrix<float>(23, 12, 3);
  for (const bool prioritised : {false, true})
    for (const bool before : {false, true}) {
      nlohmann::json json = nlohmann::json::parse(text);
      json["batch_prioritized_routing"] = prioritised;
      json["normalize_router_prob_before_dropping"] = before;
      auto block = test::random_block(moe::parse_moe_config("test", json));
      const auto weights = weights_of(block);
      CAPTURE(prioritised, before);
      const Nllb trained{5, prioritised, before, 1}, evaluated{12, prioritised, before, 0.8};  // 12 = ceil(0.5 * 23)
      CHECK(output_error(block, tokens, moe::Step::train(0), nllb_outputs(weights, vectors_of(tokens), trained)) <
            kTolerance);
      CHECK(output_error(block, tokens, moe::Step{}, nllb_outputs(weights, vectors_of(tokens), evaluated)) <
            kTolerance);
    }
}

TEST_CASE("MoeBlock: Switch counts tokens in every sequence", "[io]") {
  auto block = test::random_block(test::config_of("switch_transformers"));
  const auto weights = weights_of(block);
  const auto tokens = test::random_matrix<float>(36, 12, 4);
  std::vector<std::int64_t> sequence;
  for (std::int64_t t = 0; t < 36; ++t) sequence.push_back(t / 12);
  moe::Step step;
  step.group_id = sequence;
  for (const auto phase : {moe::Phase::Training, moe::Phase::Inference}) {
    step.phase = phase;
    CHECK(output_error(block, tokens, step, switch_outputs(weights, vectors_of(tokens), 12, 3)) < kTolerance);
  }
}
