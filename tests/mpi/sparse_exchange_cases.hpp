// SPDX-License-Identifier: MIT
#pragma once

#include <utility>
#include <vector>

#include "moe/mpi/collectives.hpp"
#include "moe/mpi/materialise.hpp"
#include "moe/mpi/sparse_exchange.hpp"
#include "mpi/ranks.hpp"
#include "mpi/skewed_loads.hpp"

// What SparseExchange does on every communicator and any number of ranks.
namespace test {

using moe::Index;
using moe::mpi::Placement;

/// Leaves of several types, and state, which is sent and never summed.
struct PlainExpert {
  moe::Matrix<double> wide = moe::Matrix<double>::Zero(3, 2);
  moe::Matrix<float> narrow = moe::Matrix<float>::Zero(1, 3);
  double number = 0, kept = 0;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("narrow", self.narrow...);
    f("wide", self.wide...);
    f("number", self.number...);
  }
  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("kept", self.kept...);
  }

  /// Small integers, whose sums and products are exact, for every seed others.
  static PlainExpert of(std::int64_t seed) {
    const moe::RandomField random(moe::Purpose::User, 1);
    const auto draw = [&](Index i) { return static_cast<double>(random.below(17, seed, i)) - 8; };
    PlainExpert result;
    for (Index i = 0; i < 6; ++i) result.wide.data()[i] = draw(i);
    for (Index i = 0; i < 3; ++i) result.narrow.data()[i] = static_cast<float>(draw(6 + i));
    result.number = draw(9);
    result.kept = draw(10);
    return result;
  }
  double dot(const PlainExpert& other) const {
    return wide.cwiseProduct(other.wide).sum() + static_cast<double>(narrow.cwiseProduct(other.narrow).sum()) +
           number * other.number;
  }
  bool operator==(const PlainExpert&) const = default;
};

inline std::size_t at(Index e) { return static_cast<std::size_t>(e); }

/// Contiguous shards of 7 experts, a few copies, and copies of everything everywhere.
inline std::vector<Placement> placements(Index ranks) {
  const Placement shards = Placement::contiguous(7, ranks);
  const moe::mpi::Topology topology{.ranks = ranks};
  const std::vector<double> loads = pareto_loads(7, 3);
  return {shards, moe::mpi::materialise(shards, loads, topology, {.overlap = 3, .memory = 1}),
          moe::mpi::materialise(shards, loads, topology, {.overlap = 2, .memory = 2}),
          moe::mpi::materialise(shards, loads, topology, {.overlap = 7, .memory = 7}), Placement({}, ranks)};
}

template <class C>
struct SparseExchangeCases {
  /// What a rank has of all experts: its own, zeros, and after gather() copies.
  static std::vector<PlainExpert> gather(const C& ranks, const Placement& placement) {
    std::vector<PlainExpert> experts(at(placement.experts()));
    for (const Index e : placement.owned_by(ranks.rank())) experts[at(e)] = PlainExpert::of(e);
    moe::mpi::SparseExchange<C> exchange;
    const auto of = [&](Index e) -> PlainExpert& { return experts[at(e)]; };
    moe::mpi::sparse_all_gather(ranks, placement, moe::mpi::gathered_bytes(PlainExpert()), of, of, exchange);
    return experts;
  }
  /// Gradient of holder `rank` for expert e.
  static PlainExpert gradient(Index rank, Index e) { return PlainExpert::of(1000 + rank * 100 + e); }
  /// What owners have after all holders have sent gradient().
  static std::vector<PlainExpert> reduce(const C& ranks, const Placement& placement) {
    std::vector<PlainExpert> held(at(placement.experts())), sums(held);
    for (const Index e : placement.held_by(ranks.rank())) held[at(e)] = gradient(ranks.rank(), e);
    moe::mpi::SparseExchange<C> exchange;
    moe::mpi::sparse_reduce_scatter(
        ranks, placement, moe::mpi::reduced_bytes(PlainExpert()),
        [&](Index e) -> const PlainExpert& { return held[at(e)]; },
        [&](Index e) -> PlainExpert& { return sums[at(e)]; }, exchange);
    return sums;
  }

  static void holders_have_what_owners_have(const C& ranks) {
    for (const Placement& placement : placements(ranks.size())) {
      const std::vector<PlainExpert> experts = gather(ranks, placement);
      for (Index e = 0; e < placement.experts(); ++e)
        expect(experts[at(e)] == (placement.holds(ranks.rank(), e) ? PlainExpert::of(e) : PlainExpert()), "expert ", e);
    }
  }

  static void a_full_placement_is_all_gather(const C& ranks) {
    const Index size = ranks.size();
    Placement all = Placement::contiguous(2 * size, size);  // all_gather takes equally many of each rank
    for (Index e = 0; e < 2 * size; ++e)
      for (Index r = 0; r < size; ++r) all.add(e, r);
    std::vector<double> own;
    for (const Index e : all.owned_by(ranks.rank())) own.push_back(PlainExpert::of(e).number);
    const std::vector<double> gathered = moe::mpi::all_gather<double>(ranks, own);
    const std::vector<PlainExpert> experts = gather(ranks, all), sums = reduce(ranks, all);
    std::vector<double> reduced;
    for (Index e = 0; e < 2 * size; ++e) {
      expect(experts[at(e)].number == gathered[at(e)], "gathered expert ", e);
      reduced.push_back(gradient(ranks.rank(), e).number);
    }
    moe::mpi::all_reduce<double>(ranks, reduced);
    for (const Index e : all.owned_by(ranks.rank())) expect(sums[at(e)].number == reduced[at(e)], "reduced ", e);
  }

  static void owners_have_the_sum_of_holders(const C& ranks) {
    for (const Placement& placement : placements(ranks.size())) {
      const std::vector<PlainExpert> sums = reduce(ranks, placement);
      for (Index e = 0; e < placement.experts(); ++e) {
        PlainExpert expected;
        if (placement.owner(e) == ranks.rank())
          for (const Index r : placement.holders(e)) {
            const PlainExpert of = gradient(r, e);
            expected.wide += of.wide, expected.narrow += of.narrow, expected.number += of.number;
          }
        expect(sums[at(e)] == expected, "sum of expert ", e);
      }
    }
  }

  /// <gather(x), y> = <x, reduce(y)>, in integers.
  static void exchanges_are_adjoint(const C& ranks) {
    for (const Placement& placement : placements(ranks.size())) {
      const std::vector<PlainExpert> experts = gather(ranks, placement), sums = reduce(ranks, placement);
      std::vector<double> products(2);
      for (const Index e : placement.held_by(ranks.rank()))
        products[0] += experts[at(e)].dot(gradient(ranks.rank(), e));
      for (const Index e : placement.owned_by(ranks.rank())) products[1] += PlainExpert::of(e).dot(sums[at(e)]);
      moe::mpi::all_reduce<double>(ranks, products);
      expect(products[0] == products[1], products[0], " and ", products[1]);
    }
  }

  static void bytes_are_those_of_the_copies(const C& ranks) {
    for (const Placement& placement : placements(ranks.size())) {
      const auto sent = [&](const auto& f) {
        const moe::mpi::Traffic before = ranks.traffic();
        f(ranks, placement);
        const moe::mpi::Traffic own = ranks.traffic() - before;
        std::vector<Index> of_all = {own.bytes, own.messages};
        moe::mpi::all_reduce<Index>(ranks, of_all);
        return std::pair(own, of_all);
      };
      Index copies = 0, others = 0, owners = 0;
      for (Index r = 0; r < ranks.size(); ++r) {
        Index to = 0, from = 0;
        for (Index e = 0; e < placement.experts(); ++e) {
          to += placement.owner(e) == ranks.rank() && r != ranks.rank() && placement.holds(r, e) ? 1 : 0;
          from += placement.owner(e) == r && r != ranks.rank() && placement.holds(ranks.rank(), e) ? 1 : 0;
        }
        copies += to, others += to > 0 ? 1 : 0, owners += from > 0 ? 1 : 0;
      }
      constexpr Index kLearned = 6 * 8 + 3 * 4 + 8, kAll = kLearned + 8;
      const auto [gathered, of_all] = sent([](const C& c, const Placement& p) { gather(c, p); });
      expect(gathered == moe::mpi::Traffic{copies * kAll, others}, "a rank gathers ", gathered.bytes, " bytes");
      expect(of_all[0] == placement.copies() * kAll, "all gather ", of_all[0], " bytes");
      const auto [reduced, of_all_back] = sent([](const C& c, const Placement& p) { reduce(c, p); });
      expect(reduced == moe::mpi::Traffic{moe::mpi::copies_received(placement, ranks.rank()) * kLearned, owners},
             "a rank reduces ", reduced.bytes, " bytes");
      expect(of_all_back[0] == placement.copies() * kLearned, "all reduce ", of_all_back[0], " bytes");
    }
  }

  /// (1e17 - 1e17) + 1 is 1, (1 + 1e17) - 1e17 is 0, whether the owner comes first or last.
  static void sums_are_in_the_order_of_ranks(const C& ranks) {
    if (ranks.size() < 3) return;
    const double values[2][3] = {{1e17, -1e17, 1}, {1, 1e17, -1e17}};
    for (const Index owner : {0, 2})
      for (std::size_t i = 0; i < 2; ++i) {
        Placement placement({owner}, ranks.size());
        for (const Index r : {0, 1, 2}) placement.add(0, r);
        PlainExpert held, sum;
        held.number = ranks.rank() < 3 ? values[i][at(ranks.rank())] : 0;
        sum.number = 3;
        moe::mpi::SparseExchange<C> exchange;
        moe::mpi::sparse_reduce_scatter(
            ranks, placement, moe::mpi::reduced_bytes(held), [&](Index) -> const PlainExpert& { return held; },
            [&](Index) -> PlainExpert& { return sum; }, exchange);
        const double expected = ranks.rank() == owner && i == 0 ? 4 : 3;
        expect(sum.number == expected, "the sum is ", sum.number, ", expected ", expected);
      }
  }

  static void misuse_is_refused(const C& ranks) {
    moe::mpi::SparseExchange<C> exchange;
    PlainExpert numbers;
    const auto of = [&](Index) -> PlainExpert& { return numbers; };
    expect_throws<std::invalid_argument>(
        "placement on ", [&] { exchange.start_gather(ranks, Placement::contiguous(2, ranks.size() + 1), 8, of); });
    Placement placement({0}, ranks.size());
    placement.add(0, ranks.size() - 1);
    if (ranks.size() > 1 && ranks.rank() == 0)
      expect_throws<std::invalid_argument>("an expert of 76 bytes, expected 8",
                                           [&] { exchange.start_gather(ranks, placement, 8, of); });
    moe::mpi::SparseExchange<C> other;
    other.start_gather(ranks, placement, moe::mpi::gathered_bytes(numbers), of);
    expect_throws<std::invalid_argument>(
        "on its way", [&] { other.start_gather(ranks, placement, moe::mpi::gathered_bytes(numbers), of); });
    expect_throws<std::invalid_argument>("nothing is on its way", [&] { other.finish_reduce(of, of); });
    PlainExpert larger;
    larger.wide.setZero(4, 2);
    const auto of_larger = [&](Index) -> PlainExpert& { return larger; };
    if (ranks.size() > 1 && ranks.rank() == ranks.size() - 1)
      expect_throws<std::invalid_argument>("an expert of 92 bytes, expected 76",
                                           [&] { other.finish_gather(of_larger); });
    other.finish_gather(of);
    expect(other.test(), "nothing is on its way");
    expect_throws<std::invalid_argument>("nothing is on its way", [&] { other.finish_gather(of); });
    if (ranks.rank() == 0 && ranks.size() == 1) {  // its own, which nobody else sees
      other.start_reduce(ranks, placement, moe::mpi::reduced_bytes(numbers), of);
      expect_throws<std::invalid_argument>("bytes, expected 68", [&] { other.finish_reduce(of_larger, of); });
      expect_throws<std::invalid_argument>("bytes, expected 68", [&] { other.finish_reduce(of, of_larger); });
      other.finish_reduce(of, of);
    }
  }

  static std::vector<std::pair<const char*, void (*)(const C&)>> all() {
    return {{"sparse exchange: holders have what owners have", holders_have_what_owners_have},
            {"sparse exchange: a full placement is all_gather", a_full_placement_is_all_gather},
            {"sparse exchange: owners have the sum of holders", owners_have_the_sum_of_holders},
            {"sparse exchange: exchanges are adjoint", exchanges_are_adjoint},
            {"sparse exchange: bytes are those of the copies", bytes_are_those_of_the_copies},
            {"sparse exchange: sums are in the order of ranks", sums_are_in_the_order_of_ranks},
            {"sparse exchange: misuse is refused", misuse_is_refused}};
  }
};

}  // namespace test
