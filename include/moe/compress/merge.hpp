// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/compress/calibration.hpp"
#include "moe/compress/prune.hpp"
#include "moe/numeric/assignment.hpp"

// Experts of a cluster become one.
namespace moe::inline MOE_ABI {

/// Whether hidden units are put in the order of those that they resemble before experts are added up. An expert does
/// not depend on that order, a sum of two does: of experts that were trained apart it is else of no use.
/// O(hidden_dim^3) per expert.
enum class AlignHidden { Off, Hungarian };
/// The router's row of a merged expert.
enum class RouterMerge { Mean, Representative };

struct MergeOptions {
  /// [num_experts], >= 0: what experts count in the mean of their cluster, as ExpertUse::frequencies(). Empty, and in
  /// clusters where all are 0: the same.
  std::vector<double> weights = {};
  AlignHidden align = AlignHidden::Off;
  RouterMerge router = RouterMerge::Mean;
};

namespace detail {

/// A parameter of experts of a cluster, in double; a bias is one column.
using MergedMatrix = Eigen::MatrixXd;
struct NamedMatrices {
  std::vector<std::string> names = {};
  std::vector<MergedMatrix> values = {};
};

template <class E>
NamedMatrices named_matrices(const E& expert) {
  NamedMatrices result;
  moe::visit(
      [&](const std::string& name, const auto& leaf) {
        const std::vector<Index> shape = parameter_shape(leaf);
        Matrix<double> values(shape.empty() ? 1 : shape[0], shape.size() < 2 ? 1 : shape[1]);
        read_parameter(leaf, std::span<double>(values.data(), static_cast<std::size_t>(values.size())));
        result.names.push_back(name);
        result.values.push_back(values);
      },
      expert);
  return result;
}

/// Whether the rows of a parameter are hidden units: of gates and ups, one after the other, where there are twice as
/// many.
inline bool makes_hidden(const std::string& name) { return name.starts_with("up.") || name.starts_with("gate_up."); }
inline bool reads_hidden(const std::string& name) { return name == "down.weight"; }

/// A row for each hidden unit: all weights that are its own.
inline MergedMatrix hidden_units(const NamedMatrices& expert, Index hidden) {
  MergedMatrix units(hidden, 0);
  const auto append = [&](const MergedMatrix& more) {
    units.conservativeResize(Eigen::NoChange, units.cols() + more.cols());
    units.rightCols(more.cols()) = more;
  };
  for (std::size_t p = 0; p < expert.names.size(); ++p) {
    const MergedMatrix& value = expert.values[p];
    for (Index first = 0; makes_hidden(expert.names[p]) && first < value.rows(); first += hidden)
      append(value.middleRows(first, hidden));
    if (reads_hidden(expert.names[p])) append(value.transpose());
  }
  return units;
}

/// Puts the hidden units of `expert` in the order of those of `like` that they resemble; gives which one now stands
/// where, nothing for an expert without hidden units.
inline std::vector<Index> align_hidden(const NamedMatrices& like, NamedMatrices& expert) {
  Index hidden = 0;
  for (std::size_t p = 0; p < expert.names.size(); ++p)
    if (reads_hidden(expert.names[p])) hidden = expert.values[p].cols();
  if (hidden == 0) return {};
  const MergedMatrix a = hidden_units(like, hidden), b = hidden_units(expert, hidden);
  MergedMatrix cost(hidden, hidden);
  for (Index i = 0; i < hidden; ++i)
    for (Index j = 0; j < hidden; ++j) cost(i, j) = (a.row(i) - b.row(j)).squaredNorm();
  std::vector<Index> unit = least_assignment(cost);
  for (std::size_t p = 0; p < expert.names.size(); ++p) {
    const MergedMatrix old = expert.values[p];
    for (Index i = 0; i < hidden; ++i) {
      const Index from = unit[static_cast<std::size_t>(i)];
      for (Index first = 0; makes_hidden(expert.names[p]) && first < old.rows(); first += hidden)
        expert.values[p].row(first + i) = old.row(first + from);
      if (reads_hidden(expert.names[p])) expert.values[p].col(i) = old.col(from);
    }
  }
  return unit;
}

/// A parameter of the experts of a cluster.
struct ClusterParameter {
  std::string name;
  std::vector<const MergedMatrix*> matrices;  ///< one per member, with hidden units in a common order
  std::span<const double> weights;            ///< of the members, sum 1
  std::span<const Index> members;             ///< their ids
  std::span<const std::vector<Index>> units;  ///< of each member, which hidden unit stands where; empty: as in it
};

/// The weights of the members of a cluster, which sum to 1.
inline std::vector<double> weights_of(const std::vector<double>& weights, const std::vector<Index>& members) {
  std::vector<double> result;
  double sum = 0;
  for (const Index e : members) {
    result.push_back(weights.empty() ? 1 : weights[static_cast<std::size_t>(e)]);
    sum += result.back();
  }
  for (double& weight : result) weight = sum > 0 ? weight / sum : 1 / static_cast<double>(result.size());
  return result;
}

/// Sum of weight times matrix.
inline MergedMatrix weighted_mean(std::span<const MergedMatrix* const> matrices, std::span<const double> weights) {
  MergedMatrix mean = MergedMatrix::Zero(matrices[0]->rows(), matrices[0]->cols());
  for (std::size_t m = 0; m < matrices.size(); ++m) mean += weights[m] * *matrices[m];
  return mean;
}

/// A copy of the representative with parameters combine(ClusterParameter).
template <class E, class Combine>
E merged_expert(const ExpertPool<E>& pool, Index representative, const std::vector<Index>& members,
                const MergeOptions& options, const Combine& combine) {
  E result = pool[representative];
  if (members.size() == 1) return result;
  const NamedMatrices like = named_matrices(result);
  std::vector<NamedMatrices> all;
  std::vector<std::vector<Index>> units(members.size());
  for (const Index e : members) {
    all.push_back(named_matrices(pool[e]));
    const bool same = std::ranges::equal(all.back().values, like.values, [](const auto& a, const auto& b) {
      return a.rows() == b.rows() && a.cols() == b.cols();
    });
    if (all.back().names != like.names || !same)
      fail("moe::merge: experts ", e, " and ", representative, " have other parameters, expected the same");
    if (options.align == AlignHidden::Hungarian && e != representative)
      units[all.size() - 1] = align_hidden(like, all.back());
  }
  const std::vector<double> weights = weights_of(options.weights, members);
  std::size_t p = 0;
  moe::visit(
      [&](const std::string& name, auto& leaf) {
        ClusterParameter of{.name = name, .matrices = {}, .weights = weights, .members = members, .units = units};
        for (const NamedMatrices& member : all) of.matrices.push_back(&member.values[p]);
        const Matrix<double> value = combine(of);
        write_parameter(leaf, std::span<const double>(value.data(), static_cast<std::size_t>(value.size())));
        ++p;
      },
      result);
  return result;
}

inline void require_merge(const char* function, const ExpertPlan& plan, const MergeOptions& options) {
  require_plan(function, plan);
  if (!options.weights.empty() && std::ssize(options.weights) != plan.num_experts())
    fail(function, ": ", options.weights.size(), " weights, expected ", plan.num_experts(), " as experts, or none");
  for (std::size_t e = 0; e < options.weights.size(); ++e)
    if (!(options.weights[e] >= 0) || !std::isfinite(options.weights[e]))
      fail(function, ": the weight of expert ", e, " is ", options.weights[e], ", expected a finite number >= 0");
}

/// `to`, which has the representatives of `from`, gets what clusters are merged to.
template <class R, class G, HasFloatPanels E, class Combine>
void merge_experts(const MoeLayer<R, G, ExpertPool<E>>& from, MoeLayer<R, G, ExpertPool<E>>& to, const ExpertPlan& plan,
                   const MergeOptions& options, const Combine& combine) {
  std::vector<std::optional<E>> made(static_cast<std::size_t>(plan.num_kept()));
  parallel_for(plan.num_kept(), [&](Index i, Index) {
    const auto id = static_cast<std::size_t>(i);
    made[id].emplace(merged_expert(from.experts(), plan.kept[id], plan.members(i), options, combine));
  });
  for (Index i = 0; i < plan.num_kept(); ++i) to.experts()[i] = std::move(*made[static_cast<std::size_t>(i)]);
  if (options.router == RouterMerge::Representative) return;
  if constexpr (requires { from.router().weight()(Index{}, Index{}); }) {
    const std::vector<Index> logits = logits_of("moe::merge", from.gate(), plan.kept, plan.num_experts());
    const bool experts_first =
        std::ssize(logits) >= plan.num_kept() && std::equal(plan.kept.begin(), plan.kept.end(), logits.begin());
    const auto mean_rows = [&](const auto& old, auto& rows) {
      if (rows.outputs() == 0) return;
      if (!experts_first || rows.outputs() != std::ssize(logits) || old.outputs() < plan.num_experts())
        fail("moe::merge: the router has ", old.outputs(), " rows of which not every expert has its own, expected ",
             ".router = RouterMerge::Representative");
      for (Index i = 0; i < plan.num_kept(); ++i) {
        const std::vector<Index> members = plan.members(i);
        if (members.size() == 1) continue;
        const std::vector<double> weights = weights_of(options.weights, members);
        for (Index c = 0; c < rows.inputs(); ++c) {
          double sum = 0;
          for (std::size_t m = 0; m < members.size(); ++m) sum += weights[m] * static_cast<double>(old(members[m], c));
          rows(i, c) = static_cast<std::remove_cvref_t<decltype(rows(i, c))>>(sum);
        }
      }
    };
    mean_rows(from.router().weight(), to.router().weight());
    if constexpr (requires { from.router().bias()(Index{}, Index{}); })
      mean_rows(from.router().bias(), to.router().bias());
  } else {
    fail("moe::merge: the router has no rows of weights, expected .router = RouterMerge::Representative");
  }
}
template <class Layer, class... Branches, class Combine>
void merge_experts(const WithBranches<Layer, Branches...>& from, WithBranches<Layer, Branches...>& to,
                   const ExpertPlan& plan, const MergeOptions& options, const Combine& combine) {
  merge_experts(from.layer(), to.layer(), plan, options, combine);
}

template <class Layer, class Combine>
Compressed<Layer> merged(const char* function, const Layer& layer, const ExpertPlan& plan, const MergeOptions& options,
                         const Combine& combine) {
  require_merge(function, plan, options);
  Compressed<Layer> result = prune(layer, plan);
  // A closure of this namespace, for which the overload of blocks is found, too, although that is declared later.
  merge_experts(layer, result.layer, plan, options, [&](const ClusterParameter& of) { return combine(of); });
  return result;
}

/// As a `combine`.
struct MeanOfMembers {
  MergedMatrix operator()(const ClusterParameter& of) const { return weighted_mean(of.matrices, of.weights); }
};

}  // namespace detail

/// The layer with one expert for each cluster of a plan: every parameter is the mean over the cluster, weighted as
/// options.weights say, in double; so is the router's row, while what else the gate has of an expert, as a selection
/// bias, is the representative's. A cluster of one stays, bit for bit, and dropped experts count nowhere. Branches
/// stay. Of pools of Linear, Mlp and Glu with floats, in a MoeLayer, WithBranches or MoeBlock.
///   moe::ExpertPlan plan = moe::cluster_experts(moe::output_rows(layer.experts(), tokens), 8);
///   const auto small = moe::merge(layer, plan, {.weights = calibration.use().frequencies()});
/// For experts that resemble each other, as upcycled ones do; of others keep the best (keep_best). This is Sub-MoE at
/// full rank, whose merge in a common subspace is linear in the weights: see merge_in_subspace().
/// Throws std::invalid_argument for a plan of other experts, weights that are negative or not finite, experts of a
/// cluster with different parameters, a router in which experts have no rows of their own unless .router is
/// Representative, and as prune(). Rows of a router that belong to no expert (NullExpertGate, TopAnyGate) stay.
/// Li et al., "Sub-MoE" (arXiv:2506.23266); Li et al., "M-SMoE" (arXiv:2310.01334), who align hidden units, too.
template <class Layer>
Compressed<Layer> merge(const Layer& layer, const ExpertPlan& plan, const MergeOptions& options = {}) {
  return detail::merged("moe::merge", layer, plan, options, detail::MeanOfMembers{});
}

}  // namespace moe::inline MOE_ABI
