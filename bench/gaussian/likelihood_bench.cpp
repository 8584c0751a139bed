// SPDX-License-Identifier: MIT
// gaussian/...: one pass over the rows of a Gaussian mixture of experts. A "token" is a row. The table with limits
// measured in the same run is moe_bench_gaussian.
#include "google.hpp"
#include "moe/gaussian/objective.hpp"
#include "moe/gaussian/sample.hpp"

namespace {

using moe::Index;
using Model = moe::GaussianMoe<moe::SoftmaxGate>;

struct Size {
  const char* name;
  Index experts, input_dim;
};
constexpr Size kSizes[] = {{"small", 3, 5}, {"narrow", 2, 1}, {"large", 8, 10}};

/// A model with random coefficients, and rows drawn from it.
class Rows {
 public:
  Rows(const Size& size, Index n)
      : model_(model_of(size)),
        data_(draw(model_, n)),
        blocks_(data_, moe::detail::Standardisation::none(size.input_dim)),
        objective_(blocks_, moe::layout(model_), model_.form()) {}

  const moe::detail::Objective& objective() const { return objective_; }
  const Model& model() const { return model_; }
  /// The bytes of the rows alone: what binds are exponentials, which moe_bench_gaussian measures.
  bench::Work work() const {
    return {.bytes = static_cast<double>(data_.num_rows() * (data_.input_dim() + 2)) * sizeof(double)};
  }

 private:
  static Model model_of(const Size& size) {
    Model m = Model::zero(size.experts, size.input_dim);
    const moe::RandomField random(moe::Purpose::User, 1);
    for (Index j = 0; j < size.experts; ++j) {
      for (Index c = 0; c < size.input_dim; ++c) {
        m.slope(j, c) = random.normal(j, c);
        if (j + 1 < size.experts) m.gate_slope(j, c) = random.normal(j, c + size.input_dim);
      }
      m.intercept(j) = 2.0 * static_cast<double>(j);
    }
    return m;
  }

  static moe::RegressionData draw(const Model& model, Index n) {
    moe::RegressionData data{moe::Matrix<double>(n, model.input_dim()), {}};
    const moe::RandomField random(moe::Purpose::User, 2);
    for (Index i = 0; i < n; ++i)
      for (Index c = 0; c < data.input_dim(); ++c) data.x(i, c) = 2 * random.uniform(i, c) - 1;
    data.y = moe::sample(model, data.x, 3);
    return data;
  }

  Model model_;
  moe::RegressionData data_;
  moe::detail::RowBlocks blocks_;
  moe::detail::ObjectiveOf<moe::Identity> objective_;
};

/// Registers pass(rows) for all sizes, on one thread.
void add_pass(const std::string& name, void (*pass)(const Rows&)) {
  for (const Size& size : kSizes)
    benchmark::RegisterBenchmark(("gaussian/" + name + "/" + size.name).c_str(),
                                 [&size, pass](benchmark::State& state) {
                                   const bench::OneThread serial;
                                   const Rows rows(size, state.range(0));
                                   bench::measure(state, rows.work(), [&] { pass(rows); });
                                 })
        ->ArgName("tokens")->ArgsProduct({{64, 4096, 100'000}})->UseManualTime()->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  add_pass("log_likelihood", [](const Rows& rows) { bench::keep(rows.objective().value(rows.model())); });
  add_pass("score", [](const Rows& rows) {
    Eigen::VectorXd score;
    bench::keep(rows.objective().score(rows.model(), score));
  });
  add_pass("em_sums", [](const Rows& rows) {
    Eigen::VectorXd score;
    Eigen::MatrixXd information;
    bench::keep(rows.objective().complete(rows.model(), score, information));
  });
  add_pass("information", [](const Rows& rows) {
    Eigen::VectorXd score;
    Eigen::MatrixXd information;
    bench::keep(rows.objective().information(rows.model(), score, information));
  });
  return bench::run(argc, argv);
}
