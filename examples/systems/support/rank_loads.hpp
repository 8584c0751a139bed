// SPDX-License-Identifier: MIT
// Loads of 32 experts on 8 ranks, with copies of the busiest on all of them, and a picture of what copies are worth.
#pragma once

#include <array>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include <moe/core/random.hpp>
#include <moe/mpi/heterogeneous_sharding.hpp>

#include "page.hpp"

namespace systems {

using moe::Index;
inline constexpr std::array<Index, 4> kCopies = {0, 1, 2, 4};  // experts that are on all ranks

/// Of a Pareto distribution of shape 1.2: a few experts have most of the tokens.
inline std::vector<double> pareto_loads(Index experts, std::uint64_t seed) {
  std::vector<double> loads;
  for (Index e = 0; e < experts; ++e)
    loads.push_back(std::pow(moe::RandomField(moe::Purpose::User, seed).uniform(e), -1 / 1.2));
  return loads;
}

inline moe::mpi::Placement copied(const moe::mpi::Placement& shards, const std::vector<double>& loads,
                                  const moe::mpi::Topology& topology, Index copies) {
  return moe::mpi::materialise(shards, loads, topology, {.overlap = copies, .memory = copies});
}

enum class ShardsBy { Order, Load };

/// Loads of 8 ranks.
inline std::vector<double> of_ranks(const std::vector<double>& loads, Index copies, ShardsBy by) {
  const moe::mpi::Topology topology{.ranks = 8, .ranks_per_node = 4};
  const std::vector<std::vector<double>> layer = {loads};
  const auto shards = by == ShardsBy::Order ? moe::mpi::Placement::contiguous(32, 8)
                                            : moe::mpi::heterogeneous_sharding(layer, topology, copies)[0];
  return moe::mpi::rank_loads(loads, copied(shards, loads, topology, copies), topology);
}

/// Writes a script for gnuplot; imbalances per number of copies, in order and by load.
inline void draw_ranks(const std::string& path, const std::vector<std::array<double, 2>>& imbalances,
                       std::uint64_t seed) {
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 900,400 font 'sans-serif,13' background '#ffffff'\nset output '" << path
         << "'\n$mean << END\n";
  for (std::size_t i = 0; i < kCopies.size(); ++i)
    script << kCopies[i] << ' ' << imbalances[i][0] << ' ' << imbalances[i][1] << '\n';
  script << "END\n$ranks << END\n";
  const std::vector<double> loads = pareto_loads(32, seed);
  const auto none = of_ranks(loads, 0, ShardsBy::Order), two = of_ranks(loads, 2, ShardsBy::Order),
             four = of_ranks(loads, 4, ShardsBy::Order);
  for (std::size_t r = 0; r < none.size(); ++r)
    script << r << ' ' << none[r] << ' ' << two[r] << ' ' << four[r] << '\n';
  script << "END\nset multiplot layout 1,2\nset border 3\nset tics nomirror\nset xlabel 'experts on all ranks'\n"
            "set title 'imbalance, max / mean'\nset yrange [1:3]\nplot $mean u 1:2 w lp lw 2 t 'shards in order', "
            "$mean u 1:3 w lp lw 2 t 'shards by load'\nset title 'loads of ranks, one draw'\nset xlabel 'rank'\n"
            "set yrange [0:*]\nset style data histograms\nset style fill solid\n"
            "plot $ranks u 2:xtic(1) t 'none on all ranks', $ranks u 3 t '2', $ranks u 4 t '4'\nunset multiplot\n";
}

}  // namespace systems
