// SPDX-License-Identifier: MIT
#include "moe/policy/mixture_policy.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "moe/expert/mlp.hpp"
#include "moe/expert/pool.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "policy/mixtures.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/gradient.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using moe::DiagonalMixture;
using moe::Index;
using moe::Matrix;
using moe::MixturePolicy;
using moe::Step;
using Mlp = moe::BasicMlp<moe::F64>;
using Router = moe::BasicLinearRouter<moe::F64>;

namespace {

constexpr Index kStates = 7, kStateDim = 5, kActionDim = 2, kComponents = 3;

template <class Gate = moe::SoftmaxGate>
auto policy_of(Gate gate = {}) {
  std::vector<Mlp> experts;
  for (Index e = 0; e < kComponents; ++e) {
    experts.push_back(Mlp(moe::Widths{.input = kStateDim, .hidden = 6, .output = 2 * kActionDim}));
    test::randomise(experts.back(), std::uint64_t(10 * e + 1));
  }
  auto router = Router::random(kComponents, kStateDim, 7, moe::Bias::Zero);
  test::randomise(router, 8);
  return MixturePolicy(
      moe::MoeLayer(std::move(router), std::move(gate), moe::SeparateExperts(moe::ExpertPool<Mlp>(experts))),
      {.action_dim = kActionDim, .range = test::kTanh});
}
using Policy = decltype(policy_of());

/// A layer that says what it is told, and keeps the gradient of that.
template <class S>
struct FixedRows {
  using Scalar = S;
  static constexpr bool kPerToken = true;
  struct Tape {
    Matrix<S> dout;
  };

  Matrix<S> rows;
  Matrix<S> parameter = Matrix<S>::Zero(1, 1);

  Index input_dim() const { return 1; }
  Index output_dim() const { return rows.cols(); }
  void forward(const moe::MatrixView<S>&, const Step&, moe::MatrixRef<S> out, moe::BasicWorkspace<S>&) const {
    out = rows;
  }
  void forward(const moe::MatrixView<S>&, const Step&, moe::MatrixRef<S> out, Tape&) const { out = rows; }
  void backward(const moe::MatrixView<S>&, Tape& tape, const moe::MatrixView<S>& dout, FixedRows&) const {
    tape.dout = dout;
  }
  void backward(const moe::MatrixView<S>& tokens, Tape& tape, const moe::MatrixView<S>& dout, FixedRows& gradient,
                moe::MatrixRef<S>) const {
    backward(tokens, tape, dout, gradient);
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("parameter", self.parameter...);
  }
};

const Matrix<double> kSomeStates = test::random_matrix<double>(kStates, kStateDim, 2);

/// Of the log density at some points, and of the weights by themselves.
template <class P>
double worst_gradient_error(P policy) {
  auto states = kSomeStates;
  const auto latent = test::random_matrix<double>(kStates, kActionDim, 3);
  const auto c = test::random_matrix<double>(kStates, 1, 4);
  const auto of_weights = test::random_matrix<double>(kStates, kComponents, 5);
  typename P::Tape tape;
  const Step step = Step::train(1, 2);
  const auto part = [](const DiagonalMixture<double>& mixture, Index t, Index k) {
    return std::isfinite(mixture.log_weight(t, k)) ? mixture.log_weight(t, k) : 0;
  };
  const auto loss = [&] {
    policy.forward(states, step, tape);
    Matrix<double> density(kStates, 1);
    tape.mixture.log_density(latent, density);
    double sum = density.cwiseProduct(c).sum();
    for (Index t = 0; t < kStates; ++t)
      for (Index k = 0; k < kComponents; ++k) sum += of_weights(t, k) * part(tape.mixture, t, k);
    return sum;
  };
  loss();
  DiagonalMixture<double> dmixture;
  dmixture.clear_like(tape.mixture);
  tape.mixture.log_density_backward(latent, c, dmixture);
  for (Index t = 0; t < kStates; ++t)
    for (Index k = 0; k < kComponents; ++k)
      if (std::isfinite(tape.mixture.log_weight(t, k))) dmixture.log_weight(t, k) += of_weights(t, k);
  P gradient = moe::zeros_like(policy);
  auto dstates = test::nan_matrix<double>(kStates, kStateDim);
  policy.backward(states, tape, dmixture, gradient, dstates);
  std::string name;
  const double of_states = test::gradient_error(loss, states, dstates);
  const double of_parameters = test::parameter_gradient_error(loss, policy, gradient, &name);
  UNSCOPED_INFO("states " << of_states << ", parameters " << of_parameters << ", worst " << name);
  return std::max(of_states, of_parameters);
}

}  // namespace

TEST_CASE("MixturePolicy: the gate weighs components, each of which an expert gives", "[policy]") {
  const Policy policy = policy_of();
  Policy::Workspace ws;
  const auto& mixture = policy.mixture(kSomeStates, Step{}, ws);
  REQUIRE(mixture.num_components() == kComponents);
  REQUIRE(mixture.dim() == kActionDim);
  CHECK(mixture.range == test::kTanh);
  Matrix<double> logits(kStates, kComponents);
  moe::Scratch scratch;
  policy.layer().router().logits(kSomeStates, {Step{}, scratch}, logits);
  for (Index t = 0; t < kStates; ++t) {
    const double sum = logits.row(t).array().exp().sum();
    for (Index k = 0; k < kComponents; ++k) {
      CHECK_THAT(mixture.log_weight(t, k), WithinAbs(logits(t, k) - std::log(sum), 1e-13));
      const auto out = test::run(policy.layer().experts()[k], Matrix<double>(kSomeStates.row(t)));
      for (Index d = 0; d < kActionDim; ++d) {
        CHECK_THAT(mixture.mean(t, k * kActionDim + d), WithinAbs(out(0, d), 1e-13));
        CHECK_THAT(mixture.log_std(t, k * kActionDim + d), WithinAbs(std::min(2.0, out(0, kActionDim + d)), 1e-13));
      }
    }
  }
}

TEST_CASE("MixturePolicy: gradients of experts, gate, router and states are central differences",
          "[policy][property]") {
  CHECK(worst_gradient_error(policy_of()) < 1e-7);
  CHECK(worst_gradient_error(policy_of(moe::TopKGate{.k = 2})) < 1e-7);
}

TEST_CASE("MixturePolicy: acts by draws or by the likeliest component, in the range", "[policy]") {
  const Policy policy = policy_of();
  Policy::Workspace ws;
  Matrix<double> drawn(kStates, kActionDim), likely(kStates, kActionDim), latent(kStates, kActionDim);
  policy.act(kSomeStates, Step::train(1, 2), moe::ActionChoice::Sample, drawn, ws);
  ws.mixture.sample(Step::train(1, 2), latent);
  for (Index t = 0; t < kStates; ++t)
    for (Index d = 0; d < kActionDim; ++d) CHECK(drawn(t, d) == test::kTanh.action(latent(t, d)));
  CHECK(test::largest(drawn) <= test::kTanh.scale);
  policy.act(kSomeStates, Step{}, moe::ActionChoice::MostProbable, likely, ws);
  for (Index t = 0; t < kStates; ++t) {
    Index k = 0;
    ws.mixture.log_weight.row(t).maxCoeff(&k);
    CHECK(likely(t, 0) == test::kTanh.action(ws.mixture.mean(t, k * kActionDim)));
  }
}

TEST_CASE("MixturePolicy: hopeless logits and deviations beyond the limits stay numbers without gradient", "[policy]") {
  Policy policy = policy_of();
  moe::visit(
      [](const std::string& name, auto& leaf) {
        if (name.starts_with("router"))
          for (double& x : moe::parameter_span(leaf)) x *= 1000;
        if (name == "experts.0.down.bias")
          for (double& x : moe::parameter_span(leaf)) x = x == 0 ? 0 : 50;  // padding stays zero
      },
      policy);
  Policy::Tape tape;
  policy.forward(kSomeStates, Step{}, tape);
  const auto& mixture = tape.mixture;
  CHECK(std::isinf(mixture.log_weight.minCoeff()));
  CHECK(test::largest(Matrix<double>(mixture.log_weight.array().exp())) <= 1);
  CHECK(mixture.log_std.maxCoeff() == 2);
  DiagonalMixture<double> dmixture;
  dmixture.clear_like(mixture);
  for (auto* part : {&dmixture.log_weight, &dmixture.mean, &dmixture.log_std}) part->setOnes();
  Policy gradient = moe::zeros_like(policy);
  Matrix<double> dstates(kStates, kStateDim);
  policy.backward(kSomeStates, tape, dmixture, gradient, dstates);
  CHECK(test::largest(dstates) < INFINITY);
  for (const double x : test::flatten(gradient)) REQUIRE(std::isfinite(x));
}

TEMPLATE_TEST_CASE("MixturePolicy: tiny weights have finite gradients, and weights that are no numbers show",
                   "[policy]", float, double) {
  using S = TestType;
  const S tiny = std::numeric_limits<S>::denorm_min(), nan = std::numeric_limits<S>::quiet_NaN(),
          infinite = std::numeric_limits<S>::infinity();
  FixedRows<S> layer{Matrix<S>::Zero(7, 6)};            // two weights, then a mean and a log deviation each
  const S weights[7][2] = {{tiny, 3 * tiny},            // none that counts
                           {S(0x1p-101), S(0x1p-101)},  // nor here
                           {S(0x1p-99), S(0x1p-100)},   // only the first
                           {S(0x1p-99), S(0x1p-99)},    // both
                           {nan, nan},
                           {S(0.5), nan},
                           {S(1), infinite}};
  for (Index t = 0; t < 7; ++t)
    for (Index k = 0; k < 2; ++k) layer.rows(t, k) = weights[t][k];
  MixturePolicy<FixedRows<S>> policy(layer, {});
  const Matrix<S> states = Matrix<S>::Zero(7, 1);
  typename MixturePolicy<FixedRows<S>>::Tape tape;
  policy.forward(states, Step{}, tape);
  const auto& log_weight = tape.mixture.log_weight;
  // The difference of two logarithms of about 69, whose numbers are 2^-46 apart in double, then rounded to S.
  const double tolerance = 0x1p-45 + static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Index t : {0, 1, 3})
    for (Index k = 0; k < 2; ++k)
      CHECK_THAT(static_cast<double>(log_weight(t, k)), WithinAbs(-std::log(2.0), tolerance));
  CHECK(log_weight(2, 0) == 0);
  CHECK(log_weight(2, 1) == -infinite);
  for (Index t = 4; t < 7; ++t) CHECK((std::isnan(log_weight(t, 0)) && std::isnan(log_weight(t, 1))));

  DiagonalMixture<S> dmixture;
  dmixture.clear_like(tape.mixture);
  dmixture.log_weight.col(0).setConstant(3);
  auto gradient = policy;
  policy.backward(states, tape, dmixture, gradient);
  const Matrix<S>& dout = tape.layer.dout;
  CHECK(test::all_zero(dout.topRows(3)));  // the weight of a component that is alone does not matter
  CHECK(dout(3, 0) == S(1.5 * 0x1p99));    // 3 / w - 3 / 2w
  CHECK(dout(3, 1) == S(-1.5 * 0x1p99));
  for (Index t = 4; t < 7; ++t) CHECK((std::isnan(dout(t, 0)) && std::isnan(dout(t, 1))));

  layer.rows(1, 1) = S(-0.25);
  const MixturePolicy<FixedRows<S>> negative(layer, {});
  CHECK_THROWS_WITH(negative.forward(states, Step{}, tape),
                    ContainsSubstring("moe::MixturePolicy: weight 1 of row 1 is -0.25, expected none below 0"));
}

TEST_CASE("MixturePolicy: padding has equal weights, takes no part in backward, and no rows give none", "[policy]") {
  const std::vector<std::uint8_t> valid = {1, 1, 0, 1, 1, 1, 1};
  Step step;
  step.valid = valid;
  const Policy policy = policy_of();
  Policy::Tape tape;
  policy.forward(kSomeStates, step, tape);
  CHECK_THAT(tape.mixture.log_weight(2, 1), WithinAbs(-std::log(3.0), 1e-15));
  DiagonalMixture<double> dmixture;
  dmixture.clear_like(tape.mixture);
  dmixture.mean.row(2).setOnes();
  dmixture.log_weight.row(2).setOnes();
  Policy gradient = moe::zeros_like(policy);
  policy.backward(kSomeStates, tape, dmixture, gradient);
  for (const double x : test::flatten(gradient)) REQUIRE(x == 0);
  Policy::Workspace ws;
  CHECK(policy.mixture(Matrix<double>(0, kStateDim), Step{}, ws).num_rows() == 0);
}

TEST_CASE("MixturePolicy: any threads and company give the same bits, and experts are taken", "[policy][property]") {
  const Policy policy = policy_of();
  const auto states = test::random_matrix<double>(200, kStateDim, 2);
  const auto run = [&] {
    Policy::Workspace ws;
    Matrix<double> actions(200, kActionDim);
    policy.act(states, Step::train(1, 2), moe::ActionChoice::Sample, actions, ws);
    return actions;
  };
  const auto one = run();
  {
    test::ThreadExecutor threads(4);
    const moe::UseExecutor use(threads);
    CHECK(test::same_bits(one, run()));
  }
  const std::vector<std::int64_t> id = {9};
  Step step = Step::train(1, 2);
  step.token_id = id;
  Policy::Workspace ws, other;
  Matrix<double> action(1, kActionDim);
  policy.act(states.row(9), step, moe::ActionChoice::Sample, action, ws);
  CHECK(test::same_bits(action, one.row(9)));

  const auto turned = moe::take_experts(policy, {2, 0});
  policy.mixture(states, Step{}, ws);
  turned.mixture(states, Step{}, other);
  CHECK(test::same_bits(other.mixture.mean.leftCols(2), ws.mixture.mean.rightCols(2)));
  CHECK(test::same_bits(other.mixture.log_std.rightCols(2), ws.mixture.log_std.leftCols(2)));
  CHECK_THAT(other.mixture.log_weight(3, 0) - other.mixture.log_weight(3, 1),
             WithinAbs(ws.mixture.log_weight(3, 2) - ws.mixture.log_weight(3, 0), 1e-12));
}

TEST_CASE("MixturePolicy: what does not fit is named", "[policy][error]") {
  const Policy policy = policy_of();
  CHECK_THROWS_WITH(Policy(policy.layer(), {.action_dim = 3}),
                    ContainsSubstring("moe::MixturePolicy: the layer gives 15 columns, expected num_experts (1 + 2 "
                                      "action_dim) = 3 * 7"));
  CHECK_THROWS_WITH(Policy(policy.layer(), {.action_dim = 1}),  // 15 columns are five times 3, too
                    ContainsSubstring("moe::MixturePolicy: the layer gives 15 columns, expected num_experts (1 + 2 "
                                      "action_dim) = 3 * 3"));
  const moe::MoeLayer sum(policy.layer().router(), moe::SoftmaxGate{}, policy.layer().experts());
  using OfSum = MixturePolicy<std::remove_const_t<decltype(sum)>>;  // the sum of three experts' 4 outputs
  CHECK_THROWS_WITH(OfSum(sum, {.action_dim = 2}),
                    ContainsSubstring("moe::MixturePolicy: the layer gives 4 columns, expected num_experts (1 + 2 "
                                      "action_dim) = 3 * 5"));
  const FixedRows<double> anything{Matrix<double>::Zero(1, 6)};  // without num_experts()
  CHECK(MixturePolicy<FixedRows<double>>(anything, {}).num_components() == 2);
  CHECK_THROWS_WITH(MixturePolicy<FixedRows<double>>(anything, {.action_dim = 2}),
                    ContainsSubstring("moe::MixturePolicy: the layer gives 6 columns, expected a multiple of 1 + 2 "
                                      "action_dim = 5"));
  CHECK_THROWS_WITH(Policy(policy.layer(), {.action_dim = 0}),
                    ContainsSubstring("moe::MixturePolicy: action_dim is 0, expected at least 1"));
  CHECK_THROWS_WITH(Policy(policy.layer(), {.action_dim = 2, .min_log_std = 3}),
                    ContainsSubstring("moe::MixturePolicy: min_log_std is 3 and max_log_std is 2"));
  Policy::Workspace ws;
  Matrix<double> actions(kStates, 3);
  CHECK_THROWS_WITH(policy.act(kSomeStates, Step{}, moe::ActionChoice::Sample, actions, ws),
                    ContainsSubstring("moe::MixturePolicy::act: actions is [7, 3], expected [7, 2]"));
  Policy::Tape tape;
  policy.forward(kSomeStates, Step{}, tape);
  Policy gradient = moe::zeros_like(policy);
  CHECK_THROWS_WITH(policy.backward(kSomeStates, tape, test::random_mixture<double>(kStates, 2, 2), gradient),
                    ContainsSubstring("moe::MixturePolicy::backward: dmixture.log_weight is [7, 2], expected [7, 3]"));
}
