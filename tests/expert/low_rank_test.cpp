// SPDX-License-Identifier: MIT
// Frozen experts with updates of low rank: against plain loops, central differences and the bits of the base.
#include "moe/expert/low_rank.hpp"

#include "layer/gradient_check.hpp"
#include "support/catch.hpp"
#include "support/low_rank.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::LowRank;
using moe::LowRankOptions;
using moe::Matrix;
using moe::TopKGate;
using Glu = moe::BasicGlu<F64>;
using Linear = moe::BasicLinear<F64>;
using Mlp = moe::BasicMlp<F64>;

namespace {

constexpr Index kDim = 45, kHidden = 37;  // several panels, none a multiple of a register

/// A last stage that writes one register for two, in an expert that names no stages.
class GatedOnly : public moe::StagedExpert<GatedOnly, F64> {
 public:
  using Tape = moe::StagedExpert<GatedOnly, F64>::Tape<GatedOnly>;
  Index input_dim() const { return weight_.inputs(); }
  Index output_dim() const { return weight_.outputs() / 2; }
  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{moe::make_stage<moe::Gated<moe::SwiGlu>>(self.weight_, self.bias_)};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight_...);
  }

 private:
  moe::PanelMatrix<F64> weight_{2 * test::kModelDim, test::kModelDim, moe::PanelOrder::Paired}, bias_;
};

template <class E>
E base_of(Index dim, Index hidden, std::uint64_t seed) {
  if constexpr (std::is_same_v<E, GatedOnly>) {
    GatedOnly expert;
    test::randomise(expert, seed, 0.3);
    return expert;
  } else {
    E expert = E::random(dim, hidden, seed, moe::Bias::Zero);
    test::randomise(expert, seed, 0.3);
    return expert;
  }
}

/// A layer of `experts` adapted experts.
template <class E, class Codec = F64>
auto layer_of(Index dim, Index hidden, const LowRankOptions& options, Index experts = 5, TopKGate gate = {.k = 2}) {
  std::vector<E> bases;
  for (Index e = 0; e < experts; ++e) bases.push_back(base_of<E>(dim, hidden, std::uint64_t(10 * e + 1)));
  auto router = moe::BasicLinearRouter<Codec>::random(experts, bases[0].input_dim(), 7, moe::Bias::Zero);
  return moe::MoeLayer(std::move(router), gate,
                       test::random_adapters(moe::ExpertPool<E>(std::move(bases)), options, 5));
}

}  // namespace

TEMPLATE_TEST_CASE("LowRank: computes W + alpha / rank * B A as plain loops do", "[expert]", moe::Linear, moe::Mlp,
                   moe::Glu, Linear, Glu) {
  using S = typename TestType::Scalar;
  for (const Index rank : {1, 3, 8, 50})
    for (const Index dim : {1, 45}) {
      const auto expert = test::random_low_rank(base_of<TestType>(dim, kHidden, 1), {.rank = rank, .alpha = 5}, 2);
      const auto rows = test::random_matrix<S>(19, expert.input_dim());
      CAPTURE(rank, dim);
      CHECK(test::reference_of(expert, rows.template cast<double>()).worst(test::run(expert, rows)) <= 1);
    }
}

TEMPLATE_TEST_CASE("LowRank: a new one has the bits of its base, alone and in a layer", "[expert]", moe::Mlp, Glu) {
  using S = typename TestType::Scalar;
  const auto base = test::random_expert<TestType>(kDim, kHidden, 3);
  const LowRank adapted(base, {.rank = 4}, 1);
  for (const Index rows : {0, 1, 5, 70}) {
    const auto x = test::random_matrix<S>(rows, kDim);
    CHECK(test::same_bits(test::run(adapted, x), test::run(base, x)));
  }
  const moe::MoeLayer layer(moe::BasicLinearRouter<typename LowRank<TestType>::Codec>::random(2, kDim, 1), TopKGate{},
                            moe::ExpertPool<TestType>({base, base}));
  const auto x = test::random_matrix<S>(33, kDim);
  CHECK(test::same_bits(test::forward(moe::with_adapters(layer, {}, 1), x), test::forward(layer, x)));
}

TEST_CASE("add_low_rank: zeros leave -0 and every other bit as they are", "[kernel]") {
  constexpr Index kWidth = moe::kernel::kPanelWidth<float>;
  alignas(64) float sums[2 * kWidth], panel[3 * kWidth] = {};
  for (Index i = 0; i < 2 * kWidth; ++i) sums[i] = i % 2 ? -0.0f : 1.0f / static_cast<float>(i + 1);
  const std::vector<float> before(sums, sums + 2 * kWidth);
  const float low[] = {1, -2, 3, -1, 2, -3};
  moe::kernel::add_low_rank(low, 3, 2, panel, 3, sums);
  for (Index i = 0; i < 2 * kWidth; ++i) CHECK(test::same_bits(sums[i], before[static_cast<std::size_t>(i)]));
}

TEMPLATE_TEST_CASE("LowRank: gradients of A, B, tokens and router are central differences", "[expert]", Linear, Mlp,
                   Glu, GatedOnly) {
  for (const auto& [rank, tokens] : {std::pair<Index, Index>{1, 5}, {3, 1}, {14, 2}}) {  // 14 is above the sizes
    CAPTURE(rank, tokens);  // no more than 10 of 5 experts' choices, so that some have no rows
    const auto layer = layer_of<TestType>(test::kModelDim, test::kHiddenDim, {.rank = rank, .alpha = 2});
    CHECK(test::layer_gradient_error(layer, moe::Step{}, tokens) < 1e-6);
  }
}

TEST_CASE("LowRank: stages that are no target have no update, and the others learn", "[expert]") {
  for (const char* target : {"up", "down"}) {
    const auto layer = layer_of<Mlp>(11, 9, {.rank = 2, .targets = {target}});
    CHECK(moe::num_parameters(layer.experts()) == 5 * 2 * (11 + 9));
    CHECK(test::layer_gradient_error(layer, moe::Step{}) < 1e-6);
    CHECK(layer.experts()[0].update(target).rank() == 2);
    CHECK(layer.experts()[0].update(*target == 'u' ? "down" : "up").empty());
  }
}

TEST_CASE("LowRank: backward without the gradient of tokens, and Frozen, leave it out and change nothing else",
          "[expert]") {
  const auto layer = layer_of<Mlp>(kDim, kHidden, {.rank = 3, .targets = {"down"}});
  const auto tokens = test::random_matrix<double>(17, kDim), dout = test::random_matrix<double>(17, kDim, 2);
  const test::TrainingPass pass(layer, tokens, dout);
  auto tape = pass.tape;
  auto gradient = moe::zeros_like(layer);
  layer.backward(tokens, tape, dout, gradient);
  CHECK(test::flatten(gradient) == test::flatten(pass.gradient));

  const auto frozen = moe::with_experts(layer, moe::Frozen(layer.experts()));
  const test::TrainingPass through(frozen, tokens, dout);
  CHECK(test::same_bits(through.out, pass.out));
  CHECK(test::same_bits(through.dtokens, pass.dtokens));
}

TEST_CASE("LowRank: the bits are those of a row alone, for any number of threads", "[expert][property]") {
  const auto layer = layer_of<moe::Glu, F32>(kDim, kHidden, {.rank = 5});
  const auto tokens = test::random_matrix<float>(83, kDim), dout = test::random_matrix<float>(83, kDim, 2);
  const test::TrainingPass pass(layer, tokens, dout);
  CHECK(test::same_bits(test::forward(layer, tokens), pass.out));
  for (const Index t : {0, 7, 82}) {
    const Matrix<float> token = tokens.row(t), dtoken = dout.row(t);
    const test::TrainingPass alone(layer, token, dtoken);
    CHECK(test::same_bits(alone.out, pass.out.row(t)));
    CHECK(test::same_bits(alone.dtokens, pass.dtokens.row(t)));
  }
  for (const Index workers : {1, 3, 8}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    const test::TrainingPass again(layer, tokens, dout);
    CHECK(test::same_bits(again.out, pass.out));
    CHECK(test::same_bits(again.dtokens, pass.dtokens));
    CHECK(test::same_parameters(again.gradient, pass.gradient));
  }
}

TEST_CASE("LowRank: more rows than a wave of inference holds change no bit", "[expert]") {
  const auto expert = test::random_low_rank(moe::Mlp::random(5, 3000, 1), {.rank = 2}, 2);
  const auto rows = test::random_matrix<float>(1500, 5);
  const auto all = test::run(expert, rows);
  for (const Index r : {0, 700, 1499})
    CHECK(test::same_bits(test::run(expert, Matrix<float>(rows.row(r))), all.row(r)));
}

TEST_CASE("LowRank: padding of updates stays zero in gradients, and the base has none", "[expert]") {
  const auto layer = layer_of<Glu>(kDim, kHidden, {.rank = 3});
  const auto tokens = test::random_matrix<double>(40, kDim);
  const test::TrainingPass pass(layer, tokens, tokens);
  CHECK(test::num_nonzero(pass.gradient.experts()) == moe::num_parameters(layer.experts()));
  CHECK(moe::num_parameters(layer.experts()) == 5 * 3 * (kDim + 2 * kHidden + kHidden + kDim));
  CHECK(&pass.gradient.experts()[2].base() == &layer.experts()[2].base());
}

TEST_CASE("LowRank: experts are taken and joined with their updates, which may differ in rank", "[expert]") {
  const auto layer = layer_of<Glu>(11, 9, {.rank = 3}), other = layer_of<Glu>(11, 9, {.rank = 1});
  const auto tokens = test::random_matrix<double>(9, 11);
  CHECK(
      test::same_bits(test::forward(moe::take_experts(layer, {0, 1, 2, 3, 4}), tokens), test::forward(layer, tokens)));
  const auto both = moe::concatenate(layer, other);
  REQUIRE(both.num_experts() == 10);
  CHECK(both.experts()[2].updates()[0].rank() == 3);
  CHECK(both.experts()[7].updates()[0].rank() == 1);
  CHECK(test::layer_gradient_error(both, moe::Step{}) < 1e-6);
}

TEST_CASE("Adapters: taken from a layer and put on another of its base they make the same", "[layer]") {
  const auto layer = layer_of<Glu>(11, 9, {.rank = 3});
  auto plain = moe::with_adapters(moe::without_adapters(layer), {.rank = 1, .targets = {"down"}}, 2);
  const auto tokens = test::random_matrix<double>(9, 11);
  CHECK_FALSE(test::same_bits(test::forward(plain, tokens), test::forward(layer, tokens)));
  moe::set_adapters(plain, moe::adapters_of(layer));
  CHECK(test::same_bits(test::forward(plain, tokens), test::forward(layer, tokens)));
  std::vector<std::string> names;
  const auto adapters = moe::adapters_of(layer);
  moe::visit_all([&](const std::string& name, const auto&) { names.push_back(name); }, adapters);
  CHECK(names.size() == 5 * 2 * 3);
  CHECK(names[0] == "experts.0.gate_up.lora_a");
  std::vector<std::string> all;
  moe::visit_all([&](const std::string& name, const auto&) { all.push_back(name); }, layer);
  for (const std::string& name : names) CHECK(std::ranges::find(all, name) != all.end());
}

namespace {

constexpr moe::SharedFactor kFactors[] = {moe::SharedFactor::A, moe::SharedFactor::B};

/// The same layer with a factor of the updates for all experts, all numbers of them random.
template <class E, class Codec = F64>
auto shared_layer_of(Index dim, Index hidden, moe::SharedFactor shared, const LowRankOptions& options) {
  const auto bases = moe::without_adapters(layer_of<E, Codec>(dim, hidden, options));
  auto layer = moe::with_shared_adapters(bases, shared, options, 5);
  test::randomise(layer.experts(), 5, 0.3);
  return layer;
}

}  // namespace

TEMPLATE_TEST_CASE("SharedLowRank: a new one has the bits of its base, and any those of its updates apart", "[expert]",
                   moe::Mlp, moe::Glu) {
  const auto tokens = test::random_matrix<float>(33, kDim), dout = test::random_matrix<float>(33, kDim, 2);
  for (const moe::SharedFactor shared : kFactors) {
    const auto layer = shared_layer_of<TestType, F32>(kDim, kHidden, shared, {.rank = 3, .alpha = 5});
    const auto base = moe::without_adapters(layer);
    const auto fresh = moe::with_shared_adapters(base, shared, {.rank = 3}, 1);
    CHECK(test::same_bits(test::forward(fresh, tokens), test::forward(base, tokens)));
    auto apart = moe::with_adapters(base, {}, 1);
    moe::set_adapters(apart, moe::adapters_of(layer));
    const test::TrainingPass pass(layer, tokens, dout);
    const test::TrainingPass other(apart, tokens, dout);
    CHECK(test::same_bits(pass.out, other.out));
    CHECK(test::same_bits(pass.dtokens, other.dtokens));
    CHECK_FALSE(test::same_bits(pass.out, test::forward(base, tokens)));
    // A gradient of the factor in common is the sum of those of the copies, in another order of one sum.
    const auto& mine = pass.gradient.experts().adapters().stages[1];
    const bool is_a = shared == moe::SharedFactor::A;
    Matrix<double> sum = Matrix<double>::Zero(mine.common.outputs(), mine.common.inputs());
    double most = 0;
    for (Index e = 0; e < 5; ++e) {
      const auto& update = other.gradient.experts()[e].updates()[1];
      sum += (is_a ? update.a : update.b).matrix().template cast<double>();
      most += (is_a ? update.a : update.b).matrix().cwiseAbs().maxCoeff();
      CHECK(test::same_bits(mine.own[std::size_t(e)].matrix(), (is_a ? update.b : update.a).matrix()));
    }
    CHECK(test::largest(sum - mine.common.matrix().template cast<double>()) < 66 * 0x1p-23 * (most + 1));
    auto again = moe::with_shared_adapters(base, shared, {.rank = 7}, 1);
    moe::set_adapters(again, moe::adapters_of(layer));
    CHECK(test::same_bits(test::forward(again, tokens), pass.out));
  }
}

TEMPLATE_TEST_CASE("SharedLowRank: gradients are central differences, whatever is shared", "[expert]", Linear, Glu) {
  for (const moe::SharedFactor shared : kFactors)
    for (const auto& [rank, tokens] : {std::pair<Index, Index>{1, 5}, {3, 2}}) {
      const auto layer =
          shared_layer_of<TestType>(test::kModelDim, test::kHiddenDim, shared, {.rank = rank, .alpha = 2});
      CAPTURE(rank, tokens, static_cast<int>(shared));
      CHECK(test::layer_gradient_error(layer, moe::Step{}, tokens) < 1e-6);
    }
  const auto layer = shared_layer_of<Glu>(11, 9, moe::SharedFactor::A, {.rank = 2, .targets = {"down"}});
  CHECK(moe::num_parameters(layer.experts()) == 2 * (9 + 5 * 11));
  CHECK(test::layer_gradient_error(layer, moe::Step{}) < 1e-6);
}

TEST_CASE("SharedLowRank: the bits are those of a row alone, for any number of threads", "[expert][property]") {
  const auto tokens = test::random_matrix<float>(83, kDim), dout = test::random_matrix<float>(83, kDim, 2);
  for (const moe::SharedFactor shared : kFactors) {
    const auto layer = shared_layer_of<moe::Glu, F32>(kDim, kHidden, shared, {.rank = 5});
    const test::TrainingPass pass(layer, tokens, dout);
    const test::TrainingPass alone(layer, Matrix<float>(tokens.row(7)), Matrix<float>(dout.row(7)));
    CHECK(test::same_bits(alone.out, pass.out.row(7)));
    CHECK(test::same_bits(alone.dtokens, pass.dtokens.row(7)));
    for (const Index workers : {1, 3}) {
      test::ThreadExecutor executor(workers);
      const moe::UseExecutor use(executor);
      const test::TrainingPass again(layer, tokens, dout);
      CHECK(test::same_bits(again.out, pass.out));
      CHECK(test::same_parameters(again.gradient, pass.gradient));
    }
    const auto taken = moe::take_experts(layer, {0, 1, 2, 3, 4});
    CHECK(test::same_bits(test::forward(taken, tokens), pass.out));
  }
}

TEST_CASE("SharedLowRank: what does not fit is refused", "[expert][error]") {
  const auto pool = moe::ExpertPool<Mlp>::random(3, 11, 9, 1);
  CHECK_THROWS_WITH(moe::with_shared_adapters(pool, moe::SharedFactor::Neither, {}, 1),
                    ContainsSubstring("shared is Neither, expected A or B"));
  CHECK_THROWS_WITH(moe::with_shared_adapters(pool, moe::SharedFactor::A, {.rank = 0}, 1),
                    ContainsSubstring("rank is 0"));
  const moe::ExpertPool<Mlp> mixed({Mlp(11, 9), Mlp(11, 8)});
  CHECK_THROWS_WITH(moe::with_shared_adapters(mixed, moe::SharedFactor::A, {}, 1),
                    ContainsSubstring("'up' of expert 1 is [8, 11], expected [9, 11]"));
  auto set = moe::with_shared_adapters(pool, moe::SharedFactor::A, {.rank = 2}, 1);
  auto adapters = moe::adapters_of(set);
  adapters.experts[2][1].a(0, 0) += 1;
  CHECK_THROWS_WITH(moe::set_adapters(set, adapters), ContainsSubstring("'down' of expert 2 has an A or a scale of"));
  const auto ignore = [](const std::string&, const auto&...) {};
  const auto other = moe::with_shared_adapters(pool, moe::SharedFactor::B, {.rank = 2}, 1);
  CHECK_THROWS_WITH(moe::visit(ignore, set, other), ContainsSubstring("differ in the factor that is shared"));
  set.adapters().stages[0].common = moe::PanelMatrix<F64>(10, 2);
  CHECK_THROWS_WITH(set[0].require_parts(), ContainsSubstring("update of B [9, 2] and A [2, 10]"));
  // A gradient that shares the other factor.
  const auto of_a = shared_layer_of<Mlp>(11, 9, moe::SharedFactor::A, {.rank = 2});
  auto of_b = moe::zeros_like(shared_layer_of<Mlp>(11, 9, moe::SharedFactor::B, {.rank = 2}));
  const auto rows_of_layer = test::random_matrix<double>(4, 11, 1);
  test::TrainingPass pass(of_a, rows_of_layer, rows_of_layer);
  auto dtokens = test::nan_matrix<double>(4, 11);
  CHECK_THROWS_WITH(of_a.backward(rows_of_layer, pass.tape, rows_of_layer, of_b, dtokens),
                    ContainsSubstring("the gradient shares the other factor, expected the same"));
  CHECK_THROWS_WITH(of_a.require_backward(4, pass.tape, of_b), ContainsSubstring("shares the other factor"));
  CHECK(std::isnan(dtokens(0, 0)));
  CHECK(test::num_nonzero(of_b) == 0);
  // Updates that have been replaced, or moved away.
  const auto forward = [](const auto& any) {
    const auto tokens = test::random_matrix<double>(3, 11, 1);
    const auto plan = moe::DispatchPlan::from_counts(std::vector<Index>{1, 1, 1});
    moe::RowBuffer<double> rows;
    rows.resize(3, 64);
    moe::Scratch scratch;
    any.forward(tokens, plan, moe::Context(moe::Step{}, scratch), rows);
  };
  auto fewer = moe::with_shared_adapters(pool, moe::SharedFactor::A, {.rank = 2}, 1);
  forward(fewer);
  fewer.adapters().stages[0].own.pop_back();
  CHECK_THROWS_WITH(forward(fewer), ContainsSubstring("adapters() has 'up' of 2 experts, expected 3"));
  CHECK_THROWS_WITH(fewer.row_width(), ContainsSubstring("'up' of 2 experts"));
  auto neither = moe::with_shared_adapters(pool, moe::SharedFactor::B, {.rank = 2}, 1);
  neither.adapters().shared = moe::SharedFactor::Neither;
  CHECK_THROWS_WITH(forward(neither), ContainsSubstring("shared is Neither, expected A or B"));
  CHECK_THROWS_WITH(neither.require_updates("test"), ContainsSubstring("test: adapters().shared"));
  auto moved = moe::with_shared_adapters(pool, moe::SharedFactor::A, {.rank = 2}, 1);
  const auto to = std::move(moved);
  CHECK(moved.size() == 0);
  CHECK(moved.row_width() == 0);
  CHECK_THROWS_WITH(forward(moved), ContainsSubstring("they have been moved from"));
  forward(to);
}

TEST_CASE("LowRank: what does not fit is refused, and nothing is written", "[expert][error]") {
  const Mlp base(11, 9);
  CHECK_THROWS_WITH(LowRank(base, {.rank = 0}, 1), ContainsSubstring("rank is 0"));
  CHECK_THROWS_WITH(LowRank(base, {.alpha = INFINITY}, 1), ContainsSubstring("alpha is inf"));
  CHECK_THROWS_WITH(LowRank(moe::Mlp(11, 9), {.rank = 1, .alpha = 1e39}, 1),
                    ContainsSubstring("alpha / rank is 1e+39"));
  CHECK_NOTHROW(LowRank(base, {.rank = 1, .alpha = 1e39}, 1));
  CHECK_THROWS_WITH(LowRank(base, {.targets = {"gate"}}, 1),
                    ContainsSubstring("no stage 'gate', expected one of 'up'"));

  auto layer = layer_of<Mlp>(11, 9, {.rank = 2});
  const auto tokens = test::random_matrix<double>(4, 11);
  const test::TrainingPass pass(layer, tokens, tokens);
  auto tape = pass.tape;
  auto gradient = moe::zeros_like(layer);
  for (Index e = 0; e < 5; ++e) gradient.experts()[e].updates()[0] = {};
  Matrix<double> dtokens(4, 11);
  CHECK_THROWS_WITH(layer.backward(tokens, tape, tokens, gradient, dtokens),
                    ContainsSubstring("has an update of rank 0, expected the shapes of one of rank 2"));
  auto other = layer;
  for (Index e = 0; e < 5; ++e) other.experts()[e] = LowRank(layer.experts()[e].base(), {.rank = 3}, 1);
  gradient = moe::zeros_like(other);
  CHECK_THROWS_WITH(other.backward(tokens, tape, tokens, gradient, dtokens), ContainsSubstring("low of stage 0"));

  auto adapters = moe::adapters_of(layer);
  adapters.experts[1][0].scale = NAN;
  CHECK_THROWS_WITH(moe::set_adapters(layer, adapters), ContainsSubstring("'up' of expert 1 has scale nan"));
  const auto refuses_visit = [](const auto& first, const auto& second, const char* message) {
    const auto ignore = [](const std::string&, const auto&...) {};
    using Adapters = moe::BasicAdapters<F64>;
    CHECK_THROWS_WITH(Adapters::visit(ignore, first, second), ContainsSubstring(message));
    CHECK_THROWS_WITH(Adapters::state(ignore, first, second), ContainsSubstring(message));
  };
  auto different = adapters;
  different.experts[2][1] = {};
  refuses_visit(adapters, different, "moe::Adapters::visit: update 1 of expert 2 has rank 0, expected 2");
  different.experts.pop_back();
  refuses_visit(adapters, different, "adapters of 4 experts, expected 5");
  different = adapters;
  different.stages.pop_back();
  refuses_visit(different, different, "expert 0 has 2 updates for 1 stages");
  adapters.experts[1][0].b = moe::PanelMatrix<F64>(8, 2);
  CHECK_THROWS_WITH(moe::set_adapters(layer, adapters),
                    ContainsSubstring("'up' of expert 1 has A [2, 11] and B [8, 2]"));
  layer.experts()[1].update("up").b = moe::PanelMatrix<F64>(8, 2);
  CHECK_THROWS_WITH(layer.experts()[1].require_parts(), ContainsSubstring("update of B [8, 2] and A [2, 11]"));
}
