// SPDX-License-Identifier: MIT
// Our layer with the weights of its experts in few bits.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moe/kernel/quantised_matrix.hpp"
#include "problem.hpp"

namespace bench {

/// A format of weights, and what rows are rounded to before they are multiplied with them.
struct CodedWeights {
  moe::WeightFormat format;
  moe::Dot dot = moe::Dot::Exact;

  friend bool operator==(const CodedWeights&, const CodedWeights&) = default;
};

/// How the experts of a layer store their weights; without a format as floats.
using Weights = std::optional<CodedWeights>;
/// "f32", "int4-g32", with rounded rows "int4-g32+dot".
std::string name_of(const Weights& weights);
/// The weights of such a name: "dot" is Dot::Bf16 of bf16, else Dot::Int8. Throws std::invalid_argument for others.
Weights weights_named(const std::string& name);

/// The formats of the table of formats, floats first.
std::vector<Weights> usual_weights();

/// Bytes of one expert: its weights with their share of scales and zero points.
double expert_bytes(const Shape& shape, const Weights& weights);
/// The same for a weight, on average.
double bits_per_weight(const Shape& shape, const Weights& weights);

class CodedLayer {
 public:
  /// Rounds the experts of `layer` to nearest; router and gate stay. Throws std::invalid_argument for a product of
  /// rounded rows that is not there.
  CodedLayer(const Layer& layer, const CodedWeights& weights);
  ~CodedLayer();
  CodedLayer(CodedLayer&&) noexcept;

  void forward(const Matrix<float>& tokens, Matrix<float>& out, moe::Workspace& workspace) const;

  /// Forward with a tape, and backward through it to the tokens and the router: codes are not trained. The tape and the
  /// gradient of the router stay until the next call.
  void forward_with_tape(const Matrix<float>& tokens, Matrix<float>& out);
  void backward(const Matrix<float>& tokens, const Matrix<float>& dout, Matrix<float>& dtokens);

  /// Of the experts' codes and scales, and padding.
  Index bytes() const;

  /// Gives `layer` the same weights as floats, for the experts that have rows.
  void decode_into(Layer& layer, const moe::DispatchPlan& plan) const;

 private:
  struct Content;
  std::unique_ptr<Content> content_;
};

}  // namespace bench
