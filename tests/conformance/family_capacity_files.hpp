// SPDX-License-Identifier: MIT
// Files of reference vectors of Switch and NLLB, whose tokens compete for experts, from plain loops over their rules.
#pragma once

#include "conformance/family_files.hpp"
#include "conformance/family_oracle_capacity.hpp"

namespace oracle {

class CapacityFile : private CapacityModel {
 public:
  using CapacityModel::CapacityModel;

  void write(const std::filesystem::path& path) {
    FileText file;
    const std::string prefix = rule_.is_nllb ? "model.decoder.layers.3.ffn." : "decoder.block.3.layer.2.mlp.";
    for (const auto& [name, tensor] : weights_) file.add(prefix + name, tensor.shape, tensor.values);
    for (const Size count : {Size{1}, sizes_.tokens}) {
      draw_tokens(count);
      add_run(file);
      if (count > 1) add_gradients(file, prefix);
    }
    std::map<std::string, std::string> facts = {{"family", rule_.is_nllb ? "nllb_moe" : "switch"},
                                                {"d_model", std::to_string(sizes_.dim)},
                                                {"d_ff", std::to_string(sizes_.hidden)},
                                                {"n_experts", std::to_string(sizes_.experts)},
                                                {"top_k", std::to_string(choices())},
                                                {"ckpt_prefix", prefix},
                                                {"score_order", "softmax_then_topk"},
                                                {"norm_topk_prob", "false"},
                                                {"expert_kind", "mlp"},
                                                {"expert_act", "relu"},
                                                {"expert_bias", rule_.is_nllb ? "true" : "false"},
                                                {"token_counts", "1," + std::to_string(sizes_.tokens)},
                                                {"grad_tokens", std::to_string(sizes_.tokens)}};
    for (const auto& [key, value] : rule_.facts) facts[key] = value;
    file.save(path, facts);
  }

 private:
  /// Tokens whose best three logits, and whose best probabilities among each other, are well apart.
  void draw_tokens(Size count) {
    std::normal_distribution<double> normal;
    tokens_.clear(), cotangent_.clear();
    Vector best;
    while (tokens_.size() < count) {
      Vector x(sizes_.dim), c(sizes_.dim);
      for (Size i = 0; i < x.size(); ++i)
        x[i] = static_cast<float>(normal(engine_)), c[i] = static_cast<float>(normal(engine_));
      Vector sorted = logits(x);
      std::sort(sorted.rbegin(), sorted.rend());
      const Vector p = probabilities(x);
      const double first = *std::max_element(p.begin(), p.end());
      const auto is_near = [&](double other) { return std::abs(other - first) < 1e-4; };
      if (sorted[0] - sorted[1] < 1e-3 || sorted[1] - sorted[2] < 1e-3 ||
          std::any_of(best.begin(), best.end(), is_near))
        continue;
      best.push_back(first), tokens_.push_back(x), cotangent_.push_back(c);
    }
    sequences_ = count % rule_.sequences == 0 ? rule_.sequences : 1;
    compete();
  }

  void add_run(FileText& file) const {
    const std::string t = "t" + std::to_string(tokens_.size()) + ".";
    const Size count = tokens_.size(), experts = sizes_.experts;
    const std::vector<Size> rows = {sequences_, count / sequences_, sizes_.dim};
    Vector input, y, z, p, weights, combined(count * experts, 0);
    std::vector<Size> chosen, mask[3], place[2], counted;
    for (auto& one : mask) one.assign(count * experts, 0);
    const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    for (Size i = 0; i < count; ++i) {
      const Vector w = combine(i);
      append(input, tokens_[i]), append(y, output(i)), append(z, logits(tokens_[i])),
          append(p, probabilities(tokens_[i]));
      append(chosen, now_.chosen[i]);
      counted.push_back(now_.kept[i][0] ? now_.chosen[i][0] : 0);
      for (Size s = 0; s < choices(); ++s) {
        const Size at = i * experts + now_.chosen[i][s];
        weights.push_back(rule_.is_nllb ? w[s] : p[at]);
        combined[at] = w[s], mask[s][at] = mask[2][at] = now_.kept[i][s];
        place[s].push_back(now_.place[i][s]);
      }
    }
    file.add(t + "input", rows, input), file.add(t + "output", rows, y), file.add_f64(t + "output_f64", rows, y);
    file.add(t + "router_logits", {count, experts}, z);
    file.add(t + "topk_indices", {count, choices()}, chosen), file.add(t + "topk_weights", {count, choices()}, weights);
    if (rule_.is_nllb) {
      file.add(t + "combine_weights", {count, experts}, combined);
      file.add_u8(t + "dispatch_mask_1", {count, experts}, mask[0]);
      file.add_u8(t + "dispatch_mask_2", {count, experts}, mask[1]);
      file.add(t + "position_1", {count, 1}, place[0]), file.add(t + "position_2", {count, 1}, place[1]);
      return file.add(t + "top1_index_for_loss", {count}, counted);
    }
    file.add(t + "router_probs", {rows[0], rows[1], experts}, p);
    file.add_u8(t + "dispatch_mask", {rows[0], rows[1], experts}, mask[2]);
    file.add(t + "position_in_expert", {rows[0], rows[1], 1}, place[0]);
    file.add(t + "expert_index_for_loss", {rows[0], rows[1]}, counted);
    add_losses(file, counted);
  }

  void add_losses(FileText& file, const std::vector<Size>& counted) const {
    const std::string t = "t" + std::to_string(tokens_.size()) + ".";
    const Size experts = sizes_.experts, length = tokens_.size() / sequences_;
    double balance = 0, z_loss = 0;
    for (Size b = 0; b < sequences_; ++b)
      for (Size e = 0; e < experts; ++e) {
        double share = 0, mean = 0;
        for (Size i = b * length; i < (b + 1) * length; ++i)
          share += counted[i] == e ? 1 : 0, mean += probabilities(tokens_[i])[e];
        const double n = static_cast<double>(length);
        balance += static_cast<double>(experts) / static_cast<double>(sequences_) * (share / n) * (mean / n);
      }
    for (const Vector& x : tokens_) {
      double sum = 0;
      for (const double value : logits(x)) sum += std::exp(value);
      z_loss += std::log(sum) * std::log(sum) / static_cast<double>(tokens_.size());
    }
    file.add(t + "aux.load_balancing_loss", {1}, Vector{balance}),
        file.add(t + "aux.router_z_loss", {1}, Vector{z_loss});
  }

  double loss() const {
    double sum = 0;
    for (Size t = 0; t < tokens_.size(); ++t) {
      const Vector y = output(t);
      for (Size c = 0; c < y.size(); ++c) sum += y[c] * cotangent_[t][c];
    }
    return sum;
  }
  double derivative(double& value) const {
    return test::central_difference([this] { return loss(); }, value);
  }
  void add_gradients(FileText& file, const std::string& prefix) {
    const std::string t = "t" + std::to_string(tokens_.size()) + ".";
    const std::vector<Size> rows = {sequences_, tokens_.size() / sequences_, sizes_.dim};
    Vector c, dinput;
    for (const Vector& row : cotangent_) c.insert(c.end(), row.begin(), row.end());
    for (Vector& row : tokens_)
      for (double& value : row) dinput.push_back(derivative(value));
    file.add(t + "cotangent", rows, c), file.add(t + "grad.input", rows, dinput);
    for (auto& [name, tensor] : weights_) {
      Vector gradient;
      for (double& value : tensor.values) gradient.push_back(derivative(value));
      file.add(t + "grad." + prefix + name, tensor.shape, gradient);
    }
  }
};

}  // namespace oracle
