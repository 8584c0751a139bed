// SPDX-License-Identifier: MIT
// Copies of one expert in which random weights are zero.
#include "moe/layer/diversify.hpp"

#include "moe/expert/frozen.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/text.hpp"

using moe::F32;
using moe::F64;
using moe::Index;
using Mlp = moe::BasicMlp<F64>;
using Glu = moe::BasicGlu<F64>;

namespace {

/// Which logical entries of a matrix are zero, row by row.
template <class Codec>
std::vector<bool> zeros_of(const moe::PanelMatrix<Codec>& matrix) {
  std::vector<bool> zeros;
  for (Index o = 0; o < matrix.outputs(); ++o)
    for (Index i = 0; i < matrix.inputs(); ++i) zeros.push_back(matrix(o, i) == 0);
  return zeros;
}

/// How many entries of a copy are zero; -1 where another one differs from the original in a bit.
template <class Codec>
Index masked_in(const moe::PanelMatrix<Codec>& copy, const moe::PanelMatrix<Codec>& original) {
  Index masked = 0;
  for (Index o = 0; o < copy.outputs(); ++o)
    for (Index i = 0; i < copy.inputs(); ++i) {
      if (test::same_bits(copy(o, i), typename Codec::Scalar{0}))
        ++masked;
      else if (!test::same_bits(copy(o, i), original(o, i)))
        return -1;
    }
  return masked;
}

}  // namespace

TEST_CASE("diversify: the share of the weights is zero, the others and the biases are as they were", "[layer]") {
  constexpr Index kDim = 60, kHidden = 50, kCopies = 5;
  constexpr double kShare = 0.1;
  const auto expert = test::random_expert<Mlp>(kDim, kHidden, 1);
  const auto copies = moe::diversify(expert, kCopies, kShare, 7);
  REQUIRE(std::ssize(copies) == kCopies);
  for (const Mlp& copy : copies) {
    const double deviation = std::sqrt(kDim * kHidden * kShare * (1 - kShare));
    for (const auto& [masked, of] : {std::pair(masked_in(copy.up(), expert.up()), "up"),
                                     std::pair(masked_in(copy.down(), expert.down()), "down")}) {
      CAPTURE(of, masked);  // fixed seed: cannot flicker
      CHECK(std::abs(static_cast<double>(masked) - kShare * kDim * kHidden) < 4 * deviation);
    }
    CHECK(test::same_bits(copy.up_bias().matrix(), expert.up_bias().matrix()));
    CHECK(test::same_bits(copy.down_bias().matrix(), expert.down_bias().matrix()));
  }
}

TEST_CASE("diversify: copies and matrices have masks of their own, which the seed decides", "[layer]") {
  const auto expert = test::random_expert<Mlp>(20, 20, 1);
  const auto copies = moe::diversify(expert, 3, 0.5, 7), fewer = moe::diversify(expert, 2, 0.5, 7);
  CHECK(zeros_of(copies[0].up()) != zeros_of(copies[1].up()));
  CHECK(zeros_of(copies[1].up()) != zeros_of(copies[2].up()));
  CHECK(zeros_of(copies[0].up()) != zeros_of(copies[0].down()));  // both are 20 x 20
  CHECK(test::same_parameters(fewer[0], copies[0]));
  CHECK(test::same_parameters(fewer[1], copies[1]));
  CHECK(zeros_of(moe::diversify(expert, 1, 0.5, 8)[0].up()) != zeros_of(copies[0].up()));
}

TEST_CASE("diversify: masks do not depend on scalar and layout, and padding stays +0", "[layer]") {
  const auto wide = test::random_expert<Glu>(11, 19, 1);
  const auto narrow = test::random_expert<moe::BasicGlu<F32>>(11, 19, 1);
  const Glu copy = moe::diversify(wide, 2, 0.3, 5)[1];
  const auto narrow_copy = moe::diversify(narrow, 2, 0.3, 5)[1];
  CHECK(zeros_of(copy.gate_up()) == zeros_of(narrow_copy.gate_up()));
  CHECK(zeros_of(copy.down()) == zeros_of(narrow_copy.down()));
  CHECK(masked_in(copy.gate_up(), wide.gate_up()) > 0);
  const Index masked = masked_in(copy.gate_up(), wide.gate_up()) + masked_in(copy.down(), wide.down());
  CHECK(test::num_nonzero(copy) == moe::num_parameters(copy) - masked);
  CHECK(test::count_zero_bits(copy) == test::num_stored(copy) - test::num_nonzero(copy));
}

TEST_CASE("diversify: the share nothing gives plain copies, and every kind of expert has some", "[layer]") {
  const auto linear = test::random_expert<moe::BasicLinear<F64>>(9, 9, 1);
  CHECK(test::same_parameters(moe::diversify(linear, 2, 0, 1)[1], linear));
  CHECK(masked_in(moe::diversify(linear, 1, 0.5, 1)[0].weight(), linear.weight()) > 0);

  using Gated = moe::GatedExpert<Mlp, F64>;
  const Gated gated(test::random_expert<Mlp>(9, 7, 2), test::random_expert<moe::BasicLinear<F64>>(1, 9, 3));
  const Gated copy = moe::diversify(gated, 1, 0.5, 1)[0];
  CHECK(masked_in(copy.gate().weight(), gated.gate().weight()) > 0);
  CHECK(masked_in(copy.expert().up(), gated.expert().up()) > 0);
  CHECK(test::same_bits(copy.gate().bias().matrix(), gated.gate().bias().matrix()));

  using Either = moe::OneOf<Glu, Mlp>;
  const moe::ExpertPool pool(moe::diversify(Either(gated.expert()), 4, 0.5, 1));
  REQUIRE(pool.size() == 4);
  CHECK(masked_in(std::get<Mlp>(pool[3].get()).up(), gated.expert().up()) > 0);
}

TEST_CASE("diversify: what cannot be is an error", "[layer][error]") {
  const auto expert = test::random_expert<Mlp>(5, 3, 1);
  const auto complaint = [](const auto& of, Index n, double share) {
    return test::message_of([&] { moe::diversify(of, n, share, 1); });
  };
  CHECK(complaint(expert, 0, 0.1) == "moe::diversify: n is 0, expected at least 1");
  CHECK(complaint(expert, 2, 1) == "moe::diversify: share is 1, expected 0 <= share < 1");
  CHECK(complaint(expert, 2, -0.1) == "moe::diversify: share is -0.1, expected 0 <= share < 1");
  CHECK(complaint(expert, 2, std::nan("")) == "moe::diversify: share is nan, expected 0 <= share < 1");
  const char* const nothing = "moe::diversify: the expert learns no matrix, expected weights to mask";
  CHECK(complaint(moe::Frozen(expert), 2, 0.1) == nothing);
  CHECK(complaint(moe::BasicScaledIdentity<F64>{.dim = 5}, 2, 0.1) == nothing);
}
