// SPDX-License-Identifier: MIT
// Parts that cannot be trained through serve inference, and every layer around them knows that it cannot be trained.
#include "layer/fixtures.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "support/catch.hpp"

using moe::DifferentiableExpert;
using moe::F64;
using moe::Index;
using moe::LayerExpert;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using moe::TrainableLayer;
using moe::WithBranches;
using test::AddTokenId;
using test::kModelDim;
using Glu = moe::BasicGlu<F64>;
using Router = moe::BasicLinearRouter<F64>;

namespace {

using Whole = test::Layer<Glu>;
using Inner = test::Layer<AddTokenId>;

/// Only the gate has no backward.
struct FirstExpert {
  static constexpr bool kPerToken = true;
  void route(const moe::Logits<double>& logits, const moe::Context&, moe::Routing<double>& routing) const {
    routing.resize(logits.rows(), 1);
    std::ranges::fill(routing.experts(), 0);
    std::ranges::fill(routing.weights(), 1);
  }
};

template <class Layer>
constexpr bool kNeverTrained =
    !TrainableLayer<Layer> && moe::InferenceLayer<Layer> && !DifferentiableExpert<LayerExpert<Layer>> &&
    moe::Expert<LayerExpert<Layer>> && !TrainableLayer<test::Layer<LayerExpert<Layer>>> &&
    !TrainableLayer<WithBranches<Layer, Glu>> && !TrainableLayer<WithBranches<Whole, LayerExpert<Layer>>>;

static_assert(kNeverTrained<Inner>);
static_assert(kNeverTrained<test::Layer<Glu, FirstExpert>>);
static_assert(kNeverTrained<WithBranches<Whole, AddTokenId>>);
static_assert(kNeverTrained<WithBranches<Whole, Glu, moe::GatedExpert<AddTokenId, F64>>>);
static_assert(TrainableLayer<WithBranches<Whole, Glu, LayerExpert<Whole>>>);
static_assert(DifferentiableExpert<LayerExpert<Whole>> && moe::SkipsRowGradient<LayerExpert<Whole>>);
static_assert(!moe::InferenceLayer<Glu> && !TrainableLayer<Glu>);

}  // namespace

TEST_CASE("WithBranches: a branch that cannot be trained through serves inference", "[layer]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{.k = 2});
  const auto tokens = test::random_matrix<double>(5, kModelDim);
  const auto out = test::forward(WithBranches(layer, AddTokenId{kModelDim}), tokens);
  Matrix<double> expected = test::forward(layer, tokens);
  for (Index t = 0; t < 5; ++t) expected.row(t).array() += tokens.row(t).array() + static_cast<double>(t);
  CHECK(test::same_bits(out, expected));
}

TEST_CASE("GatedExpert: an expert that cannot be trained through serves inference", "[expert]") {
  moe::BasicLinear<F64> gate(1, kModelDim);  // all zero: the sigmoid is a half
  const moe::GatedExpert<AddTokenId, F64> gated(AddTokenId{kModelDim}, gate);
  const auto rows = test::random_matrix<double>(4, kModelDim);
  const auto out = test::run(gated, rows), whole = test::run(AddTokenId{kModelDim}, rows);
  CHECK(test::same_bits(out, Matrix<double>(0.5 * whole)));
}

TEST_CASE("LayerExpert: a layer that cannot be trained through is an expert at inference", "[layer]") {
  const Inner inner(Router::random(2, kModelDim, 1), TopKGate{.k = 1},
                    moe::ExpertPool<AddTokenId>({AddTokenId{kModelDim}, AddTokenId{kModelDim}}));
  const auto tokens = test::random_matrix<double>(5, kModelDim);
  CHECK(test::same_bits(test::run(LayerExpert(inner), tokens), test::forward(inner, tokens)));
}
