// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/matrix.hpp"

// Codes whose bits are smooth in numbers that are learned, and settle exactly.
namespace moe::inline MOE_ABI::detail {

/// 0 up to -width / 2, 1 from width / 2 on, and between them the cubic that meets both without a kink.
struct SmoothStep {
  double width;

  template <class S>
  S value(S x) const {
    const S u = x / static_cast<S>(width);
    return u <= S(-0.5) ? S{0} : u >= S(0.5) ? S{1} : S(0.5) + u * (S(1.5) - 2 * u * u);
  }
  template <class S>
  S derivative(S x) const {
    const S u = x / static_cast<S>(width);
    return u <= S(-0.5) || u >= S(0.5) ? S{0} : (S(1.5) - 6 * u * u) / static_cast<S>(width);
  }
};

/// The probabilities of all codes of some bits, bit b of the code being 1 with probability bit[b], all bits by
/// themselves; and the gradient back to the bits. Levels of half as many codes lie before the last one.
template <class S>
class BinaryCodes {
 public:
  static constexpr Index kScalars = 3;  // of working memory, times the number of codes

  BinaryCodes(Index num_bits, S* memory) : num_bits_(num_bits), memory_(memory) {}

  Index count() const { return Index{1} << num_bits_; }

  /// [count()], valid until the next call.
  template <class Bit>
  const S* probabilities(const Bit& bit) {
    memory_[1] = 1;  // level b has 2^b codes and begins at 2^b
    for (Index b = 0; b < num_bits_; ++b) {
      const Index size = Index{1} << b;
      const S one = bit(b);
      const S* const from = memory_ + size;
      S* const to = memory_ + 2 * size;
      for (Index i = 0; i < size; ++i) {
        to[i] = from[i] * (1 - one);
        to[i + size] = from[i] * one;
      }
    }
    return memory_ + count();
  }

  /// Calls dbit(b, dL/dbit[b]) for every bit, given d(code) = dL/dprobability, after probabilities() of the same bits.
  template <class D, class Bit, class DBit>
  void backward(const D& d, const Bit& bit, const DBit& dbit) {
    S* const of_code = memory_ + 2 * count();
    for (Index i = 0; i < count(); ++i) of_code[i] = d(i);
    for (Index b = num_bits_ - 1; b >= 0; --b) {
      const Index size = Index{1} << b;
      const S one = bit(b);
      S sum = 0;
      for (Index i = 0; i < size; ++i) {
        sum += memory_[size + i] * (of_code[i + size] - of_code[i]);
        of_code[i] = of_code[i] * (1 - one) + of_code[i + size] * one;
      }
      dbit(b, sum);
    }
  }

 private:
  Index num_bits_;
  S* memory_;
};

}  // namespace moe::inline MOE_ABI::detail
