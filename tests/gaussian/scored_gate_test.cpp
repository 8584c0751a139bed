// SPDX-License-Identifier: MIT
#include <cmath>

#include "gaussian/recovery.hpp"
#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/criteria.hpp"
#include "moe/gaussian/inference/identifiability.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"
#include "support/thread_executor.hpp"

namespace {

using moe::Index;
using Free = moe::LearnableTemperature;
using Long = long double;

template <class G>
using Sigmoid = moe::SigmoidGate<G>;
template <class G>
using FreeSigmoid = moe::SigmoidGate<G, Free>;

/// Calls f(name, model) with every gate of cosines and distances, and sigmoids of distances and products.
template <class F>
void for_each_scored(Index k, Index d, F&& f) {
  const auto model = [&](auto gate) {
    auto m = test::sample_model(k, d, gate, 3, moe::LastSlope::Free);
    m.temperature = 0.6;
    return m;
  };
  const auto free = [](auto gate) {
    gate.sparse.temperature = Free::starting_at(0.6);
    return gate;
  };
  moe::CosineGate<> perturbed;
  perturbed.score = {.weight_shift = 0.4, .input_shift = 0.3};
  moe::CosineGate<Free> free_perturbed = free(moe::CosineGate<Free>{});
  free_perturbed.score = perturbed.score;
  f("cosine", model(moe::CosineGate<>{}));
  f("perturbed cosine", model(perturbed));
  f("perturbed cosine, free temperature", model(free_perturbed));
  f("distance", model(moe::LaplaceGate<>{}));
  f("distance, free temperature", model(free(moe::LaplaceGate<Free>{})));
  f("sigmoid of products", model(Sigmoid<moe::ProductScore>{}));
  f("sigmoid of products, free temperature", model(FreeSigmoid<moe::ProductScore>{}));
  f("sigmoid of distances", model(Sigmoid<moe::DistanceScore>{}));
  f("sigmoid of distances, free temperature", model(FreeSigmoid<moe::DistanceScore>{}));
}

/// The score of a row, from the definition.
template <class G>
Long score_of(const moe::GaussianMoe<G>& m, Index j, const Eigen::RowVectorXd& x) {
  const auto reads = [&](Index c) { return moe::detail::reads(m.gate_inputs, c); };
  const moe::GateScore score = m.form().score;
  Long product = 0, weight = 0, input = 0, distance = 0;
  for (Index c = 0; c < x.size(); ++c) {
    if (!reads(c)) continue;
    const Long b = m.gate_slope(j, c), v = x(c);
    product += b * v, weight += b * b, input += v * v, distance += (b - v) * (b - v);
  }
  if (score.kind == moe::GateScoreKind::Product) return product;
  if (score.kind == moe::GateScoreKind::Distance) return -std::sqrt(distance);
  const Long below = (std::sqrt(weight) + score.weight_shift) * (std::sqrt(input) + score.input_shift);
  return below > 0 ? product / below : 0;
}

/// What the weight of an expert is proportional to.
template <class G>
Long mass_of(const moe::GaussianMoe<G>& m, Index j, const Eigen::RowVectorXd& x) {
  const Long s = score_of(m, j, x), bias = m.gate_bias(j), tau = m.temperature;
  if (m.form().score.link == moe::ScoreLink::Identity) return std::exp((s + bias) / tau);
  return std::exp(bias) / (1 + std::exp(-s / tau));
}

template <class G>
Long exact_log_likelihood(const moe::GaussianMoe<G>& m, const moe::RegressionData& data) {
  constexpr Long kTwoPi = 6.28318530717958647692528676655900577L;
  Long sum = 0;
  for (Index i = 0; i < data.num_rows(); ++i) {
    Long weights = 0, density = 0;
    for (Index j = 0; j < m.num_experts(); ++j) {
      const Long w = mass_of(m, j, data.x.row(i));
      const Long variance = Long(m.variance(j)) / Long(data.precision_of(i));
      Long e = Long(data.y(i)) - Long(data.offset_of(i)) - Long(m.intercept(j));
      for (Index c = 0; c < data.x.cols(); ++c) e -= Long(m.slope(j, c)) * Long(data.x(i, c));
      weights += w;
      density += w * std::exp(-e * e / (2 * variance)) / std::sqrt(kTwoPi * variance);
    }
    sum += Long(data.weight(i)) * std::log(density / weights);
  }
  return sum;
}

/// Largest |a - b| over 1 + the largest |b|.
double difference(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols() || !a.allFinite()) return INFINITY;
  return (a - b).cwiseAbs().maxCoeff() / (1 + b.cwiseAbs().maxCoeff());
}

/// Central differences of f(theta) at the model, column by column. Of long double values the error is that of the
/// third derivative, step^2; of scores, which are doubles, 1e-16 * n / step: 1e-5 makes both about 1e-10.
template <class G, class F>
Eigen::MatrixXd differences(const moe::GaussianMoe<G>& model, F&& f) {
  constexpr double kStep = 1e-5;
  const moe::ParameterLayout at = moe::layout(model);
  const Eigen::VectorXd theta = moe::pack(model, at);
  Eigen::MatrixXd out(f(model).size(), theta.size());
  for (Index c = 0; c < theta.size(); ++c) {
    auto up = model, down = model;
    const Eigen::VectorXd unit = Eigen::VectorXd::Unit(theta.size(), c);
    moe::unpack(theta + kStep * unit, at, up);
    moe::unpack(theta - kStep * unit, at, down);
    out.col(c) = (f(up) - f(down)) / (2 * kStep);
  }
  return out;
}

}  // namespace

TEST_CASE("ScoredGate: the likelihood is that of the definition", "[gaussian]") {
  for (const auto& [n, k, d] : {test::Sizes{1, 3, 2}, {7, 2, 1}, {129, 3, 3}, {300, 5, 4}, {40, 1, 2}})
    for_each_scored(k, d, [&, n = n, k = k, d = d](const char* name, auto model) {
      CAPTURE(name, n, k, d);
      auto data = test::sample_data(model, n);
      // rounding of squared distances is 1e-16 / distance, and few of some hundred rows are nearer than 0.01
      const auto close = [&] {
        const double expected = static_cast<double>(exact_log_likelihood(model, data));
        return std::abs(moe::log_likelihood(model, data) - expected) <= 1e-12 * (static_cast<double>(n) + 1);
      };
      CHECK(close());
      data.weights = Eigen::VectorXd::LinSpaced(n, 0.5, 2);
      CHECK(close());
      data.offset = Eigen::VectorXd::LinSpaced(n, -1, 1);
      data.precision = Eigen::VectorXd::LinSpaced(n, 2, 0.5);
      CHECK(close());
      if (d < 2) return;
      model.gate_inputs = std::vector<Index>{1};
      model.expert_inputs = std::vector<Index>{0};
      for (Index c = 0; c < d; ++c) {
        if (c != 1) model.gate_slope.col(c).setZero();
        if (c != 0) model.slope.col(c).setZero();
      }
      CHECK(close());
    });
}

TEST_CASE("ScoredGate: score and information are derivatives", "[gaussian]") {
  for (const auto& [n, k, d] : {test::Sizes{1, 3, 2}, {60, 2, 1}, {130, 3, 3}, {40, 1, 2}})
    for_each_scored(k, d, [&, n = n, k = k, d = d](const char* name, auto model) {
      CAPTURE(name, n, k, d);
      auto data = test::sample_data(model, n);
      data.weights = Eigen::VectorXd::LinSpaced(n, 0.5, 2);
      data.offset = Eigen::VectorXd::LinSpaced(n, -1, 1);
      data.precision = Eigen::VectorXd::LinSpaced(n, 2, 0.5);
      const auto check = [&](const auto& m) {
        const Eigen::MatrixXd slope = differences(m, [&](const auto& at) {
          return Eigen::VectorXd::Constant(1, static_cast<double>(exact_log_likelihood(at, data)));
        });
        CHECK(difference(moe::score(m, data), slope.transpose()) < 1e-8);
        const Eigen::MatrixXd bend = differences(m, [&](const auto& at) { return moe::score(at, data); });
        CHECK(difference(moe::observed_information(m, data), -bend) < 1e-6);
      };
      check(model);
      if (d < 3) return;
      model.gate_inputs = std::vector<Index>{0, 2};
      model.gate_slope.col(1).setZero();
      check(model);
    });
}

TEST_CASE("ScoredGate: a router's logits and the gate have the weights of the likelihood", "[gaussian]") {
  for_each_scored(3, 2, [](const char* name, const auto& model) {
    CAPTURE(name);
    const moe::Matrix<double> x = test::random_matrix<double>(50, 2, 9), pi = moe::gate_weights(model, x);
    moe::Routing<double> routing;
    moe::routing_gate(model).template route<double>(moe::gate_logits(model, x), moe::Step{}, routing);
    const moe::Matrix<double> routed = test::dense(routing, 3);
    CHECK(difference(routed, pi) < 1e-14);
  });
}

TEST_CASE("ScoredGate: degenerate directions, centres and rows are finite", "[gaussian]") {
  for_each_scored(3, 2, [](const char* name, auto model) {
    CAPTURE(name);
    auto data = test::sample_data(model, 20);
    data.x.row(3).setZero();
    data.x.row(4) = model.gate_slope.row(1);
    for (const bool at_zero : {false, true}) {
      if (at_zero) model.gate_slope.row(0).setZero();
      const double expected = static_cast<double>(exact_log_likelihood(model, data));
      CHECK(std::abs(moe::log_likelihood(model, data) - expected) < 1e-6);  // sqrt of rounding at the centre
      CHECK(moe::score(model, data).allFinite());
      CHECK(moe::observed_information(model, data).allFinite());
      CHECK(moe::gate_weights(model, data.x).allFinite());
    }
  });
}

TEST_CASE("ScoredGate: cosines know no lengths, distances no common motion", "[gaussian][property]") {
  for_each_scored(3, 2, [](const char* name, const auto& model) {
    CAPTURE(name);
    const auto data = test::sample_data(model, 200);
    const double here = moe::log_likelihood(model, data);
    auto other = model;
    auto rows = data;
    const moe::GateScore score = model.form().score;
    if (score.ignores_length()) {
      other.gate_slope.row(0) *= 7;
      other.gate_slope.row(2) *= 0.1;
      const Eigen::VectorXd s = moe::score(model, data);
      for (Index j = 0; j < 3; ++j)
        CHECK(std::abs(s.segment(2 * j, 2).dot(model.gate_slope.row(j).transpose())) < 1e-10);
      const auto report = moe::identifiability(model, data);
      CHECK(report.rank == report.num_parameters() - 3);
    } else if (score.kind == moe::GateScoreKind::Distance) {
      const Eigen::RowVectorXd by = test::random_matrix<double>(1, 2, 4);
      other.gate_slope.rowwise() += by;
      rows.x.rowwise() += by;
      for (Index j = 0; j < 3; ++j) other.intercept(j) -= other.slope.row(j).dot(by);
    } else {
      other.gate_slope.row(0) *= 7;
      CHECK(std::abs(moe::log_likelihood(other, rows) - here) > 1e-3);
      return;
    }
    CHECK(std::abs(moe::log_likelihood(other, rows) - here) < 1e-9);
  });
}

TEST_CASE("ScoredGate: as many directions are identified as the scores of rows have rank", "[gaussian][property]") {
  for (const auto& [n, k, d] : {test::Sizes{400, 3, 2}, {400, 2, 3}, {400, 3, 3}, {400, 4, 1}, {400, 2, 4}})
    for_each_scored(k, d, [&, n = n, k = k, d = d](const char* name, const auto& model) {
      CAPTURE(name, k, d);
      if (d == 1 && model.form().score.kind == moe::GateScoreKind::Cosine) return;  // two weights, of either sign of x
      const auto report = moe::identifiability(model, test::sample_data(model, n));
      CHECK(report.rank == moe::num_identified_parameters(model));
    });
}

TEST_CASE("ScoredGate: the same bits for any number of threads", "[gaussian][property]") {
  for_each_scored(3, 2, [](const char* name, const auto& model) {
    CAPTURE(name);
    const auto data = test::sample_data(model, 2999);
    const Eigen::VectorXd alone = moe::score(model, data);
    test::ThreadExecutor executor(3);
    const moe::UseExecutor use(executor);
    CHECK(moe::score(model, data) == alone);
  });
}

namespace {

/// Two separate lines with experts near (-1, 0) and (1, 1), which the gate tells apart.
template <class G>
moe::GaussianMoe<G> two_places(const G& gate, double temperature) {
  auto m = moe::GaussianMoe<G>::zero(2, 2, gate);
  m.gate_slope << -1, 0.2, 1, 1;
  m.gate_bias << 0.3, 0;
  m.temperature = temperature;
  m.slope << 1, 0.5, -1, 0.3;
  m.intercept << 2, -2;
  m.variance << 0.3, 0.2;
  return m;
}

}  // namespace

TEST_CASE("ScoredGate: fits reach what data were simulated from, in any unit", "[gaussian]") {
  moe::LaplaceGate<Free> laplace;
  laplace.sparse.temperature = Free::starting_at(1);
  test::require_recovery(two_places(laplace, 0.4), 40);
  moe::CosineGate<> cosine;
  cosine.sparse.temperature = {0.3};
  test::require_recovery(two_places(cosine, 0.3), 0);
}
