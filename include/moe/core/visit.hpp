// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

namespace detail {
struct IgnoreParameters {
  template <class... Leaves>
  void operator()(const std::string&, Leaves&...) const {}
};

/// An object that a function cannot take by value; never made.
template <class T>
struct NotCopied : T {
  NotCopied(const NotCopied&) = delete;
};
struct NamesVisit {
  void visit();
};
template <class T>
struct TwoVisits : T, NamesVisit {};

/// Whether T has any member called visit: the name is ambiguous then.
template <class T>
concept HasVisitMember = std::is_class_v<T> && !std::is_final_v<T> && !requires { &TwoVisits<T>::visit; };

}  // namespace detail

/// A type with learnable numbers. It has one static member that names them all:
///   template <class F, class... Self>
///   static void visit(F&& f, Self&... self) { f("weight", self.weight_...); f("bias", self.bias_...); }
/// A leaf is a `double`, a dense Eigen matrix or vector, or a type with span(), shape(), read() and write() such as
/// PanelMatrix; Kept<...> around a vector keeps it from learning. A part that has parameters of its own is visited
/// through visit_part(). A part that can be trained through declares visit also where it has nothing to learn, with an
/// empty body: without it, or where it is not static or takes the objects by value, nothing would learn.
template <class T>
concept HasParameters = requires(T& object) {
  T::visit(detail::IgnoreParameters{}, object);
} && (std::is_final_v<T> || requires(detail::NotCopied<T>& object) { T::visit(detail::IgnoreParameters{}, object); });

/// A vector that is kept and not learned, as a leaf of visit(): set by a controller, a statistic of the data. It is
/// saved and loaded with the parameters; optimisers and clipping leave it as it is.
template <class V>
struct Kept : V {
  using V::V;
  using V::operator=;
  Kept() = default;
  Kept(const V& value) : V(value) {}
  Kept(V&& value) : V(std::move(value)) {}
};

/// Whether a leaf is learned: all but Kept<...> are.
template <class Leaf>
inline constexpr bool kIsLearned = true;
template <class V>
inline constexpr bool kIsLearned<Kept<V>> = false;

/// Calls f(name, leaf, leaves...) for every parameter of same-shaped objects: a layer, its gradient, its moments.
/// Names are dotted paths, as in "experts.3.up.weight"; the order is fixed. Optimisers, clipping, gradient checks and
/// checkpoints rest on this function alone. An object without parameters is visited without a call.
template <class F, class First, class... Rest>
void visit(F&& f, First& first, Rest&... rest) {
  using T = std::remove_const_t<First>;
  static_assert(HasParameters<T> || !detail::HasVisitMember<T>,
                "moe::visit: a type's own visit must be `template <class F, class... Self> static void visit(F&& f, "
                "Self&... self)`: static, with the objects by reference (see moe/core/visit.hpp)");
  if constexpr (HasParameters<T>) T::visit(f, first, rest...);
}

/// Visits a part under a prefix: visit_part(f, "router", self.router_...).
template <class F, class... Parts>
void visit_part(F&& f, const std::string& prefix, Parts&... parts) {
  visit([&](const std::string& name, auto&... leaf) { f(prefix + "." + name, leaf...); }, parts...);
}

/// All scalars of a leaf in storage order, for elementwise work; padding included, which is zero and must stay so.
template <class Leaf>
auto parameter_span(Leaf& leaf) {
  if constexpr (requires { leaf.span(); }) {
    return leaf.span();
  } else if constexpr (std::is_arithmetic_v<Leaf>) {
    return std::span<Leaf>(&leaf, 1);
  } else {
    using Scalar = std::remove_pointer_t<decltype(leaf.data())>;
    return std::span<Scalar>(leaf.data(), static_cast<std::size_t>(leaf.size()));
  }
}

/// Logical shape: {} for a number, [size] for a vector, [out, in] for a weight.
template <class Leaf>
std::vector<Index> parameter_shape(const Leaf& leaf) {
  if constexpr (requires { leaf.shape(); }) {
    return leaf.shape();
  } else if constexpr (std::is_arithmetic_v<Leaf>) {
    return {};
  } else if constexpr (Leaf::IsVectorAtCompileTime) {
    return {leaf.size()};
  } else {
    return {leaf.rows(), leaf.cols()};
  }
}

/// Scalar type of a leaf.
template <class Leaf>
using ParameterScalar = std::remove_const_t<typename decltype(parameter_span(std::declval<Leaf&>()))::element_type>;

/// Number of logical scalars, padding not counted.
template <class Leaf>
Index parameter_size(const Leaf& leaf) {
  Index size = 1;
  for (const Index extent : parameter_shape(leaf)) size *= extent;
  return size;
}

/// Copies the logical values, row by row of the logical shape, into `values` [parameter_size(leaf)].
template <class Leaf, class S>
void read_parameter(const Leaf& leaf, std::span<S> values) {
  if constexpr (requires { leaf.read(values); }) {
    leaf.read(values);
  } else if constexpr (std::is_arithmetic_v<Leaf>) {
    values[0] = static_cast<S>(leaf);
  } else {  // row by row, also where the matrix is stored by columns
    std::size_t i = 0;
    for (Index r = 0; r < leaf.rows(); ++r)
      for (Index c = 0; c < leaf.cols(); ++c) values[i++] = static_cast<S>(leaf(r, c));
  }
}

/// Sets the logical values from `values` [parameter_size(leaf)].
template <class Leaf, class S>
void write_parameter(Leaf& leaf, std::span<const S> values) {
  if constexpr (requires { leaf.write(values); }) {
    leaf.write(values);
  } else if constexpr (std::is_arithmetic_v<Leaf>) {
    leaf = static_cast<Leaf>(values[0]);
  } else {
    std::size_t i = 0;
    for (Index r = 0; r < leaf.rows(); ++r)
      for (Index c = 0; c < leaf.cols(); ++c) leaf(r, c) = static_cast<ParameterScalar<Leaf>>(values[i++]);
  }
}

/// Sets every parameter to zero.
template <class T>
void set_zero(T& object) {
  visit(
      [](const std::string&, auto& leaf) {
        for (auto& value : parameter_span(leaf)) value = {};
      },
      object);
}

/// An object of the same shape with all parameters zero: a gradient, a moment.
template <class T>
T zeros_like(const T& object) {
  T zeros = object;
  set_zero(zeros);
  return zeros;
}

/// Number of scalars that are visited.
template <class T>
Index num_parameters(const T& object) {
  Index count = 0;
  visit([&](const std::string&, const auto& leaf) { count += parameter_size(leaf); }, object);
  return count;
}

}  // namespace moe::inline MOE_ABI
