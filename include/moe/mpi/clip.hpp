// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/mpi/reduce_gradient.hpp"
#include "moe/train/clip.hpp"

namespace moe::inline MOE_ABI::mpi {

namespace detail {

/// Adds up the squares of a slice of an expert; what all slices have counts with the first one.
struct OfSlice {
  const SliceMap* map;
  double& sum;

  template <class Leaf>
  void operator()(const std::string& name, const Leaf& leaf) const {
    if (map != nullptr && map->slice() != 0 && map->kind(name) == SliceKind::Alike) return;
    const auto values = parameter_span(leaf);
    sum += moe::detail::sum_of_squares(values.data(), std::ssize(values));
  }
};

/// Adds up the squares of what every rank has alike, and apart from them those of the experts that this rank is the
/// first to hold.
struct SumSquares {
  static constexpr bool kSkipsShards = true;
  double &alike, &of_shards;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, const Leaf& leaf) const {
    const auto values = parameter_span(leaf);
    alike += moe::detail::sum_of_squares(values.data(), std::ssize(values));
  }
  template <class Set>
  void shards(const Set& set) const {
    double unused = 0;
    const SumSquares of_expert{of_shards, unused};
    if constexpr (requires { set.held(Index{}); }) {
      const Index rank = set.ranks().rank();
      for (const Index e : set.held())
        if (set.placement().slices() > 1)
          moe::visit(OfSlice{set.slice_map(), of_shards}, set.held(e));
        else if (set.placement().owner(e) == rank)
          moe::visit(of_expert, set.held(e));
    } else {
      moe::visit(of_expert, set.shard());
    }
  }
};

/// Multiplies all that this rank has.
struct ScaleBy {
  double factor;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, Leaf& leaf) const {
    using S = ParameterScalar<Leaf>;
    for (S& value : parameter_span(leaf)) value *= static_cast<S>(factor);
  }
};

}  // namespace detail

/// moe::gradient_norm() of the whole layer from what each rank has of its gradient, after all_reduce_gradient(): the
/// same bits on every rank. An expert counts once, however many copies it has. Collective.
template <Communicator C, class Gradient>
double gradient_norm(const C& ranks, const Gradient& gradient) {
  double alike = 0;
  std::vector<double> of_shards = {0.0};
  moe::visit(detail::SumSquares{alike, of_shards[0]}, gradient);
  all_reduce<double>(ranks, of_shards);
  return std::sqrt(alike + of_shards[0]);
}

/// moe::clip_by_norm() by the norm of the whole layer, where that of each rank would scale the ranks' routers apart.
/// With a Trainer, whose max_norm stays infinite:
///   moe::mpi::all_reduce_gradient(ranks, trainer.gradient());
///   moe::mpi::clip_by_norm(ranks, trainer.gradient(), 1.0);
///   trainer.update(rate);
/// Collective. Throws std::invalid_argument unless max_norm > 0.
template <Communicator C, class Gradient>
double clip_by_norm(const C& ranks, Gradient& gradient, double max_norm) {
  if (!(max_norm > 0)) fail("moe::mpi::clip_by_norm: max_norm is ", max_norm, ", expected a value above 0");
  const double norm = gradient_norm(ranks, gradient);
  if (std::isfinite(norm) && norm > max_norm) moe::visit(detail::ScaleBy{max_norm / norm}, gradient);
  return norm;
}

}  // namespace moe::inline MOE_ABI::mpi
