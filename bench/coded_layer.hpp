// SPDX-License-Identifier: MIT
// Our layer with the weights of its experts in few bits.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moe/kernel/weight_format.hpp"
#include "problem.hpp"

namespace bench {

/// How the experts of a layer store their weights: in a format; without one as floats.
using Weights = std::optional<moe::WeightFormat>;
inline std::string name_of(const Weights& weights) { return weights ? weights->name() : "f32"; }

/// The formats of the table of formats, floats first.
std::vector<Weights> usual_weights();

/// Bytes of one expert: its weights with their share of scales and zero points.
double expert_bytes(const Shape& shape, const Weights& weights);
/// The same for a weight, on average.
double bits_per_weight(const Shape& shape, const Weights& weights);

class CodedLayer {
 public:
  /// Rounds the experts of `layer` to nearest; router and gate stay.
  CodedLayer(const Layer& layer, const moe::WeightFormat& format);
  ~CodedLayer();
  CodedLayer(CodedLayer&&) noexcept;

  void forward(const Matrix<float>& tokens, Matrix<float>& out, moe::Workspace& workspace) const;

  /// Of the experts' codes and scales, and padding.
  Index bytes() const;

  /// Gives `layer` the same weights as floats, for the experts that have rows.
  void decode_into(Layer& layer, const moe::DispatchPlan& plan) const;

 private:
  struct Content;
  std::unique_ptr<Content> content_;
};

}  // namespace bench
