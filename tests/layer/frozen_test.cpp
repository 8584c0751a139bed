// SPDX-License-Identifier: MIT
// Parts that do not learn and are shared: bits of the parts themselves, and no gradient.
#include "moe/expert/frozen.hpp"

#include "layer/fixtures.hpp"
#include "moe/expert/concatenated.hpp"
#include "moe/expert/offset.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/structure.hpp"
#include "moe/router/frozen.hpp"
#include "moe/train/squared_error.hpp"
#include "moe/train/trainer.hpp"
#include "support/catch.hpp"

using moe::F64;
using moe::Frozen;
using moe::Index;
using moe::Matrix;
using moe::TopKGate;
using Glu = moe::BasicGlu<F64>;
using Mlp = moe::BasicMlp<F64>;
using Router = moe::BasicLinearRouter<F64>;

static_assert(moe::PanelExpert<Frozen<Glu>> && moe::DifferentiableExpert<Frozen<Glu>>);
static_assert(moe::DifferentiableExpertSet<Frozen<moe::ExpertPool<Mlp>>>);
static_assert(moe::DifferentiableExpert<Frozen<moe::BasicOffset<F64>>>);
static_assert(moe::DifferentiableRouter<Frozen<Router>>);
static_assert(moe::Expert<Frozen<moe::OneOf<Glu, Mlp>>> && !moe::DifferentiableExpert<Frozen<moe::OneOf<Glu, Mlp>>>);

namespace {

constexpr Index kTokens = 13;

template <class E>
std::vector<Frozen<E>> frozen_experts(const moe::ExpertPool<E>& pool) {
  std::vector<Frozen<E>> experts;
  for (Index e = 0; e < pool.size(); ++e) experts.emplace_back(pool[e]);
  return experts;
}

struct Pass {
  Matrix<double> out, dtokens, inferred;
  std::vector<double> router;  ///< the gradient
};

template <class Layer>
Pass pass(const Layer& layer) {
  const auto tokens = test::random_matrix<double>(kTokens, layer.input_dim(), 1);
  const auto dout = test::random_matrix<double>(kTokens, layer.output_dim(), 2);
  Pass result{test::nan_matrix<double>(kTokens, layer.output_dim()),
              test::nan_matrix<double>(kTokens, layer.input_dim()),
              {},
              {}};
  result.inferred = test::forward(layer, tokens);
  typename Layer::Tape tape;
  Layer gradient = moe::zeros_like(layer), without = gradient;
  layer.forward(tokens, moe::Step{}, result.out, tape);
  layer.backward(tokens, tape, dout, gradient, result.dtokens);
  layer.backward(tokens, tape, dout, without);
  moe::visit(
      [&](const std::string&, const auto& a, const auto& b) {
        for (std::size_t i = 0; i < moe::parameter_span(a).size(); ++i)
          REQUIRE(test::same_bits(moe::parameter_span(a)[i], moe::parameter_span(b)[i]));
      },
      gradient, without);
  moe::visit(
      [&](const std::string& name, const auto& leaf) {
        if (!name.starts_with("router")) return;
        const auto values = moe::parameter_span(leaf);
        result.router.insert(result.router.end(), values.begin(), values.end());
      },
      gradient);
  return result;
}

void check_equal(const Pass& a, const Pass& b) {
  CHECK(test::same_bits(a.inferred, b.inferred));
  CHECK(test::same_bits(a.out, b.out));
  CHECK(test::same_bits(a.dtokens, b.dtokens));
  CHECK(a.router == b.router);
}

/// All numbers of an object.
template <class T>
std::vector<double> numbers(const T& object) {
  std::vector<double> all;
  moe::visit_all(
      [&](const std::string&, const auto& leaf) {
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
        moe::read_parameter(leaf, std::span<double>(values));
        all.insert(all.end(), values.begin(), values.end());
      },
      object);
  return all;
}

template <class E>
void check_experts() {
  const auto layer = test::layer_of<E>(5, TopKGate{.k = 2});
  const Pass expected = pass(layer);
  const moe::MoeLayer of_set(layer.router(), layer.gate(), Frozen(layer.experts()));
  const moe::MoeLayer of_experts(layer.router(), layer.gate(), moe::ExpertPool(frozen_experts(layer.experts())));
  check_equal(pass(of_set), expected);
  check_equal(pass(of_experts), expected);
  for (const auto& count : {moe::num_parameters(of_set), moe::num_parameters(of_experts)})
    CHECK(count == moe::num_parameters(layer.router()));
  CHECK(numbers(of_set) == numbers(layer));
  CHECK(numbers(of_experts) == numbers(layer));
}

}  // namespace

TEST_CASE("Frozen: experts and sets have the bits of what they hold, and no gradient", "[layer]") {
  check_experts<Glu>();
  check_experts<Mlp>();
}

TEST_CASE("Frozen: experts that are not panels", "[layer]") {
  using Any = moe::BasicOffset<F64>;
  std::vector<Any> offsets(3, Any(test::kModelDim));
  for (std::uint64_t e = 0; e < 3; ++e) test::randomise(offsets[e], e);
  const auto router = Router::random(3, test::kModelDim, 7);
  const moe::MoeLayer plain(router, TopKGate{.k = 2}, moe::ExpertPool(offsets));
  check_equal(pass(moe::MoeLayer(router, TopKGate{.k = 2}, Frozen(plain.experts()))), pass(plain));
  check_equal(pass(moe::MoeLayer(router, TopKGate{.k = 2}, moe::ExpertPool(frozen_experts(plain.experts())))),
              pass(plain));
}

TEST_CASE("Frozen: a router", "[layer]") {
  const auto layer = test::layer_of<Glu>(4, TopKGate{.k = 2});
  const moe::MoeLayer frozen(Frozen(layer.router()), layer.gate(), layer.experts());
  const Pass a = pass(frozen), b = pass(layer);
  CHECK(test::same_bits(a.out, b.out));
  CHECK(test::same_bits(a.dtokens, b.dtokens));
  CHECK(moe::num_parameters(frozen) == moe::num_parameters(layer.experts()));
}

TEST_CASE("Frozen: beside experts that learn, and as a branch", "[layer]") {
  const auto layer = test::layer_of<Glu>(3, TopKGate{.k = 2});
  const auto learned = test::layer_of<Mlp>(2, TopKGate{.k = 1}).experts();
  const auto router = Router::random(5, test::kModelDim, 9);
  const moe::MoeLayer mixed(router, TopKGate{.k = 2}, moe::Concatenated(Frozen(layer.experts()), learned));
  const moe::MoeLayer plain(router, TopKGate{.k = 2}, moe::Concatenated(layer.experts(), learned));
  check_equal(pass(mixed), pass(plain));

  const auto shared = test::random_expert<Mlp>(test::kModelDim, 7, 3);
  check_equal(pass(moe::WithBranches(layer, Frozen(shared))), pass(moe::WithBranches(layer, shared)));
}

TEST_CASE("Frozen: training changes nothing in it, whoever shares it", "[layer]") {
  const Frozen experts(test::layer_of<Glu>(4, TopKGate{.k = 2}).experts());
  moe::MoeLayer first(Router::random(4, test::kModelDim, 1), TopKGate{.k = 2}, experts);
  const moe::MoeLayer second(Router::random(4, test::kModelDim, 2), TopKGate{.k = 1}, experts);
  const auto before = numbers(*experts);
  const auto router_before = numbers(first.router());
  CHECK(&*first.experts() == &*second.experts());
  CHECK(&*moe::zeros_like(first).experts() == &*experts);

  const auto tokens = test::random_matrix<double>(kTokens, test::kModelDim, 1);
  moe::Trainer trainer(first, moe::AdamW{.weight_decay = 0.5});
  CHECK(&*trainer.gradient().experts() == &*experts);
  CHECK(&*trainer.state().first.experts() == &*experts);
  for (std::uint64_t update = 0; update < 20; ++update) {
    trainer.accumulate(tokens, moe::Step::train(update), [&](const auto& output, auto& doutput) {
      return moe::squared_error(output, tokens, moe::Step{}, doutput);
    });
    trainer.update(0.01);
  }
  CHECK(&*first.experts() == &*experts);
  CHECK(numbers(*experts) == before);
  CHECK(numbers(first.router()) != router_before);
}

TEST_CASE("Frozen: whoever writes to it gets a copy of its own", "[layer]") {
  const Frozen shared(test::random_expert<Mlp>(5, 3, 1));
  Frozen written = shared;
  const auto before = numbers(shared);
  test::randomise(written, 9);
  CHECK(numbers(shared) == before);
  CHECK(numbers(written) != before);
  const Mlp* const own = &*written;
  test::randomise(written, 10);
  CHECK(&*written == own);

  Frozen source = shared;
  const Frozen moved = std::move(source);
  CHECK(&*source == &*moved);  // NOLINT: moved from, it is as before
}

TEST_CASE("Frozen: experts are taken as from what it holds", "[layer]") {
  const auto layer = test::layer_of<Mlp>(4, TopKGate{.k = 2});
  const moe::MoeLayer frozen(Frozen(layer.router()), layer.gate(), Frozen(layer.experts()));
  const auto tokens = test::random_matrix<double>(kTokens, test::kModelDim, 1);
  CHECK(test::same_bits(test::forward(moe::take_experts(frozen, {3, 0, 1}), tokens),
                        test::forward(moe::take_experts(layer, {3, 0, 1}), tokens)));
  CHECK(test::same_bits(test::forward(moe::concatenate(frozen, frozen), tokens),
                        test::forward(moe::concatenate(layer, layer), tokens)));
}

namespace {

/// Serves inference alone.
struct FixedRouter {
  using Scalar = double;
  Index num_experts() const { return 3; }
  Index model_dim() const { return test::kModelDim; }
  void logits(const moe::ConstMatrixRef<double>&, const moe::Context&, moe::MatrixRef<double> out) const {
    out.setZero();
  }
};

}  // namespace

static_assert(moe::Router<Frozen<FixedRouter>> && !moe::DifferentiableRouter<Frozen<FixedRouter>>);

TEST_CASE("Frozen: a walk over a const object leaves it shared", "[layer]") {
  const auto layer = test::layer_of<Mlp>(3, TopKGate{.k = 2});
  const moe::MoeLayer frozen(layer.router(), layer.gate(), Frozen(layer.experts()));
  const auto copy = frozen;
  numbers(copy);
  CHECK(&*copy.experts() == &*frozen.experts());
}
