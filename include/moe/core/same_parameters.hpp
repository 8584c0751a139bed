// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/visit.hpp"

// Whether two objects have the same parameters, as a layer and its gradient, or its moments, must: walking them
// together relies on it. State is not compared: that of a gradient or moment is of no account, and may change its size
// in the layer meanwhile, as when a controller first sets a selection bias.
namespace moe::inline MOE_ABI::detail {

using NamedShapes = std::vector<std::pair<std::string, std::vector<Index>>>;

struct CollectShapes {
  NamedShapes& shapes;

  template <class Leaf>
  void operator()(std::string_view name, const Leaf& leaf) const {
    shapes.emplace_back(name, parameter_shape(leaf));
  }
};

template <class T>
NamedShapes parameter_shapes(const T& object) {
  NamedShapes shapes;
  visit(CollectShapes{shapes}, object);
  return shapes;
}

/// Whether two leaves of one type are stored alike.
template <class Leaf>
bool same_layout(const Leaf& a, const Leaf& b) {
  if constexpr (requires { a.is_shaped_as(b); })
    return a.is_shaped_as(b);
  else if constexpr (requires { a.rows(); })
    return a.rows() == b.rows() && a.cols() == b.cols();
  else
    return parameter_span(a).size() == parameter_span(b).size();
}

inline void require_same_shapes(const char* function, const char* name, const NamedShapes& expected,
                                const NamedShapes& found) {
  if (found.size() != expected.size())
    fail(function, ": ", name, " has ", found.size(), " parameters, expected ", expected.size(), " as in the layer");
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (found[i] != expected[i])
      fail(function, ": parameter '", found[i].first, "' of ", name, " differs in name or shape from '",
           expected[i].first, "' of the layer");
}

struct RequireSameLayouts {
  const char *function, *name;

  template <class Leaf>
  void operator()(std::string_view leaf_name, const Leaf& leaf, const Leaf& other) const {
    if (!same_layout(leaf, other))
      fail(function, ": parameter '", leaf_name, "' of ", name, " is stored in another layout");
  }
};

/// Throws unless `other` has the parameters of `layer`: same names, shapes and layouts. Names and shapes are compared
/// one object at a time first, because walking two together relies on them.
template <class T>
void require_same_parameters(const char* function, const char* name, const T& layer, const T& other) {
  require_same_shapes(function, name, parameter_shapes(layer), parameter_shapes(other));
  visit(RequireSameLayouts{function, name}, layer, other);
}

/// FNV-1a of the names of parts and parameters and of stored sizes, in order.
class Fingerprint {
 public:
  void prefix(std::string_view name) {
    for (const char c : name) add(static_cast<unsigned char>(c));
    add('.');
  }
  template <class Leaf>
  void operator()(std::string_view name, const Leaf& leaf) {
    prefix(name);
    add(parameter_span(leaf).size() + 256);
  }
  template <class T>
  static std::uint64_t of(const T& object) {
    Fingerprint fingerprint;
    visit(fingerprint, object);
    return fingerprint.hash_;
  }

 private:
  void add(std::uint64_t value) { hash_ = (hash_ ^ value) * 1099511628211u; }

  std::uint64_t hash_ = 14695981039346656037u;
};

/// Whether all leaves of two objects with equal fingerprints are stored alike.
struct SameLayout {
  bool same = true;

  void prefix(std::string_view) {}
  template <class Leaf>
  void operator()(std::string_view, const Leaf& a, const Leaf& b) {
    same = same && same_layout(a, b);
  }
};

/// The same as require_same_parameters() for backward passes, which do not allocate: lists and joined names are made to
/// complain only.
template <class T>
void require_gradient_of(const char* function, const char* name, const T& part, const T& gradient) {
  bool same = Fingerprint::of(part) == Fingerprint::of(gradient);
  if (same) {
    SameLayout layouts;
    visit(layouts, part, gradient);
    same = layouts.same;
  }
  if (!same) require_same_parameters(function, name, part, gradient);
}

/// Throws std::invalid_argument unless `tape` is that of a forward pass of `rows` through an object shaped as `part`,
/// and `gradient` is shaped as it, for parts that can tell:
///   void require_backward(rows, const Tape& tape, const Part& gradient) const;
/// of other parts the parameters of the gradient are compared. `rows`: their number, or the plan of a set of experts.
template <class Part, class Rows, class Tape>
void require_backward_of(const char* function, const char* name, const Part& part, const Rows& rows, const Tape& tape,
                         const Part& gradient) {
  if constexpr (requires { part.require_backward(rows, tape, gradient); })
    part.require_backward(rows, tape, gradient);
  else
    require_gradient_of(function, name, part, gradient);
}

}  // namespace moe::inline MOE_ABI::detail
