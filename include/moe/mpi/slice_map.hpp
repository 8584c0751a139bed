// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/visit.hpp"

// What of an expert its slices have: some of the hidden units each, and what is of all units.
namespace moe::inline MOE_ABI::mpi::detail {

/// How a parameter of a slice is made of that of the expert. Alike: every slice has all of it, as the gate in front of
/// an expert, and gradients are to be summed. OnFirst: it is added to the output, so that the first slice has it, and
/// the others zeros, which stay so.
enum class SliceKind { Rows, Columns, Alike, OnFirst };

/// Rows or columns [begin, begin + those of the slice) of `whole`.
struct SlicePiece {
  SliceKind kind = SliceKind::Alike;
  Index begin = 0, whole = 0;

  bool operator==(const SlicePiece&) const = default;
};

/// The pieces of one slice of experts of a type, by the names of parameters in the expert.
class SliceMap {
 public:
  /// What split() does to an expert shaped as `expert`, all of whose numbers are 1: what it shares out it makes less.
  template <class E>
  SliceMap(const E& expert, Index slices, Index slice) : slice_(slice) {
    E ones = expert;
    visit_all(SetOnes{}, ones);
    const std::vector<E> parts = ones.split(slices);
    for (Index s = 0; s <= slice; ++s)
      visit_all(Compare{pieces_, s == slice}, ones, parts[static_cast<std::size_t>(s)]);
  }

  Index slice() const { return slice_; }
  const std::map<std::string, SlicePiece, std::less<>>& pieces() const { return pieces_; }
  SliceKind kind(std::string_view name) const {
    const auto at = pieces_.find(name);
    if (at == pieces_.end())
      fail("moe::mpi::ShardedExperts: slices of an expert have a parameter '", name,
           "', expected those that expert 0 has");
    return at->second.kind;
  }

  /// This slice of an expert.
  template <class E>
  E part_of(const E& expert, Index slices) const {
    E part = std::move(expert.split(slices)[static_cast<std::size_t>(slice_)]);
    visit_all(SetOnFirst{*this}, part, expert);
    return part;
  }

 private:
  struct SetOnes {
    template <class Leaf>
    void operator()(const std::string&, Leaf& leaf) const {
      using S = ParameterScalar<Leaf>;
      write_parameter(leaf, std::span<const S>(std::vector<S>(static_cast<std::size_t>(parameter_size(leaf)), S{1})));
    }
  };
  /// Adds up where the slices before have ended.
  struct Compare {
    std::map<std::string, SlicePiece, std::less<>>& pieces;
    bool is_last;

    template <class Leaf>
    void operator()(const std::string& name, const Leaf& whole, const Leaf& part) const {
      const std::vector<Index> of_whole = parameter_shape(whole), of_part = parameter_shape(part);
      SlicePiece& piece = pieces[name];
      std::size_t axis = 0;
      while (axis < of_whole.size() && of_whole[axis] == of_part[axis]) ++axis;
      if (axis == of_whole.size()) {
        using S = ParameterScalar<Leaf>;
        std::vector<S> values(static_cast<std::size_t>(parameter_size(part)));
        read_parameter(part, std::span(values));
        piece.kind = !values.empty() && values[0] != S{1} ? SliceKind::OnFirst : SliceKind::Alike;
        return;
      }
      piece.kind = axis == 0 ? SliceKind::Rows : SliceKind::Columns;
      piece.whole = of_whole[axis];
      if (!is_last) piece.begin += of_part[axis];
    }
  };
  struct SetOnFirst {
    const SliceMap& map;

    template <class Leaf>
    void operator()(const std::string& name, Leaf& part, const Leaf& whole) const {
      if (map.kind(name) != SliceKind::OnFirst) return;
      using S = ParameterScalar<Leaf>;
      std::vector<S> values(static_cast<std::size_t>(parameter_size(part)));
      if (map.slice() == 0) read_parameter(whole, std::span(values));
      write_parameter(part, std::span<const S>(values));
    }
  };

  std::map<std::string, SlicePiece, std::less<>> pieces_;
  Index slice_;
};

}  // namespace moe::inline MOE_ABI::mpi::detail
