// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/file/parameters.hpp"
#include "moe/layer/structure.hpp"
#include "moe/mpi/reduce_gradient.hpp"

namespace moe::inline MOE_ABI::mpi {

namespace detail {

/// The names of all ranks as hashes, of which no two meet but by chance.
template <Communicator C>
std::set<std::int64_t> gather_names(const C& ranks, const std::set<std::string, std::less<>>& names,
                                    const auto& hash_of) {
  std::vector<std::int64_t> own;
  for (const std::string& name : names) own.push_back(hash_of(name));
  std::vector<Index> most = {std::ssize(own)};
  all_reduce<Index>(ranks, most, Reduction::Most);
  own.resize(static_cast<std::size_t>(most[0]), own.empty() ? 0 : own.front());
  const std::vector<std::int64_t> all = all_gather<std::int64_t>(ranks, own);
  return {all.begin(), all.end()};
}

}  // namespace detail

/// All experts on rank 0, copied from the ranks that hold them, and nothing on the others. Collective. Throws
/// std::invalid_argument on all ranks if experts are cut into slices, or are not all of one size.
template <class X, Communicator C>
std::optional<X> gather_experts(const ShardedExperts<X, C>& sharded)
  requires(TakesExperts<X> && detail::IndexedSet<X>)
{
  constexpr const char* kFunction = "moe::mpi::gather_experts";
  const Placement& placement = sharded.placement();
  const C& ranks = sharded.ranks();
  if (placement.slices() > 1)
    fail(kFunction, ": experts are cut into ", placement.slices(), " slices, expected whole ones");
  const Index bytes = gathered_bytes(sharded.shard()[0]);
  bool is_even = true;
  for (const Index e : sharded.held()) is_even = is_even && gathered_bytes(sharded.held(e)) == bytes;
  detail::require_on_all(ranks, kFunction, is_even, " has experts of several sizes, expected them to be equal");
  require_same(ranks, kFunction, "bytes of an expert", bytes);
  Placement wanted = placement.shards();
  std::vector<Index> from;  // which of this rank's, any where it has none
  for (Index e = 0; e < placement.experts(); ++e) {
    wanted.add(e, 0);
    const auto at = std::ranges::find(sharded.held(), e);
    from.push_back(at == sharded.held().end() ? 0 : at - sharded.held().begin());
  }
  std::optional<X> whole;
  if (ranks.rank() == 0) whole = sharded.shard().take(from);
  SparseExchange<C> exchange;
  exchange.start_gather(ranks, wanted, bytes, [&](Index e) -> const auto& { return sharded.held(e); });
  exchange.finish_gather([&](Index e) -> auto& { return (*whole)[e]; });
  return whole;
}

/// Saves a layer with sharded experts as the file that moe::save_parameters() makes of the whole layer: rank 0 gathers
/// the experts, for which it needs memory, and writes. Collective: returns when the file is there. Throws as these.
template <class Layer>
void save_parameters(const std::filesystem::path& path, const Layer& layer, const Metadata& metadata = {}) {
  const auto& sharded = experts_of(layer);
  if (auto whole = gather_experts(sharded))
    moe::save_parameters(path, moe::with_experts(layer, std::move(*whole)), metadata);
  barrier(sharded.ranks());
}

/// Sets what this rank has of a layer from the file of the whole one, whichever number of ranks has saved it: other
/// experts are not read. Experts in slices are not in such a file by their parts: cut a layer that has been loaded (see
/// ShardedExperts::of). Collective. Throws std::runtime_error as moe::load_parameters() does, also where a tensor of
/// the file is a parameter on no rank, and on all ranks where one of them cannot load what it has; the layer is
/// untouched then.
template <class Layer>
Metadata load_parameters(const std::filesystem::path& path, Layer& layer, Narrowing narrowing = Narrowing::Refuse) {
  const SafetensorsReader file(path);
  const std::string label = std::string("moe::mpi::load_parameters: '") + path.string() + "'";
  std::set<std::string, std::less<>> expected;
  visit_all(
      [&](const std::string& name, const auto& leaf) {
        moe::detail::check_leaf(label, file, name, leaf, [&](const std::string& tensor) { expected.insert(tensor); });
      },
      layer);
  const auto hash_of = [](const std::string& name) {
    detail::NumberHash hash;
    hash.add(name);
    return hash.value();
  };
  const std::set<std::int64_t> of_all = detail::gather_names(experts_of(layer).ranks(), expected, hash_of);
  for (const auto& [name, info] : file.tensors())
    if (!of_all.contains(hash_of(name)))
      fail_environment(label, ": tensor '", name, "' is a parameter of the layer on no rank");
  std::exception_ptr error;
  std::optional<Layer> loaded;
  try {
    loaded.emplace(layer);
    visit_all([&](const std::string& name, auto& leaf) { moe::detail::load_leaf(label, file, name, leaf, narrowing); },
              *loaded);
  } catch (...) {
    error = std::current_exception();
  }
  const Index has_failed = error ? 1 : 0;
  const std::vector<Index> failed = all_gather<Index>(experts_of(layer).ranks(), std::span(&has_failed, 1));
  if (error) std::rethrow_exception(error);
  for (std::size_t r = 0; r < failed.size(); ++r)
    if (failed[r] != 0) fail_environment(label, ": rank ", r, " cannot load what it has");
  layer = std::move(*loaded);
  return file.metadata();
}

}  // namespace moe::inline MOE_ABI::mpi
