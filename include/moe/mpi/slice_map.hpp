// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <functional>
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

/// The rows or columns of `whole` that each slice has, in its order: gates and ups of a Glu make two runs of them.
struct SlicePiece {
  SliceKind kind = SliceKind::Alike;
  Index whole = 0;
  std::vector<std::vector<Index>> of = {};  ///< [slices]

  bool operator==(const SlicePiece&) const = default;
};

/// The pieces of slices of experts of a type, by the names of parameters in the expert.
class SliceMap {
 public:
  /// What split() does to experts shaped as `expert`. Of one whose numbers are all 1, what it shares out it makes less;
  /// of those whose rows or columns hold one bit of their own number each, which 0 and 1 are in weights of any format,
  /// it says where they come to be. Costs as many copies of the expert as these numbers have bits.
  template <class E>
  SliceMap(const E& expert, Index slices, Index slice) : slice_(slice) {
    E numbered = expert;
    visit_all(SetOnes{}, numbered);
    std::vector<E> parts = numbered.split(slices);
    for (const E& part : parts) visit_all(Compare{pieces_}, numbered, part);
    Index longest = 0;
    for (const auto& [name, piece] : pieces_) longest = std::max(longest, piece.whole);
    for (int bit = 0; Index{1} << bit < longest; ++bit) {
      visit_all(SetBit{pieces_, bit}, numbered);
      parts = numbered.split(slices);
      for (Index s = 0; s < slices; ++s) visit_all(ReadBit{pieces_, s, bit}, parts[static_cast<std::size_t>(s)]);
    }
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
  /// Appends a slice.
  struct Compare {
    std::map<std::string, SlicePiece, std::less<>>& pieces;

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
      piece.of.emplace_back(static_cast<std::size_t>(of_part[axis]));
    }
  };
  /// The number of the row or column of each number of a leaf.
  template <class Leaf>
  static Index place(const SlicePiece& piece, const Leaf& leaf, std::size_t number) {
    const Index rows = parameter_shape(leaf)[0], cols = parameter_size(leaf) / std::max<Index>(1, rows);
    return piece.kind == SliceKind::Rows ? static_cast<Index>(number) / cols : static_cast<Index>(number) % cols;
  }
  struct SetBit {
    const std::map<std::string, SlicePiece, std::less<>>& pieces;
    int bit;

    template <class Leaf>
    void operator()(const std::string& name, Leaf& leaf) const {
      const SlicePiece& piece = pieces.at(name);
      if (piece.of.empty()) return;
      using S = ParameterScalar<Leaf>;
      std::vector<S> values(static_cast<std::size_t>(parameter_size(leaf)));
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<S>(place(piece, leaf, i) >> bit & 1);
      write_parameter(leaf, std::span<const S>(values));
    }
  };
  struct ReadBit {
    std::map<std::string, SlicePiece, std::less<>>& pieces;
    Index slice;
    int bit;

    template <class Leaf>
    void operator()(const std::string& name, const Leaf& leaf) const {
      SlicePiece& piece = pieces.at(name);
      if (piece.of.empty()) return;
      using S = ParameterScalar<Leaf>;
      std::vector<S> values(static_cast<std::size_t>(parameter_size(leaf)));
      read_parameter(leaf, std::span(values));
      for (std::size_t i = 0; i < values.size(); ++i)
        if (values[i] > S(0.5))
          piece.of[static_cast<std::size_t>(slice)][static_cast<std::size_t>(place(piece, leaf, i))] |= Index{1} << bit;
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
