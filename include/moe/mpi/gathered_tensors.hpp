// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/file/parameters.hpp"
#include "moe/mpi/sharded_experts.hpp"

// Tensors of a file in memory, as they go from rank to rank, and as slices make the whole.
namespace moe::inline MOE_ABI::mpi::detail {

using SlicePieces = std::map<std::string, SlicePiece, std::less<>>;

/// The pieces that slices of experts are, of all sets of an object.
struct CollectPieces {
  static constexpr bool kSkipsShards = true;
  SlicePieces& pieces;

  void prefix(std::string_view) const {}
  template <class... Leaf>
  void operator()(std::string_view, Leaf&...) const {}
  template <class Set>
  void shards(const Set& set) const {
    static_assert(
        requires { set.held(Index{}); } || requires { set.owned(Index{}); },
        "moe::mpi::save_parameters, load_parameters: sets whose experts have numbers (operator[]), by which "
        "ranks name what they hold");
    if constexpr (requires { set.slice_map(); })
      if (set.slice_map() != nullptr)
        for (const auto& [name, piece] : set.slice_map()->pieces())
          if (!pieces.emplace(name, piece).second && pieces.at(name) != piece)
            fail("moe::mpi::save_parameters, load_parameters: slices of two kinds of experts have a parameter '", name,
                 "', expected one kind in an object");
  }
};

/// "experts.5.slice.1.up.weight" is slice 1 of the tensor "experts.5.up.weight".
struct SliceName {
  std::string tensor;
  Index slice;
  SlicePiece piece;
};
/// None of what is whole.
inline std::optional<SliceName> slice_name(const std::string& name, const SlicePieces& pieces) {
  constexpr std::string_view kSlice = ".slice.";
  const std::size_t at = name.find(kSlice);
  if (at == std::string::npos) return std::nullopt;
  const std::size_t number = at + kSlice.size(), rest = name.find('.', number);
  const auto piece = rest == std::string::npos ? pieces.end() : pieces.find(name.substr(rest + 1));
  if (piece == pieces.end()) return std::nullopt;
  return SliceName{name.substr(0, at) + name.substr(rest), std::stoll(name.substr(number, rest - number)),
                   piece->second};
}

struct GatheredTensor {
  TensorInfo info;
  std::vector<std::byte> bytes;
};
using GatheredTensors = std::map<std::string, GatheredTensor>;

/// A visitor that takes what moe::save_parameters() writes.
struct CollectTensors {
  GatheredTensors& tensors;

  template <class Leaf>
  void operator()(const std::string& name, const Leaf& leaf) const {
    if constexpr (moe::detail::kIsQuantised<Leaf>) {
      for (const auto& [part, info] : moe::detail::tensors_of(name, leaf.outputs(), leaf.inputs(), leaf.format()))
        add(part, info);
      moe::detail::write_quantised(*this, name, leaf);
    } else {
      using S = ParameterScalar<Leaf>;
      add(name, {.dtype = dtype_of<S>(), .shape = parameter_shape(leaf)});
      std::vector<S> values(static_cast<std::size_t>(parameter_size(leaf)));
      read_parameter(leaf, std::span<S>(values));
      write(name, std::span<const S>(values));
    }
  }
  void add(const std::string& name, const TensorInfo& info) const {
    if (!tensors.emplace(name, GatheredTensor{info, {}}).second)
      fail("moe::mpi::save_parameters: the object visits two parameters named '", name, "'");
  }
  template <class S>
  void write(const std::string& name, std::span<const S> values) const {
    write_bytes(name, std::as_bytes(values));
  }
  void write_bytes(const std::string& name, std::span<const std::byte> bytes) const {
    tensors.at(name).bytes.assign(bytes.begin(), bytes.end());
  }
};

/// Tensors as one message, and back.
inline void append_tensor(const std::string& name, const GatheredTensor& tensor, std::vector<std::byte>& message) {
  const auto append = [&](std::span<const std::byte> bytes) {
    message.insert(message.end(), bytes.begin(), bytes.end());
  };
  std::vector<Index> sizes = {std::ssize(name), static_cast<Index>(tensor.info.dtype), std::ssize(tensor.bytes),
                              std::ssize(tensor.info.shape)};
  sizes.insert(sizes.end(), tensor.info.shape.begin(), tensor.info.shape.end());
  append(std::as_bytes(std::span(sizes)));
  append(std::as_bytes(std::span(name)));
  append(tensor.bytes);
}
inline void take_tensors(std::span<const std::byte> message, GatheredTensors& tensors) {
  const auto take = [&](std::size_t count) {
    const auto bytes = message.first(count);
    message = message.subspan(count);
    return bytes;
  };
  const auto number = [&] {
    Index value = 0;
    std::memcpy(&value, take(sizeof(value)).data(), sizeof(value));
    return value;
  };
  while (!message.empty()) {
    const Index name_size = number();
    GatheredTensor tensor;
    tensor.info.dtype = static_cast<Dtype>(number());
    const Index size = number();
    for (Index left = number(); left > 0; --left) tensor.info.shape.push_back(number());
    const auto name = take(static_cast<std::size_t>(name_size));
    const auto bytes = take(static_cast<std::size_t>(size));
    tensor.bytes.assign(bytes.begin(), bytes.end());
    tensors.emplace(std::string(reinterpret_cast<const char*>(name.data()), name.size()), std::move(tensor));
  }
}

/// Bytes of a row of a tensor along its first axis; those of a tensor of one axis are single numbers.
inline std::size_t row_bytes(const GatheredTensor& tensor) {
  return tensor.bytes.size() / static_cast<std::size_t>(std::max<Index>(1, tensor.info.shape[0]));
}

/// Puts slices in place of the tensors that they are slices of. They come in their order, as names do.
inline void join_slices(const SlicePieces& pieces, GatheredTensors& tensors) {
  std::map<std::string, std::map<Index, std::pair<SlicePiece, GatheredTensor>>> slices;
  for (auto at = tensors.begin(); at != tensors.end();) {
    const auto of = slice_name(at->first, pieces);
    if (of) slices[of->tensor].emplace(of->slice, std::pair(of->piece, std::move(at->second)));
    at = of ? tensors.erase(at) : std::next(at);
  }
  for (auto& [name, parts] : slices) {
    GatheredTensor whole = parts.begin()->second.second;
    const SliceKind kind = parts.begin()->second.first.kind;
    if (kind == SliceKind::Rows || kind == SliceKind::Columns) {
      const std::size_t axis = kind == SliceKind::Rows ? 0 : 1;
      const SlicePiece& piece = parts.begin()->second.first;
      // What is put in its place: a row, or a number of one.
      const std::size_t unit = row_bytes(whole) / static_cast<std::size_t>(axis == 0 ? 1 : whole.info.shape[1]);
      whole.info.shape[axis] = piece.whole;
      const Index rows = axis == 0 ? 1 : whole.info.shape[0];
      whole.bytes.assign(unit * static_cast<std::size_t>(rows * piece.whole), std::byte{});
      for (const auto& [slice, part] : parts) {
        const std::vector<Index>& of = piece.of.at(static_cast<std::size_t>(slice));
        if (std::ssize(of) != part.second.info.shape[axis])
          fail("moe::mpi::save_parameters: slice ", slice, " of '", name, "' has ", part.second.info.shape[axis],
               axis == 0 ? " rows" : " columns", ", expected ", of.size(), " as that of expert 0");
        auto from = part.second.bytes.begin();
        for (Index r = 0; r < rows; ++r)
          for (const Index at : of) {
            std::copy_n(from, unit, whole.bytes.begin() + (r * piece.whole + at) * static_cast<Index>(unit));
            from += static_cast<Index>(unit);
          }
      }
    }
    tensors.emplace(name, std::move(whole));
  }
}

}  // namespace moe::inline MOE_ABI::mpi::detail
