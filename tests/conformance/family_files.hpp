// SPDX-License-Identifier: MIT
// Files of reference vectors written from the oracle, byte by byte.
#pragma once

#include <string>

#include "conformance/family_oracle_models.hpp"
#include "conformance/family_storage.hpp"
#include "support/gradient.hpp"

namespace oracle {

/// Whether the choice and the weights of a token hold out against logits that are a little off.
inline bool is_stable(const Family& family, const Weights& w, const Vector& z, std::mt19937& engine) {
  const auto experts = family.select(w, z);
  const Vector weights = family.weigh(w, z, experts);
  for (int trial = 0; trial < 8; ++trial) {
    Vector moved = z;
    for (double& logit : moved) logit += engine() % 2 ? 3e-5 : -3e-5;
    if (family.select(w, moved) != experts) return false;
    const Vector other = family.weigh(w, moved, experts);
    for (Size s = 0; s < weights.size(); ++s)
      if (std::abs(other[s] - weights[s]) > 1e-3 * (1 + std::abs(weights[s]))) return false;
  }
  return true;
}

/// One run over `count` tokens, with gradients by central differences if asked for.
class FileRun {
 public:
  FileRun(const Family& family, Weights weights, Size dim, Size count, std::mt19937& engine)
      : family_(family), weights_(std::move(weights)), dim_(dim) {
    std::normal_distribution<double> normal;
    while (tokens_.size() < count) {
      Vector x(dim);
      for (double& value : x) value = static_cast<float>(normal(engine));
      if (!is_stable(family, weights_, family.logits(weights_, x), engine)) continue;
      experts_.push_back(family.select(weights_, family.logits(weights_, x)));
      Vector c(dim);
      for (double& value : c) value = static_cast<float>(normal(engine));
      tokens_.push_back(x);
      cotangent_.push_back(c);
    }
  }

  void add_to(FileText& file, bool has_experts) const {
    const std::string t = "t" + std::to_string(tokens_.size()) + ".";
    const Size count = tokens_.size(), k = experts_[0].size();
    const std::vector<Size> shape = {1, count, dim_};
    Vector input, output, logits, weights, dense, probabilities;
    std::vector<Vector> rows;
    std::vector<Size> indices;
    for (Size i = 0; i < count; ++i) {
      const Vector z = family_.logits(weights_, tokens_[i]), w = family_.weigh(weights_, z, experts_[i]);
      Vector scattered(z.size(), 0);
      for (Size s = 0; s < k; ++s) scattered[experts_[i][s]] = w[s];
      rows.push_back(z);
      append(probabilities, softmax(z));
      append(input, tokens_[i]), append(logits, z), append(weights, w), append(dense, scattered);
      if (has_experts) append(output, oracle::output(family_, weights_, tokens_[i], experts_[i]));
      indices.insert(indices.end(), experts_[i].begin(), experts_[i].end());
    }
    file.add(t + "input", shape, input);
    file.add(t + "router_logits", {count, logits.size() / count}, logits);
    file.add(t + "topk_indices", {count, k}, indices);
    file.add(t + "topk_weights", {count, k}, weights);
    file.add(t + "dense_weights", {count, logits.size() / count}, dense);
    if (family_.has_balance_loss) file.add(t + "aux.load_balancing_loss", {1}, Vector{balance_loss(rows, k)});
    if (family_.has_probabilities) file.add(t + "router_probs", {count, logits.size() / count}, probabilities);
    if (!has_experts) return;
    file.add(t + "output", shape, output);
    file.add_f64(t + "output_f64", shape, output);
  }

  void add_gradients_to(FileText& file, const std::string& prefix) {
    const std::string t = "t" + std::to_string(tokens_.size()) + ".";
    Vector cotangent, dinput;
    for (Size i = 0; i < tokens_.size(); ++i) {
      append(cotangent, cotangent_[i]);
      for (double& value : tokens_[i]) dinput.push_back(derivative(value));
    }
    file.add(t + "cotangent", {1, tokens_.size(), dim_}, cotangent);
    file.add(t + "grad.input", {1, tokens_.size(), dim_}, dinput);
    for (auto& [name, tensor] : weights_) {
      if (name.find("e_score_correction_bias") != name.npos || name == "expert_bias") continue;
      Vector gradient;
      for (double& value : tensor.values) gradient.push_back(derivative(value));
      file.add(t + "grad." + prefix + name, tensor.shape, gradient);
    }
  }

 private:
  static void append(Vector& to, const Vector& from) { to.insert(to.end(), from.begin(), from.end()); }

  double loss() const {
    double sum = 0;
    for (Size i = 0; i < tokens_.size(); ++i) {
      const Vector y = oracle::output(family_, weights_, tokens_[i], experts_[i]);
      for (Size c = 0; c < dim_; ++c) sum += y[c] * cotangent_[i][c];
    }
    return sum;
  }
  double derivative(double& value) const {
    return test::central_difference([this] { return loss(); }, value);
  }

  const Family& family_;
  Weights weights_;
  Size dim_;
  std::vector<Vector> tokens_, cotangent_;
  std::vector<std::vector<Size>> experts_;
};

struct FileOptions {
  Storage storage = Storage::F32;
  bool gradients = false, router_only = false;
  std::uint32_t seed = 1;
};

/// Writes a file of reference vectors with token counts 1 and sizes.tokens.
inline void write_file(const std::filesystem::path& path, const Family& family, const Sizes& sizes,
                       const FileOptions& options) {
  std::mt19937 engine(options.seed);
  Weights weights = random_weights(family, options.seed + 1);
  const std::string prefix = "model.layers.3.test.";
  FileText file;
  for (auto& [name, tensor] : weights) {
    if (options.router_only && !name.starts_with("gate.")) continue;
    add_weight(file, prefix + name, tensor, options.storage, engine);
  }
  FileRun one(family, weights, sizes.dim, 1, engine), all(family, weights, sizes.dim, sizes.tokens, engine);
  one.add_to(file, !options.router_only);
  all.add_to(file, !options.router_only);
  if (options.gradients) all.add_gradients_to(file, prefix);
  std::map<std::string, std::string> facts = {{"d_model", std::to_string(sizes.dim)},
                                              {"d_ff", std::to_string(sizes.hidden)},
                                              {"n_experts", std::to_string(sizes.experts)},
                                              {"top_k", std::to_string(sizes.k)},
                                              {"ckpt_prefix", prefix},
                                              {"layer", "3"},
                                              {"token_counts", "1," + std::to_string(sizes.tokens)},
                                              {"grad_tokens", options.gradients ? std::to_string(sizes.tokens) : ""},
                                              {"mode", "eval"}};
  if (options.router_only)
    facts.insert({{"kind", "router_only"}, {"family_router", family.name}});
  else
    facts.insert({"family", family.name});
  for (const auto& [key, value] : family.facts) facts[key] = value;
  if (!options.router_only) facts.insert({{"expert_kind", "swiglu"}, {"expert_act", "silu"}});
  file.save(path, facts);
}

}  // namespace oracle
