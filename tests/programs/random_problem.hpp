// SPDX-License-Identifier: MIT
// Small regressions that nobody would choose, as pure functions of a seed.
#pragma once

#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>

#include "moe/core/random.hpp"
#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/gaussian/model/data.hpp"

namespace test {

using moe::Index;

/// A problem and how it was drawn.
struct RandomProblem {
  moe::RegressionData data;
  Index num_experts = 1;
  moe::FitOptions options;
  int gate = 0, kind = 0;  ///< of kNumGates, of kKinds
  std::uint64_t seed = 0;

  std::string describe() const {
    std::ostringstream out;
    const moe::FitOptions& o = options;
    out << "seed " << seed << " gate " << gate << " kind " << kind << " n " << data.num_rows() << " d "
        << data.input_dim() << " k " << num_experts << " ridge " << o.ridge << " map " << o.variance_penalty
        << " floor " << o.variance_floor << " box " << o.gate_box << " steps " << static_cast<int>(o.gate_step) << '/'
        << static_cast<int>(o.direct) << " starts " << o.starts << " iterations " << o.short_iterations << '/'
        << o.em_iterations << '/' << o.max_iterations << (o.last_slope == moe::LastSlope::Free ? " free" : "");
    return out.str();
  }
};

class ProblemMaker {
 public:
  static constexpr int kNumGates = 14, kKinds = 14;

  explicit ProblemMaker(std::uint64_t seed) : random_(moe::Purpose::User, seed), seed_(seed) {}

  RandomProblem operator()() {
    RandomProblem problem;
    problem.seed = seed_;
    problem.gate = pick(kNumGates);
    problem.kind = pick(kKinds);
    problem.num_experts = 1 + pick(5);
    const Index n = static_cast<Index>(5 * std::pow(40.0, uniform())), d = 1 + pick(4);
    problem.data.x = moe::Matrix<double>::NullaryExpr(n, d, [&] { return normal(); });
    problem.data.y = Eigen::VectorXd::NullaryExpr(n, [&] { return normal(); });
    shape(problem.kind, problem.data);
    problem.options = options(n);
    return problem;
  }

 private:
  double uniform() { return random_.uniform(next_++); }
  double normal() { return random_.normal(next_++); }
  int pick(int count) { return static_cast<int>(random_.below(static_cast<std::uint64_t>(count), next_++)); }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[pick(static_cast<int>(values.size()))];
  }

  /// y = a line in x.
  Eigen::VectorXd line(const moe::Matrix<double>& x) {
    Eigen::VectorXd slope = Eigen::VectorXd::NullaryExpr(x.cols(), [&] { return normal(); });
    return (x * slope).array() + normal();
  }

  void shape(int kind, moe::RegressionData& data) {
    auto& x = data.x;
    auto& y = data.y;
    const Index n = x.rows();
    switch (kind) {
      case 0:
        break;  // noise
      case 1:
        y = line(x);
        break;  // an exact line
      case 2:
        y = x.col(0).array().sign().cwiseProduct(line(x).array());
        break;  // two exact lines that meet
      case 3:
        y = y.array().round();
        break;  // tied y
      case 4:
        y.setConstant(one_of({0.0, 3.0, 0.1, -1e8}));
        break;  // constant y
      case 5:
        x = x.array().round();
        break;  // few distinct x
      case 6:
        y = line(x) + 0.1 * y;
        break;  // one line
      case 7:
        scale(data, 8, 8);
        break;  // other units
      case 8:
        y(0) = one_of({1e6, -1e6, 1e9}), x(n - 1, 0) = 1e6;
        break;  // outliers
      case 9:
        separate(data);
        break;  // classes that a plane divides
      case 10:
        duplicate(data);
        break;  // rows several times
      case 11:
        x = (3 * x).array().round(), y = (3 * y).array().round();
        break;  // integers
      case 12:
        scale(data, 90, 0);
        break;  // absurd units
      default:
        x.array() += one_of({1e3, 1e6}), y.array() += one_of({0.0, 1e6});
        break;  // far from the origin
    }
  }

  void scale(moe::RegressionData& data, double decades, double shift) {
    for (Index c = 0; c < data.input_dim(); ++c) data.x.col(c) *= std::pow(10.0, decades * (2 * uniform() - 1));
    data.y *= std::pow(10.0, decades * (2 * uniform() - 1));
    if (shift > 0) data.y.array() += data.y.norm() * normal();
  }

  void separate(moe::RegressionData& data) {
    auto& x = data.x;
    auto& y = data.y;
    for (Index i = 0; i < x.rows(); ++i) {
      if (std::abs(x(i, 0)) < 0.2) x(i, 0) = std::copysign(0.3, x(i, 0));
      y(i) = (x(i, 0) > 0 ? 10 + x(i, 0) : -10 - 2 * x(i, 0)) + 0.1 * y(i);
    }
  }

  void duplicate(moe::RegressionData& data) {
    auto& x = data.x;
    auto& y = data.y;
    const Index distinct = std::max<Index>(2, x.rows() / 4);
    for (Index i = distinct; i < x.rows(); ++i) x.row(i) = x.row(i % distinct), y(i) = y(i % distinct);
  }

  moe::FitOptions options(Index n) {
    moe::FitOptions o;
    o.starts = 1 + pick(5);
    o.long_runs = pick(3);
    o.short_iterations = one_of({0, 5, 20});
    o.em_iterations = one_of({0, 5, 40});
    o.max_iterations = one_of({1, 100, 2000});
    o.gate_step = one_of({moe::GateStep::Automatic, moe::GateStep::Newton, moe::GateStep::Majorise});
    o.direct = one_of({moe::DirectMethod::Automatic, moe::DirectMethod::Newton, moe::DirectMethod::QuasiNewton,
                       moe::DirectMethod::Off});
    o.ridge = one_of({0.0, 0.0, 1e-6, 0.01, 1.0});
    o.variance_penalty = one_of({0.0, 0.0, 1 / std::sqrt(static_cast<double>(n))});
    o.variance_floor = one_of({0.0, 0.0, 1e-10, 1e-3});
    o.gate_box = one_of({500.0, 500.0, 10.0, 1e4});
    if (uniform() < 0.3) o.last_slope = moe::LastSlope::Free;
    o.seed = seed_;
    return o;
  }

  moe::RandomField random_;
  std::uint64_t seed_;
  std::int64_t next_ = 0;
};

}  // namespace test
