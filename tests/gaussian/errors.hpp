// SPDX-License-Identifier: MIT
// What every function of a model and data must refuse.
#pragma once

#include <stdexcept>
#include <string>

#include "gaussian/samples.hpp"
#include "support/catch.hpp"

namespace test {

/// Requires std::invalid_argument with `function` at the start of its text.
template <class F>
void require_argument_error(const std::string& function, const char* what, F&& call) {
  CAPTURE(function, what);
  std::string message = "(nothing was thrown)";
  try {
    call();
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(message.rfind(function + ":", 0) == 0);
}

/// Calls `call(model, data)` with one thing wrong after the other. The model has a gate with two slopes or more.
template <class Gate, class Call>
void require_argument_errors(const std::string& function, const moe::GaussianMoe<Gate>& model, Call&& call) {
  const moe::RegressionData data = sample_data(model, 9);
  const auto refuse = [&](const char* what, auto&& spoil) {
    auto bad_model = model;
    auto bad_data = data;
    spoil(bad_model, bad_data);
    require_argument_error(function, what, [&] { call(bad_model, bad_data); });
  };
  const double nan = kNan<double>;
  refuse("NaN in x", [&](auto&, auto& bad) { bad.x(4, 1) = nan; });
  refuse("infinity in x", [&](auto&, auto& bad) { bad.x(8, 0) = INFINITY; });
  refuse("NaN in y", [&](auto&, auto& bad) { bad.y(3) = nan; });
  refuse("infinity in y", [&](auto&, auto& bad) { bad.y(0) = -INFINITY; });
  refuse("short y", [](auto&, auto& bad) { bad.y.conservativeResize(8); });
  refuse("wide x", [](auto&, auto& bad) { bad.x.setZero(9, 3); });
  refuse("narrow x", [](auto&, auto& bad) { bad.x.setZero(9, 1); });
  refuse("no rows", [](auto&, auto& bad) { bad = {.x = moe::Matrix<double>(0, 2), .y = Eigen::VectorXd(0)}; });
  refuse("NaN in gate_slope", [&](auto& bad, auto&) { bad.gate_slope(0, 0) = nan; });
  refuse("NaN in gate_bias", [&](auto& bad, auto&) { bad.gate_bias(0) = nan; });
  refuse("infinity in slope", [](auto& bad, auto&) { bad.slope(1, 1) = INFINITY; });
  refuse("NaN in intercept", [&](auto& bad, auto&) { bad.intercept(2) = nan; });
  refuse("NaN in variance", [&](auto& bad, auto&) { bad.variance(0) = nan; });
  refuse("variance 0", [](auto& bad, auto&) { bad.variance(1) = 0; });
  refuse("variance < 0", [](auto& bad, auto&) { bad.variance(2) = -1; });
  refuse("infinite variance", [](auto& bad, auto&) { bad.variance(2) = INFINITY; });
  refuse("temperature 0", [](auto& bad, auto&) { bad.temperature = 0; });
  refuse("short variance", [](auto& bad, auto&) { bad.variance.conservativeResize(2); });
  refuse("short gate_bias", [](auto& bad, auto&) { bad.gate_bias.conservativeResize(2); });
  refuse("gate_slope of another shape", [](auto& bad, auto&) { bad.gate_slope.setZero(3, 1); });
  refuse("no experts", [](auto& bad, auto&) { bad.slope.resize(0, 2); });
}

/// Models whose last gate is not what theta takes it for.
template <class Call>
void require_normal_form_errors(const std::string& function, Call&& call) {
  const auto refuse = [&](const char* what, auto model, auto&& spoil) {
    spoil(model);
    require_argument_error(function, what, [&] { call(model, sample_data(model, 9)); });
  };
  const auto bias = [](auto& bad) { bad.gate_bias(2) = 0.25; };
  const auto slope = [](auto& bad) { bad.gate_slope(2, 1) = 0.25; };
  refuse("softmax, last bias", sample_model(3, 2, moe::SoftmaxGate{}), bias);
  refuse("softmax, last slope", sample_model(3, 2, moe::SoftmaxGate{}), slope);
  refuse("tanh, last bias", sample_model(3, 2, FreeActivationGate<moe::Tanh>{}), bias);
  refuse("tanh, pinned last slope", sample_model(3, 2, FreeActivationGate<moe::Tanh>{}), slope);
  refuse("tanh, free last slope, last bias",
         sample_model(3, 2, FreeActivationGate<moe::Tanh>{}, 1, moe::LastSlope::Free), bias);
}

}  // namespace test
