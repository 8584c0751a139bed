// SPDX-License-Identifier: MIT
// The gate of a likelihood and the gate that routes tokens are the same.
#include "gaussian/oracle_bounds.hpp"
#include "gaussian/samples.hpp"
#include "moe/gaussian/model/gate_weights.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"
#include "support/thread_executor.hpp"

using moe::Index;

namespace {

/// Weights of routing_gate() on gate_logits(), as a layer would use them, [n, k].
template <class Gate>
moe::Matrix<double> routed_weights(const moe::GaussianMoe<Gate>& model, const moe::Matrix<double>& x) {
  moe::Routing<double> routing;
  test::ThreadExecutor serial(1);  // waking threads takes longer than routing
  const moe::UseExecutor use(serial);
  moe::routing_gate(model).template route<double>(moe::gate_logits(model, x), moe::Step{}, routing);
  return test::dense(routing, model.num_experts());
}

/// Worst difference from the oracle's weights in units of its bound; infinite if an expert is active in one only.
/// A learnable temperature is kept as softplus^-1: 8 ulp more of z / tau for the way there and back.
template <class Gate>
double weight_error(const moe::GaussianMoe<Gate>& model, const moe::Matrix<double>& x,
                    const moe::Matrix<double>& weights) {
  const oracle::Model m = oracle::model(model);
  const moe::RegressionData data{.x = x, .y = Eigen::VectorXd::Zero(x.rows())};
  double worst = 0;
  for (Index i = 0; i < x.rows(); ++i) {
    const oracle::Row row = oracle::evaluate(m, data, i);
    oracle::Vec bound = oracle::bound(m, row).weight;
    for (Index j = 0; j < m.k; ++j) {
      if ((weights(i, j) != 0) != row.active[static_cast<std::size_t>(j)]) return INFINITY;
      bound(j) += 2 * 16 * oracle::kU * row.score.cwiseAbs().maxCoeff() * row.weight(j);
    }
    worst = std::max(worst, oracle::worst(weights.row(i), row.weight, bound));
  }
  return worst;
}

}  // namespace

TEST_CASE("routing_gate: routes with the weights of the likelihood, for every gate", "[gaussian]") {
  for (const auto& [n, k, d] : test::kSizes)
    test::for_each_model(k, d, [&, n = n, k = k, d = d](const char* name, auto model) {
      const auto x = test::random_matrix<double>(n, d, 3);
      CAPTURE(n, k, d, name);
      CHECK(weight_error(model, x, moe::gate_weights(model, x)) <= 1);
      CHECK(weight_error(model, x, routed_weights(model, x)) <= 1);
    });
}

TEST_CASE("routing_gate: ties go to the same experts as in the likelihood", "[gaussian]") {
  const moe::Matrix<double> x = test::tied_inputs(200, 2);
  test::for_each_top_k(5, 2, [&](const char* name, const auto& distinct) {
    const auto model = test::with_ties(distinct);
    CAPTURE(name);
    CHECK(weight_error(model, x, moe::gate_weights(model, x)) <= 1);
    CHECK(weight_error(model, x, routed_weights(model, x)) <= 1);
  });
}

TEST_CASE("gate_weights: inner products rank without the bias, logits with it", "[gaussian]") {
  // u = (1, 0) at x = 1, beta_0 = (0, 5): the bias lifts the second expert, but only where it takes part
  auto parameters = moe::GaussianMoe<>::zero(2, 1);
  parameters.gate_slope(0, 0) = 1;
  parameters.gate_bias(1) = 5;
  const moe::Matrix<double> x = moe::Matrix<double>::Ones(1, 1);
  const moe::GaussianMoe<moe::TopKGate> by_logit(parameters, {.k = 1});
  const moe::GaussianMoe<moe::TopKGate> by_product(parameters, {.k = 1, .weight_bias = Eigen::RowVectorXd::Zero(2)});
  CHECK(moe::gate_weights(by_logit, x)(0, 1) == 1);
  CHECK(moe::gate_weights(by_product, x)(0, 0) == 1);
  CHECK(routed_weights(by_logit, x)(0, 1) == 1);
  CHECK(routed_weights(by_product, x)(0, 0) == 1);
}
