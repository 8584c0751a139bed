// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "moe/gaussian/model/model.hpp"
#include "moe/io/file/parameters.hpp"

namespace moe::inline MOE_ABI {

/// Loads a Gaussian mixture of experts that save_parameters(path, model) has written, with the sizes of the file: its
/// densities and predictions have the same bits. `gate` is the gate that it was fitted with, or one like it: class,
/// experts per row and place of the bias are compared with the file.
///   save_parameters("model.safetensors", fit.model);
///   const auto model = load_gaussian_moe("model.safetensors", TopKGate{.k = 2});
///   last_slope  as the model had it: it decides what is free in standard_errors() and refits, and about no prediction
/// Inputs of the gate and the experts, and whether there is an intercept, decide the same and are not in the file: set
/// gate_inputs, expert_inputs and expert_intercept of the model, or use save_fit() and load_fit(), which keep them.
/// Throws std::runtime_error that names the tensor for a file that cannot be read, holds something else, was written
/// with another gate, or holds numbers that no model has. Memory in proportion to the file.
template <LikelihoodGate G = SoftmaxGate>
GaussianMoe<G> load_gaussian_moe(const std::filesystem::path& path, const G& gate = {},
                                 LastSlope last_slope = LastSlope::Zero, FileAccess access = FileAccess::Map) {
  const std::string label = "moe::load_gaussian_moe: '" + path.string() + "'";
  const std::vector<Index> shape = [&] {
    const SafetensorsReader file(path, access);
    const TensorInfo& slope = file.tensor("slope");
    if (slope.dtype != Dtype::F64 || slope.shape.size() != 2 || slope.shape[0] < 1 || slope.shape[1] < 1)
      fail_environment(label, ": tensor 'slope' is ", dtype_name(slope.dtype), " of shape [",
                       detail::join(slope.shape, ", "), "], expected F64 [num_experts, input_dim], at least [1, 1]");
    return slope.shape;
  }();
  GaussianMoe<G> model;
  try {  // sizes and gate have to agree, which for a given gate is the file's fault
    model = GaussianMoe<G>::zero(shape[0], shape[1], gate);
    model.form();
  } catch (const std::invalid_argument& error) {
    fail_environment(label, ": holds ", shape[0], " experts, which the gate cannot have: ", error.what());
  }
  if (!detail::ScoredInner<typename GateModel<G>::Inner>) model.last_slope = last_slope;  // else Free
  load_parameters(path, model, Narrowing::Refuse, access);
  try {
    model.validate("moe::GaussianMoe");
  } catch (const std::invalid_argument& error) {
    fail_environment(label, ": holds no model: ", error.what());
  }
  return model;
}

/// For other gates: GaussianMoe says in a sentence what they lack.
template <class G>
  requires(!LikelihoodGate<G>)
GaussianMoe<G> load_gaussian_moe(const std::filesystem::path&, const G& = {}, LastSlope = LastSlope::Zero,
                                 FileAccess = FileAccess::Map) {
  return {};
}

}  // namespace moe::inline MOE_ABI
