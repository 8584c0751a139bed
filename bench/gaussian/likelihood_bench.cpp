// SPDX-License-Identifier: MIT
// gaussian/...: one pass over the rows of a Gaussian mixture of experts. A "token" is a row. The table with limits
// measured in the same run is moe_bench_gaussian.
#include "gaussian_problem.hpp"
#include "google.hpp"
#include "moe/gaussian/pass/objective.hpp"

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
      : model_(bench::gaussian_model(size.experts, size.input_dim)),
        data_(bench::gaussian_rows(model_, n)),
        blocks_(data_, moe::detail::Standardisation::none(size.input_dim)),
        objective_(blocks_, moe::layout(model_), model_.form()) {}

  const moe::detail::Objective& objective() const { return objective_; }
  const Model& model() const { return model_; }
  /// The bytes of the rows alone: what binds are exponentials, which moe_bench_gaussian measures.
  bench::Work work() const {
    return {.bytes = static_cast<double>(data_.num_rows() * (data_.input_dim() + 2)) * sizeof(double)};
  }

 private:
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
        ->ArgName("tokens")
        ->ArgsProduct({{64, 4096, 100'000}})
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
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
