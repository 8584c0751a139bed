// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/core/simd.hpp"
#include "moe/core/visit.hpp"

// What optimisers and clipping share: one pass over all parameters of same-shaped objects, register by register.
namespace moe::inline MOE_ABI::detail {

/// Scalars per parallel task: 64 KiB of floats, some microseconds of work; a multiple of every register width.
inline constexpr Index kElementGrain = 16384;

template <class T>
std::vector<std::pair<std::string, std::vector<Index>>> parameter_shapes(const T& object) {
  std::vector<std::pair<std::string, std::vector<Index>>> shapes;
  visit([&](const std::string& name, const auto& leaf) { shapes.emplace_back(name, parameter_shape(leaf)); }, object);
  return shapes;
}

/// Throws unless `other` has the parameters of `layer`: same names, shapes and layouts. Names and shapes are compared
/// one object at a time first, because walking two together relies on them.
template <class T>
void require_same_parameters(const char* function, const char* name, const T& layer, const T& other) {
  const auto expected = parameter_shapes(layer), found = parameter_shapes(other);
  if (found.size() != expected.size())
    fail(function, ": ", name, " has ", found.size(), " parameters, expected ", expected.size(), " as in the layer");
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (found[i] != expected[i])
      fail(function, ": parameter '", found[i].first, "' of ", name, " differs in name or shape from '",
           expected[i].first, "' of the layer");
  visit(
      [&](const std::string& leaf_name, const auto& leaf, const auto& other_leaf) {
        bool same = parameter_span(leaf).size() == parameter_span(other_leaf).size();
        if constexpr (requires { leaf.is_shaped_as(other_leaf); }) same = same && leaf.is_shaped_as(other_leaf);
        if (!same) fail(function, ": parameter '", leaf_name, "' of ", name, " is stored in another layout");
      },
      layer, other);
}

template <class S>
void store_register(S* to, const simd::Batch<S>& value) {
  simd::store(to, value);
}
template <class S>
void store_register(S* to, const simd::Batch<S>& value, Index count) {
  simd::store_partial(to, value, count);
}
// Read-only operands are not stored.
template <class S>
void store_register(const S*, const simd::Batch<S>&) {}
template <class S>
void store_register(const S*, const simd::Batch<S>&, Index) {}

/// Calls update(register&...) for the scalars [0, n) of each array and stores what is not const.
template <class S, class Update, class... Pointers>
void update_range(Index n, const Update& update, Pointers... at) {
  simd::for_each<S>(
      n,
      [&](Index i) {
        [&](auto... value) {
          update(value...);
          (store_register(at + i, value), ...);
        }(simd::load<S>(at + i)...);
      },
      [&](Index i, Index count) {
        [&](auto... value) {
          update(value...);
          (store_register(at + i, value, count), ...);
        }(simd::load_partial<S>(at + i, count, S{0})...);
      });
}

/// The same over all stored scalars of same-shaped leaves, in parallel. Padding is updated like everything else: an
/// update must map zeros to zeros.
template <class Update, class Leaf, class... Leaves>
void update_leaf(const Update& update, Leaf& leaf, Leaves&... leaves) {
  const Index size = static_cast<Index>(parameter_span(leaf).size());
  parallel_ranges(size, kElementGrain, [&](Index begin, Index end, Index) {
    update_range<ParameterScalar<Leaf>>(end - begin, update, parameter_span(leaf).data() + begin,
                                        (parameter_span(leaves).data() + begin)...);
  });
}

}  // namespace moe::inline MOE_ABI::detail
