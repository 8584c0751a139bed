// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/matrix.hpp"

// Long, as parameters and state are one walk, and leaves are read, written and counted as it finds them.
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
/// PanelMatrix. A part that has parameters of its own is named once, through visit_part(), or visit() without a prefix:
/// what it only keeps (HasState) goes along. A part that can be trained through declares visit also where it has
/// nothing to learn, with an empty body: without it, or where it is not static or takes the objects by value, nothing
/// would learn.
template <class T>
concept HasParameters = requires(T& object) {
  T::visit(detail::IgnoreParameters{}, object);
} && (std::is_final_v<T> || requires(detail::NotCopied<T>& object) { T::visit(detail::IgnoreParameters{}, object); });

/// A type with numbers that are kept and not learned: set by a controller, statistics, centroids, codes and scales. It
/// has a static member beside visit that names them:
///   template <class F, class... Self>
///   static void state(F&& f, Self&... self) { f("selection_bias", self.selection_bias...); }
/// State is saved and loaded with the parameters, in one namespace of names. Optimisers, clipping, decay, gradient
/// checks and num_parameters() do not see it, and nobody reads that of a gradient. A leaf of it may also be codes: a
/// type with `Scalar`, shape(), read() and write(), which are saved as the scalars that they decode to (those of
/// PanelMatrix<Quantised> as they are), and which copies share until one of them is written, so that gradients and
/// moments take no memory for them. A part that is named here, through visit_part(), is frozen: its parameters are
/// state, too.
template <class T>
concept HasState = requires(T& object) {
  T::state(detail::IgnoreParameters{}, object);
} && (std::is_final_v<T> || requires(detail::NotCopied<T>& object) { T::state(detail::IgnoreParameters{}, object); });

namespace detail {

template <class T>
concept HasStateOfAnObject = requires(T& object) { object.state(IgnoreParameters{}); } ||
                             requires(T& object, IgnoreParameters& f) { object.state(f); };
template <class T>
concept HasStateOfCopies = requires(T& object) { T::state(IgnoreParameters{}, object); } ||
                           requires(T& object, IgnoreParameters& f) { T::state(f, object); };

/// Whether T has a member called state that looks like HasState and is none. Others of that name are not meant.
template <class T>
concept HasOtherState = !HasState<T> && (HasStateOfAnObject<T> || HasStateOfCopies<T>);

/// Which leaves a walk over an object calls its visitor for. Ever: all, and the state of gradients, which was saved
/// before 0.2.0.
enum class Walked { Learned, State, All, Ever };

/// A visitor that says so, and is handed from part to part; a plain one sees what is learned.
template <class F, Walked walked>
struct Walk {
  F& f;

  template <class... Leaves>
  void operator()(const std::string& name, Leaves&... leaves) const {
    if constexpr (walked != Walked::State) f(name, leaves...);
  }
  template <class... Leaves>
  void operator()(const char* name, Leaves&... leaves) const {  // no string is made that nobody asks for
    if constexpr (walked != Walked::State) f(name, leaves...);
  }
};

template <class F>
inline constexpr Walked kWalked = Walked::Learned;
template <class F, Walked walked>
inline constexpr Walked kWalked<Walk<F, walked>> = walked;

/// Visitors that are told of a prefix where the part begins, by prefix(), and then take the names of its leaves as they
/// come: names that are put together take memory.
template <class F>
concept TakesPrefixes = requires(F& f, std::string_view prefix) { f.prefix(prefix); };
template <class F>
concept HasPrefixMember = requires { &F::prefix; };

/// A visitor behind the path of a part, as in "experts.3.". One type at every depth: parts within parts would otherwise
/// be compiled anew for each place that they are found at.
template <class F>
struct Prefixed {
  F& f;
  std::string path;

  template <class... Leaves>
  void operator()(const std::string& name, Leaves&... leaves) const {
    f(path + name, leaves...);
  }
  template <class... Leaves>
  void operator()(const char* name, Leaves&... leaves) const {
    f(path + name, leaves...);
  }
};

inline std::string path_below(std::string path, std::string_view prefix) { return (path += prefix) += '.'; }

template <class F>
Prefixed<F> prefixed(F& f, std::string_view prefix) {
  return {f, path_below({}, prefix)};
}
template <class F>
Prefixed<F> prefixed(const Prefixed<F>& f, std::string_view prefix) {
  return {f.f, path_below(f.path, prefix)};
}

template <class F>
auto& visitor_of(F& f) {
  if constexpr (kWalked<std::remove_const_t<F>> == Walked::Learned)
    return f;
  else
    return f.f;
}

/// Calls `visit_objects(visitor)` with a visitor that walks as said.
template <Walked walked, class F, class VisitObjects>
void walk(F&& f, const VisitObjects& visit_objects) {
  if constexpr (walked == Walked::Learned)
    visit_objects(f);
  else
    visit_objects(Walk<std::remove_reference_t<F>, walked>{f});
}

}  // namespace detail

/// Calls f(name, leaf, leaves...) for every parameter of same-shaped objects: a layer, its gradient, its moments.
/// Names are dotted paths, as in "experts.3.up.weight"; the order is fixed. Optimisers, clipping and gradient checks
/// rest on this function alone. An object without parameters is visited without a call.
template <class F, class First, class... Rest>
void visit(F&& f, First& first, Rest&... rest) {
  using T = std::remove_const_t<First>;
  using detail::Walked;
  static_assert(HasParameters<T> || !detail::HasVisitMember<T>,
                "moe::visit: a type's own visit must be `template <class F, class... Self> static void visit(F&& f, "
                "Self&... self)`: static, with the objects by reference (see moe/core/visit.hpp)");
  static_assert(!detail::HasOtherState<T>,
                "moe::visit: a type's own state must be `template <class F, class... Self> static void state(F&& f, "
                "Self&... self)`: static, with the objects by reference (see moe/core/visit.hpp)");
  constexpr Walked walked = detail::kWalked<std::remove_cvref_t<F>>;
  if constexpr (HasParameters<T>) T::visit(f, first, rest...);
  if constexpr (HasState<T> && walked != Walked::Learned)
    detail::walk<walked == Walked::State ? Walked::All : walked>(detail::visitor_of(f),
                                                                 [&](auto&& all) { T::state(all, first, rest...); });
}

/// Calls f(name, leaf, leaves...) for all that same-shaped objects keep without learning it, see HasState.
template <class F, class First, class... Rest>
void visit_state(F&& f, First& first, Rest&... rest) {
  detail::walk<detail::Walked::State>(f, [&](auto&& walker) { visit(walker, first, rest...); });
}

/// Calls f(name, leaf, leaves...) for all numbers of same-shaped objects, parameters and state: what is saved, loaded,
/// copied or sent.
template <class F, class First, class... Rest>
void visit_all(F&& f, First& first, Rest&... rest) {
  detail::walk<detail::Walked::All>(f, [&](auto&& walker) { visit(walker, first, rest...); });
}

/// Visits a part under a prefix: visit_part(f, "router", self.router_...). What is asked for goes with `f`: parameters
/// and state, each of the part's own; a visitor that is wrapped by hand finds parameters alone.
template <class F, class... Parts>
void visit_part(F&& f, std::string_view prefix, Parts&... parts) {
  auto& named = detail::visitor_of(f);
  using Visitor = std::remove_cvref_t<decltype(named)>;
  static_assert(detail::TakesPrefixes<Visitor> || !detail::HasPrefixMember<Visitor>,
                "moe::visit_part: `prefix` of a visitor must take std::string_view");
  constexpr detail::Walked walked = detail::kWalked<std::remove_cvref_t<F>>;
  const auto visit_parts = [&](auto&& walker) { visit(walker, parts...); };
  if constexpr (detail::TakesPrefixes<Visitor>) {
    named.prefix(prefix);
    detail::walk<walked>(named, visit_parts);
  } else {
    const auto below = detail::prefixed(named, prefix);
    detail::walk<walked>(below, visit_parts);
  }
}

/// The same for a part that is a gradient, a velocity or a moment of an object: its state means nothing and is not
/// visited.
template <class F, class... Parts>
void visit_gradient(F&& f, std::string_view prefix, Parts&... parts) {
  constexpr detail::Walked walked = detail::kWalked<std::remove_cvref_t<F>>;
  if constexpr (walked == detail::Walked::Ever)
    visit_part(f, prefix, parts...);
  else if constexpr (walked != detail::Walked::State)
    visit_part(detail::visitor_of(f), prefix, parts...);
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

namespace detail {

/// Leaves whose scalars lie in memory: all that are learned. Codes do not, and are read and written as scalars.
template <class Leaf>
concept SpannedLeaf =
    std::is_arithmetic_v<Leaf> || requires(Leaf& leaf) { leaf.span(); } || requires(Leaf& leaf) { leaf.data(); };

template <class Leaf>
struct ScalarOfLeaf {
  using type = typename Leaf::Scalar;
};
template <SpannedLeaf Leaf>
struct ScalarOfLeaf<Leaf> {
  using type = std::remove_const_t<typename decltype(parameter_span(std::declval<Leaf&>()))::element_type>;
};

}  // namespace detail

/// Scalar type of a leaf.
template <class Leaf>
using ParameterScalar = typename detail::ScalarOfLeaf<std::remove_reference_t<Leaf>>::type;

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

namespace detail {

// Visitors with a name, as a lambda in a function template is another type for every object. They put no names
// together.
struct SetZero {
  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, Leaf& leaf) const {
    for (auto& value : parameter_span(leaf)) value = {};
  }
};
struct CountScalars {
  Index& count;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, const Leaf& leaf) const {
    count += parameter_size(leaf);
  }
};

}  // namespace detail

/// Stands for the gradient of an object that does not learn: `backward` of a part that can take one in its place
/// computes the gradients of its inputs alone.
struct NoGradient {};

/// Sets every parameter to zero; state stays. Does not allocate.
template <class T>
void set_zero(T& object) {
  visit(detail::SetZero{}, object);
}

/// An object of the same shape with all parameters zero: a gradient, a moment. Its state is that of the object, which
/// it shares where copies do (codes, Frozen); nobody reads it.
template <class T>
T zeros_like(const T& object) {
  T zeros = object;
  set_zero(zeros);
  return zeros;
}

/// Number of scalars that are learned.
template <class T>
Index num_parameters(const T& object) {
  Index count = 0;
  visit(detail::CountScalars{count}, object);
  return count;
}

/// Number of scalars that are kept and not learned.
template <class T>
Index num_state(const T& object) {
  Index count = 0;
  visit_state(detail::CountScalars{count}, object);
  return count;
}

}  // namespace moe::inline MOE_ABI
