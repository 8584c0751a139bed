// SPDX-License-Identifier: MIT
// Parameters and state of any object: to set, to list, to compare bit by bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moe/core/visit.hpp"
#include "support/matrices.hpp"

namespace test {

template <class Leaf>
std::vector<double> values_of(const Leaf& leaf) {
  std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
  moe::read_parameter(leaf, std::span<double>(values));
  return values;
}

// Visitors with a name, as a lambda in a function template is another type for every object.
template <class Draw>
struct SetTo {
  Draw& draw;  // the values of a leaf

  template <class Leaf>
  void operator()(const std::string&, Leaf& leaf) const {
    std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
    draw(values);
    moe::write_parameter(leaf, std::span<const double>(values));
  }
};

struct Flatten {
  std::vector<double>& all;

  template <class Leaf>
  void operator()(const std::string&, const Leaf& leaf) const {
    const std::vector<double> values = values_of(leaf);
    all.insert(all.end(), values.begin(), values.end());
  }
};

/// Counts stored scalars for which `counts(value)`.
template <class Counts>
struct CountStored {
  moe::Index& count;

  template <class Leaf>
  void operator()(const std::string&, const Leaf& leaf) const {
    for (const auto value : moe::parameter_span(leaf)) count += Counts{}(value) ? 1 : 0;
  }
};

struct SameBits {
  bool& same;

  template <class Leaf>
  void operator()(const std::string&, const Leaf& leaf, const Leaf& other) const {
    const auto left = moe::parameter_span(leaf), right = moe::parameter_span(other);
    same = same && left.size() == right.size();
    for (std::size_t i = 0; same && i < left.size(); ++i) same = same_bits(left[i], right[i]);
  }
};

struct NormalDraws {
  std::uint64_t seed;
  double scale;

  void operator()(std::vector<double>& values) {
    const moe::RandomField random(moe::Purpose::User, seed++);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = scale * random.normal(static_cast<std::int64_t>(i));
  }
};

/// Sets every logical parameter, biases and state included, to scale times a standard normal draw.
template <class T>
void randomise(T& object, std::uint64_t seed, double scale = 0.5) {
  NormalDraws draws{seed, scale};
  moe::visit_all(SetTo<NormalDraws>{draws}, object);
}

/// Sets every logical parameter to draw(k), k counting from 0.
template <class Layer, class Draw>
void fill(Layer& layer, Draw&& draw) {
  moe::Index k = 0;
  auto draws = [&](std::vector<double>& values) {
    for (double& value : values) value = draw(k++);
  };
  moe::visit(SetTo<decltype(draws)>{draws}, layer);
}

/// All logical parameters one after the other.
template <class Layer>
std::vector<double> flatten(const Layer& layer) {
  std::vector<double> all;
  moe::visit(Flatten{all}, layer);
  return all;
}

template <class Counts, class T>
moe::Index count_stored(const T& object) {
  moe::Index count = 0;
  moe::visit(CountStored<Counts>{count}, object);
  return count;
}

struct HasZeroBits {
  bool operator()(double value) const { return value == 0 && !std::signbit(value); }
};
struct IsStored {
  bool operator()(double) const { return true; }
};
struct IsNotZero {
  bool operator()(double value) const { return value != 0; }
};

/// Number of stored scalars whose bits are those of +0.
template <class Layer>
moe::Index count_zero_bits(const Layer& layer) {
  return count_stored<HasZeroBits>(layer);
}

/// Number of stored scalars, padding included.
template <class Layer>
moe::Index num_stored(const Layer& layer) {
  return count_stored<IsStored>(layer);
}

/// Stored scalars that are not zero, and logical ones: equal if the padding is zero and nothing else is.
template <class T>
Index num_nonzero(const T& object) {
  return count_stored<IsNotZero>(object);
}

/// Whether all that two objects learn has the same bits, padding included: for gradients.
template <class T>
bool same_learned(const T& a, const T& b) {
  bool same = true;
  moe::visit(SameBits{same}, a, b);
  return same;
}

/// Whether all parameters and state of two objects have the same bits, padding included.
template <class T>
bool same_parameters(const T& a, const T& b) {
  bool same = true;
  moe::visit_all(SameBits{same}, a, b);
  return same;
}

}  // namespace test
