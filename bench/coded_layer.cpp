// SPDX-License-Identifier: MIT
#include "coded_layer.hpp"

#include "moe/compress/quantise.hpp"
#include "moe/core/parallel.hpp"
#include "moe/core/visit.hpp"

namespace bench {

std::string name_of(const Weights& weights) {
  if (!weights) return "f32";
  return weights->format.name() + (weights->dot == moe::Dot::Exact ? "" : "+dot");
}

Weights weights_named(const std::string& name) {
  if (name == "f32") return {};
  const std::size_t plus = name.find("+dot");
  const bool rounds = plus != name.npos && plus + 4 == name.size();
  const moe::WeightFormat format = moe::WeightFormat::named(rounds ? name.substr(0, plus) : name);
  if (!rounds) return CodedWeights{format};
  return CodedWeights{format, format.code == moe::WeightCode::Bf16 ? moe::Dot::Bf16 : moe::Dot::Int8};
}

std::vector<Weights> usual_weights() {
  std::vector<Weights> result{Weights{}};
  for (const char* name : {"bf16", "f16", "fp8", "int8", "int4", "mxfp4", "nvfp4", "4bit", "2bit", "int8+dot",
                           "int8-g0+dot", "int4+dot", "int4-g128+dot", "mxfp4+dot"})
    result.push_back(weights_named(name));
  if (moe::kernel::can_dot(moe::WeightFormat::bf16(), 1, moe::Dot::Bf16)) result.push_back(weights_named("bf16+dot"));
  return result;
}

double expert_bytes(const Shape& shape, const Weights& weights) {
  if (!weights) return static_cast<double>(shape.expert_bytes());
  const auto size = static_cast<double>(shape.model_dim) * static_cast<double>(shape.hidden_dim);
  return size / 8 *
         (2 * weights->format.bits_per_weight(shape.model_dim) + weights->format.bits_per_weight(shape.hidden_dim));
}

double bits_per_weight(const Shape& shape, const Weights& weights) {
  return 8 * expert_bytes(shape, weights) * sizeof(float) / static_cast<double>(shape.expert_bytes());
}

struct CodedLayer::Content {
  using Coded = decltype(moe::quantise(std::declval<const Layer&>(), moe::WeightFormat::bf16()));
  struct Training {
    explicit Training(const Coded& layer) : gradient(moe::zeros_like(layer)) {}
    Coded::Tape tape;
    Coded gradient;
  };

  Coded layer;
  std::optional<Training> training = {};
};

CodedLayer::CodedLayer(const Layer& layer, const CodedWeights& weights)
    : content_(new Content{moe::with_dot(moe::quantise(layer, weights.format), weights.dot)}) {}
CodedLayer::~CodedLayer() = default;
CodedLayer::CodedLayer(CodedLayer&&) noexcept = default;

void CodedLayer::forward(const Matrix<float>& tokens, Matrix<float>& out, moe::Workspace& workspace) const {
  content_->layer.forward(tokens, out, workspace);
}

void CodedLayer::forward_with_tape(const Matrix<float>& tokens, Matrix<float>& out) {
  if (!content_->training) content_->training.emplace(content_->layer);
  content_->layer.forward(tokens, moe::Step{}, out, content_->training->tape);
}

void CodedLayer::backward(const Matrix<float>& tokens, const Matrix<float>& dout, Matrix<float>& dtokens) {
  content_->layer.backward(tokens, content_->training->tape, dout, content_->training->gradient, dtokens);
}

Index CodedLayer::bytes() const {
  std::size_t sum = 0;
  const auto& experts = content_->layer.experts();
  for (Index e = 0; e < experts.size(); ++e) sum += experts[e].gate_up().bytes() + experts[e].down().bytes();
  return static_cast<Index>(sum);
}

void CodedLayer::decode_into(Layer& layer, const moe::DispatchPlan& plan) const {
  moe::parallel_for(plan.num_experts(), [&](Index e, Index) {
    if (plan.rows_of(e) == 0) return;
    const auto& from = content_->layer.experts()[e];
    layer.experts()[e].gate_up() = from.gate_up().decoded();
    layer.experts()[e].down() = from.down().decoded();
  });
}

}  // namespace bench
