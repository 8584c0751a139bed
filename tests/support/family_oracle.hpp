// SPDX-License-Identifier: MIT
// MoE blocks of published models as plain loops in double, by their formulas, without a line of the library: what files
// of reference vectors are made with for families that have none in tests/data/golden.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace oracle {

using Vector = std::vector<double>;
using Size = std::size_t;

/// A tensor of a checkpoint.
struct Tensor {
  std::vector<Size> shape;
  Vector values;
};
using Weights = std::map<std::string, Tensor>;

struct Sizes {
  Size dim = 12, hidden = 7, experts = 6, k = 2, tokens = 5;
};

struct Chosen {
  std::vector<Size> experts;
  Vector weights;
};

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double silu(double x) { return x * sigmoid(x); }

inline Vector softmax(const Vector& z, const std::vector<bool>& among) {
  double largest = -INFINITY, sum = 0;
  for (Size e = 0; e < z.size(); ++e)
    if (among[e]) largest = std::max(largest, z[e]);
  Vector p(z.size(), 0);
  for (Size e = 0; e < z.size(); ++e)
    if (among[e]) sum += p[e] = std::exp(z[e] - largest);
  for (double& value : p) value /= sum;
  return p;
}
inline Vector softmax(const Vector& z) { return softmax(z, std::vector<bool>(z.size(), true)); }

/// The k largest, descending, lower index first.
inline std::vector<Size> top(const Vector& rank, Size k) {
  std::vector<Size> order(rank.size());
  for (Size e = 0; e < order.size(); ++e) order[e] = e;
  std::stable_sort(order.begin(), order.end(), [&](Size a, Size b) { return rank[a] > rank[b]; });
  order.resize(k);
  return order;
}

/// y = W x with W [rows, columns] at `offset` of a tensor.
inline Vector product(const Tensor& w, Size offset, Size rows, const Vector& x) {
  Vector y(rows, 0);
  for (Size r = 0; r < rows; ++r)
    for (Size c = 0; c < x.size(); ++c) y[r] += w.values[offset + r * x.size() + c] * x[c];
  return y;
}
/// y = x W with W [in, columns] at `offset`.
inline Vector product_in_out(const Tensor& w, Size offset, Size columns, const Vector& x) {
  Vector y(columns, 0);
  for (Size i = 0; i < x.size(); ++i)
    for (Size c = 0; c < columns; ++c) y[c] += x[i] * w.values[offset + i * columns + c];
  return y;
}

inline Vector swiglu(const Weights& w, const std::string& gate, const std::string& up, const std::string& down,
                     const Vector& x) {
  const Size hidden = w.at(gate).shape[0], dim = w.at(down).shape[0];
  const Vector g = product(w.at(gate), 0, hidden, x), u = product(w.at(up), 0, hidden, x);
  Vector h(hidden);
  for (Size i = 0; i < hidden; ++i) h[i] = silu(g[i]) * u[i];
  return product(w.at(down), 0, dim, h);
}

/// A family: its weights, and its output for one token whose experts are given (chosen by itself if none are).
struct Family {
  std::string name = {}, router = {};
  std::map<std::string, std::string> facts = {};                                // more metadata
  std::map<std::string, std::vector<Size>> shapes = {};                         // of the weights, below the prefix
  std::function<Vector(const Weights&, const Vector&)> logits = {};             // of a token
  std::function<std::vector<Size>(const Weights&, const Vector&)> select = {};  // from logits
  std::function<Vector(const Weights&, const Vector&, const std::vector<Size>&)> weigh = {};  // logits, experts
  std::function<Vector(const Weights&, Size, const Vector&)> expert = {};                     // one expert
  std::function<Vector(const Weights&, const Vector&)> shared = {};
  bool weight_on_input = false;  // expert(w x) instead of w expert(x)
  bool has_balance_loss = false, has_probabilities = false;
};

/// E sum_k sum_e f[k, e] P[e] over the k best of a softmax of each row of logits, whatever was chosen.
inline double balance_loss(const std::vector<Vector>& logits, Size k) {
  const double count = static_cast<double>(logits.size()), experts = static_cast<double>(logits[0].size());
  Vector share(logits[0].size(), 0), mean(logits[0].size(), 0);
  for (const Vector& z : logits) {
    const Vector p = softmax(z);
    for (Size e = 0; e < p.size(); ++e) mean[e] += p[e] / count;
    for (const Size e : top(p, k)) share[e] += 1 / count;
  }
  double sum = 0;
  for (Size e = 0; e < mean.size(); ++e) sum += share[e] * mean[e];
  return experts * sum;
}

inline Vector output(const Family& family, const Weights& w, const Vector& x, const std::vector<Size>& experts) {
  const Vector weights = family.weigh(w, family.logits(w, x), experts);
  Vector y = family.shared ? family.shared(w, x) : Vector(x.size(), 0);
  for (Size s = 0; s < experts.size(); ++s) {
    Vector in = x;
    for (double& value : in) value *= family.weight_on_input ? weights[s] : 1;
    const Vector part = family.expert(w, experts[s], in);
    for (Size c = 0; c < y.size(); ++c) y[c] += (family.weight_on_input ? 1 : weights[s]) * part[c];
  }
  return y;
}

/// Random weights, as floats.
inline Weights random_weights(const Family& family, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  Weights weights;
  for (const auto& [name, shape] : family.shapes) {
    Size size = 1;
    for (const Size extent : shape) size *= extent;
    const bool is_bias = name.find("bias") != name.npos;
    Tensor tensor{shape, Vector(size)};
    for (double& value : tensor.values) value = static_cast<float>((is_bias ? 0.3 : 0.6) * normal(engine));
    weights[name] = tensor;
  }
  return weights;
}

}  // namespace oracle
