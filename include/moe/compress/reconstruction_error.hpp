// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <tuple>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/visit.hpp"
#include "moe/layer/workspace.hpp"

// How well a smaller layer does the work of the one that it was made of.
namespace moe::inline MOE_ABI {

/// How far the outputs y' of a smaller layer are from the outputs y of the old one: sums over tokens, of all, and of
/// those that had chosen an expert of the old layer. Batches and ranks add up. A plain value.
struct ReconstructionError {
  double error = 0, output = 0;       ///< sums of |y' - y|^2 and |y|^2
  Eigen::VectorXd expert_error = {};  ///< [num_experts], the same of the tokens that an expert had
  Eigen::VectorXd expert_output = {};

  ReconstructionError() = default;
  /// Of no tokens.
  explicit ReconstructionError(Index num_experts)
      : expert_error(Eigen::VectorXd::Zero(num_experts)), expert_output(Eigen::VectorXd::Zero(num_experts)) {}

  Index num_experts() const { return expert_error.size(); }
  /// sqrt(sum |y' - y|^2 / sum |y|^2); 0 where all outputs are 0 in both, and of no tokens.
  double relative() const { return ratio(error, output); }
  /// The same over the tokens of each expert, [num_experts]: what its tokens lose. 0 for an expert without tokens.
  std::vector<double> relative_of_experts() const {
    std::vector<double> result;
    for (Index e = 0; e < num_experts(); ++e) result.push_back(ratio(expert_error[e], expert_output[e]));
    return result;
  }

  /// Throws std::invalid_argument for that of another number of experts.
  ReconstructionError& operator+=(const ReconstructionError& other) {
    if (other.num_experts() != num_experts())
      fail("moe::ReconstructionError: += of ", other.num_experts(), " experts, expected ", num_experts());
    error += other.error, output += other.output;
    expert_error += other.expert_error, expert_output += other.expert_output;
    return *this;
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("error", self.error...);
    f("output", self.output...);
    f("expert_error", self.expert_error...);
    f("expert_output", self.expert_output...);
  }

 private:
  /// Infinite where something comes out that was nothing.
  static double ratio(double of, double whole) { return of == 0 ? 0 : std::sqrt(of / whole); }
};

/// Of a layer and a smaller one, with fewer experts, others, or weights in few bits, on tokens at inference. Of any
/// two layers that read and write as much: MoeLayer, WithBranches (whose branches count in |y|), published blocks.
///   const double lost = moe::reconstruction_error(layer, moe::prune(layer, plan).layer, tokens).relative();
/// Tokens count for all experts that they reach, dropped choices for none. Same bits for any number of threads. Throws
/// std::invalid_argument for layers of other widths, and as forward. Two forward passes.
template <class Layer, class Smaller>
ReconstructionError reconstruction_error(const Layer& layer, const Smaller& smaller,
                                         const MatrixView<typename Layer::Scalar>& tokens) {
  using S = typename Layer::Scalar;
  constexpr const char* kFunction = "moe::reconstruction_error";
  if (smaller.input_dim() != layer.input_dim() || smaller.output_dim() != layer.output_dim())
    fail(kFunction, ": the smaller layer maps ", smaller.input_dim(), " to ", smaller.output_dim(), ", expected ",
         layer.input_dim(), " to ", layer.output_dim());
  Matrix<S> before(tokens.rows(), layer.output_dim()), after(tokens.rows(), layer.output_dim());
  BasicWorkspace<S> workspace, other;
  layer.forward(tokens, Step{}, before, workspace);
  smaller.forward(tokens, Step{}, after, other);
  ReconstructionError sum(layer.num_experts());
  for (Index t = 0; t < tokens.rows(); ++t) {
    double error = 0, output = 0;
    for (Index i = 0; i < before.cols(); ++i) {
      const auto y = static_cast<double>(before(t, i)), off = static_cast<double>(after(t, i)) - y;
      error += off * off, output += y * y;
    }
    sum.error += error, sum.output += output;
    for (std::size_t s = 0; s < workspace.routing.experts(t).size(); ++s) {
      if (workspace.routing.dropped(t)[s] != 0) continue;
      const Index e = workspace.routing.experts(t)[s];
      sum.expert_error[e] += error, sum.expert_output[e] += output;
    }
  }
  return sum;
}

}  // namespace moe::inline MOE_ABI
