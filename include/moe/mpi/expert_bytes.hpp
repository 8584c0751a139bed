// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/core/visit.hpp"

// Experts and gradients as the bytes that go from rank to rank.
namespace moe::inline MOE_ABI::mpi {

namespace detail {

/// As it lies in memory, padding of panels included; codes as the scalars that they decode to.
template <class Leaf>
Index bytes_of_leaf(const Leaf& leaf) {
  if constexpr (moe::detail::SpannedLeaf<const Leaf>)
    return std::ssize(std::as_bytes(parameter_span(leaf)));
  else
    return parameter_size(leaf) * static_cast<Index>(sizeof(ParameterScalar<Leaf>));
}

// Visitors with a name, as those of moe/core/visit.hpp.
struct CountBytes {
  Index& bytes;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, const Leaf& leaf) const {
    bytes += bytes_of_leaf(leaf);
  }
};
struct WriteBytes {
  std::byte*& to;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, const Leaf& leaf) const {
    if constexpr (moe::detail::SpannedLeaf<const Leaf>) {
      write(std::as_bytes(parameter_span(leaf)));
    } else {
      std::vector<ParameterScalar<Leaf>> values(static_cast<std::size_t>(parameter_size(leaf)));
      read_parameter(leaf, std::span(values));
      write(std::as_bytes(std::span(values)));
    }
  }

 private:
  void write(std::span<const std::byte> bytes) const {
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
    to += bytes.size();
  }
};
struct ReadBytes {
  const std::byte*& from;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, Leaf& leaf) const {
    if constexpr (moe::detail::SpannedLeaf<Leaf>) {
      read(std::as_writable_bytes(parameter_span(leaf)));
    } else {
      std::vector<ParameterScalar<Leaf>> values(static_cast<std::size_t>(parameter_size(leaf)));
      read(std::as_writable_bytes(std::span(values)));
      write_parameter(leaf, std::span<const ParameterScalar<Leaf>>(values));
    }
  }

 private:
  void read(std::span<std::byte> bytes) const {
    if (!bytes.empty()) std::memcpy(bytes.data(), from, bytes.size());
    from += bytes.size();
  }
};
/// A leaf becomes, or is added, the sum of those at the same place of several blocks, in their order.
struct SumBlocks {
  std::span<const std::byte* const> blocks;
  Index& at;
  bool adds;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, Leaf& leaf) const {
    const auto values = parameter_span(leaf);
    using S = std::remove_cvref_t<decltype(values[0])>;
    const auto value = [&](const std::byte* block, std::size_t i) {
      S found;
      std::memcpy(&found, block + at + static_cast<Index>(i * sizeof(S)), sizeof(S));
      return found;
    };
    for (std::size_t i = 0; i < values.size(); ++i) {
      S sum = value(blocks[0], i);
      for (std::size_t b = 1; b < blocks.size(); ++b) sum += value(blocks[b], i);
      values[i] = adds ? values[i] + sum : sum;
    }
    at += static_cast<Index>(values.size() * sizeof(S));
  }
};

}  // namespace detail

/// Bytes of the parameters and the state of an expert, as a gather sends them, padding of panels included.
template <class E>
Index gathered_bytes(const E& expert) {
  Index bytes = 0;
  visit_all(detail::CountBytes{bytes}, expert);
  return bytes;
}
/// Bytes of a gradient, as a reduction sends it: of what is learned.
template <class E>
Index reduced_bytes(const E& gradient) {
  Index bytes = 0;
  visit(detail::CountBytes{bytes}, gradient);
  return bytes;
}

}  // namespace moe::inline MOE_ABI::mpi
