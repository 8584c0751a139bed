// SPDX-License-Identifier: MIT
#include "moe/io/saved_fit.hpp"

#include <limits>
#include <string>
#include <vector>

#include "moe/gaussian/design/regression.hpp"
#include "moe/gaussian/predict/predict.hpp"
#include "moe/io/file/data_file.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;

const char* const kBytes = "y,x,g,one\n1,0.5,b,1\n2,0.1,a,1\n4,7,c,1\n3,NA,a,1\n2,-3,b,1\n5,3,c,1\n6,2,a,1\n";

moe::DataFrame frame_of(const std::string& bytes) {
  const test::TemporaryDirectory directory;
  test::write_bytes(directory / "t.csv", bytes);
  return moe::read_data_frame(directory / "t.csv");
}

/// No fit, but numbers of one: what is saved is its model and some of its report.
moe::GaussianFit<moe::SoftmaxGate> sample_fit() {
  moe::GaussianFit<moe::SoftmaxGate> fit;
  fit.model = moe::GaussianMoe<>::zero(2, 3);
  fit.model.gate_slope.row(0) << 0.1, 1.0 / 3, -2;
  fit.model.gate_bias << 0.7, 0;
  fit.model.slope << 1, 2, 3, 0.1, 0.2, 0.3;
  fit.model.intercept << -1, 1e-3;
  fit.model.variance << 0.25, 1.0 / 7;
  fit.log_likelihood = -12.345678901234567;
  fit.num_rows = 6;
  fit.converged = true;
  return fit;
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("save_fit: loaded, it predicts the same bits for a new file", "[io][gaussian]") {
  const auto fit = sample_fit();
  const auto r = moe::regression(frame_of(kBytes), moe::parse_formula("y ~ x + one + factor(g, ref = b)"));
  const test::TemporaryDirectory directory;
  moe::save_fit(directory / "fit", fit, r.design, {{"gate", "softmax"}});
  const auto saved = moe::load_fit(directory / "fit");
  CHECK(saved.design == r.design);
  CHECK(saved.design.dropped == std::vector<std::string>{"one"});
  CHECK(saved.log_likelihood == fit.log_likelihood);
  CHECK(saved.num_rows == 6);
  CHECK(saved.converged);
  CHECK(saved.metadata == moe::Metadata{{"gate", "softmax"}});
  // Other separators, another order of columns, levels that do not all occur, no response.
  const auto rows = moe::design_rows(saved.design, frame_of("g;x\nc;1,5\nb;2\n"));
  CHECK(rows.data.x == (moe::Matrix<double>(2, 3) << 1.5, 0, 1, 2, 0, 0).finished());
  CHECK(moe::predict_mean(saved.model, rows.data.x) == moe::predict_mean(fit.model, rows.data.x));
  CHECK(moe::predict_variance(saved.model, rows.data.x) == moe::predict_variance(fit.model, rows.data.x));
  CHECK_THAT(message_of([&] { moe::design_rows(saved.design, frame_of("g;x\nz;1,5\n")); }),
             ContainsSubstring("'g' is 'z' in row 1, expected a level of the fit: b, a, c"));
}

TEST_CASE("save_fit: a gate with inputs of its own, and weights", "[io][gaussian]") {
  auto formula = moe::parse_formula("y ~ x | g");
  formula.weights = "one";
  const auto r = moe::regression(frame_of(kBytes), formula);
  auto fit = sample_fit();
  fit.total_weight = 17.5;
  fit.variance_floor = 1e-8;
  const test::TemporaryDirectory directory;
  CHECK_THAT(message_of([&] { moe::save_fit(directory / "f", fit, r.design); }),
             ContainsSubstring("column 'x' of design is read by others than column 0 of the model"));
  fit.model.gate_inputs = r.design.gate_inputs();
  fit.model.expert_inputs = r.design.expert_inputs();
  fit.model.gate_slope.col(0).setZero();
  fit.model.slope.rightCols(2).setZero();
  moe::save_fit(directory / "f", fit, r.design);
  const auto saved = moe::load_fit(directory / "f");
  CHECK(saved.design == r.design);
  CHECK(saved.total_weight == 17.5);
  CHECK(saved.variance_floor == 1e-8);
  CHECK(saved.model.gate_inputs == std::vector<moe::Index>{1, 2});
  CHECK(saved.model.expert_inputs == std::vector<moe::Index>{0});
  CHECK(moe::predict_mean(saved.model, r.data().x) == moe::predict_mean(fit.model, r.data().x));
  moe::save_fit(directory / "f", sample_fit(),
                moe::regression(frame_of(kBytes), moe::parse_formula("y ~ x + g")).design);
  CHECK(moe::load_fit(directory / "f").total_weight == 6);  // num_rows
  CHECK(moe::load_fit(directory / "f").variance_floor == 0);
}

TEST_CASE("save_fit: products of columns are made of the columns of new files", "[io][gaussian]") {
  const std::string bytes = "y,x,z\n1,0.5,3\n2,0.1,1\n4,7,2\n2,-3,5\n5,3,4\n6,2,0\n3,1,1\n2,9,2\n";
  const auto r = moe::regression(frame_of(bytes), moe::parse_formula("y ~ x | x + I(x^2) + x:z"));
  auto fit = sample_fit();
  fit.model.gate_inputs = r.design.gate_inputs();
  fit.model.expert_inputs = r.design.expert_inputs();
  fit.model.slope.rightCols(2).setZero();
  const test::TemporaryDirectory directory;
  moe::save_fit(directory / "f", fit, r.design);
  const auto saved = moe::load_fit(directory / "f");
  CHECK(saved.design == r.design);
  CHECK(saved.design.names() == std::vector<std::string>{"x", "x^2", "x:z"});
  const auto rows = moe::design_rows(saved.design, frame_of("z;x\n2;1,5\n-1;3\n0;NA\n"));
  CHECK(rows.data.x == (moe::Matrix<double>(2, 3) << 1.5, 2.25, 3, 3, 9, -3).finished());
  CHECK(rows.missing_rows == 1);
  CHECK(moe::predict_mean(saved.model, rows.data.x) == moe::predict_mean(fit.model, rows.data.x));
  CHECK_THAT(message_of([&] { moe::design_rows(saved.design, frame_of("x\n1\n")); }),
             ContainsSubstring("there is no column 'z'"));
  CHECK_THAT(message_of([&] { moe::design_rows(saved.design, frame_of("x,z\n1,b\n")); }),
             ContainsSubstring("column 'z' holds no numbers"));
}

TEST_CASE("save_fit: offsets and precisions are columns of new files, too", "[io][gaussian]") {
  auto formula = moe::parse_formula("y ~ x + one + offset(one) + factor(g, ref = b)");
  formula.precision = "w";
  const std::string bytes = "y,x,g,one,w\n1,0.5,b,1,2\n2,0.1,a,3,1\n4,7,c,1,4\n2,-3,b,1,1\n5,3,c,2,1\n6,2,a,1,3\n";
  formula.terms.erase(formula.terms.begin() + 1);  // `one` is the offset alone
  const auto r = moe::regression(frame_of(bytes), formula);
  CHECK(r.data().offset == (Eigen::VectorXd(6) << 1, 3, 1, 1, 2, 1).finished());
  CHECK(r.data().precision == (Eigen::VectorXd(6) << 2, 1, 4, 1, 1, 3).finished());
  const test::TemporaryDirectory directory;
  const auto fit = sample_fit();
  moe::save_fit(directory / "fit", fit, r.design);
  const auto saved = moe::load_fit(directory / "fit");
  CHECK(saved.design == r.design);
  CHECK(saved.design.offsets == std::vector<std::string>{"one"});
  CHECK(saved.design.precision == "w");
  const auto rows = moe::design_rows(saved.design, frame_of("w,g,one,x\n4,c,10,1.5\n1,b,-1,2\n"));
  CHECK(rows.data.offset == Eigen::Vector2d(10, -1));
  CHECK(rows.data.precision == Eigen::Vector2d(4, 1));
  const Eigen::VectorXd plain = moe::predict_mean(fit.model, rows.data.x);
  CHECK((moe::predict_mean(saved.model, rows.data) - plain - rows.data.offset).cwiseAbs().maxCoeff() < 1e-13);
  CHECK_THAT(message_of([&] { moe::design_rows(saved.design, frame_of("g,one,x\nc,10,1.5\n")); }),
             ContainsSubstring("w"));
}

TEST_CASE("save_fit, load_fit: what does not fit is an error", "[io][gaussian][error]") {
  const auto fit = sample_fit();
  const auto r = moe::regression(frame_of(kBytes), moe::parse_formula("y ~ x + g"));
  const test::TemporaryDirectory directory;
  CHECK_THAT(message_of([&] { moe::save_fit(directory / "f", fit, moe::Design{}); }),
             ContainsSubstring("moe::save_fit: design has 0 columns, expected input_dim = 3"));
  CHECK_THAT(message_of([&] {
               moe::save_fit(directory / "f", fit, r.design, {{"moe.fit", ""}});
             }),
             ContainsSubstring("metadata has the key 'moe.fit'"));
  auto design = r.design;
  design.columns[0].source = "\xE9t\xE9";  // Latin-1
  CHECK_THAT(message_of([&] { moe::save_fit(directory / "f", fit, design); }), ContainsSubstring("is not UTF-8"));
  moe::save_parameters(directory / "m", fit.model);
  CHECK_THAT(message_of([&] { moe::load_fit(directory / "m"); }), ContainsSubstring("expected a file of save_fit()"));
  moe::save_parameters(directory / "m", fit.model, {{"moe.fit", "{\"design\": 3}"}});
  CHECK_THAT(message_of([&] { moe::load_fit(directory / "m"); }), ContainsSubstring("is no fit"));
  moe::save_fit(directory / "f", fit, r.design);
  CHECK_THAT(message_of([&] { moe::load_fit(directory / "f", moe::TopKGate{.k = 1}); }),
             ContainsSubstring("number of active experts"));
  CHECK(moe::load_gaussian_moe(directory / "f").slope == fit.model.slope);
}

TEST_CASE("load_fit: a version that is not known, and numbers that no fit has, are errors", "[io][gaussian][error]") {
  auto fit = sample_fit();
  const auto r = moe::regression(frame_of(kBytes), moe::parse_formula("y ~ x + g"));
  const test::TemporaryDirectory directory;
  moe::save_fit(directory / "f", fit, r.design);
  const nlohmann::json right = nlohmann::json::parse(moe::SafetensorsReader(directory / "f").metadata().at("moe.fit"));
  CHECK(right.at("version") == 1);
  const auto error_with = [&](const std::string& pointer, const nlohmann::json& value) {
    nlohmann::json json = right;
    json[nlohmann::json::json_pointer(pointer)] = value;
    moe::save_parameters(directory / "m", fit.model, {{"moe.fit", json.dump()}});
    return message_of([&] { moe::load_fit(directory / "m"); });
  };
  CHECK(error_with("/converged", true) == "no error");
  CHECK_THAT(error_with("/version", 2), ContainsSubstring("is of version 2, expected 1"));
  for (const nlohmann::json& rows : {nlohmann::json(1e300), nlohmann::json(6.5), nlohmann::json(18446744073709551615u)})
    CHECK_THAT(error_with("/num_rows", rows), ContainsSubstring("expected a whole number of rows"));
  CHECK_THAT(error_with("/num_rows", 0), ContainsSubstring("num_rows is 0, expected at least 1"));
  CHECK_THAT(error_with("/num_rows", -3), ContainsSubstring("num_rows is -3"));
  CHECK_THAT(error_with("/log_likelihood", nullptr), ContainsSubstring("is no fit"));
  CHECK_THAT(error_with("/design/columns/1/level", "q"), ContainsSubstring("holds no design"));
  CHECK_THAT(error_with("/design/factors", nlohmann::json::array()), ContainsSubstring("expected a factor"));
  CHECK_THAT(error_with("/design/factors/0/levels/0", "b"), ContainsSubstring("twice"));
  fit.log_likelihood = std::numeric_limits<double>::quiet_NaN();
  CHECK_THAT(message_of([&] { moe::save_fit(directory / "f", fit, r.design); }), ContainsSubstring("log_likelihood"));
  fit = sample_fit();
  fit.num_rows = 0;
  CHECK_THAT(message_of([&] { moe::save_fit(directory / "f", fit, r.design); }), ContainsSubstring("num_rows is 0"));
}
