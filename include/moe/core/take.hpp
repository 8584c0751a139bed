// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <span>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// A part of a layer that has something per expert and can be cut, permuted and duplicated along it:
///   Part take(std::span<const moe::Index> ids) const;
/// gives the part whose expert i is expert ids[i] of this one; an id may come twice. Throws std::invalid_argument for
/// no ids and for one out of range.
template <class T>
concept TakesExperts = requires(const T& part, std::span<const Index> ids) {
  { part.take(ids) } -> std::same_as<T>;
};

/// A part of a layer that another of its type can be put behind:
///   Part concatenate(const Part& other) const;
/// gives the part with the experts of this one, then those of `other`. Throws std::invalid_argument where the two
/// differ in what they have for all experts.
template <class T>
concept Concatenates = requires(const T& part) {
  { part.concatenate(part) } -> std::same_as<T>;
};

namespace detail {

/// Throws std::invalid_argument unless there are ids, each one in [0, count).
inline void require_ids(const char* function, std::span<const Index> ids, Index count) {
  if (ids.empty()) fail(function, ": 0 ids, expected at least 1");
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= count) fail(function, ": ids[", i, "] is ", ids[i], ", expected 0 <= id < ", count);
}

/// result(i) = values(ids[i]); no values stay none.
template <class Vector>
Vector take_entries(const char* function, const Vector& values, std::span<const Index> ids) {
  if (values.size() == 0) return values;
  require_ids(function, ids, values.size());
  Vector result(std::ssize(ids));
  for (Index i = 0; i < result.size(); ++i) result(i) = values(ids[static_cast<std::size_t>(i)]);
  return result;
}

/// The entries of `a`, then those of `b`. Throws std::invalid_argument where one has none and the other some.
template <class Vector>
Vector join_entries(const char* function, const char* name, const Vector& a, const Vector& b) {
  if ((a.size() == 0) != (b.size() == 0))
    fail(function, ": ", name, " has ", a.size(), " and ", b.size(), " entries, expected both to have some, or none");
  Vector result(a.size() + b.size());
  for (Index i = 0; i < a.size(); ++i) result(i) = a(i);
  for (Index i = 0; i < b.size(); ++i) result(a.size() + i) = b(i);
  return result;
}

/// Throws std::invalid_argument unless a number that holds for all experts is the same in two parts.
template <class T>
void require_equal_option(const char* function, const char* name, const T& a, const T& b) {
  if (!(a == b)) fail(function, ": ", name, " is not the same in both, expected equal options");
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
