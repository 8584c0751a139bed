// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/mpi/gathered_tensors.hpp"
#include "moe/mpi/number_hash.hpp"
#include "moe/mpi/reduce_gradient.hpp"

namespace moe::inline MOE_ABI::mpi {

namespace detail {

inline std::int64_t hash_of(const std::string& name) {
  NumberHash hash;
  hash.add(name);
  return hash.value();
}

/// The first rank that has a name, for the names of all ranks as hashes, of which no two meet but by chance.
template <Communicator C>
std::map<std::int64_t, Index> gather_names(const C& ranks, const std::vector<std::int64_t>& names) {
  std::vector<Index> most = {std::ssize(names)};
  all_reduce<Index>(ranks, most, Reduction::Most);
  std::vector<std::int64_t> own = names;
  own.resize(static_cast<std::size_t>(most[0]), own.empty() ? 0 : own.front());
  const std::vector<std::int64_t> all = all_gather<std::int64_t>(ranks, own);
  std::map<std::int64_t, Index> first;
  for (std::size_t i = 0; i < all.size(); ++i) first.emplace(all[i], static_cast<Index>(i) / most[0]);
  return first;
}

/// Calls f(), and throws on all ranks where it throws on one.
template <Communicator C, class F>
void together(const C& ranks, const std::string& label, const char* what, const F& f) {
  std::exception_ptr error;
  try {
    f();
  } catch (...) {
    error = std::current_exception();
  }
  const Index has_failed = error ? 1 : 0;
  const std::vector<Index> failed = all_gather<Index>(ranks, std::span(&has_failed, 1));
  if (error) std::rethrow_exception(error);
  for (std::size_t r = 0; r < failed.size(); ++r)
    if (failed[r] != 0) fail_environment(label, ": rank ", r, " cannot ", what);
}

/// Loads leaves, or checks that they can be.
template <bool kLoads>
struct LoadLeaves {
  const std::string& label;
  const SafetensorsReader& file;
  const SlicePieces& pieces;
  Narrowing narrowing;
  std::vector<std::int64_t>* names;

  template <class Leaf>
  void operator()(const std::string& name, Leaf& leaf) const {
    const std::optional<SliceName> slice = slice_name(name, pieces);
    if (slice && (slice->piece.kind == SliceKind::Rows || slice->piece.kind == SliceKind::Columns)) {
      cut(*slice, leaf);
    } else if constexpr (kLoads) {
      if (slice && slice->piece.kind == SliceKind::OnFirst && slice->slice != 0)
        write_parameter(leaf, std::span<const ParameterScalar<Leaf>>(
                                  std::vector<ParameterScalar<Leaf>>(static_cast<std::size_t>(parameter_size(leaf)))));
      else
        moe::detail::load_leaf(label, file, slice ? slice->tensor : name, leaf, narrowing);
    } else {
      moe::detail::check_leaf(label, file, slice ? slice->tensor : name, leaf,
                              [&](const std::string& tensor) { names->push_back(hash_of(tensor)); });
    }
  }
  /// Rows or columns of a tensor.
  template <class Leaf>
  void cut(const SliceName& slice, Leaf& leaf) const {
    const bool of_rows = slice.piece.kind == SliceKind::Rows;
    const std::vector<Index> part = parameter_shape(leaf);
    std::vector<Index> shape = part;
    shape[of_rows ? 0 : 1] = slice.piece.whole;
    const auto& all = slice.piece.of;
    if (slice.slice < 0 || slice.slice >= std::ssize(all) ||
        std::ssize(all[static_cast<std::size_t>(slice.slice)]) != part[of_rows ? 0 : 1])
      fail_environment(label, ": slice ", slice.slice, " of tensor '", slice.tensor, "' has ", part[of_rows ? 0 : 1],
                       of_rows ? " rows" : " columns", ", which is none of expert 0");
    const std::vector<Index>& own = all[static_cast<std::size_t>(slice.slice)];
    if constexpr (kLoads) {
      using S = ParameterScalar<Leaf>;
      const Index cols = shape.size() < 2 ? 1 : shape[1];
      std::vector<S> whole(static_cast<std::size_t>(shape[0] * cols)), values;
      file.read(slice.tensor, std::span<S>(whole), narrowing);
      if (of_rows)
        for (const Index r : own) values.insert(values.end(), whole.begin() + r * cols, whole.begin() + (r + 1) * cols);
      for (Index r = 0; !of_rows && r < part[0]; ++r)
        for (const Index c : own) values.push_back(whole[static_cast<std::size_t>(r * cols + c)]);
      write_parameter(leaf, std::span<const S>(values));
    } else {
      const TensorInfo& info = file.tensor(slice.tensor);
      if (info.shape != shape)
        fail_environment(label, ": tensor '", slice.tensor, "' is not of the shape that slice ", slice.slice,
                         " is cut from, expected ", slice.piece.whole, of_rows ? " rows" : " columns");
      names->push_back(hash_of(slice.tensor));
    }
  }
};

}  // namespace detail

/// Saves what ranks have of a layer with sharded experts, or of the state of an optimiser, as the file that
/// moe::save_parameters() makes of the whole: rank 0 gathers all, for which it needs memory, and writes. Slices are put
/// together. Collective: returns when the file is there. Throws on all ranks where rank 0 cannot write it, and as
/// moe::save_parameters().
///   moe::mpi::save_parameters(ranks, "layer.safetensors", layer);
///   moe::mpi::save_parameters(ranks, "moments.safetensors", trainer.state());
template <Communicator C, class T>
void save_parameters(const C& ranks, const std::filesystem::path& path, const T& object,
                     const Metadata& metadata = {}) {
  detail::SlicePieces pieces;
  visit_all(detail::CollectPieces{pieces}, object);
  detail::GatheredTensors tensors;
  visit_all(detail::CollectTensors{tensors}, object);
  std::vector<std::int64_t> names;
  for (const auto& [name, tensor] : tensors) names.push_back(detail::hash_of(name));
  const std::map<std::int64_t, Index> first = detail::gather_names(ranks, names);
  std::vector<std::byte> send;
  if (ranks.rank() != 0)
    for (const auto& [name, tensor] : tensors)
      if (first.at(detail::hash_of(name)) == ranks.rank()) detail::append_tensor(name, tensor, send);
  const Index own = std::ssize(send);
  std::vector<Index> received = all_gather<Index>(ranks, std::span(&own, 1)), sent(received.size());
  sent[0] = own;
  if (ranks.rank() != 0) std::ranges::fill(received, 0);
  Index total = 0;
  for (const Index bytes : received) total += bytes;
  std::vector<std::byte> all(static_cast<std::size_t>(total));
  all_to_all(ranks, send, sent, all, received);
  detail::together(ranks, "moe::mpi::save_parameters: '" + path.string() + "'", "write the file", [&] {
    if (ranks.rank() != 0) return;
    detail::take_tensors(all, tensors);
    detail::join_slices(pieces, tensors);
    SafetensorsHeader header{.metadata = metadata};
    for (const auto& [name, tensor] : tensors) header.tensors.emplace(name, tensor.info);
    SafetensorsWriter writer(path, std::move(header));
    for (const auto& [name, tensor] : tensors) writer.write_bytes(name, tensor.bytes);
    writer.commit();
  });
}

/// Sets what this rank has of a layer, or of the state of an optimiser, from the file of the whole one, whichever
/// number of ranks has saved it: experts of others are not read, and of experts in slices the own rows and columns
/// stay. Collective. Throws std::runtime_error as moe::load_parameters() does, also where a tensor of the file is a
/// parameter on no rank, and on all ranks where one of them cannot load what it has; the object is untouched then.
template <Communicator C, class T>
Metadata load_parameters(const C& ranks, const std::filesystem::path& path, T& object,
                         Narrowing narrowing = Narrowing::Refuse) {
  const std::string label = std::string("moe::mpi::load_parameters: '") + path.string() + "'";
  detail::SlicePieces pieces;
  visit_all(detail::CollectPieces{pieces}, std::as_const(object));
  std::optional<SafetensorsReader> opened;
  std::vector<std::int64_t> names;
  detail::together(ranks, label, "read it", [&] {
    opened.emplace(path);
    visit_all(detail::LoadLeaves<false>{label, *opened, pieces, narrowing, &names}, std::as_const(object));
  });
  const SafetensorsReader& file = *opened;
  const std::map<std::int64_t, Index> of_all = detail::gather_names(ranks, names);
  for (const auto& [name, info] : file.tensors())
    if (!of_all.contains(detail::hash_of(name)))
      fail_environment(label, ": tensor '", name, "' is a parameter of the layer on no rank");
  std::optional<T> loaded;
  detail::together(ranks, label, "load what it has", [&] {
    loaded.emplace(object);
    visit_all(detail::LoadLeaves<true>{label, file, pieces, narrowing, nullptr}, *loaded);
  });
  object = std::move(*loaded);
  return file.metadata();
}

}  // namespace moe::inline MOE_ABI::mpi
