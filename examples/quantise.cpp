// SPDX-License-Identifier: MIT
// A layer whose experts have weights in few bits: half to a thirteenth of the memory, and faster where reading the
// weights is the work. In every format the layer has the bits of its decoded weights; with_dot() rounds rows, too,
// which is faster where tens of them meet an expert.
#include <algorithm>
#include <chrono>
#include <iomanip>
#include <iostream>
#include <moe/compress/quantise.hpp>
#include <moe/moe.hpp>

namespace {

constexpr moe::Index kDim = 1024, kHidden = 1024, kExperts = 16;

/// Milliseconds of a forward pass, the best of ten.
template <class Layer>
double forward(const Layer& layer, const moe::Matrix<float>& tokens, moe::Matrix<float>& output) {
  typename Layer::Workspace workspace;
  output.resize(tokens.rows(), kDim);
  double best = 1e9;
  for (int repetition = 0; repetition < 10; ++repetition) {
    const auto begin = std::chrono::steady_clock::now();
    layer.forward(tokens, moe::Step{}, output, workspace);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count());
  }
  return best;
}

double megabytes(const moe::PanelMatrix<moe::F32>& weights) { return 1e-6 * double(weights.span().size_bytes()); }
double megabytes(const moe::PanelMatrix<moe::Quantised>& weights) { return 1e-6 * double(weights.bytes()); }

/// A line of the table; errors are relative to `exact`, which the first line sets.
template <class Layer>
void show(const std::string& name, const Layer& layer, moe::Matrix<float>& exact) {
  const moe::Matrix<float> tokens = moe::Matrix<float>::NullaryExpr(
      64, kDim, [](moe::Index t, moe::Index i) { return float(moe::RandomField(moe::Purpose::User, 3).normal(t, i)); });
  moe::Matrix<float> output;
  const double one = forward(layer, tokens.topRows(1), output), many = forward(layer, tokens, output);
  if (exact.size() == 0) exact = output;
  double size = 0;
  for (moe::Index e = 0; e < kExperts; ++e)
    size += megabytes(layer.experts()[e].gate_up()) + megabytes(layer.experts()[e].down());
  std::cout << std::setw(16) << name << std::setw(10) << size << std::setw(10) << (output - exact).norm() / exact.norm()
            << std::setw(12) << one << std::setw(12) << many << std::endl;
}

}  // namespace

int main() {
  const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kDim, 1), moe::TopKGate{.k = 4},
                            moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden, 2));
  std::cout << std::fixed << std::setprecision(3) << std::setw(16) << "format" << std::setw(10) << "MB" << std::setw(10)
            << "error" << std::setw(12) << "ms, T = 1" << std::setw(12) << "T = 64" << std::endl;
  moe::Matrix<float> exact;
  show("f32", layer, exact);
  for (const char* name : {"bf16", "f16", "fp8", "int8", "int4", "mxfp4", "nvfp4", "3bit", "2bit"})
    show(name, moe::quantise(layer, moe::WeightFormat::named(name)), exact);
  for (const char* name : {"int8", "int4"})  // rows as integers of 8 bits
    show(std::string(name) + ", Dot::Int8",
         moe::with_dot(moe::quantise(layer, moe::WeightFormat::named(name)), moe::Dot::Int8), exact);
  // Formats may differ: 8 bits in some experts and in what leads back, else 4.
  const auto mixed = moe::quantise(layer, [](const moe::ExpertMatrix& matrix) {
    const bool matters = matrix.expert < 4 || matrix.name == "down.weight";
    return matters ? moe::WeightFormat::int8() : moe::WeightFormat::int4();
  });
  show("int4 and int8", mixed, exact);
}
