// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/core/visit.hpp"
#include "moe/expert/concept.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Sets every logical entry of a matrix to zero where its own draw says so; padding is not touched.
template <class Leaf>
void mask_entries(Leaf& leaf, const RandomField& random, double share) {
  using S = ParameterScalar<Leaf>;
  std::vector<S> values(static_cast<std::size_t>(parameter_size(leaf)));
  read_parameter(leaf, std::span<S>(values));
  const Index columns = parameter_shape(leaf)[1];
  for (Index i = 0; i < std::ssize(values); ++i)
    if (random.uniform(i / columns, i % columns) < share) values[static_cast<std::size_t>(i)] = S{0};
  write_parameter(leaf, std::span<const S>(values));
}

}  // namespace detail

/// `n` copies of one trained expert that are no longer the same: in each copy every learned weight is zero with
/// probability `share`, by a draw of its own. What a mixture starts from when one shared expert has been trained first:
///   moe::ExpertPool pool(moe::diversify(expert, 8, 0.1, /*seed=*/1));
/// Weights are the matrices that `visit` names, with those of parts inside; biases and all that is a vector or a number
/// stay, as does state. Nothing is scaled to make up for what is missing, and masked weights learn from then on.
///   n      at least 1         share  in [0, 1); 0 gives plain copies, EvoMoE takes 0.01 to 0.1
/// A draw depends on (seed, copy, matrix, output, input) alone: the first copies are the same for any n, the masks for
/// any scalar. Throws std::invalid_argument for numbers out of range and for an expert that learns no matrix, as a
/// frozen one or one of codes. O(n * num_parameters).
/// Nie et al., "EvoMoE: An evolutional mixture-of-experts training framework via dense-to-sparse gate", phase 1
/// (arXiv:2112.14397).
template <class E>
std::vector<E> diversify(const E& expert, Index n, double share, std::uint64_t seed) {
  static_assert(Expert<E>,
                "moe::diversify: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
                "(see moe/expert/concept.hpp)");
  constexpr const char* kFunction = "moe::diversify";
  if (n < 1) fail(kFunction, ": n is ", n, ", expected at least 1");
  if (!(share >= 0 && share < 1)) fail(kFunction, ": share is ", share, ", expected 0 <= share < 1");
  Index matrices = 0;
  visit([&](const std::string&, const auto& leaf) { matrices += parameter_shape(leaf).size() == 2 ? 1 : 0; }, expert);
  if (matrices == 0) fail(kFunction, ": the expert learns no matrix, expected weights to mask");

  std::vector<E> copies(static_cast<std::size_t>(n), expert);
  for (std::size_t copy = 0; copy < copies.size(); ++copy) {
    Index matrix = 0;
    const auto mask = [&](const std::string&, auto& leaf) {
      if (parameter_shape(leaf).size() != 2) return;
      detail::mask_entries(leaf, RandomField(Purpose::Dropout, seed, copy, matrix++), share);
    };
    visit(mask, copies[copy]);
  }
  return copies;
}

}  // namespace moe::inline MOE_ABI
