// SPDX-License-Identifier: MIT
#include "moe/compress/calibration.hpp"

#include "layer/fixtures.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Calibration;
using moe::Index;
using moe::Matrix;
using moe::SecondMoment;
using moe::WeightOn;

namespace {

constexpr Index kExperts = 5;
using ReluMlp = moe::BasicMlp<moe::F32, moe::Relu>;

template <class E>
auto layer_of(std::vector<E> experts, WeightOn weight_on = WeightOn::Output) {
  for (std::size_t e = 0; e < experts.size(); ++e) test::randomise(experts[e], 10 * e + 1, 0.3);
  const Index dim = experts[0].input_dim();
  return moe::MoeLayer(moe::LinearRouter::random(kExperts, dim, 3), moe::TopKGate{.k = 2},
                       moe::ExpertPool<E>(std::move(experts)), weight_on);
}
auto linear_layer() { return layer_of(std::vector<moe::Linear>(kExperts, moe::Linear(7, 19))); }
auto mlp_layer(WeightOn on = WeightOn::Output) {
  return layer_of(std::vector<ReluMlp>(kExperts, ReluMlp({.input = 19, .hidden = 37, .output = 7})), on);
}
auto glu_layer() {
  return layer_of(std::vector<moe::Glu>(kExperts, moe::Glu({.input = 19, .hidden = 21, .output = 7}, moe::Bias::Zero)));
}

using Row = Eigen::RowVectorXd;

/// Hidden units of one row in double.
Row hidden_of(const ReluMlp& expert, const Row& x) {
  const Row up =
      x * expert.up().matrix().cast<double>().transpose() + expert.up_bias().matrix().cast<double>().transpose();
  return up.cwiseMax(0);
}
Row hidden_of(const moe::Glu& expert, const Row& x) {
  const Row both = x * expert.gate_up().matrix().cast<double>().transpose() +
                   expert.gate_up_bias().matrix().cast<double>().transpose();
  const Index h = expert.hidden_dim();
  Row hidden(h);
  for (Index i = 0; i < h; ++i) hidden[i] = both[i] / (1 + std::exp(-both[i])) * both[h + i];
  return hidden;
}
Row hidden_of(const moe::Linear&, const Row&) { return {}; }

void check_moment(const SecondMoment& moment, const std::vector<Row>& rows, Index dim) {
  REQUIRE(moment.dim() == dim);
  CHECK(moment.rows() == std::ssize(rows));
  Eigen::MatrixXd expected = Eigen::MatrixXd::Zero(dim, dim);
  for (const Row& row : rows) expected += row.transpose() * row;
  // A sum in float for each 256 rows, of terms that are hidden units in float: some 40 roundings of 2^-24 each.
  const double tolerance = 40 * 0x1p-24 * std::max(1e-30, expected.size() ? expected.diagonal().maxCoeff() : 0.0);
  for (Index i = 0; i < dim; ++i)
    for (Index j = 0; j < dim; ++j)
      REQUIRE(std::abs(static_cast<double>(moment(i, j)) - expected(i, j)) <= 3 * tolerance);
  const std::vector<float> norms = moment.column_norms();
  REQUIRE(std::ssize(norms) == dim);
  for (Index i = 0; i < dim; ++i)
    REQUIRE(std::abs(std::pow(static_cast<double>(norms[std::size_t(i)]), 2) - expected(i, i)) <= 4 * tolerance);
}

template <class Layer>
void check_against_loops(const Layer& layer, const Matrix<float>& tokens) {
  typename Layer::Tape tape;
  Matrix<float> out(tokens.rows(), layer.output_dim());
  layer.forward(tokens, moe::Step{}, out, tape);
  const Calibration calibration = moe::calibrate(layer, tokens, tape);
  REQUIRE(calibration.num_experts() == kExperts);
  for (Index e = 0; e < kExperts; ++e) {
    CAPTURE(e);
    std::vector<Row> inputs, hidden;
    for (Index t = 0; t < tokens.rows(); ++t)
      for (std::size_t s = 0; s < tape.routing.experts(t).size(); ++s) {
        if (tape.routing.experts(t)[s] != e || tape.routing.dropped(t)[s]) continue;
        const float weight = layer.mixture().weight_on() == WeightOn::Input ? tape.routing.weights(t)[s] : 1;
        inputs.push_back((weight * tokens.row(t)).template cast<double>());
        hidden.push_back(hidden_of(layer.experts()[e], inputs.back()));
      }
    check_moment(calibration[e].inputs, inputs, layer.input_dim());
    if (!hidden.empty() && hidden[0].size() > 0) check_moment(calibration[e].hidden, hidden, hidden[0].size());
    // By itself, with rows of its own, an expert has seen the same.
    Matrix<float> rows(std::ssize(inputs), layer.input_dim());
    for (Index r = 0; r < rows.rows(); ++r) rows.row(r) = inputs[static_cast<std::size_t>(r)].template cast<float>();
    const moe::ExpertStatistics alone = moe::calibrate(layer.experts()[e], rows);
    for (Index i = 0; i < alone.hidden.dim(); ++i)
      REQUIRE(test::same_bits(alone.hidden(i, 0), calibration[e].hidden(i, 0)));
  }
}

bool same(const SecondMoment& a, const SecondMoment& b) {
  if (a.dim() != b.dim() || a.rows() != b.rows()) return false;
  for (Index i = 0; i < a.dim(); ++i)
    for (Index j = 0; j <= i; ++j)
      if (!test::same_bits(a(i, j), b(i, j))) return false;
  return true;
}
bool same(const Calibration& a, const Calibration& b) {
  if (a.num_experts() != b.num_experts()) return false;
  for (Index e = 0; e < a.num_experts(); ++e)
    if (!same(a[e].inputs, b[e].inputs) || !same(a[e].hidden, b[e].hidden)) return false;
  return true;
}

}  // namespace

TEST_CASE("calibrate: moments of what the stages of every expert read", "[compress]") {
  for (const Index tokens : {0, 1, 3, 700}) {
    const auto x = test::random_matrix<float>(tokens, 19, 5);
    check_against_loops(linear_layer(), x);
    check_against_loops(mlp_layer(), x);
    check_against_loops(mlp_layer(WeightOn::Input), x);
    check_against_loops(glu_layer(), x);
  }
}

TEST_CASE("calibrate: codes are seen as the weights that they are, branches stay beside, padding does not count",
          "[compress]") {
  const auto x = test::random_matrix<float>(60, 19, 6);
  const auto layer = moe::quantise(glu_layer(), moe::WeightFormat::int4());
  CHECK(same(moe::calibrate(layer, x), moe::calibrate(moe::dequantise(layer), x)));
  const moe::WithBranches beside(layer, moe::Mlp({.input = 19, .hidden = 4, .output = 7}));
  CHECK(same(moe::calibrate(beside, x), moe::calibrate(layer, x)));
  std::vector<std::uint8_t> valid(60, 1);
  std::fill(valid.begin() + 40, valid.end(), std::uint8_t{0});
  const moe::Step step{.valid = valid};
  moe::Matrix<float> out(60, 7);
  decltype(beside)::Tape tape;
  beside.forward(x, step, out, tape);
  CHECK(same(moe::calibrate(beside, x, tape), moe::calibrate(layer, x.topRows(40))));
}

TEST_CASE("calibrate: halves add up, any number of threads gives the same bits", "[compress]") {
  const auto layer = mlp_layer();
  const auto x = test::random_matrix<float>(600, 19, 7);
  const Calibration whole = moe::calibrate(layer, x);
  Calibration halves = moe::calibrate(layer, x.topRows(300));
  halves += moe::calibrate(layer, x.bottomRows(300));
  for (Index e = 0; e < kExperts; ++e) {
    CHECK(halves[e].inputs.rows() == whole[e].inputs.rows());
    for (Index i = 0; i < 37; ++i)
      for (Index j = 0; j <= i; ++j)
        REQUIRE(std::abs(halves[e].hidden(i, j) - whole[e].hidden(i, j)) <=
                1e-5f * std::sqrt(whole[e].hidden(i, i) * whole[e].hidden(j, j)));
  }
  for (const Index threads : {1, 3}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    CHECK(same(moe::calibrate(layer, x), whole));
  }
}

TEST_CASE("calibrate: of some experts, and what does not fit together", "[compress]") {
  const auto layer = mlp_layer();
  const auto x = test::random_matrix<float>(50, 19, 8);
  const Calibration some = moe::calibrate(layer, x, {.experts = {1, 4}}), all = moe::calibrate(layer, x);
  for (Index e = 0; e < kExperts; ++e) {
    CHECK(some[e].empty() == (e != 1 && e != 4));
    if (!some[e].empty()) CHECK(same(some[e].hidden, all[e].hidden));
  }
  CHECK_THROWS_WITH(moe::calibrate(layer, x, {.experts = {5}}),
                    "moe::Calibration: expert 5, expected one below num_experts = 5");
  Calibration sum = all;
  CHECK_THROWS_AS(sum += some, std::invalid_argument);
  CHECK_THROWS_WITH(sum += Calibration(), "moe::Calibration: += of 0 experts, expected 5");
  CHECK(same(sum, all));
  CHECK_THROWS_AS(sum[5], std::invalid_argument);
  decltype(layer)::Tape tape;
  CHECK_THROWS_AS(moe::calibrate(layer, x, tape), std::invalid_argument);
  Matrix<float> out(50, 7);
  layer.forward(x, moe::Step{}, out, tape);
  CHECK_THROWS_AS(moe::calibrate(layer, x.topRows(49), tape), std::invalid_argument);
  SecondMoment moment(3);
  CHECK_THROWS_WITH(moment += SecondMoment(4), "moe::SecondMoment: += of 4 inputs, expected 3");
  CHECK_THROWS_AS(SecondMoment(-1), std::invalid_argument);
  CHECK_THROWS_AS(moment.scaled(std::vector<float>(2)), std::invalid_argument);
}

TEST_CASE("Calibration: statistics are state, which nobody learns", "[compress]") {
  const Calibration calibration = moe::calibrate(mlp_layer(), test::random_matrix<float>(50, 19, 9), {.experts = {2}});
  CHECK(moe::num_parameters(calibration) == 0);
  std::vector<std::string> names;
  moe::visit_all([&](const std::string& name, const auto&) { names.push_back(name); }, calibration);
  CHECK(names == std::vector<std::string>{"experts.2.inputs.rows", "experts.2.inputs.sum", "experts.2.hidden.rows",
                                          "experts.2.hidden.sum"});
}
