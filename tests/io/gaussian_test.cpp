// SPDX-License-Identifier: MIT
#include "moe/io/gaussian.hpp"

#include <cmath>

#include "gaussian/samples.hpp"
#include "moe/gaussian/model/gate_weights.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "moe/gaussian/predict/predict.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using test::TemporaryDirectory;

/// Requires the bits of gate weights, moments and densities, on rows that the model has not seen.
template <class Gate>
void require_same_predictions(const moe::GaussianMoe<Gate>& a, const moe::GaussianMoe<Gate>& b) {
  const auto data = test::sample_data(a, 50, 9);
  CHECK(moe::gate_weights(a, data.x) == moe::gate_weights(b, data.x));
  CHECK(moe::log_density(a, data) == moe::log_density(b, data));
  CHECK(moe::predict_mean(a, data.x) == moe::predict_mean(b, data.x));
  CHECK(moe::predict_variance(a, data.x) == moe::predict_variance(b, data.x));
}

/// Saves, loads into a fresh object by both ways, and compares.
template <class Gate>
void require_round_trip(const char* name, const moe::GaussianMoe<Gate>& model, const Gate& gate) {
  const TemporaryDirectory directory;
  CAPTURE(name);
  moe::save_parameters(directory / "m", model, {{"what", name}});
  const auto loaded = moe::load_gaussian_moe(directory / "m", gate, model.last_slope);
  require_same_predictions(model, loaded);
  CHECK(moe::pack(model, moe::layout(model)) == moe::pack(loaded, moe::layout(loaded)));
  auto fresh = moe::GaussianMoe<Gate>::zero(model.num_experts(), model.input_dim(), gate);
  CHECK(moe::load_parameters(directory / "m", fresh).at("what") == name);
  require_same_predictions(model, fresh);
}

/// What loading a saved model says, empty if nothing is wrong.
template <class From, class To>
std::string complaint(const moe::GaussianMoe<From>& model, const To& gate) {
  const TemporaryDirectory directory;
  moe::save_parameters(directory / "m", model);
  std::string whole, parts;
  try {
    moe::load_gaussian_moe(directory / "m", gate);
  } catch (const std::runtime_error& error) {
    whole = error.what();
  }
  auto object = moe::GaussianMoe<To>::zero(model.num_experts(), model.input_dim(), gate);
  const auto before = object;
  try {
    moe::load_parameters(directory / "m", object);
  } catch (const std::runtime_error& error) {
    parts = error.what();
    CHECK(object.slope == before.slope);  // untouched
  }
  CHECK(whole == parts);
  return whole;
}

}  // namespace

TEST_CASE("GaussianMoe: saved and loaded it predicts the same bits, every gate", "[io][gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) { require_round_trip(name, model, model.gate); });
}

TEST_CASE("load_gaussian_moe: another gate than that of the file is an error", "[io][error]") {
  const Eigen::RowVectorXd zeros = Eigen::RowVectorXd::Zero(3);
  const auto top2 = test::sample_model(3, 2, moe::TopKGate{.k = 2});
  CHECK(complaint(top2, moe::TopKGate{.k = 2}).empty());
  CHECK_THAT(complaint(top2, moe::TopKGate{.k = 1}), ContainsSubstring("number of active experts") &&
                                                         ContainsSubstring("is 2, expected") &&
                                                         ContainsSubstring("into, 1"));
  CHECK_THAT(complaint(top2, moe::SoftmaxGate{}), ContainsSubstring("number of active experts"));
  CHECK_THAT(complaint(top2, moe::TopKGate{.k = 2, .weight_bias = zeros}), ContainsSubstring("ranking with the bias"));
  const auto softmax = test::sample_model(3, 2, moe::SoftmaxGate{});
  CHECK(complaint(softmax, moe::TopKGate{.k = 3}).empty());  // one and the same model
  CHECK_THAT(complaint(softmax, test::TemperatureGate{}), ContainsSubstring("temperature, with (1) or without (0)"));
  moe::CosineGate<> cosine, perturbed;
  perturbed.score.weight_shift = 0.5;
  const auto directions = test::sample_model(3, 2, perturbed, 3, moe::LastSlope::Free);
  CHECK(complaint(directions, perturbed).empty());
  CHECK_THAT(complaint(directions, cosine), ContainsSubstring("shift of weights"));
  const auto centres = test::sample_model(3, 2, moe::LaplaceGate<>{}, 3, moe::LastSlope::Free);
  CHECK(complaint(centres, moe::LaplaceGate<>{}).empty());
  CHECK_FALSE(complaint(centres, cosine).empty());
  CHECK_FALSE(complaint(test::sample_model(3, 2, moe::SoftmaxGate{}), moe::LaplaceGate<>{}).empty());
  using Tanh = test::FixedActivationGate<moe::Tanh>;
  const auto tanh = test::sample_model(3, 2, Tanh{});
  CHECK_THAT(complaint(tanh, Tanh{.bias_place = moe::BiasPlace::Inside}), ContainsSubstring("place of the bias"));
  CHECK_THAT(complaint(tanh, test::FixedActivationGate<moe::Sigmoid>{}), ContainsSubstring("activation at -1.25"));
  CHECK_THAT(complaint(tanh, test::TemperatureGate{}), ContainsSubstring("place of the bias"));
}

TEST_CASE("load_gaussian_moe: files that hold no such model are named", "[io][error]") {
  const TemporaryDirectory directory;
  auto model = test::sample_model(3, 2, moe::SoftmaxGate{});
  const auto path = directory / "m";
  CHECK_THROWS_AS(moe::load_gaussian_moe(path), std::runtime_error);  // no file
  model.variance(1) = -1;
  moe::save_parameters(path, model);
  CHECK_THROWS_WITH(moe::load_gaussian_moe(path), ContainsSubstring("the variance of expert 1 is -1"));
  model.variance(1) = 1;
  model.slope(0, 0) = NAN;
  moe::save_parameters(path, model);
  CHECK_THROWS_WITH(moe::load_gaussian_moe(path), ContainsSubstring("not finite"));
  CHECK_THROWS_AS(moe::load_gaussian_moe(path), std::runtime_error);
  moe::save_parameters(path, test::sample_model(2, 2, moe::SoftmaxGate{}));
  CHECK_THROWS_WITH(moe::load_gaussian_moe(path, moe::TopKGate{.k = 3}),
                    ContainsSubstring("holds 2 experts, which the gate cannot have"));
  auto other = moe::GaussianMoe<>::zero(3, 2);
  CHECK_THROWS_WITH(moe::load_parameters(path, other), ContainsSubstring("has shape [2, 2], expected [3, 2]"));
}

TEST_CASE("load_gaussian_moe: agrees with what the layer routes", "[io][gaussian]") {
  const TemporaryDirectory directory;
  const auto gate = test::FreeActivationGate<moe::Tanh>{};
  auto model = test::sample_model(3, 2, gate);
  model.temperature = 0.37;
  moe::save_parameters(directory / "m", model);
  const auto loaded = moe::load_gaussian_moe(directory / "m", gate);
  CHECK(loaded.temperature == 0.37);
  const auto x = test::sample_data(model, 20).x;
  moe::Routing<double> a, b;
  moe::routing_gate(model).route(moe::gate_logits(model, x), moe::Step{}, a);
  moe::routing_gate(loaded).route(moe::gate_logits(loaded, x), moe::Step{}, b);
  for (Index t = 0; t < 20; ++t) CHECK(std::equal(a.weights(t).begin(), a.weights(t).end(), b.weights(t).begin()));
}
