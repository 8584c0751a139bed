// SPDX-License-Identifier: MIT
// Switch and NLLB, whose tokens compete for experts, as plain loops; see family_oracle.hpp.
#pragma once

#include <numeric>
#include <utility>

#include "conformance/family_oracle_models.hpp"

namespace oracle {

/// A rule of competition.
struct CapacityRule {
  bool is_nllb = false;
  std::function<Size(Size)> capacity = {};  ///< of an expert, by the tokens of a sequence (Switch) or batch (NLLB)
  Size sequences = 2;                       ///< of equal length
  bool batch_prioritised = false, norm_before = false;
  double scale = 1;  ///< of expert outputs
  std::map<std::string, std::string> facts = {};
};

/// Who chose whom at which place of the buffer, [tokens][choices].
struct Competition {
  std::vector<std::vector<Size>> chosen, place;
  std::vector<std::vector<bool>> kept;
};

class CapacityModel {
 public:
  CapacityModel(CapacityRule rule, const Sizes& sizes, std::uint32_t seed)
      : rule_(std::move(rule)), sizes_(sizes), engine_(seed) {
    Family family{.name = rule_.is_nllb ? "nllb_moe" : "switch"};
    family.shapes[kRouter] = {sizes.experts, sizes.dim};
    for (Size e = 0; e < sizes.experts; ++e) {
      family.shapes[part(e, up()) + ".weight"] = {sizes.hidden, sizes.dim};
      family.shapes[part(e, down()) + ".weight"] = {sizes.dim, sizes.hidden};
      if (!rule_.is_nllb) continue;
      family.shapes[part(e, up()) + ".bias"] = {sizes.hidden};
      family.shapes[part(e, down()) + ".bias"] = {sizes.dim};
    }
    weights_ = random_weights(family, seed);
  }

 protected:
  static constexpr const char* kRouter = "router.classifier.weight";
  const char* up() const { return rule_.is_nllb ? "fc1" : "wi"; }
  const char* down() const { return rule_.is_nllb ? "fc2" : "wo"; }
  Size choices() const { return rule_.is_nllb ? 2 : 1; }
  static std::string part(Size e, const std::string& name) {
    return "experts.expert_" + std::to_string(e) + "." + name;
  }
  Vector probabilities(const Vector& x) const { return softmax(logits(x)); }
  Vector logits(const Vector& x) const { return product(weights_.at(kRouter), 0, sizes_.experts, x); }

  Vector expert(Size e, const Vector& x) const {
    const auto layer = [&](const char* name, Size rows, const Vector& in) {
      Vector out = product(weights_.at(part(e, name) + ".weight"), 0, rows, in);
      const auto bias = weights_.find(part(e, name) + ".bias");
      for (Size i = 0; bias != weights_.end() && i < rows; ++i) out[i] += bias->second.values[i];
      return out;
    };
    Vector h = layer(up(), sizes_.hidden, x);
    for (double& value : h) value = std::max(value, 0.0);
    return layer(down(), sizes_.dim, h);
  }

  void compete() {
    const Size count = tokens_.size(), length = count / sequences_;
    now_ = {};
    std::vector<Size> order(count);
    std::iota(order.begin(), order.end(), Size{0});
    Vector best;
    for (const Vector& x : tokens_) {
      now_.chosen.push_back(top(logits(x), choices()));
      best.push_back(probabilities(x)[now_.chosen.back()[0]]);
    }
    if (rule_.batch_prioritised)
      std::sort(order.begin(), order.end(), [&](Size a, Size b) { return best[a] > best[b]; });
    now_.place.assign(count, std::vector<Size>(choices()));
    now_.kept.assign(count, std::vector<bool>(choices()));
    std::map<std::pair<Size, Size>, Size> served;  // of (sequence, expert)
    for (Size slot = 0; slot < choices(); ++slot)
      for (const Size t : order) {
        const Size group = rule_.is_nllb ? 0 : t / length;
        now_.place[t][slot] = served[{group, now_.chosen[t][slot]}]++;
        now_.kept[t][slot] = now_.place[t][slot] < rule_.capacity(rule_.is_nllb ? count : length);
      }
  }

  /// Of the choices of token t, 0 where dropped.
  Vector combine(Size t) const {
    const Vector p = probabilities(tokens_[t]);
    Vector w;
    double before = 0, after = 0;
    for (Size s = 0; s < choices(); ++s) {
      const double chosen = p[now_.chosen[t][s]];
      before += chosen;
      w.push_back(now_.kept[t][s] ? chosen : 0);
      after += w.back();
    }
    if (!rule_.is_nllb) return w;
    return detail::scaled(w, 1 / std::max(rule_.norm_before ? before : after, 1.1920928955078125e-7));
  }
  Vector output(Size t) const {
    Vector y(sizes_.dim, 0);
    const Vector w = combine(t);
    for (Size s = 0; s < choices(); ++s) {
      const Vector part = expert(now_.chosen[t][s], tokens_[t]);
      for (Size c = 0; c < y.size(); ++c) y[c] += rule_.scale * w[s] * part[c];
    }
    return y;
  }

  CapacityRule rule_;
  Sizes sizes_;
  std::mt19937 engine_;
  Weights weights_;
  Size sequences_ = 1;
  std::vector<Vector> tokens_, cotangent_;
  Competition now_;
};

}  // namespace oracle
